"""A data set on disk in the LeRobotDataset v3.0 layout, read.

Shape legend: H height, M episodes, N frames, T steps of an episode, W width.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import cv2
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
    camera_name,
    info_from_features,
    is_colour_camera,
)
from robot_qsft.datasets.index import EpisodeIndex, read_index, read_info
from robot_qsft.datasets.interface import Image, Vector
from robot_qsft.datasets.parquet import (
    read_columns,
    read_rows,
    read_tasks,
    to_numpy,
)
from robot_qsft.datasets.tables import Source, Tables
from robot_qsft.datasets.video import read_frames

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
        self._camera_keys = {
            camera_name(key): key for key in self._features if is_colour_camera(self._features[key])
        }
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
        dataset = cls(path, info=info, stored_info=stored, index=read_index(path, stored))
        for file in dataset.source_files():
            if not file.is_file():
                raise ValueError(
                    f"expected the file {file.relative_to(path)} of the data set {path}, but it is "
                    "missing; restore it or record again"
                )
        return dataset

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.index.starts)

    @property
    def frame_count(self) -> int:
        """Number of frames of all episodes."""
        return int(self.index.lengths.sum())

    def source_files(self) -> tuple[Path, ...]:
        """Every file that the content of the data set depends on, sorted."""
        index = self.index
        videos = (file for files in index.video_files.values() for file in files)
        files = {"meta/info.json", "meta/tasks.parquet", *index.meta_files, *index.data_files}
        return tuple(self.path / file for file in sorted({*files, *videos}))

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
                camera: np.stack(list(self._images(camera, index, index + 1)))
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
        if camera not in self._camera_keys:
            raise ValueError(
                f"camera {camera!r} asked for, but {self.path} has "
                f"{', '.join(self._camera_keys) or 'none'}; choose one of these"
            )
        key = self._camera_keys[camera]
        files = self.index.video_files.get(key, self.index.data_files)
        first = 0
        for last in range(1, len(self) + 1):
            if last == len(self) or files[last] != files[first]:
                yield from self._images(camera, first, last)
                first = last

    def _images(self, camera: str, first: int, last: int) -> Iterator[Image]:
        """Frames of consecutive episodes that lie in one file."""
        key = self._camera_keys[camera]
        expected = self.info.cameras[camera]
        fps = self.info.fps
        lengths = self.index.lengths[first:last]
        images: Iterator[Image]
        if key in self.index.video_files:
            file = self.path / self.index.video_files[key][first]
            starts_s = self.index.video_starts_s[key][first:last]
            times_s = (
                float(start_s) + step / fps
                for start_s, length in zip(starts_s, lengths, strict=True)
                for step in range(length)
            )
            images = read_frames(file, times_s=times_s, fps=fps)
        else:
            file = self.path / self.index.data_files[first]
            before = self.index.data_files.index(self.index.data_files[first])
            row = int(self.index.starts[first] - self.index.starts[before])
            stored = read_rows(file, key, first=row, count=int(lengths.sum()))
            images = (_decode(value, about=f"{camera!r} in {file}") for value in stored)
        for image in images:
            if image.shape != (expected.height, expected.width, 3):
                raise ValueError(
                    f"expected frames of {expected.height}x{expected.width} for camera {camera!r}, "
                    f"but {image.shape[0]}x{image.shape[1]} came from {file}; mend meta/info.json"
                )
            yield image

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
        tasks = read_tasks(self.path / "meta/tasks.parquet")
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


def _decode(stored: Any, *, about: str) -> Image:
    """RGB frame from the struct that an `image` column holds."""
    content = stored["bytes"] if stored else None
    if not content:
        raise ValueError(f"expected image bytes for camera {about}, but none came; record again")
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if decoded is None:
        raise ValueError(f"expected a PNG or JPEG for camera {about}, but it cannot be decoded")
    return np.ascontiguousarray(decoded[..., ::-1])
