"""Values of variable length in an HDF5 file, read from their heaps without the library.

The library (2.0, as h5py brings it along) never returns from some damaged heaps. Here everything is
bounded by the file. Layouts: HDF5 file format specification, sections III.E (global heap), IV.A.1
(object header) and IV.A.2.m (attribute message).
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

REFERENCE_BYTES: Final = 16
_MAX_BLOCKS = 256
_MAX_HEADER_BYTES = 1 << 22
_ATTRIBUTE, _CONTINUATION = 0x0C, 0x10
_SHARED = 0x02


def read_values(path: Path, references: bytes, *, about: str) -> list[bytes]:
    """The values that references lead to.

    Args:
        path: of the file, whose addresses and lengths must be of 8 bytes.
        references: of 16 bytes each: length, address of a heap, index in it.
        about: what is read, for the message.

    Raises:
        ValueError: when a heap is damaged or does not hold the value.
    """
    heaps: dict[int, dict[int, tuple[int, int]]] = {}
    values = []
    with _open(path) as file:
        for length, address, index in struct.iter_unpack("<IQI", references):
            if length == 0 or address == 0:
                values.append(b"")
                continue
            if address not in heaps:
                heaps[address] = _heap(file, address, about)
            start, size = heaps[address].get(index, (0, -1))
            if length > size:
                raise _damaged(file, about)
            values.append(_read(file, start, length, about))
    return values


def read_attribute(path: Path, address: int, name: str) -> bytes:
    """The stored bytes of an attribute.

    Args:
        path: of the file.
        address: of the header of the object that it belongs to.
        name: of the attribute.

    Raises:
        ValueError: when the header is damaged, or the attribute is not kept in it.
    """
    about = f"attribute {name!r}"
    with _open(path) as file:
        for message in _messages(file, address, about):
            version, _, name_size, type_size, space_size = struct.unpack_from("<BBHHH", message)
            start = 9 if version == 3 else 8
            stored_name = message[start : start + name_size]
            if stored_name.split(b"\0")[0] == name.encode():
                for size in (name_size, type_size, space_size):
                    # Version 1 fills each part up to 8 bytes.
                    start += size + (-size % 8 if version == 1 else 0)
                return message[start:]
    raise ValueError(
        f"expected {about} in the header of its object in {path}, but it is kept elsewhere; store "
        "it as text of fixed length"
    )


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise ValueError(f"{path} cannot be opened any more ({error}); restore it") from error


def _heap(file: BinaryIO, address: int, about: str) -> dict[int, tuple[int, int]]:
    """Index to place and size of the values in one heap."""
    signature, version, size = struct.unpack("<4sB3xQ", _read(file, address, 16, about))
    if signature != b"GCOL" or version != 1 or address + size > _size(file):
        raise _damaged(file, about)
    found = {}
    at, end = address + 16, address + size
    while at + 16 <= end:
        index, length = struct.unpack("<H6xQ", _read(file, at, 16, about))
        if index == 0:
            break  # the rest is free
        if at + 16 + length > end:
            raise _damaged(file, about)
        found[index] = (at + 16, length)
        at += 16 + length + -length % 8
    return found


def _messages(file: BinaryIO, address: int, about: str) -> Iterator[bytes]:
    """Yield the attribute messages of an object header, of version 1 or 2."""
    start = _read(file, address, 16, about)
    modern = start.startswith(b"OHDR")
    if modern:
        flags = start[5]
        skipped = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        width = 1 << (flags & 3)
        size = int.from_bytes(_read(file, address + skipped, width, about), "little")
        blocks = [(address + skipped + width, size)]
        head = struct.Struct("<BHB2x" if flags & 0x04 else "<BHB")
    else:
        blocks = [(address + 16, int.from_bytes(start[8:12], "little"))]
        head = struct.Struct("<HHB3x")
    done = total = 0
    while done < len(blocks):
        place, size = blocks[done]
        done += 1
        total += size
        if done > _MAX_BLOCKS or total > _MAX_HEADER_BYTES:
            raise _damaged(file, about)
        block = _read(file, place, size, about)
        at = 0
        while at + head.size <= len(block):
            kind, length, flags = head.unpack_from(block, at)
            at += head.size
            body = block[at : at + length]
            if len(body) < length:
                raise _damaged(file, about)
            at += length
            if kind == _CONTINUATION and length >= 16:
                place, size = struct.unpack_from("<QQ", body)
                # In version 2 a signature and a checksum enclose the messages.
                blocks.append((place + 4, max(0, size - 8)) if modern else (place, size))
            elif kind == _ATTRIBUTE and not flags & _SHARED and length >= 9:
                yield body


def _read(file: BinaryIO, place: int, size: int, about: str) -> bytes:
    if place + size > _size(file):
        raise _damaged(file, about)
    file.seek(place)
    return file.read(size)


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _damaged(file: BinaryIO, about: str) -> ValueError:
    return ValueError(
        f"expected a complete HDF5 file at {file.name}, but {about} cannot be read (a heap or "
        "header is damaged); restore it or record again"
    )
