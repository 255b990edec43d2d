"""Memory for batches of frames that is used again.

The kernel hands out large fresh memory page by page, each zeroed first, which takes as long as
copying frames into it.
"""

import math
import weakref

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.interface import Image


class RecycledMemory:
    """Arrays whose memory comes back once nobody holds them, or a part of them, any longer.

    It keeps as many arrays of a size as were held at one time. Threads may share it.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self._free: dict[int, list[NDArray[np.uint8]]] = {}

    def empty(self, shape: tuple[int, ...]) -> Image:
        """An array of undefined content, uint8."""
        size = math.prod(shape)
        free = self._free.setdefault(size, [])
        try:
            block = free.pop()
        except IndexError:
            block = np.empty(size, np.uint8)
        # Views of a view of an array refer to that array. A memoryview in between makes them refer
        # to `lent`, which hence lives as long as the last of them.
        lent: Image = np.frombuffer(block.data, np.uint8)
        weakref.finalize(lent, free.append, block).atexit = False
        return lent.reshape(shape)
