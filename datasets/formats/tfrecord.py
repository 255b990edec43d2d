"""Records of a TFRecord file, found without reading them.

A record is, little-endian, `u64 length | u32 checksum of the length | payload | u32 checksum of
the payload`; the checksum is CRC-32C, rotated and shifted so that a checksum of checksums is sound.
For b"123456789" the CRC-32C is 0xE3069283 and the checksum 0xC78AB0E5.

Shape legend: R records.
"""

import struct
from array import array
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.formats.optional import optional_import

_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_LARGEST_PAYLOAD = (1 << 31) - 1
"""Bytes; what a protocol buffer may hold at most."""


def masked_crc32c(content: bytes) -> int:
    """The checksum of a TFRecord: CRC-32C, rotated right by 15 bits, plus a constant.

    Raises:
        ValueError: when google-crc32c is not installed.
    """
    crc: int = optional_import("google_crc32c", purpose="reading TFRecord files").value(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def index_records(path: Path) -> NDArray[np.int64]:
    """Where the payloads of a file lie, from the lengths alone.

    Returns:
        int64 (R, 2): first byte and number of bytes of each payload.

    Raises:
        ValueError: when the file is missing, ends within a record, or a length is damaged.
    """
    places = array("q")
    try:
        size = path.stat().st_size
        with path.open("rb", buffering=0) as file:
            position = 0
            while position < size:
                about = f"record {len(places) // 2} of {path}"
                header = file.read(_HEADER.size)
                if len(header) < _HEADER.size:
                    raise ValueError(_cut_off(about))
                length, checksum = _HEADER.unpack(header)
                if masked_crc32c(header[:8]) != checksum:
                    raise ValueError(
                        f"expected {about} to begin with a length that fits its checksum, but it "
                        "does not; the file is damaged or no TFRecord: restore it"
                    )
                start = position + _HEADER.size
                position = start + length + _CHECKSUM.size
                if position > size:
                    raise ValueError(_cut_off(about))
                if length > _LARGEST_PAYLOAD:
                    raise ValueError(
                        f"expected at most {_LARGEST_PAYLOAD} bytes in {about}, but {length} came; "
                        "write that episode again in parts"
                    )
                places.extend((start, length))
                file.seek(position)
    except OSError as error:
        raise ValueError(_unreadable(path, error)) from error
    return np.array(places, np.int64).reshape(-1, 2)


def read_record(path: Path, *, start: int, length: int, about: str) -> bytes:
    """The payload of one record, as `index_records` found it.

    Args:
        path: of the file.
        start: first byte of the payload.
        length: number of bytes.
        about: what it is, for the message.

    Raises:
        ValueError: when the file has changed since, or the payload does not fit its checksum.
    """
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            content = file.read(length + _CHECKSUM.size)
    except OSError as error:
        raise ValueError(_unreadable(path, error)) from error
    if len(content) < length + _CHECKSUM.size:
        raise ValueError(_cut_off(about))
    payload = content[:length]
    if masked_crc32c(payload) != _CHECKSUM.unpack_from(content, length)[0]:
        raise ValueError(
            f"expected the content of {about} to fit its checksum, but it does not: the file is "
            "damaged; restore it"
        )
    return payload


def _cut_off(about: str) -> str:
    return f"expected all of {about}, but the file ends within it; restore the file"


def _unreadable(path: Path, error: OSError) -> str:
    return (
        f"expected a TFRecord file at {path}, but it cannot be read ({error.strerror}); restore it"
    )
