"""Writes data sets in the LeRobotDataset v3.0 layout, all or nothing."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from robot_qsft.datasets.episode import Episode
from robot_qsft.datasets.episode_columns import EpisodePlace, check_fits, number_columns
from robot_qsft.datasets.episode_files import MEGABYTE, EpisodeFiles
from robot_qsft.datasets.features import (
    Camera,
    DatasetInfo,
    Feature,
    features_from_info,
    is_visual,
)
from robot_qsft.datasets.index import image_statistics_of, version_of
from robot_qsft.datasets.meta_files import EPISODES_PATH, new_info, write_meta
from robot_qsft.datasets.parquet import ShardWriter, next_position
from robot_qsft.datasets.staging import Staging
from robot_qsft.datasets.statistics import FeatureStatistics
from robot_qsft.datasets.store import Dataset
from robot_qsft.datasets.video import choose_encoder, codec_of

_ROWS_PER_GROUP = 100


class DatasetWriter:
    """Takes episodes one by one; memory does not grow with their frames.

    Use it in a `with`: leaving the block puts the data set in place, leaving it by an exception
    (or by the death of the process) changes nothing.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        info: DatasetInfo,
        append: bool = False,
        data_file_size_mb: int = 100,
        video_file_size_mb: int = 200,
    ) -> None:
        """Begin a new data set, or go on with one.

        Args:
            path: folder of the data set; parents are made.
            info: what all episodes have in common.
            append: whether to add to the data set that is there, which keeps its file sizes.
            data_file_size_mb: about when to begin the next parquet file.
            video_file_size_mb: about when to begin the next video file.

        Raises:
            ValueError: when something is there and `append` is false, when nothing is and it is
                true, when `info` is not that of the data set to append to, when another process is
                writing, or when a camera cannot be stored.
        """
        self.path = Path(path)
        self.info = info
        self._encoder = encoder_for(info.cameras)
        self._staging = Staging(self.path)
        try:
            before = _find(self.path, append=append)
            if before is None:
                codec = codec_of(self._encoder) if self._encoder else ""
                self._stored_info = new_info(
                    features_from_info(info, codec=codec),
                    fps=info.fps,
                    robot_type=info.robot_type,
                    data_file_size_mb=data_file_size_mb,
                    video_file_size_mb=video_file_size_mb,
                )
            else:
                _check_same(before, info)
                self._stored_info = dict(before.stored_info)
            self._begin(before)
        except BaseException:
            self._staging.release()
            raise

    def __enter__(self) -> "DatasetWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def _begin(self, before: Dataset | None) -> None:
        """Find out where to go on, and make the files' writers."""
        stored = self._stored_info
        self._features: dict[str, Feature] = stored["features"]
        self._episode_count = int(stored["total_episodes"])
        self._frame_count = int(stored["total_frames"])
        self._finished = False
        self._rows: list[dict[str, Any]] = []
        self._tasks: list[str] = []
        self._data_files_before: list[Path] = []
        image_statistics: dict[str, FeatureStatistics] = {}
        kept: tuple[Path, ...] = ()
        data_files: tuple[str, ...] = ()
        meta_files: tuple[str, ...] = ()
        video_files: dict[str, tuple[str, ...]] = {}
        if before is not None:
            kept = before.source_files()
            data_files, meta_files = before.index.data_files, before.index.meta_files
            video_files = dict(before.index.video_files)
            self._tasks = list(before.index.tasks)
            self._data_files_before = [self.path / file for file in dict.fromkeys(data_files)]
            image_statistics = {
                key: image_statistics_of(key, self.path, meta_files)
                for key, feature in self._features.items()
                if is_visual(feature)
            }
        self._staging.begin(kept)
        chunk_size = int(stored["chunks_size"])
        self._files = EpisodeFiles(
            self._staging.folder,
            stored_info=stored,
            encoder=self._encoder,
            data_position=_position_after(data_files, chunk_size=chunk_size),
            video_positions={
                key: _position_after(video_files.get(key, ()), chunk_size=chunk_size)
                for key, feature in self._features.items()
                if feature["dtype"] == "video"
            },
            image_statistics=image_statistics,
        )
        self._episodes = ShardWriter(
            self._staging.folder,
            template=EPISODES_PATH,
            position=_position_after(meta_files, chunk_size=chunk_size),
            chunk_size=chunk_size,
            limit=int(stored["data_files_size_in_mb"]) * MEGABYTE,
        )

    def add_episode(self, episode: Episode) -> None:
        """Append an episode.

        Raises:
            ValueError: when it does not fit the data set's `info`; nothing is written then.
        """
        check_fits(episode, self.info)
        if episode.instruction not in self._tasks:
            self._tasks.append(episode.instruction)
        place = EpisodePlace(
            episode_index=self._episode_count,
            first_index=self._frame_count,
            task_index=self._tasks.index(episode.instruction),
        )
        row = self._files.add(number_columns(episode), episode.images, place=place)
        row |= {"tasks": [episode.instruction], "demonstrator": episode.demonstrator}
        self._rows.append(row)
        if len(self._rows) == _ROWS_PER_GROUP:
            self._flush_rows()
        self._episode_count += 1
        self._frame_count += len(episode)

    def close(self) -> None:
        """Put the data set in place; once is enough.

        Raises:
            ValueError: when a new data set has no episode.
        """
        if self._finished:
            return
        if self._episode_count == self._stored_info["total_episodes"]:
            self.discard()
            if self._episode_count == 0:
                raise ValueError(f"expected at least one episode for {self.path}, but none came")
            return
        try:
            self._flush_rows()
            self._files.close()
            self._episodes.close()
            self._write_meta()
        except BaseException:
            self.discard()
            raise
        self._finished = True
        self._staging.commit()

    def discard(self) -> None:
        """Drop what was added; a data set that was there before stays as it was."""
        if self._finished:
            return
        self._finished = True
        try:
            self._files.abandon()
            self._episodes.close()
        finally:
            self._staging.discard()

    def _flush_rows(self) -> None:
        if not self._rows:
            return
        chunk, file = self._episodes.make_room(len(self._rows))
        for row in self._rows:
            row |= {"meta/episodes/chunk_index": chunk, "meta/episodes/file_index": file}
        self._episodes.write(pa.Table.from_pylist(self._rows))
        self._rows = []

    def _write_meta(self) -> None:
        folder = self._staging.folder
        write_meta(
            folder / "meta",
            stored_info=self._stored_info,
            tasks=self._tasks,
            episodes=self._episode_count,
            frames=self._frame_count,
            data_files=[*self._data_files_before, *(folder / "data").rglob("*.parquet")],
            image_statistics=self._files.image_statistics,
        )


def encoder_for(cameras: Mapping[str, Camera]) -> str:
    """The video encoder, or "" when no camera is stored as video.

    Raises:
        ValueError: when a camera cannot be stored as video, or there is no encoder.
    """
    videos = {name: camera for name, camera in cameras.items() if camera.storage == "video"}
    for name, camera in videos.items():
        if camera.height % 2 or camera.width % 2:
            raise ValueError(
                f"a video needs even sides, but camera {name!r} is {camera.height}x"
                f"{camera.width}; resize it or store it as 'image'"
            )
    return choose_encoder() if videos else ""


def _find(path: Path, *, append: bool) -> Dataset | None:
    """The data set to append to."""
    exists = (path / "meta/info.json").exists()
    if exists and not append:
        raise ValueError(
            f"there is a data set at {path} already; choose another folder, delete it, or "
            "append to it (append=True)"
        )
    if append and not exists:
        raise ValueError(
            f"expected a data set to append to at {path}, but there is none; "
            "write a new one (append=False)"
        )
    if not append:
        return None
    before = Dataset.open(path)
    if not version_of(before.stored_info).startswith("v3"):
        raise ValueError(
            f"{path} is of version {version_of(before.stored_info)}, which can be read but not "
            "appended to; turn it into v3.0 with 'robot-qsft ingest' first"
        )
    return before


def _check_same(before: Dataset, info: DatasetInfo) -> None:
    """Refuse to append what differs from what is there."""
    for field in fields(DatasetInfo):
        old, new = getattr(before.info, field.name), getattr(info, field.name)
        if old != new:
            raise ValueError(
                f"{before.path} has {field.name} {old!r}, but {new!r} came for what is to be "
                "appended; write it to another folder"
            )
    stored: dict[str, Feature] = before.stored_info["features"]
    written = features_from_info(info, codec="")
    for key in sorted({*stored, *written}):
        old, new = (
            (features[key]["dtype"], list(features[key]["shape"])) if key in features else "absent"
            for features in (stored, written)
        )
        if old != new:
            raise ValueError(
                f"feature {key!r} is {old} in {before.path}, but {new} in what is to be appended; "
                "write it to another folder"
            )


def _position_after(files: tuple[str, ...], *, chunk_size: int) -> tuple[int, int]:
    """Chunk and file after the last of some paths like `…/chunk-000/file-002.parquet`."""
    if not files:
        return 0, 0
    places = [
        (int(path.parent.name.split("-")[-1]), int(path.stem.split("-")[-1]))
        for path in map(Path, files)
    ]
    return next_position(max(places), chunk_size=chunk_size)
