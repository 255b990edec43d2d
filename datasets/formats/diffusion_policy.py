"""The replay buffers of diffusion policy: a zarr hierarchy of format 2, in a folder or a zip.

`data/<key>` holds all episodes end to end, `meta/episode_ends` where each ends. An array of shape
(N, H, W, 3) and bytes is a camera, and so is one of floats with sides of 16 pixels or more, as
PushT has it: 0 to 255, or 0 to 1 where its first frame goes no further (a later frame that does is
refused). Other arrays are columns. Beside the zarr of a real robot lie videos,
`videos/<episode>/<camera>.mp4`: the camera is named `videos/<camera>`, and the frame of a step is
the one nearest to its `data/timestamp`, counted from the first step of the episode.

The format knows no reward and no outcome: that is unknown for every episode.

Shape legend: H height, N steps of all episodes, T steps, W width.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.features import Camera
from robot_qsft.datasets.formats.aligned_video import frames_at, read_video_info
from robot_qsft.datasets.formats.zarr_array import ZarrArray
from robot_qsft.datasets.formats.zarr_store import ARRAY, ZarrFolder, ZarrStore, ZarrZip, has_member
from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.outcomes import NO_EVIDENCE
from robot_qsft.datasets.source import (
    Column,
    Recording,
    SourceInfo,
    check_camera,
    check_index,
)

_ENDS = "meta/episode_ends"
_LANDMARK = f"{_ENDS}/{ARRAY}"
_LANDMARK_OF_FORMAT_3 = f"{_ENDS}/zarr.json"
_NAME = "replay_buffer.zarr"
_TIMESTAMP = "timestamp"
_VIDEOS = "videos"
_MOST_EPISODES = 1 << 24
_LARGEST_ROW = 1 << 16
"""Numbers of one step that still make a column."""
_ROUNDING = 1e-3
"""By how much a float that means 1 may be above it."""
_SMALLEST_SIDE = 16
"""Pixels; an array of floats with a shorter side is taken for no camera."""


def matches(path: Path) -> bool:
    """Whether a folder or zip holds a replay buffer."""
    landmarks = (_LANDMARK, _LANDMARK_OF_FORMAT_3)
    try:
        if path.is_file():
            return has_member(path, landmarks)
        return any((root / mark).is_file() for root in (path, path / _NAME) for mark in landmarks)
    except OSError:
        return False


class DiffusionPolicySource:
    """A replay buffer as an `EpisodeSource`."""

    def __init__(self, path: Path | str) -> None:
        """Open a replay buffer: the arrays' descriptions and the episodes' ends are read.

        Args:
            path: of the zarr folder or zip, or of the folder that holds `replay_buffer.zarr`.

        Raises:
            ValueError: when it is damaged, of another zarr format, or packed such that it cannot be
                read here.
        """
        self.path = Path(path)
        store = self._store = _open_store(self.path)
        self._ends = _read_ends(store)
        arrays = {name: ZarrArray(store, f"data/{name}") for name in store.arrays("data")}
        for name, array in arrays.items():
            if array.shape[0] != self._ends[-1]:
                raise ValueError(
                    f"expected {self._ends[-1]} rows of data/{name} in {store.path}, where the "
                    f"last episode ends, but {array.shape[0]} came; restore both from one copy"
                )
        pictures = {name: array for name, array in arrays.items() if _is_camera(array)}
        columns = {
            name: array
            for name, array in arrays.items()
            if name not in pictures and math.prod(array.shape[1:]) <= _LARGEST_ROW
        }
        if not columns:
            raise ValueError(
                f"expected arrays of numbers below data/ in {store.path}, but there are none; "
                "restore that folder"
            )
        self._columns = columns
        self._cameras = {name: _ArrayCamera(array) for name, array in pictures.items()}
        self._videos = store.path.parent / _VIDEOS
        videos = sorted(self._videos.glob("0/*.mp4"))
        notes = [
            f"data/{name} is neither a colour camera nor a vector: left out"
            for name in arrays
            if name not in pictures and name not in columns
        ]
        fps = None
        if _TIMESTAMP in columns:
            fps = _rate_hz(self._times_s(0))
        elif videos:
            notes.append(f"data/{_TIMESTAMP} is missing: the videos are left out")
            videos = []
        self._period_s = 0.0 if fps is None else 1 / fps
        self.info = SourceInfo(
            format="diffusion-policy zarr",
            columns={
                name: Column(array.dtype.name, array.shape[1:]) for name, array in columns.items()
            },
            cameras={
                **{name: camera.about for name, camera in self._cameras.items()},
                **{f"{_VIDEOS}/{file.stem}": _video_camera(file) for file in videos},
            },
            fps=fps,
            notes=tuple(notes),
        )

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self._ends)

    def recording(self, index: int) -> Recording:
        """One episode without its images; see `EpisodeSource`."""
        check_index(self, index)
        first, last = self._rows(index)
        return Recording(
            name=f"episode {index}",
            columns={name: array.read(first, last) for name, array in self._columns.items()},
            instruction="",
            evidence=NO_EVIDENCE,
        )

    def frames(self, index: int, camera: str) -> Iterator[Image]:
        """Yield the frames of a camera; see `EpisodeSource`."""
        check_index(self, index)
        check_camera(self, camera)
        if camera in self._cameras:
            return self._cameras[camera].frames(*self._rows(index))
        return self._video_frames(index, camera)

    def files(self) -> tuple[Path, ...]:
        """Every file that the content depends on, sorted."""
        cameras = (name for name in self.info.cameras if name not in self._cameras)
        videos = (self._video(index, name) for name in cameras for index in range(len(self)))
        return tuple(sorted([*self._store.files(), *(file for file in videos if file.is_file())]))

    def _rows(self, index: int) -> tuple[int, int]:
        return int(self._ends[index - 1]) if index else 0, int(self._ends[index])

    def _times_s(self, index: int) -> NDArray[np.float64]:
        """Times of an episode's steps from its first on, (T,)."""
        first, last = self._rows(index)
        stored = self._columns[_TIMESTAMP].read(first, last)
        times_s: NDArray[np.float64] = stored.astype(np.float64).reshape(-1)
        if len(times_s) != last - first or not np.isfinite(times_s).all():
            raise ValueError(
                f"expected a number for every step of data/{_TIMESTAMP} in {self._store.path}, but "
                f"episode {index} has others; mend or drop it"
            )
        times_s -= times_s[0]
        return times_s

    def _video(self, index: int, camera: str) -> Path:
        return self._videos / str(index) / f"{camera.removeprefix(_VIDEOS + '/')}.mp4"

    def _video_frames(self, index: int, camera: str) -> Iterator[Image]:
        file, expected = self._video(index, camera), self.info.cameras[camera]
        for image in frames_at(file, times_s=self._times_s(index), period_s=self._period_s):
            if image.shape != (expected.height, expected.width, 3):
                raise ValueError(
                    f"expected frames of {expected.height}x{expected.width} in {file}, as in "
                    f"episode 0, but {image.shape[0]}x{image.shape[1]} came; drop that episode"
                )
            yield image


class _ArrayCamera:
    """A camera whose frames lie in an array."""

    def __init__(self, array: ZarrArray) -> None:
        self._array = array
        self.about = Camera(array.shape[1], array.shape[2], "video" if array.lossy else "image")
        self._scale = 1.0
        if array.dtype.kind == "f":
            first = array.read(0, 1)
            self._scale = 255.0 if first.max() <= 1 + _ROUNDING else 1.0

    def frames(self, first: int, last: int) -> Iterator[Image]:
        for block in self._array.blocks(first, last):
            for frame in block:
                yield frame if frame.dtype == np.uint8 else self._bytes(frame)

    def _bytes(self, frame: NDArray[np.floating]) -> Image:
        scaled = frame * self._scale
        if not ((scaled >= -0.5) & (scaled <= 255.5)).all():
            raise ValueError(
                f"expected pixels from 0 to {255 / self._scale:g} in {self._array.name}, as in its "
                f"first frame, but {frame.min():g} to {frame.max():g} came; store bytes instead"
            )
        image: Image = np.rint(scaled).clip(0, 255).astype(np.uint8)
        return image


def _open_store(path: Path) -> ZarrStore:
    if path.is_file():
        if has_member(path, (_LANDMARK_OF_FORMAT_3,)) and not has_member(path, (_LANDMARK,)):
            raise ValueError(_of_format_3(path))
        return ZarrZip(path, landmark=_LANDMARK)
    root = path if (path / _ENDS).is_dir() else path / _NAME
    if (root / _LANDMARK_OF_FORMAT_3).is_file():
        raise ValueError(_of_format_3(root))
    if not (root / _LANDMARK).is_file():
        raise ValueError(
            f"expected {_ENDS} in {path} or in {path / _NAME}, but there is none; "
            "name the zarr folder or zip"
        )
    return ZarrFolder(root)


def _of_format_3(path: Path) -> str:
    return (
        f"expected zarr format 2 at {path}, as diffusion policy writes it, but format 3 came; "
        "write it again with zarr_format=2"
    )


def _read_ends(store: ZarrStore) -> NDArray[np.int64]:
    array = ZarrArray(store, _ENDS)
    if (
        len(array.shape) != 1
        or not 0 < array.shape[0] <= _MOST_EPISODES
        or array.dtype.kind not in "iu"
    ):
        raise ValueError(
            f"expected {_ENDS} in {store.path} to be a list of whole numbers, one per episode, but "
            f"shape {array.shape} and dtype {array.dtype} came; restore it"
        )
    ends = array.read(0, array.shape[0]).astype(np.int64)
    if ends[0] <= 0 or (np.diff(ends) <= 0).any():
        wrong = int(np.argmax(np.diff(ends, prepend=0) <= 0))
        raise ValueError(
            f"expected {_ENDS} in {store.path} to rise with every episode, but that of episode "
            f"{wrong} is {ends[wrong]}; restore it"
        )
    return ends


def _is_camera(array: ZarrArray) -> bool:
    if len(array.shape) != 4 or array.shape[3] != 3:
        return False
    is_large = min(array.shape[1:3]) >= _SMALLEST_SIDE
    return array.dtype == np.uint8 or (array.dtype.kind == "f" and is_large)


def _video_camera(file: Path) -> Camera:
    about = read_video_info(file)
    return Camera(about.height, about.width, "video")


def _rate_hz(times_s: NDArray[np.float64]) -> float | None:
    """Steps per second from the times of an episode; None where they do not rise."""
    period_s = float(np.median(np.diff(times_s))) if len(times_s) > 1 else 0.0
    return round(1 / period_s, 3) if period_s > 0 else None
