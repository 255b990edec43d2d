"""D4RL's files: flat arrays of all steps, with flags at the ends of episodes.

Shape legend: H height, N steps of all episodes, T steps, W width.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.features import Camera
from robot_qsft.datasets.formats.hdf5 import Hdf5Group, is_hdf5, open_hdf5, positive_number
from robot_qsft.datasets.formats.hdf5_dataset import Hdf5Dataset
from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.outcomes import Evidence, reward_evidence
from robot_qsft.datasets.source import (
    Column,
    Recording,
    SourceInfo,
    check_camera,
    check_index,
)

OBSERVATIONS: Final = "observations"
_NEEDED = (OBSERVATIONS, "actions", "rewards", "terminals")
_TIMEOUTS = "timeouts"
_INFOS = "infos"
_SUCCESS_FLAGS = ("infos/success", "infos/is_success", "infos/goal_achieved")
_NEXT = "next_observations"
_METADATA = "metadata"
# The latter holds the same arrays again, cut into pieces.
_NOT_FIELDS = (_METADATA, "virtual")
_STEP_LIMIT = "max_episode_steps"
_MAX_STEPS = 1 << 28


def matches(path: Path) -> bool:
    """Whether it is a file with D4RL's arrays at its root."""
    if not is_hdf5(path):
        return False
    try:
        with open_hdf5(path) as root:
            return "data" not in root and all(name in root for name in _NEEDED[:3])
    except ValueError:
        return False


class D4RLSource:
    """Episodes of D4RL as an `EpisodeSource`.

    An episode ends where `terminals` or `timeouts` says so.
    """

    def __init__(self, path: Path | str) -> None:
        """Open a file; no more than the flags at the ends of episodes are read.

        Raises:
            ValueError: when it is damaged, an array is missing or of another length, or h5py is not
                installed.
        """
        self.path = Path(path)
        self._root = open_hdf5(self.path)
        notes: list[str] = []
        for name in _NEEDED:
            if name not in self._root:
                raise ValueError(
                    f"expected an array {name!r} at the root of {self.path}, but there is none; "
                    "restore the file"
                )
        steps = len(self._root.dataset("actions"))
        if not 0 < steps <= _MAX_STEPS:
            raise ValueError(
                f"expected 1 to {_MAX_STEPS} steps in {self.path}, but {steps} came; split the file"
            )
        self._datasets: dict[str, Hdf5Dataset] = {}
        self._channels_first: dict[str, bool] = {}
        columns: dict[str, Column] = {}
        cameras: dict[str, Camera] = {}
        for name, dataset in _fields(self._root, notes):
            found = _camera(dataset)
            column = dataset.column
            needed = name in _NEEDED or name == _TIMEOUTS
            if len(dataset) != steps:
                if needed:
                    raise ValueError(
                        f"expected {steps} rows of {name!r} in {self.path}, as many as actions, "
                        f"but {len(dataset)} came; restore the file"
                    )
                notes.append(f"{name} has not one row per step: left out")
            elif found is not None:
                cameras[name], self._channels_first[name] = found
                self._datasets[name] = dataset
            elif column is None or column.dtype == "string" or len(dataset.shape) > 3:
                if needed:
                    raise ValueError(
                        f"expected numbers or images in {name!r} of {self.path}, but "
                        f"{dataset.dtype} in shape {dataset.shape} came; restore the file"
                    )
                notes.append(f"{name} is neither vector nor colour image: left out")
            else:
                # (N, 1) is how some files write one number per step.
                shape = () if column.shape == (1,) and name != "actions" else column.shape
                columns[name] = Column(column.dtype, shape)
                self._datasets[name] = dataset
        self._ends = self._find_ends(steps, notes)
        self._flag = next((name for name in _SUCCESS_FLAGS if name in columns), None)
        self.info = SourceInfo(
            format="D4RL HDF5", columns=columns, cameras=cameras, notes=tuple(notes)
        )

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self._ends)

    def recording(self, index: int) -> Recording:
        """One episode without its images; see `EpisodeSource`."""
        first, count = self._place(index)
        columns = {
            name: self._datasets[name]
            .numbers(first=first, count=count)
            .reshape(count, *column.shape)
            for name, column in self.info.columns.items()
        }
        return Recording(
            name=f"episode {index}",
            columns=columns,
            instruction="",
            evidence=self._evidence(columns),
        )

    def frames(self, index: int, camera: str) -> Iterator[Image]:
        """Yield the frames of a camera; see `EpisodeSource`."""
        first, count = self._place(index)
        check_camera(self, camera)
        blocks = self._datasets[camera].blocks(first=first, count=count)
        if self._channels_first[camera]:
            blocks = (np.ascontiguousarray(block.transpose(0, 2, 3, 1)) for block in blocks)
        return (image for block in blocks for image in block)

    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def _place(self, index: int) -> tuple[int, int]:
        check_index(self, index)
        first = int(self._ends[index - 1]) if index else 0
        return first, int(self._ends[index]) - first

    def _evidence(self, columns: dict[str, NDArray[Any]]) -> Evidence:
        source = self._flag or "rewards"
        return reward_evidence(columns[source], source)

    def _find_ends(self, steps: int, notes: list[str]) -> NDArray[np.int64]:
        """Where episodes end, exclusive: after a flag, after the longest that one may be."""
        ends_N = self._flags("terminals", steps)
        if _TIMEOUTS in self._root:
            ends_N |= self._flags(_TIMEOUTS, steps)
        else:
            limit = self._step_limit()
            if limit is None:
                notes.append(
                    "there is no array timeouts: episodes end at terminals alone, and several that "
                    "ran out of time may be taken for one"
                )
            else:
                notes.append(
                    f"there is no array timeouts: episodes end at terminals and after {limit} "
                    "steps, the most that the file allows"
                )
                ends_N = _split_long(ends_N, limit)
        if not ends_N[-1]:
            notes.append("the last episode is cut off: the file ends before it does")
            ends_N[-1] = True
        ends: NDArray[np.int64] = np.flatnonzero(ends_N) + 1
        return ends

    def _flags(self, name: str, steps: int) -> NDArray[np.bool_]:
        flags = self._root.dataset(name).numbers()
        if flags.size != steps or not np.isin(flags, (0, 1)).all():
            raise ValueError(
                f"expected 0 or 1 per step in {name!r} of {self.path}, but other values came; "
                "restore the file"
            )
        return flags.reshape(steps).astype(np.bool_)

    def _step_limit(self) -> int | None:
        value = self._root.attribute(_STEP_LIMIT)
        if value is None and _METADATA in self._root:
            metadata = self._root.group(_METADATA)
            value = metadata.dataset(_STEP_LIMIT).scalar() if _STEP_LIMIT in metadata else None
        limit = (
            None if np.ndim(value) or value is None else positive_number(np.asarray(value).item())
        )
        return None if limit is None or limit < 1 else int(limit)


def _fields(root: Hdf5Group, notes: list[str]) -> Iterator[tuple[str, Hdf5Dataset]]:
    for name in root.names():
        if name in _NOT_FIELDS:
            continue
        if name == _NEXT:
            notes.append(f"{name} repeats the observations of the next step: left out")
            continue
        child = root.child(name)
        if isinstance(child, Hdf5Dataset):
            yield name, child
        elif name in (_INFOS, OBSERVATIONS):
            yield from ((f"{name}/{key}", inner) for key, inner in child.datasets().items())
        else:
            notes.append(f"{name} is no field of a step that is read here: left out")


def _camera(dataset: Hdf5Dataset) -> tuple[Camera, bool] | None:
    """Size of its frames, and whether channels come first; None where it holds none."""
    if dataset.camera is not None:
        return dataset.camera, False
    if dataset.dtype == np.uint8 and len(dataset.shape) == 4 and dataset.shape[1] == 3:
        height, width = dataset.shape[2:]
        return (Camera(height, width, "image"), True) if height * width else None
    return None


def _split_long(ends_N: NDArray[np.bool_], limit: int) -> NDArray[np.bool_]:
    """Also end every episode after `limit` steps."""
    starts = np.concatenate([[0], np.flatnonzero(ends_N[:-1]) + 1])
    lengths = np.diff(np.append(starts, len(ends_N)))
    step_N = np.arange(len(ends_N)) - np.repeat(starts, lengths)
    cut_N: NDArray[np.bool_] = ends_N | (step_N % limit == limit - 1)
    return cut_N
