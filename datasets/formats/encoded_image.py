"""Single pictures as PNG or JPEG, told apart and measured before they are decoded.

Shape legend: H height, W width.
"""

import zlib
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from robot_qsft.datasets.interface import Image

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
_NOT_A_FRAME = (0xC4, 0xC8, 0xCC)
"""Markers between 0xC0 and 0xCF that tell something else than the size."""
_MOST_PIXELS = 1 << 26
# Cameras do not turn while they record; TensorFlow, too, ignores the orientation that a file tells.
_COLOUR = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION


@dataclass(frozen=True)
class EncodedImage:
    """What the first bytes of a picture tell.

    Attributes:
        format: of the file.
        height: in pixels.
        width: in pixels.
    """

    format: Literal["png", "jpeg"]
    height: int
    width: int


def sniff_image(content: bytes) -> EncodedImage | None:
    """Format and size of a picture; None where the content is neither PNG nor JPEG."""
    if content.startswith(_PNG) and content[12:16] == b"IHDR" and len(content) >= 24:
        width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
        return EncodedImage("png", height, width)
    if content.startswith(_JPEG):
        at = 2
        while at + 9 <= len(content) and content[at] == 0xFF:
            marker = content[at + 1]
            if 0xC0 <= marker <= 0xCF and marker not in _NOT_A_FRAME:
                height, width = (
                    int.from_bytes(content[first : first + 2], "big") for first in (at + 5, at + 7)
                )
                return EncodedImage("jpeg", height, width)
            # A marker may be filled up with further bytes of 0xFF.
            at += 1 if marker == 0xFF else 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return None


def decode_image(content: bytes, *, height: int, width: int, about: str) -> Image:
    """An RGB picture, uint8 (H, W, 3), of a size that is known.

    Args:
        content: of the file.
        height: expected, in pixels.
        width: expected, in pixels.
        about: what it is, for the message.

    Raises:
        ValueError: when it is neither PNG nor JPEG, of another size, or damaged.
    """
    sniffed = sniff_image(content)
    if sniffed is None:
        raise ValueError(f"expected a PNG or JPEG for {about}, but {content[:8]!r} came; mend it")
    if (sniffed.height, sniffed.width) != (height, width):
        raise ValueError(
            f"expected frames of {height}x{width} for {about}, but {sniffed.height}x"
            f"{sniffed.width} came; all frames of a camera must be of one size"
        )
    if height * width > _MOST_PIXELS:
        raise ValueError(
            f"expected frames of at most {_MOST_PIXELS} pixels for {about}, but {height}x{width} "
            "came; restore the file or store smaller ones"
        )
    complete = _is_whole_png(content) if sniffed.format == "png" else _JPEG_END in content
    try:
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), _COLOUR) if complete else None
    except cv2.error:
        decoded = None
    if decoded is None or decoded.shape != (height, width, 3):
        raise ValueError(
            f"expected a whole {sniffed.format.upper()} for {about}, but it cannot be decoded; "
            "restore the file or drop the episode"
        )
    return np.ascontiguousarray(decoded[..., ::-1])


def _is_whole_png(content: bytes) -> bool:
    """Whether all chunks are within the content, fit their checksums and tell one size.

    The library takes memory for as many bytes as a chunk claims.
    """
    view, at = memoryview(content), len(_PNG)
    while at + 12 <= len(view):
        size, kind = int.from_bytes(view[at : at + 4], "big"), bytes(view[at + 4 : at + 8])
        end = at + 8 + size
        if end + 4 > len(view) or (kind == b"IHDR") != (at == len(_PNG)):
            return False
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            return False
        if kind == b"IEND":
            return True
        at = end + 4
    return False
