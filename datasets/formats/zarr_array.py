"""Arrays of zarr format 2, read chunk by chunk with every size bounded before it is unpacked.

A chunk says how large it is once unpacked. It is unpacked only where that is the size that the
array's shape asks for, and only by a codec of a short list: none that could run anything.

Shape legend: H height, N rows, W width.
"""

import bz2
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.formats.optional import optional_import
from robot_qsft.datasets.formats.zarr_store import ARRAY, ZarrStore

_LARGEST_BLOCK = 1 << 30
"""Bytes of the chunks that hold the same rows."""
_MOST_CHUNKS = 1 << 16
"""Chunks that hold the same rows."""
_LARGEST_SIDE = 1 << 40
_LARGEST_JSON = 1 << 20
_SLACK = 1 << 16
"""Bytes that a codec may add to what does not pack well."""
_PURPOSE = "reading zarr arrays that are packed by blosc, lz4 or zstd"
_OF_NUMCODECS = ("blosc", "lz4", "zstd")
_JPEG_2000 = "imagecodecs_jpeg2k"


class ZarrArray:
    """One array; opening reads its description only, and of its chunks the latest are kept.

    Attributes:
        name: such as "data/action".
        shape: (N, ...).
        dtype: of this machine's byte order.
        lossy: whether it holds pictures that were compressed with loss.
    """

    def __init__(self, store: ZarrStore, name: str) -> None:
        """Read `.zarray`.

        Raises:
            ValueError: when it is missing or damaged, or what it describes cannot be read here.
        """
        self.name = name
        self._store = store
        self._about = f"{name} in {store.path}"
        stored = _read_description(store, f"{name}/{ARRAY}")
        self.shape: tuple[int, ...] = _sizes(stored.get("shape"), self._about, least=0)
        self._chunks = _sizes(stored.get("chunks"), self._about, least=1)
        self._stored_dtype = _dtype(stored.get("dtype"), self._about)
        self.dtype = self._stored_dtype.newbyteorder("=")
        self._order = stored.get("order", "C")
        self._separator = stored.get("dimension_separator", ".")
        self._compressor = _compressor(stored, self._about)
        self.lossy = self._compressor == _JPEG_2000
        if self._compressor in _OF_NUMCODECS:
            optional_import("numcodecs", purpose=_PURPOSE)
        if (
            not self.shape
            or 0 in self.shape[1:]
            or len(self.shape) != len(self._chunks)
            or self._order not in ("C", "F")
            or self._separator not in (".", "/")
            or (self._compressor == _JPEG_2000 and self.dtype != np.uint8)
        ):
            raise ValueError(
                f"expected shape, chunks and order of {self._about} to fit together, but they do "
                "not; restore the file .zarray"
            )
        inner = [
            math.ceil(side / chunk)
            for side, chunk in zip(self.shape[1:], self._chunks[1:], strict=True)
        ]
        padded = math.prod(
            count * chunk for count, chunk in zip(inner, self._chunks[1:], strict=True)
        )
        if (
            self._chunks[0] * padded * self.dtype.itemsize > _LARGEST_BLOCK
            or math.prod(inner) > _MOST_CHUNKS
        ):
            raise ValueError(
                f"expected chunks of {self._about} of at most {_LARGEST_BLOCK} bytes, but shape "
                f"{self.shape} and chunks {self._chunks} came; write it again in smaller chunks"
            )
        self._inner = inner
        self._latest: tuple[int, NDArray[Any]] | None = None

    def blocks(self, first: int, last: int) -> Iterator[NDArray[Any]]:
        """Yield rows `first` to `last`, half open, in parts that lie in one chunk each.

        Raises:
            ValueError: when a chunk is missing or damaged.
        """
        rows = self._chunks[0]
        for number in range(first // rows, math.ceil(last / rows)):
            start = number * rows
            yield self._block(number)[max(first - start, 0) : last - start]

    def read(self, first: int, last: int) -> NDArray[Any]:
        """Rows `first` to `last`, half open.

        Raises:
            ValueError: when a chunk is missing or damaged.
        """
        # Parts are joined at the end: nothing is allocated for rows that the file only claims.
        return np.concatenate(list(self.blocks(first, last)))

    def _block(self, number: int) -> NDArray[Any]:
        """All rows of the chunks `number` along the first axis."""
        if self._latest is None or self._latest[0] != number:
            rows = min(self._chunks[0], self.shape[0] - number * self._chunks[0])
            block = np.empty((rows, *self.shape[1:]), self.dtype)
            for place in product(*map(range, self._inner)):
                corner = tuple(
                    slice(at * size, (at + 1) * size)
                    for at, size in zip(place, self._chunks[1:], strict=True)
                )
                target = block[(slice(None), *corner)]
                chunk = self._chunk((number, *place))
                target[...] = chunk[tuple(slice(size) for size in target.shape)]
            self._latest = number, block
        return self._latest[1]

    def _chunk(self, place: tuple[int, ...]) -> NDArray[Any]:
        key = f"{self.name}/{self._separator.join(map(str, place))}"
        about = f"chunk {key} in {self._store.path}"
        size = math.prod(self._chunks) * self.dtype.itemsize
        content = self._store.read(key, limit=2 * size + _SLACK)
        if content is None:
            # Zarr takes a missing chunk for one of zeros; so a lost file would look like data.
            raise ValueError(
                f"expected the {about}, but it is missing; restore it, or where chunks of zeros "
                "were left out on purpose write the array again with write_empty_chunks=True"
            )
        if self._compressor == _JPEG_2000:
            return _decode_jpeg_2000(content, self._chunks, about)
        unpacked = _unpack(content, self._compressor, size=size, about=about)
        if self.dtype == np.bool_:
            values = np.frombuffer(unpacked, np.uint8) != 0
        else:
            values = np.frombuffer(unpacked, self._stored_dtype)
        chunk: NDArray[Any] = values.reshape(self._chunks, order=self._order)
        return chunk


def _read_description(store: ZarrStore, name: str) -> dict[str, Any]:
    content = store.read(name, limit=_LARGEST_JSON)
    try:
        stored = json.loads(content) if content is not None else None
    except (ValueError, RecursionError):
        stored = None
    if not isinstance(stored, dict) or stored.get("zarr_format") != 2:
        raise ValueError(
            f"expected the description of a zarr array of format 2 in {name} of {store.path}, but "
            "it holds none; restore it"
        )
    return stored


def _sizes(stored: Any, about: str, *, least: int) -> tuple[int, ...]:
    if (
        not isinstance(stored, list)
        or len(stored) > 8
        or not all(type(size) is int and least <= size <= _LARGEST_SIDE for size in stored)
    ):
        raise ValueError(
            f"expected shape and chunks of {about} to be whole numbers below {_LARGEST_SIDE}, but "
            "others came; restore the file .zarray"
        )
    return tuple(stored)


def _dtype(stored: Any, about: str) -> np.dtype[Any]:
    if not isinstance(stored, str) or not re.fullmatch(r"[<>|](b1|[iu][1248]|f[248])", stored):
        named = f"{stored!r:.40}" if isinstance(stored, str) else "a structure"
        raise ValueError(
            f"expected numbers in {about}, but its dtype is {named}; objects and text are not "
            "read here, as they may hide programs: take the array out or store numbers"
        )
    return np.dtype(stored)


def _compressor(stored: Mapping[str, Any], about: str) -> str | None:
    """The name of the codec, None where chunks are stored as they are."""
    compressor, filters = stored.get("compressor"), stored.get("filters")
    name = compressor.get("id") if isinstance(compressor, dict) else None
    if compressor is not None and name not in (*_UNPACKERS, _JPEG_2000):
        raise ValueError(
            f"expected {about} to be packed by one of {', '.join(_UNPACKERS)}, {_JPEG_2000}, but "
            f"{_named(name)} came, which is not read here; write the array again with "
            "numcodecs.Blosc(), with the package that brought that codec"
        )
    if filters:
        one = (
            filters[0].get("id")
            if isinstance(filters, list) and isinstance(filters[0], dict)
            else None
        )
        raise ValueError(
            f"expected no filters for {about}, but {_named(one)} came; write the array again "
            "without filters"
        )
    return name


def _named(name: Any) -> str:
    return f"{name!r:.60}" if isinstance(name, str) else "one without a name"


def _unpack(content: bytes, codec: str | None, *, size: int, about: str) -> bytes | NDArray[Any]:
    """The `size` bytes of a chunk.

    Raises:
        ValueError: when it is damaged, or has not that size.
    """
    try:
        unpacked = content if codec is None else _UNPACKERS[codec](content, size)
    except (zlib.error, OSError, EOFError, RuntimeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"expected the {about} as {codec} packed it, but it cannot be unpacked ({reason}); "
            "restore the file"
        ) from error
    if len(unpacked) != size:
        raise ValueError(
            f"expected {size} bytes in the {about}, but {len(unpacked)} or more came; restore the "
            "file"
        )
    return unpacked


def _unpack_zlib(content: bytes, size: int) -> bytes:
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
    unpacked = unpacker.decompress(content, size + 1)
    if len(unpacked) == size and not unpacker.eof:
        raise ValueError("its end is missing")
    return unpacked


def _unpack_bz2(content: bytes, size: int) -> bytes:
    unpacker = bz2.BZ2Decompressor()
    unpacked = unpacker.decompress(content, size + 1)
    if len(unpacked) == size and not unpacker.eof:
        raise ValueError("its end is missing")
    return unpacked


def _unpack_numcodecs(codec: str, claimed: int, content: bytes, size: int) -> NDArray[Any]:
    if claimed != size:
        raise ValueError(f"it claims {claimed} bytes, not {size}")
    numcodecs = optional_import("numcodecs", purpose=_PURPOSE)
    unpacked = np.empty(size, np.uint8)
    getattr(numcodecs, codec)().decode(content, out=unpacked)
    return unpacked


def _unpack_blosc(content: bytes, size: int) -> NDArray[Any]:
    # Blosc trusts what its head says of the bytes that follow.
    if len(content) < 16 or int.from_bytes(content[12:16], "little") != len(content):
        raise ValueError("it is cut off")
    return _unpack_numcodecs("Blosc", int.from_bytes(content[4:8], "little"), content, size)


def _unpack_lz4(content: bytes, size: int) -> NDArray[Any]:
    return _unpack_numcodecs("LZ4", int.from_bytes(content[:4], "little"), content, size)


def _unpack_zstd(content: bytes, size: int) -> NDArray[Any]:
    return _unpack_numcodecs("Zstd", _zstd_size(content), content, size)


def _zstd_size(content: bytes) -> int:
    """The size that the head of a Zstandard frame tells (RFC 8878, 3.1.1.1); 0 where it does not.

    The bytes 28 b5 2f fd 60 e8 02 tell 0x02e8 + 256 = 1000.
    """
    if content[:4] != b"\x28\xb5\x2f\xfd" or len(content) < 6:
        raise ValueError("it does not begin as one")
    descriptor = content[4]
    single_segment = bool(descriptor & 0x20)
    width = (int(single_segment), 2, 4, 8)[descriptor >> 6]
    start = 5 + (not single_segment) + (0, 1, 2, 4)[descriptor & 3]
    size = int.from_bytes(content[start : start + width], "little")
    return size + 256 if width == 2 else size


_UNPACKERS: Mapping[str, Callable[[bytes, int], bytes | NDArray[np.uint8]]] = MappingProxyType(
    {
        "blosc": _unpack_blosc,
        "zstd": _unpack_zstd,
        "lz4": _unpack_lz4,
        "zlib": _unpack_zlib,
        "gzip": _unpack_zlib,
        "bz2": _unpack_bz2,
    }
)


def _decode_jpeg_2000(content: bytes, chunks: tuple[int, ...], about: str) -> NDArray[Any]:
    """A picture in a chunk of its own, uint8 (1, H, W, 3).

    Raises:
        ValueError: when it is none of that size.
    """
    picture = chunks[1:]
    # The codestream begins with its size, as numbers of 4 bytes after a marker and two of 2 bytes.
    head = content.find(b"\xff\x4f\xff\x51")
    width, height = (int.from_bytes(content[head + at : head + at + 4], "big") for at in (8, 12))
    decoded = None
    if head >= 0 and chunks[0] == 1 and picture == (height, width, 3):
        try:
            decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error:
            decoded = None
    if decoded is None or decoded.shape != picture:
        raise ValueError(
            f"expected a JPEG 2000 of shape {picture} in the {about}, but it cannot be decoded; "
            "restore the file"
        )
    pictures: NDArray[Any] = decoded[None, ..., ::-1]
    return pictures
