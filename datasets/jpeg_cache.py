"""Frames as JPEGs, where there is no room for them raw: a tenth of the bytes or less.

A file `NAME.jpegs` holds one JPEG after another, and `NAME.offsets.npy` where each begins, int64
(N + 1,): frame i is bytes `offsets[i]` to `offsets[i + 1]`. Quality is 95, colour at half
resolution, as in the videos that most frames come from.

Shape legend: B batch, H height, N frames, W width.
"""

import os
import shutil
import weakref
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.interface import Image

QUALITY: Final = 95
_MOST_THREADS: Final = 4


class JpegFrames:
    """Frames that are decoded when asked for; indexed like the array (N, H, W, 3) of all of them.

    It holds 8 bytes per frame and no decoded frame; while a batch is read, one JPEG and one frame
    per thread besides the batch itself. Threads may share it, forked processes too; a pickled copy
    opens the file again.

    Attributes:
        path: of the JPEGs.
        shape: (N, H, W, 3).
        dtype: uint8.
    """

    dtype: Final = np.dtype(np.uint8)

    def __init__(self, path: Path, image_size: tuple[int, int]) -> None:
        """Open what `JpegWriter` wrote, frames of `image_size` (H, W).

        Raises:
            ValueError: when a file is missing or damaged, or they do not fit each other.
        """
        self.path = path
        self._image_size = image_size
        try:
            self._offsets: NDArray[np.int64] = np.load(offsets_path(path), allow_pickle=False)
            self._descriptor = os.open(path, os.O_RDONLY)
        except (OSError, ValueError) as error:
            raise ValueError(self._damaged(str(error))) from error
        weakref.finalize(self, os.close, self._descriptor)
        size = os.fstat(self._descriptor).st_size
        offsets = self._offsets
        if (
            offsets.dtype != np.int64
            or offsets.ndim != 1
            or len(offsets) == 0
            or offsets[0] != 0
            or offsets[-1] != size
            or (np.diff(offsets) <= 0).any()
        ):
            raise ValueError(self._damaged(f"{size} bytes are not what its index tells"))
        self.shape = (len(offsets) - 1, *image_size, 3)

    def __len__(self) -> int:
        """Number of frames, N."""
        return self.shape[0]

    def __getitem__(self, rows: int | slice | NDArray[np.int64]) -> Image:
        """Frames at some rows, RGB uint8 (B, H, W, 3), or at one, (H, W, 3), as of an array.

        Raises:
            IndexError: when there is no such row.
            ValueError: when a JPEG is damaged.
        """
        wanted: NDArray[np.int64] = np.arange(len(self))[rows]
        frames = np.empty((wanted.size, *self.shape[1:]), np.uint8)
        self.read(wanted.reshape(-1), frames)
        return frames.reshape(*wanted.shape, *self.shape[1:])

    def read(self, rows: NDArray[np.int64], out: Image) -> None:
        """Decode frames (B,) into `out`, uint8 (B, H, W, 3), in a few threads.

        Raises:
            IndexError: when there is no such row.
            ValueError: when a JPEG is damaged.
        """
        assert out.shape == (len(rows), *self.shape[1:]), out.shape
        count = len(self)
        if len(rows) and not -count <= rows.min() <= rows.max() < count:
            raise IndexError(f"frames {rows.min()} to {rows.max()} asked for, of {count}")
        starts, ends = self._offsets[:-1][rows].tolist(), self._offsets[1:][rows].tolist()
        threads = max(1, min(_MOST_THREADS, os.cpu_count() or 1, len(rows)))

        def decode_share(first: int) -> None:
            for place in range(first, len(rows), threads):
                self._decode(starts[place], ends[place], out[place])

        # A pool of its own for each call costs less than one frame, and nothing is left running
        # that a forked process would miss.
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(decode_share, range(threads)):
                pass

    def __reduce__(self) -> tuple[Any, ...]:
        return JpegFrames, (self.path, self._image_size)

    def _decode(self, start: int, end: int, out: Image) -> None:
        content = os.pread(self._descriptor, end - start, start)
        decoded = (
            cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
        )
        if decoded is None or decoded.shape != out.shape:
            raise ValueError(self._damaged(f"no frame of {out.shape[:2]} at byte {start}"))
        cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB, dst=out)

    def _damaged(self, what: str) -> str:
        return (
            f"expected whole JPEGs at {self.path}, but {what}; delete the folder "
            f"{self.path.parent}, which is built again from the data set"
        )


class JpegWriter:
    """Joins JPEGs that several workers make, in order."""

    def __init__(self, path: Path) -> None:
        """Begin the file at `path`."""
        self._path = path
        self._sizes: list[NDArray[np.int64]] = []
        path.touch()

    def append(self, part: Path, sizes: NDArray[np.int64]) -> None:
        """Move what `write_jpegs` wrote to the end of the file."""
        with self._path.open("ab") as whole, part.open("rb") as piece:
            shutil.copyfileobj(piece, whole, 1 << 20)
        part.unlink()
        self._sizes.append(sizes)

    def close(self) -> None:
        """Write the index."""
        offsets = np.cumsum(np.concatenate([np.zeros(1, np.int64), *self._sizes]))
        np.save(offsets_path(self._path), offsets, allow_pickle=False)


def write_jpegs(path: Path, frames: Iterable[Image]) -> NDArray[np.int64]:
    """Write frames, RGB uint8 (H, W, 3), to a new file; the bytes of each, int64."""
    sizes = []
    with path.open("wb") as opened:
        for frame in frames:
            done, content = cv2.imencode(
                ".jpg",
                cv2.cvtColor(frame, cv2.COLOR_RGB2BGR),
                [cv2.IMWRITE_JPEG_QUALITY, QUALITY],
            )
            assert done, "OpenCV has no JPEG encoder"
            sizes.append(opened.write(content.data))
    return np.array(sizes, np.int64)


def offsets_path(path: Path) -> Path:
    """Where the index of a file of JPEGs is."""
    return path.with_suffix(".offsets.npy")
