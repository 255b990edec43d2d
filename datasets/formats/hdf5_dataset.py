"""Rows of HDF5 files of other people, read with suspicion.

What a file claims is bounded before memory is taken for it: rows that were never written are
refused, compressed rows may take at most `MAX_RATIO` times the bytes that are stored for them, and
one read at most `MAX_BYTES`. Rows in other files and types that are no numbers, truth values, text
or bytes are refused. Every error of the library ends in a `ValueError` of one sentence.

Shape legend: H height, T rows, W width.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.features import Camera
from robot_qsft.datasets.formats.hdf5_heap import REFERENCE_BYTES, read_values
from robot_qsft.datasets.formats.optional import optional_import
from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.source import Column

MAX_BYTES: Final = 1 << 29
# Deflate shrinks to 1/1032 at best, as it does with a column of zeros.
MAX_RATIO: Final = 1100
_BLOCK_BYTES = 1 << 24
_MAX_ROW_BYTES = 1 << 26
# Deflate, shuffle, checksum, szip, nbit, scale-offset and LZF: what h5py brings along.
_FILTERS = frozenset((1, 2, 3, 4, 5, 6, 32000))


class Hdf5Dataset:
    """Rows of numbers or text.

    Attributes:
        path: of the file.
        name: within the file, such as "/data/demo_0/actions".
        shape: rows first; () for a single value.
        dtype: as stored.
        is_number: whether it holds numbers or truth values of up to 8 bytes.
        is_text: whether it holds text.
    """

    def __init__(self, path: Path, node: Any) -> None:
        """Look at type, shape and place of the rows; none of them is read.

        Raises:
            ValueError: when they lie elsewhere, or are packed in a way that is not known here.
        """
        self.path = path
        self._node = node
        h5py = h5py_module()
        with reading(path, "a dataset"):
            self.name = str(node.name)
        with reading(path, repr(self.name)):
            self.shape: tuple[int, ...] = tuple(node.shape or ())
            self.dtype: np.dtype[Any] = node.dtype
            text = h5py.check_string_dtype(node.dtype)
            self.is_text = text is not None
            # Byte arrays or text of variable length, which lie in heaps.
            self._vlen = (
                text.length is None
                if text is not None
                else h5py.check_vlen_dtype(node.dtype) == np.uint8
            )
            made = node.id.get_create_plist()
            layout = made.get_layout()
            outside = layout == h5py.h5d.VIRTUAL or made.get_external_count() > 0
            filters = [made.get_filter(which)[0] for which in range(made.get_nfilters())]
            self._chunks: tuple[int, ...] | None = (
                made.get_chunk() if layout == h5py.h5d.CHUNKED else None
            )
            self._contiguous = layout == h5py.h5d.CONTIGUOUS
            in_heaps = self._vlen and (filters or layout == h5py.h5d.COMPACT)
        self.is_number = self.dtype.kind in "biuf" and self.dtype.itemsize <= 8
        if outside:
            raise ValueError(
                f"{self.name!r} of {path} keeps its rows in another file, which is not opened; "
                "repack it into one file (h5repack)"
            )
        if in_heaps:
            raise ValueError(
                f"{self.name!r} of {path} holds rows of variable length that are compressed or "
                "packed, which is not read; repack it (h5repack -f NONE)"
            )
        for found in filters:
            if found not in _FILTERS:
                raise ValueError(
                    f"{self.name!r} of {path} is compressed by HDF5 filter {found}, which h5py "
                    "does not bring along; repack it with gzip (h5repack -f GZIP=4)"
                )
        self._checked = False

    def __len__(self) -> int:
        """Number of rows, T."""
        return self.shape[0] if self.shape else 0

    @property
    def column(self) -> Column | None:
        """What a row holds; None where it is neither number nor text, or empty."""
        if self.is_text and len(self.shape) == 1:
            return Column("string")
        if self.is_number and self.shape and 0 not in self.shape[1:]:
            return Column(_native(self.dtype).name, self.shape[1:])
        return None

    @property
    def camera(self) -> Camera | None:
        """Size of its frames; None where the rows are no colour images."""
        if self.dtype != np.uint8 or len(self.shape) != 4 or self.shape[3] != 3:
            return None
        height, width = self.shape[1:3]
        if height * width == 0:
            return None
        return Camera(height, width, "image")

    def numbers(self, *, first: int = 0, count: int | None = None) -> NDArray[Any]:
        """Rows `first` to `first + count` (all of them where None), in the machine's byte order.

        Raises:
            ValueError: when they are no numbers, damaged, missing or more than `MAX_BYTES`.
        """
        if not self.is_number:
            raise ValueError(
                f"expected numbers in {self.name!r} of {self.path}, but {self.dtype} came; "
                "record it again"
            )
        rows = self._read(first, count)
        return np.ascontiguousarray(rows, _native(self.dtype))

    def text(self, *, first: int = 0, count: int | None = None) -> list[str]:
        """Rows `first` to `first + count` (all of them where None) of text.

        Raises:
            ValueError: when they are no UTF-8, damaged, missing or more than `MAX_BYTES`.
        """
        if not self.is_text or len(self.shape) != 1:
            raise ValueError(
                f"expected a list of text in {self.name!r} of {self.path}, but {self.dtype} came "
                f"in shape {self.shape}; record it again"
            )
        if self._vlen:
            rows: Any = self._vlen_rows(first, count)
        else:
            rows = self._read(first, count)
        with reading(self.path, repr(self.name)):
            # Text of variable length ends as in C.
            return [bytes(value).split(b"\0")[0].decode() for value in rows]

    def byte_rows(self, *, first: int = 0, count: int | None = None) -> Iterator[bytes]:
        """Yield rows of encoded images: byte arrays of any length, or padded to one length.

        Raises:
            ValueError: when they are no bytes, damaged or missing.
        """
        padded = self.dtype == np.uint8 and len(self.shape) == 2
        if not padded and not (self._vlen and not self.is_text):
            raise ValueError(
                f"expected encoded images in {self.name!r} of {self.path}, but {self.dtype} came "
                f"in shape {self.shape}; record it again"
            )
        count = len(self) - first if count is None else count
        for row in range(first, first + count):
            if padded:
                yield self.numbers(first=row, count=1).tobytes()
            else:
                yield from self._vlen_rows(row, 1)

    def images(self, *, first: int = 0, count: int | None = None) -> Iterator[Image]:
        """Yield frames, uint8 (H, W, 3), a few in memory at a time.

        Raises:
            ValueError: when they are no images, damaged or missing.
        """
        if self.camera is None:
            raise ValueError(
                f"expected images (T, H, W, 3) of uint8 in {self.name!r} of {self.path}, but "
                f"{self.dtype} came in shape {self.shape}; record it again"
            )
        return (image for block in self.blocks(first=first, count=count) for image in block)

    def blocks(self, *, first: int = 0, count: int | None = None) -> Iterator[NDArray[Any]]:
        """Yield rows, a few at a time: whole chunks, where these are small.

        Raises:
            ValueError: as `numbers` does, or when one row is large.
        """
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        if row_bytes > _MAX_ROW_BYTES:
            raise ValueError(
                f"expected rows of at most {_MAX_ROW_BYTES >> 20} MiB in {self.name!r} of "
                f"{self.path}, but they are of shape {self.shape[1:]}; scale them down"
            )
        count = len(self) - first if count is None else count
        rows = max(1, _BLOCK_BYTES // max(1, row_bytes))
        if self._chunks and self._chunks[0] * row_bytes <= 4 * _BLOCK_BYTES:
            rows = max(self._chunks[0], rows - rows % self._chunks[0])
        for start in range(first, first + count, rows):
            yield self.numbers(first=start, count=min(rows, first + count - start))

    def scalar(self) -> float | None:
        """A single number; None where it is none.

        Raises:
            ValueError: when it is damaged.
        """
        if not self.is_number or self.shape:
            return None
        with reading(self.path, repr(self.name)):
            return float(self._node[()])

    def _read(self, first: int, count: int | None) -> Any:
        self._check_stored()
        count = self._checked_count(first, count)
        size = count * math.prod(self.shape[1:]) * self.dtype.itemsize
        if size > MAX_BYTES:
            raise ValueError(
                f"expected at most {MAX_BYTES >> 20} MiB at once from {self.name!r} of "
                f"{self.path}, but {count} rows take {size >> 20} MiB; split the episode"
            )
        with reading(self.path, repr(self.name)):
            return self._node[first : first + count]

    def _checked_count(self, first: int, count: int | None) -> int:
        count = len(self) - first if count is None else count
        if first < 0 or count < 0 or first + count > len(self):
            raise ValueError(
                f"expected {first + count} rows of {self.name!r} in {self.path}, but there are "
                f"{len(self)}; restore the file"
            )
        return count

    def _vlen_rows(self, first: int, count: int | None) -> list[bytes]:
        """Rows of variable length, (T,)."""
        self._check_stored()
        count = self._checked_count(first, count)
        chunk = self._chunks[0] if self._chunks else len(self)
        references = []
        for row in range(first - first % max(1, chunk), first + count, max(1, chunk)):
            with reading(self.path, repr(self.name)):
                if self._chunks:
                    start = self._node.id.get_chunk_info_by_coord((row,)).byte_offset
                else:
                    start = self._node.id.get_offset()
                with self.path.open("rb") as file:
                    file.seek(start + max(0, first - row) * REFERENCE_BYTES)
                    rows = min(row + chunk, first + count) - max(row, first)
                    references.append(file.read(rows * REFERENCE_BYTES))
        joined = b"".join(references)
        if len(joined) != count * REFERENCE_BYTES:
            raise ValueError(
                f"expected {count} rows of {self.name!r} in {self.path}, but they are cut off; "
                "restore the file"
            )
        return read_values(self.path, joined, about=repr(self.name))

    def _check_stored(self) -> None:
        """Refuse rows that were never written, which the library would make up."""
        if self._checked:
            return
        size = math.prod(self.shape) * self.dtype.itemsize
        with reading(self.path, repr(self.name)):
            stored = min(self._node.id.get_storage_size(), self.path.stat().st_size)
            if self._chunks is not None:
                expected = math.prod(
                    -(-length // chunk)
                    for length, chunk in zip(self.shape, self._chunks, strict=True)
                )
                written = self._node.id.get_num_chunks() == expected
                largest = math.prod(self._chunks) * self.dtype.itemsize
            else:
                written = not self._contiguous or self._node.id.get_offset() is not None
                largest = 0
        if size and not written:
            raise ValueError(
                f"expected {len(self)} rows of {self.name!r} in {self.path}, but some were never "
                "written; restore the file or drop the episode"
            )
        # Variable lengths are kept elsewhere in the file and checked one by one.
        ratio = MAX_RATIO if self._chunks is not None else 1
        if size > ratio * stored or largest > MAX_BYTES:
            raise ValueError(
                f"{self.name!r} of {self.path} claims {max(size, largest)} bytes, but only "
                f"{stored} are stored; restore the file or record again"
            )
        self._checked = True


def cast(values: NDArray[Any], column: Column, *, about: str) -> NDArray[Any]:
    """Numbers in the type that all episodes have.

    Raises:
        ValueError: when that would lose some.
    """
    if not np.can_cast(values.dtype, column.dtype, "safe"):
        raise ValueError(
            f"expected {column.dtype} in {about} as in the first episode, but {values.dtype} came; "
            "store all episodes in one type"
        )
    return values.astype(column.dtype, copy=False)


def h5py_module() -> Any:
    """The package h5py.

    Raises:
        ValueError: when it is not installed.
    """
    return optional_import("h5py", purpose="reading HDF5 files")


def _native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The plain type in the machine's byte order, without what h5py notes in it."""
    return np.dtype(dtype.newbyteorder("=").str)


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn the library's errors into one sentence."""
    try:
        yield
    except Exception as error:  # h5py raises nearly every kind of it on a damaged file
        raise ValueError(
            f"expected a complete HDF5 file at {path}, but {what} cannot be read "
            f"({first_line(error)}); restore it or record again"
        ) from error


def first_line(error: BaseException) -> str:
    """What an error says, in short."""
    return str(error).split("\n")[0][:200] or type(error).__name__
