"""Minari data sets, in HDF5, Arrow or Parquet, without the library.

Shape legend: H height, T steps, W width.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from robot_qsft.datasets.features import Camera
from robot_qsft.datasets.formats.encoded_image import decode_image
from robot_qsft.datasets.formats.hdf5_dataset import cast
from robot_qsft.datasets.formats.minari_spaces import Key, Leaf, flatten_space, name_of
from robot_qsft.datasets.formats.minari_storage import (
    ArrowStorage,
    Hdf5Storage,
    Storage,
    read_json,
)
from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.outcomes import Evidence, reward_evidence
from robot_qsft.datasets.plain_yaml import shown
from robot_qsft.datasets.source import (
    Column,
    Recording,
    SourceInfo,
    check_camera,
    check_index,
)

METADATA = "metadata.json"
_FORMATS = ("hdf5", "arrow", "parquet")
_SPACES = ("observation_space", "action_space")
_PER_STEP = ("rewards", "terminations", "truncations")
_SUCCESS_FLAGS = ("infos/success", "infos/is_success", "infos/goal_achieved")
_MISSION = "mission"
_MAX_EPISODES = 1 << 26
_FRAMES_AT_ONCE = 16


def matches(path: Path) -> bool:
    """Whether the folder holds a Minari data set, or is the `data` folder of one."""
    folder = _folder(path)
    if folder is None:
        return False
    try:
        metadata = read_json(folder / METADATA)
    except ValueError:
        return False
    return "total_episodes" in metadata and all(space in metadata for space in _SPACES)


class MinariSource:
    """A Minari data set as an `EpisodeSource`.

    The observation after the last action is left out. What `infos` holds came with the reward, so
    `infos/x` of step t is what the environment said after action t, not what was known before it.
    """

    def __init__(self, path: Path | str) -> None:
        """Open a data set; of the episodes no more than the first one's layout is read.

        Raises:
            ValueError: when it is damaged or stored in another way, or h5py is needed but not
                installed.
        """
        self.path = Path(path)
        folder = _folder(self.path)
        if folder is None:
            raise ValueError(f"expected Minari's data/{METADATA} in {self.path}, but there is none")
        self._metadata_file = folder / METADATA
        metadata = read_json(self._metadata_file)
        self._episodes = self._episode_count(metadata)
        data_format = metadata.get("data_format", "hdf5")
        if data_format not in _FORMATS:
            raise ValueError(
                f"expected data_format {', '.join(_FORMATS)} in {self._metadata_file}, but "
                f"{shown(data_format)} came; convert it with minari"
            )
        self._storage: Storage = (
            Hdf5Storage(folder, episodes=self._episodes)
            if data_format == "hdf5"
            else ArrowStorage(folder, suffix=data_format)
        )
        leaves = [
            leaf
            for space, root in zip(_SPACES, ("observations", "actions"), strict=True)
            for leaf in flatten_space(
                metadata.get(space),
                root=root,
                jpeg_encoding=metadata.get("jpeg_encoding", True) is not False,
                about=f"{space!r} of {self._metadata_file}",
            )
        ]
        self._cameras: dict[str, tuple[Leaf, Camera]] = {}
        self._keys: dict[str, tuple[Key, ...]] = {}
        columns, notes = self._columns(leaves)
        self.info = SourceInfo(
            format=f"Minari ({data_format})",
            columns=columns,
            cameras={name: camera for name, (_, camera) in self._cameras.items()},
            notes=tuple(notes),
        )
        texts = [
            name
            for name, column in columns.items()
            if column.dtype == "string" and name.startswith("observations")
        ]
        self._instruction = next((name for name in texts if _MISSION in name), (*texts, None)[0])
        self._flag = next((name for name in _SUCCESS_FLAGS if name in columns), None)

    def __len__(self) -> int:
        """Number of episodes."""
        return self._episodes

    def recording(self, index: int) -> Recording:
        """One episode without its images; see `EpisodeSource`."""
        check_index(self, index)
        steps = self._storage.steps(index)
        columns = {
            name: self._read(index, name, column, steps)
            for name, column in self.info.columns.items()
        }
        texts = columns[self._instruction] if self._instruction else None
        return Recording(
            name=f"episode {index}",
            columns=columns,
            instruction="" if texts is None or not len(texts) else str(texts[0]),
            evidence=self._evidence(columns),
        )

    def frames(self, index: int, camera: str) -> Iterator[Image]:
        """Yield the frames of a camera; see `EpisodeSource`."""
        check_index(self, index)
        check_camera(self, camera)
        leaf, size = self._cameras[camera]
        steps = self._storage.steps(index)
        about = f"{leaf.name!r} of episode {index} in {self.path}"
        if leaf.jpeg:
            return (
                decode_image(content, height=size.height, width=size.width, about=about)
                for content in self._storage.encoded(index, leaf.keys, count=steps)
            )
        return self._stored_frames(index, leaf, steps)

    def files(self) -> tuple[Path, ...]:
        """Every file that the content depends on, sorted."""
        return tuple(sorted((self._metadata_file, *self._storage.files())))

    def _episode_count(self, metadata: dict[str, Any]) -> int:
        episodes = metadata.get("total_episodes")
        if type(episodes) is not int or not 0 < episodes <= _MAX_EPISODES:
            raise ValueError(
                f"expected total_episodes of 1 to {_MAX_EPISODES} in {self._metadata_file}, but "
                f"{str(episodes)[:50]} came; restore it"
            )
        return episodes

    def _columns(self, leaves: list[Leaf]) -> tuple[dict[str, Column], list[str]]:
        columns: dict[str, Column] = {}
        notes: list[str] = []
        for leaf in leaves:
            if leaf.kind not in ("number", "text"):
                notes.append(f"{leaf.name} is of a space {leaf.kind}: left out")
            elif leaf.camera is not None:
                self._cameras[leaf.name.removeprefix("observations/")] = leaf, leaf.camera
            elif leaf.jpeg:
                notes.append(f"{leaf.name} is no colour image: left out")
            else:
                stored = self._storage.field(0, leaf.keys)[1]
                columns[leaf.name] = Column(stored.dtype, leaf.shape)
                self._keys[leaf.name] = leaf.keys
        for name in _PER_STEP:
            columns[name] = Column(self._storage.field(0, (name,))[1].dtype)
            self._keys[name] = (name,)
        steps = self._storage.steps(0)
        infos = 0
        for keys, column in self._storage.infos(0).items():
            rows = None if column is None else self._storage.field(0, keys)[0]
            if column is None or rows not in (steps, steps + 1):
                notes.append(f"{name_of(keys)} is neither number nor text per step: left out")
            else:
                columns[name_of(keys)] = column
                self._keys[name_of(keys)] = keys
                infos += 1
        if infos:
            notes.append("infos are what the environment said after the action beside them")
        return columns, notes

    def _read(self, index: int, name: str, column: Column, steps: int) -> NDArray[Any]:
        keys = self._keys[name]
        rows, _ = self._storage.field(index, keys)
        if rows not in (steps, steps + 1):
            raise ValueError(
                f"expected {steps} or {steps + 1} rows of {name!r} in episode {index} of "
                f"{self.path}, for {steps} steps, but {rows} came; restore the files"
            )
        # The first info came from the reset, before any action.
        first = rows - steps if keys[0] == "infos" else 0
        values = self._storage.read(index, keys, column=column, first=first, count=steps)
        if column.dtype == "string":
            return values
        return cast(values, column, about=f"{name!r} of episode {index} in {self.path}")

    def _stored_frames(self, index: int, leaf: Leaf, steps: int) -> Iterator[Image]:
        column = Column("uint8", leaf.shape)
        for first in range(0, steps, _FRAMES_AT_ONCE):
            yield from cast(
                self._storage.read(
                    index,
                    leaf.keys,
                    column=column,
                    first=first,
                    count=min(_FRAMES_AT_ONCE, steps - first),
                ),
                column,
                about=f"{leaf.name!r} of episode {index} in {self.path}",
            )

    def _evidence(self, columns: dict[str, NDArray[Any]]) -> Evidence:
        source = self._flag or "rewards"
        return reward_evidence(columns[source], source)


def _folder(path: Path) -> Path | None:
    """Where `metadata.json` is: the folder itself, or `data` in it."""
    return next((folder for folder in (path / "data", path) if (folder / METADATA).is_file()), None)
