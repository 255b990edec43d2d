"""Instructions as word tokens.

Words are hashed, so no vocabulary has to be learnt, shipped or kept in step with a checkpoint.
"""

import re
import zlib

import numpy as np
from numpy.typing import NDArray

BUCKETS = 2048
"""Distinct word tokens; 0 is padding."""


def word_tokens(instruction: str, length: int) -> NDArray[np.int64]:
    """Hashed tokens (length,) of the first `length` words, padded with 0.

    "Pick up the cube." gives the same four tokens as "pick up the CUBE".
    """
    words = re.findall(r"\w+", instruction.lower())[:length]
    tokens = np.zeros(length, np.int64)
    for index, word in enumerate(words):
        tokens[index] = 1 + zlib.crc32(word.encode()) % (BUCKETS - 1)
    return tokens
