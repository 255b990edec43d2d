"""A folder of videos with one table per episode, described by a file `episodes.yaml` in it.

For example, for `take_1/steps.csv`, `take_1/front.mp4`, `take_2/...`:

    fps: 30                            # rows of the table per second
    table: "{episode}/steps.csv"       # or .json; {episode} stands for the name of an episode
    cameras:
      front: "{episode}/front.mp4"     # name of the camera: its video
    instruction: put the cup away      # or {column: task}, for a column of the table
    success: solved                    # optional: column that is true once the task is solved
    timestamp: time_s                  # optional: column of seconds since the video's first frame

For `take_1.csv`, `take_1_front.mp4` the patterns are "{episode}.csv" and "{episode}_front.mp4".
How tables look is told in `episode_tables`.

Frames. With `timestamp`, the frame of a row is the one nearest to its time, whatever the rate of
the video and however it varies; the times of a clock (the first a day or more) count from the first
row. Without it, row i is frame i, and there must be as many rows as frames.

Outcome. The first of these that tells: `outcomes.csv` in the folder, with the columns `episode` and
`success` (true, 1 or success; false, 0 or failure; empty where it is not known); `success` in the
JSON of the episode; the column that the mapping names.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.features import Camera
from robot_qsft.datasets.formats.aligned_video import frames_at, frames_in_order, read_video_info
from robot_qsft.datasets.formats.episode_mapping import (
    MAPPING,
    OUTCOMES,
    fill_in,
    find_episodes,
    holds_episodes,
    read_mapping,
)
from robot_qsft.datasets.formats.episode_tables import (
    EpisodeTable,
    parse_rows,
    read_table,
    read_text,
)
from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.outcomes import NO_EVIDENCE, Evidence, flag_evidence
from robot_qsft.datasets.source import (
    Recording,
    SourceInfo,
    check_camera,
    check_index,
)

_SUCCESS = "success"
_LARGEST_OUTCOMES = 1 << 26
_VERDICTS = {"true": True, "1": True, "success": True, "false": False, "0": False, "failure": False}
_DAY_S = 86_400.0


def matches(path: Path) -> bool:
    """Whether a folder has `episodes.yaml`, or videos beside tables that ask for one."""
    try:
        return path.is_dir() and ((path / MAPPING).is_file() or holds_episodes(path))
    except OSError:
        return False


class VideoFolderSource:
    """A folder of videos and tables as an `EpisodeSource`."""

    def __init__(self, path: Path | str) -> None:
        """Open a folder: the mapping, the names of the episodes and the first of them are read.

        Raises:
            ValueError: when there is no mapping (then a fitting one is told), it is damaged, or
                there is no episode.
        """
        self.path = Path(path)
        if not self.path.is_dir():
            raise ValueError(f"expected a folder at {self.path}, but there is none; mend the path")
        self._mapping = read_mapping(self.path)
        self._episodes = find_episodes(self.path, self._mapping.table)
        if not self._episodes:
            raise ValueError(
                f"expected tables {self._mapping.table!r} in {self.path}, but there are none; "
                f"mend {MAPPING}"
            )
        self._verdicts = _read_verdicts(self.path / OUTCOMES)
        columns = self._table(0).columns()
        for about, name, dtype in (
            ("instruction", self._mapping.instruction_column, "string"),
            (_SUCCESS, self._mapping.success_column, "float64"),
            ("timestamp", self._mapping.timestamp_column, "float64"),
        ):
            came = columns[name].dtype if name in columns else "no such column"
            if name and came != dtype:
                raise ValueError(
                    f"expected {dtype} in the column {name!r:.80}, which {MAPPING} names for "
                    f"{about}, in {self._file(self._mapping.table, 0)}, but {came} came; "
                    "mend the mapping"
                )
        self.info = SourceInfo(
            format="folder of videos",
            columns=columns,
            cameras={
                name: _camera(self._file(pattern, 0))
                for name, pattern in self._mapping.cameras.items()
            },
            fps=self._mapping.fps,
        )

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self._episodes)

    def recording(self, index: int) -> Recording:
        """One episode without its images; see `EpisodeSource`."""
        check_index(self, index)
        table = self._table(index)
        columns = {name: table.values(name, about) for name, about in self.info.columns.items()}
        instruction = self._mapping.instruction
        if self._mapping.instruction_column:
            instruction = str(columns[self._mapping.instruction_column][0])
        return Recording(
            name=self._episodes[index],
            columns=columns,
            instruction=instruction,
            evidence=self._evidence(index, table, columns),
        )

    def frames(self, index: int, camera: str) -> Iterator[Image]:
        """Yield the frames of a camera; see `EpisodeSource`."""
        check_index(self, index)
        check_camera(self, camera)
        return self._frames(index, camera)

    def files(self) -> tuple[Path, ...]:
        """Every file that the content depends on, sorted."""
        patterns = (self._mapping.table, *self._mapping.cameras.values())
        named = {
            self.path / MAPPING,
            self.path / OUTCOMES,
            *(self._file(pattern, index) for pattern in patterns for index in range(len(self))),
        }
        return tuple(sorted(file for file in named if file.is_file()))

    def _file(self, pattern: str, index: int) -> Path:
        return self.path / fill_in(pattern, self._episodes[index])

    def _table(self, index: int) -> EpisodeTable:
        return read_table(self._file(self._mapping.table, index))

    def _frames(self, index: int, camera: str) -> Iterator[Image]:
        file, expected = self._file(self._mapping.cameras[camera], index), self.info.cameras[camera]
        table, timestamp = self._table(index), self._mapping.timestamp_column
        images = (
            frames_at(
                file,
                times_s=_from_the_start(table.values(timestamp, self.info.columns[timestamp])),
                period_s=1 / self._mapping.fps,
            )
            if timestamp
            else frames_in_order(file, count=len(next(iter(table.cells.values()))))
        )
        for image in images:
            if image.shape != (expected.height, expected.width, 3):
                raise ValueError(
                    f"expected frames of {expected.height}x{expected.width} in {file}, as in the "
                    f"first episode, but {image.shape[0]}x{image.shape[1]} came; drop that episode"
                )
            yield image

    def _evidence(
        self, index: int, table: EpisodeTable, columns: Mapping[str, NDArray[Any]]
    ) -> Evidence:
        name, column = self._episodes[index], self._mapping.success_column
        if self._verdicts.get(name) is not None:
            return Evidence(OUTCOMES, self._verdicts[name], certain=True)
        if table.about.get(_SUCCESS) is not None:
            return Evidence(_SUCCESS, _verdict(table.about[_SUCCESS], table.file), certain=True)
        if column:
            # NaN is an empty cell: nothing was marked there.
            return flag_evidence(np.nan_to_num(columns[column]), column)
        return NO_EVIDENCE


def _camera(file: Path) -> Camera:
    about = read_video_info(file)
    return Camera(about.height, about.width, "video")


def _from_the_start(times_s: NDArray[np.float64]) -> NDArray[np.float64]:
    return times_s - times_s[0] if times_s[0] >= _DAY_S else times_s


def _read_verdicts(file: Path) -> Mapping[str, bool]:
    """Who succeeded by `outcomes.csv`; those of whom nothing is known are not among them."""
    if not file.is_file():
        return {}
    names, rows = parse_rows(read_text(file, limit=_LARGEST_OUTCOMES), file=file)
    if "episode" not in names or _SUCCESS not in names:
        raise ValueError(
            f"expected the columns 'episode' and {_SUCCESS!r} in {file}, but it has "
            f"{', '.join(f'{name!r:.40}' for name in names[:10])}; rename them"
        )
    verdicts = {}
    for row in rows:
        told = row[names.index(_SUCCESS)].strip()
        if told:
            verdicts[row[names.index("episode")].strip()] = _verdict(told, file)
    return verdicts


def _verdict(told: Any, file: Path) -> bool:
    plain = isinstance(told, str | int | float)
    known = _VERDICTS.get(str(told).lower()) if plain else None
    if known is None:
        raise ValueError(
            f"expected true or false for {_SUCCESS!r} in {file}, but "
            f"{f'{told!r:.80}' if plain else 'a list or an object'} came; mend it"
        )
    return known
