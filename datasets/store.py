"""A data set on disk in the LeRobotDataset layout, read for training.

Shape legend: H height, M episodes, N frames, T steps of an episode, W width.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.episode import Episode
from robot_qsft.datasets.features import (
    ACTION,
    DONE,
    ENVIRONMENT_STATE,
    REWARD,
    STATE,
    SUCCESS,
    TRUNCATED,
    DatasetInfo,
    Feature,
    info_from_features,
)
from robot_qsft.datasets.index import EpisodeIndex, read_info
from robot_qsft.datasets.interface import Image, Vector
from robot_qsft.datasets.open_index import open_index, source_files
from robot_qsft.datasets.outcomes import judge
from robot_qsft.datasets.parquet import read_columns, to_numpy
from robot_qsft.datasets.stored_frames import StoredFrames
from robot_qsft.datasets.tables import Source, Tables

_IS_SUCCESS: Final = "is_success"


class Dataset:
    """Episodes on disk; opening reads no more than the index."""

    def __init__(
        self, path: Path, *, info: DatasetInfo, stored_info: dict[str, Any], index: EpisodeIndex
    ) -> None:
        """Use `Dataset.open`."""
        self.path = path
        self.info = info
        self.stored_info = stored_info
        self.index = index
        self._features: dict[str, Feature] = stored_info["features"]
        self._frames = StoredFrames(path, index=index, features=self._features, fps=info.fps)
        self._tables: Tables | None = None

    @classmethod
    def open(cls, path: Path | str) -> "Dataset":
        """Open a data set that we or LeRobot wrote.

        Raises:
            ValueError: when there is none, it is of another version, or part of it is missing.
        """
        path = Path(path)
        stored = read_info(path)
        try:
            info = info_from_features(
                stored["features"], fps=stored["fps"], robot_type=stored.get("robot_type")
            )
        except ValueError as error:
            raise ValueError(f"{path / 'meta/info.json'}: {error}") from error
        index = open_index(path, stored)
        return cls(path, info=info, stored_info=stored, index=index)

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.index.starts)

    @property
    def frame_count(self) -> int:
        """Number of frames of all episodes."""
        return int(self.index.lengths.sum())

    def source_files(self) -> tuple[Path, ...]:
        """Every file that the content of the data set depends on, sorted."""
        return source_files(self.path, self.index)

    def tables(self) -> Tables:
        """All numbers, without decoding images; read once and kept.

        Raises:
            ValueError: when a data file is damaged, or holds NaN, or does not fit the index.
        """
        if self._tables is None:
            self._tables = self._read_tables()
        return self._tables

    def episode(self, index: int) -> Episode:
        """One episode with its images.

        Raises:
            IndexError: when there is no such episode.
            ValueError: when a file is damaged.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"episode {index} asked for, but there are {len(self)}")
        tables = self.tables()
        start = int(self.index.starts[index])
        rows = slice(start, start + int(self.index.lengths[index]))
        return Episode(
            states=tables.states[rows],
            actions=tables.actions[rows],
            rewards=tables.rewards[rows],
            successes=tables.successes[rows],
            terminated=bool(tables.terminated[index]),
            truncated=bool(tables.truncated[index]),
            instruction=tables.tasks[tables.task_indices[index]],
            images={
                camera: np.stack(list(self.episode_frames(camera, index)))
                for camera in self.info.cameras
            },
            environment_states=tables.environment_states[rows],
            demonstrator=tables.demonstrators[index],
        )

    def frames(self, camera: str) -> Iterator[Image]:
        """Yield every frame of a camera in order, RGB uint8 (H, W, 3), decoding each file once.

        Raises:
            ValueError: when there is no such camera, or a file is missing, damaged or too short.
        """
        return self._frames.of_episodes(camera, 0, len(self))

    def episode_frames(self, camera: str, index: int) -> Iterator[Image]:
        """Yield the frames of one episode in order, RGB uint8 (H, W, 3).

        Raises:
            ValueError: as `frames` does.
        """
        return self._frames.of_episodes(camera, index, index + 1)

    def _read_tables(self) -> Tables:
        keys = [
            key
            for key in (ACTION, STATE, ENVIRONMENT_STATE, REWARD, DONE, SUCCESS, TRUNCATED)
            if key in self._features
        ]
        if SUCCESS not in keys and _IS_SUCCESS in self._features:
            keys.append(_IS_SUCCESS)
        keys += ["episode_index", "task_index"]
        widths = {key: math.prod(self._features[key]["shape"]) for key in keys}
        widths |= {"episode_index": 1, "task_index": 1}
        keys = list(widths)
        parts = []
        for file in dict.fromkeys(self.index.data_files):
            part = read_columns(self.path / file, keys)
            parts.append(
                {
                    key: to_numpy(
                        part.column(key),
                        width=math.prod(self._features[key]["shape"])
                        if key in self._features
                        else 1,
                        about=f"{key!r} in {self.path / file}",
                    )
                    for key in keys
                }
            )
        columns = {key: np.concatenate([part[key] for part in parts]) for key in keys}
        self._check_rows(columns["episode_index"][:, 0])
        return self._tables_from(columns)

    def _check_rows(self, episode_of_row: NDArray[np.int64]) -> None:
        expected = np.repeat(np.arange(len(self)), self.index.lengths)
        if not np.array_equal(episode_of_row, expected):
            raise ValueError(
                f"expected {self.frame_count} rows in the data files of {self.path}, episode after "
                f"episode as meta/episodes says, but {len(episode_of_row)} rows came that do not "
                "fit; restore data/ and meta/ from the same copy"
            )

    def _tables_from(self, columns: Mapping[str, NDArray[Any]]) -> Tables:
        starts = self.index.starts
        count = self.frame_count
        last_rows = starts + self.index.lengths - 1

        def vector(key: str) -> Vector:
            return columns.get(key, np.zeros((count, 0))).astype(np.float32)

        def flag(key: str) -> NDArray[np.bool_]:
            return columns.get(key, np.zeros((count, 1)))[:, 0].astype(np.bool_)

        vectors = {key: vector(key) for key in (STATE, ENVIRONMENT_STATE, ACTION, REWARD)}
        for key, values in vectors.items():
            if not np.isfinite(values).all():
                row = int(np.argwhere(~np.isfinite(values))[0][0])
                episode = int(np.searchsorted(starts, row, side="right")) - 1
                raise ValueError(
                    f"{key!r} holds NaN or infinity in episode {episode} at step "
                    f"{row - starts[episode]} of {self.path}; drop or mend that episode"
                )
        success_source = _success_source(columns)
        successes = columns[REWARD][:, 0] >= 1 if success_source == REWARD else flag(success_source)
        reward_source: Source = REWARD if REWARD in columns else success_source
        if reward_source == REWARD:
            rewards = vectors[REWARD][:, 0]
        else:
            solved: NDArray[np.int64] = np.cumsum(successes)
            before = np.repeat(solved[starts] - successes[starts], self.index.lengths)
            rewards = (successes & (solved - before == 1)).astype(np.float32)
        if TRUNCATED in columns:
            truncated = flag(TRUNCATED)[last_rows]
            terminated = flag(DONE)[last_rows] & ~truncated
        else:
            # `next.done` alone marks the end of a recording, however it came about.
            terminated = successes[last_rows]
            truncated = ~terminated
        tasks = self.index.tasks
        task_indices = columns["task_index"][starts, 0].astype(np.int64)
        if task_indices.min() < 0 or task_indices.max() >= len(tasks):
            raise ValueError(
                f"expected task_index below {len(tasks)}, the number of tasks of {self.path}, but "
                f"{task_indices.max()} came; restore meta/tasks.parquet"
            )
        return Tables(
            states=vectors[STATE],
            environment_states=vectors[ENVIRONMENT_STATE],
            actions=vectors[ACTION],
            rewards=rewards,
            successes=successes,
            episode_starts=starts,
            terminated=terminated,
            truncated=truncated,
            task_indices=task_indices,
            tasks=tasks,
            demonstrators=self.index.demonstrators,
            reward_source=reward_source,
            success_source=success_source,
            outcomes=None if self.index.recorded is None else judge(self.index.recorded),
        )


def _success_source(columns: Mapping[str, NDArray[Any]]) -> Source:
    """The best evidence of success: a flag, or else a reward that is 0 or 1 throughout."""
    if SUCCESS in columns:
        return SUCCESS
    if _IS_SUCCESS in columns:
        return _IS_SUCCESS
    rewards = columns.get(REWARD)
    if rewards is not None and np.isin(rewards, (0, 1)).all() and rewards.any():
        return REWARD
    return "none"
