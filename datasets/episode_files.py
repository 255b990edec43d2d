"""Whole episodes appended to the data and video files of a data set.

Shape legend: H height, T steps, W width.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from robot_qsft.datasets.episode_columns import (
    EpisodePlace,
    episode_tables,
    number_statistics,
    place_columns,
    to_png,
)
from robot_qsft.datasets.features import IMAGES, Feature, arrow_schema, is_visual
from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.parquet import ShardWriter
from robot_qsft.datasets.statistics import (
    FeatureStatistics,
    ImageStatistics,
    combine,
    statistics_to_json,
)
from robot_qsft.datasets.video_shards import VideoShardWriter

MEGABYTE = 1024 * 1024
Position = tuple[int, int]


class EpisodeFiles:
    """Writes what `data/` and `videos/` hold, and tells what `meta/episodes` should say of it.

    Attributes:
        image_statistics: feature of a camera to statistics over all its frames written.
    """

    def __init__(
        self,
        root: Path,
        *,
        stored_info: Mapping[str, Any],
        encoder: str,
        data_position: Position,
        video_positions: Mapping[str, Position],
        image_statistics: Mapping[str, FeatureStatistics],
        ready_videos: Mapping[str, Position] = MappingProxyType({}),
    ) -> None:
        """Prepare to write; files are opened when episodes come.

        Args:
            root: folder that paths are relative to.
            stored_info: the `meta/info.json` to be.
            encoder: one that `choose_encoder` gave.
            data_position: chunk and file of the first data file.
            video_positions: the same for each camera stored as video.
            image_statistics: of frames that are there already.
            ready_videos: cameras whose one video is there already, with the frames of all episodes
                to come; frames are only looked at.
        """
        self._features: Mapping[str, Feature] = stored_info["features"]
        self._schema = arrow_schema(self._features)
        self._fps = stored_info["fps"]
        self._ready_videos = ready_videos
        self._frames = 0
        self.image_statistics = dict(image_statistics)
        chunk_size = int(stored_info["chunks_size"])
        self._data = ShardWriter(
            root,
            template=stored_info["data_path"],
            position=data_position,
            chunk_size=chunk_size,
            limit=int(stored_info["data_files_size_in_mb"]) * MEGABYTE,
        )
        self._videos = {
            key: VideoShardWriter(
                root,
                template=stored_info["video_path"],
                key=key,
                position=position,
                chunk_size=chunk_size,
                limit=int(stored_info["video_files_size_in_mb"]) * MEGABYTE,
                fps=self._fps,
                encoder=encoder,
            )
            for key, position in video_positions.items()
        }

    def add(
        self,
        columns: Mapping[str, NDArray[Any]],
        frames: Mapping[str, Iterable[Image]],
        *,
        place: EpisodePlace,
        encoded: Mapping[str, Iterable[tuple[Image, bytes]]] = MappingProxyType({}),
    ) -> dict[str, Any]:
        """Append an episode; gives its row of `meta/episodes`, but for what only the caller knows.

        Args:
            columns: numbers and text, (T, ...); those that number rows may be left out.
            frames: camera name to T frames, uint8 (H, W, 3) each.
            place: of the episode.
            encoded: the same for cameras whose PNGs or JPEGs are to be stored as they are.

        Raises:
            ValueError: when a camera has not T frames.
        """
        length = len(next(iter(columns.values())))
        columns = {**place_columns(length, fps=self._fps, place=place), **columns}
        seen = {name: ImageStatistics(length) for name in (*frames, *encoded)}
        passing = {name: seen[name].passing(images) for name, images in frames.items()}
        stored: dict[str, Iterator[bytes]] = {
            name: map(to_png, images) for name, images in passing.items()
        }
        stored |= {name: _kept(pairs, seen[name]) for name, pairs in encoded.items()}
        chunk, file = self._data.make_room(length)
        for table in episode_tables(columns, stored, self._schema):
            self._data.write(table)
        row: dict[str, Any] = {
            "episode_index": place.episode_index,
            "length": length,
            "data/chunk_index": chunk,
            "data/file_index": file,
            "dataset_from_index": place.first_index,
            "dataset_to_index": place.first_index + length,
        }
        for key, video in self._videos.items():
            height, width = self._features[key]["shape"][:2]
            video_place = video.write(
                passing[key.removeprefix(IMAGES)], count=length, height=height, width=width
            )
            row |= {f"videos/{key}/{part}": value for part, value in asdict(video_place).items()}
        for key, (video_chunk, video_file) in self._ready_videos.items():
            deque(passing[key.removeprefix(IMAGES)], maxlen=0)
            row |= {
                f"videos/{key}/chunk_index": video_chunk,
                f"videos/{key}/file_index": video_file,
                f"videos/{key}/from_timestamp": self._frames / self._fps,
                f"videos/{key}/to_timestamp": (self._frames + length) / self._fps,
            }
        self._frames += length
        statistics = number_statistics(columns)
        statistics |= {IMAGES + name: one.result() for name, one in seen.items()}
        for key, feature in self._features.items():
            if key not in statistics:
                continue
            if is_visual(feature):
                known = self.image_statistics.get(key)
                self.image_statistics[key] = (
                    statistics[key] if known is None else combine(known, statistics[key])
                )
            listed = statistics_to_json(statistics[key], dtype=feature["dtype"])
            row |= {f"stats/{key}/{part}": value for part, value in listed.items()}
        return row

    def close(self) -> None:
        """Finish the files, which cannot be read before."""
        self._data.close()
        for video in self._videos.values():
            video.close()

    def abandon(self) -> None:
        """Let go of the files without finishing the videos."""
        for video in self._videos.values():
            video.abandon()
        self._data.close()


def _kept(pairs: Iterable[tuple[Image, bytes]], statistics: ImageStatistics) -> Iterator[bytes]:
    """The bytes of frames, which are looked at in passing."""
    contents: deque[bytes] = deque()

    def images() -> Iterator[Image]:
        for image, content in pairs:
            contents.append(content)
            yield image

    for _ in statistics.passing(images()):
        yield contents.popleft()
