"""LeRobotDataset v2.0, v2.1 and v3.0, read as recorded.

Shape legend: H height, T steps, W width.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from robot_qsft.datasets.features import (
    INDEX_DTYPES,
    REWARD,
    SUCCESS,
    Feature,
    entry_names,
    is_colour_camera,
    is_visual,
)
from robot_qsft.datasets.index import read_info, version_of
from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.open_index import open_index, source_files
from robot_qsft.datasets.outcomes import NO_EVIDENCE, Evidence, flag_evidence, reward_evidence
from robot_qsft.datasets.parquet import RowReader, to_numpy
from robot_qsft.datasets.source import (
    Column,
    Recording,
    SourceInfo,
    check_camera,
    check_index,
    string_column,
)
from robot_qsft.datasets.stored_frames import StoredFrames
from robot_qsft.datasets.video_copy import VideoSegment

IS_SUCCESS: Final = "is_success"
_MOST_FPS = 100_000
_PLACES = ("episode_index", "task_index")
_NUMBERS = frozenset("?bhilqBHILQefd")
_LISTS = (pa.ListType, pa.LargeListType, pa.FixedSizeListType)


def matches(path: Path) -> bool:
    """Whether the folder holds a LeRobot data set."""
    return (path / "meta/info.json").is_file()


class LeRobotSource:
    """A LeRobot data set as an `EpisodeSource`.

    The columns that number rows and episodes are left out; they follow from the order.
    """

    def __init__(self, path: Path | str) -> None:
        """Open a data set; no more than its index is read.

        Raises:
            ValueError: when there is none, it is of another version, or part of it is missing.
        """
        self.path = Path(path)
        stored = read_info(self.path)
        if not 0 < stored["fps"] <= _MOST_FPS:
            raise ValueError(
                f"expected fps above 0 in {self.path / 'meta/info.json'}, but "
                f"{stored['fps']!r:.80} came; restore the file"
            )
        self.stored_info: Mapping[str, Any] = stored
        self.index = open_index(self.path, stored)
        features: Mapping[str, Feature] = stored["features"]
        try:
            self._frames = StoredFrames(
                self.path, index=self.index, features=features, fps=stored["fps"]
            )
        except ValueError as error:
            raise ValueError(
                f"{self.path / 'meta/info.json'}: {error}; restore the file"
            ) from error
        columns, left_out = {}, []
        for key, feature in features.items():
            if is_visual(feature):
                if not is_colour_camera(feature):
                    left_out.append(key)
            elif (column := _column(key, feature)) is None:
                left_out.append(key)
            elif key not in INDEX_DTYPES or key == "timestamp":
                columns[key] = column
        self.info = SourceInfo(
            format=f"LeRobotDataset {version_of(stored)}",
            columns=columns,
            cameras=self._frames.cameras,
            fps=stored["fps"],
            robot_type=robot if isinstance(robot := stored.get("robot_type"), str) else None,
            splits=_splits(stored.get("splits"), len(self.index.starts)),
            tasks=self.index.tasks,
            notes=tuple(
                f"{key} is neither number, text nor colour image: left out" for key in left_out
            ),
        )
        self._first_rows: dict[str, int] = {}
        for file, start in zip(self.index.data_files, self.index.starts.tolist(), strict=True):
            self._first_rows.setdefault(file, start)
        self._rows = RowReader()

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.index.starts)

    def recording(self, index: int) -> Recording:
        """One episode without its images; see `EpisodeSource`."""
        check_index(self, index)
        file = self.index.data_files[index]
        length = int(self.index.lengths[index])
        about = f"in episode {index} of {self.path / file}"
        try:
            table = self._rows.read(
                self.path / file,
                [*self.info.columns, *_PLACES],
                first=int(self.index.starts[index]) - self._first_rows[file],
                count=length,
            )
        except UnicodeDecodeError as error:
            raise ValueError(f"the names of columns {about} are damaged; restore it") from error
        if len(table) != length:
            raise ValueError(
                f"expected {length} rows {about}, but {len(table)} came; restore the file"
            )
        places = {key: _numbers(table, key, Column("int64"), about) for key in _PLACES}
        if (places["episode_index"] != index).any():
            raise ValueError(
                f"expected episode {index} where meta/ says it lies in {self.path / file}, but "
                "rows of another came; restore data/ and meta/ from the same copy"
            )
        task = int(places["task_index"][0])
        if not 0 <= task < len(self.index.tasks):
            raise ValueError(
                f"expected task_index below {len(self.index.tasks)}, the number of tasks of "
                f"{self.path}, but {task} came {about}; restore {self.index.task_file}"
            )
        columns = {
            key: (
                _text(table, key, about)
                if column.dtype == "string"
                else _numbers(table, key, column, about)
            )
            for key, column in self.info.columns.items()
        }
        return Recording(
            name=f"episode {index}",
            columns=columns,
            instruction=self.index.tasks[task],
            evidence=self._evidence(index, columns),
            demonstrator=self.index.demonstrators[index],
        )

    def frames(self, index: int, camera: str) -> Iterator[Image]:
        """Yield the frames of a camera; see `EpisodeSource`."""
        check_index(self, index)
        check_camera(self, camera)
        return self._frames.of_episodes(camera, index, index + 1)

    def encoded_frames(self, index: int, camera: str) -> Iterator[tuple[Image, bytes]] | None:
        """Frames with the bytes that they are stored as; see `EncodedFrames`."""
        check_index(self, index)
        check_camera(self, camera)
        return self._frames.stored_of_episode(camera, index)

    def video_segment(self, index: int, camera: str) -> VideoSegment | None:
        """Where in a video the frames are; see `VideoSegments`."""
        check_index(self, index)
        check_camera(self, camera)
        return self._frames.video_segment(camera, index)

    def close(self) -> None:
        """Let go of open files; see `KeepsFilesOpen`."""
        self._rows.close()
        self._frames.close()

    def files(self) -> tuple[Path, ...]:
        """Every file that the content depends on, sorted."""
        return source_files(self.path, self.index)

    def _evidence(self, index: int, columns: Mapping[str, NDArray[Any]]) -> Evidence:
        """What we recorded, or else a flag, or else a reward of 0 or 1."""
        found = NO_EVIDENCE
        for key in (SUCCESS, IS_SUCCESS):
            if key in columns:
                found = flag_evidence(columns[key], key)
                break
        else:
            if REWARD in columns:
                found = reward_evidence(columns[REWARD], REWARD)
        if self.index.recorded is None:
            return found
        recorded = self.index.recorded[index]
        return Evidence(recorded.source, recorded.success, found.frame, certain=True)


def _column(key: str, feature: Feature) -> Column | None:
    """What a feature's column holds; None where it is neither number nor text."""
    shape = tuple(feature["shape"])
    if feature["dtype"] == "string":
        return Column("string") if math.prod(shape) == 1 else None
    try:
        dtype = np.dtype(feature["dtype"])
    except (TypeError, ValueError):
        return None
    if dtype.char not in _NUMBERS:
        return None
    names = entry_names(key, feature) if len(shape) == 1 and feature.get("names") else ()
    return Column(dtype.name, () if shape == (1,) else shape, names if shape != (1,) else ())


def _numbers(table: pa.Table, key: str, column: Column, about: str) -> NDArray[Any]:
    kind = table.column(key).type
    while isinstance(kind, (pa.BaseExtensionType, *_LISTS)):
        kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind.value_type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise ValueError(
            f"expected numbers of {column.dtype} for {key!r} {about}, but {kind} came; "
            "mend meta/info.json or record again"
        )
    values = to_numpy(table.column(key), width=math.prod(column.shape), about=f"{key!r} {about}")
    if values.dtype != np.dtype(column.dtype):
        with np.errstate(over="ignore", invalid="ignore"):
            stored, values = values, values.astype(column.dtype)
        # What becomes a float may be rounded; a whole number or a flag must be what it was.
        if values.dtype.kind != "f" and not np.array_equal(values, stored):
            raise ValueError(
                f"expected numbers of {column.dtype} for {key!r} {about}, but {stored.dtype} came "
                "that are none; mend meta/info.json or record again"
            )
    return values.reshape(len(table), *column.shape)


def _text(table: pa.Table, key: str, about: str) -> NDArray[Any]:
    column = table.column(key)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)) or column.null_count:
        raise ValueError(
            f"expected text for {key!r} {about}, but {column.type} or nothing came; "
            "mend meta/info.json or record again"
        )
    try:
        return string_column(column.to_pylist())
    except (UnicodeDecodeError, pa.ArrowException) as error:
        raise ValueError(f"the text of {key!r} {about} is damaged; restore the file") from error


def _splits(stored: Any, episodes: int) -> dict[str, tuple[int, ...]]:
    """Episode ranges such as {"train": "0:10"}; what is no range within the set is left out."""
    splits = {}
    for name, text in (stored if isinstance(stored, dict) else {}).items():
        first, _, last = f"{text!s:.40}".partition(":")
        if first.isdecimal() and last.isdecimal() and int(first) <= int(last) <= episodes:
            splits[str(name)] = tuple(range(int(first), int(last)))
    return splits
