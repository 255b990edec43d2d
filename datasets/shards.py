"""A data set written shard by shard: each has files of its own, so any process can write any."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from robot_qsft.datasets.episode_columns import EpisodePlace
from robot_qsft.datasets.episode_files import EpisodeFiles
from robot_qsft.datasets.features import IMAGES, Feature
from robot_qsft.datasets.field_map import FieldMap
from robot_qsft.datasets.mapped import MappedSource
from robot_qsft.datasets.merged import open_sources
from robot_qsft.datasets.meta_files import EPISODES_PATH
from robot_qsft.datasets.outcomes import Evidence
from robot_qsft.datasets.statistics import (
    FeatureStatistics,
    statistics_from_json,
    statistics_to_json,
)
from robot_qsft.datasets.tables import Outcome
from robot_qsft.datasets.video_copy import copy_segments

_FRAMES = 20_000
_EPISODES = 500
_PIXELS = 4_000_000_000
"""Most frames, episodes, and pixels of all cameras that go into one shard."""
_LEAST_FRAMES = 500
_SHARDS = 32
"""A set is cut into about so many shards, whatever the machine, unless they would be tiny."""


@dataclass(frozen=True)
class Job:
    """What all shards have in common; small enough to be sent with each.

    Attributes:
        sources: paths of the demonstrations; several are read as one.
        field_map: how they are read.
        folder: where the files go.
        stored_info: the `meta/info.json` to be.
        encoder: of videos; "" for none.
    """

    sources: tuple[str, ...]
    field_map: FieldMap
    folder: str
    stored_info: Mapping[str, Any]
    encoder: str


@dataclass(frozen=True)
class Planned:
    """An episode of the data set to be.

    Attributes:
        source_index: of the episode in the source.
        place: in the data set.
        task: instruction.
        evidence: final word on how it ended.
        outcome: that follows.
        length: steps.
    """

    source_index: int
    place: EpisodePlace
    task: str
    evidence: Evidence
    outcome: Outcome
    length: int


@dataclass(frozen=True)
class Shard:
    """Consecutive episodes of the data set to be, at least one.

    Attributes:
        job: what it is part of.
        number: of the shard, from 0 on.
        episodes: in order.
    """

    job: Job
    number: int
    episodes: tuple[Planned, ...]


_open: dict[tuple[object, ...], MappedSource] = {}
"""What this process read last, kept open for the next shard."""


def mapped_source(job: Job) -> MappedSource:
    """What a job reads."""
    key = (*job.sources, repr(job.field_map))
    if key not in _open:
        _open.clear()
        _open[key] = MappedSource(open_sources(job.sources), job.field_map)
    return _open[key]


def cut_into_shards(
    job: Job, episodes: Sequence[Planned], *, pixels_per_frame: int
) -> tuple[Shard, ...]:
    """Shards of about equal size, which depend on the data alone and not on the machine.

    Args:
        job: what they are part of.
        episodes: of the data set to be, in order.
        pixels_per_frame: of all cameras together.
    """
    total = sum(one.length for one in episodes)
    most = min(_FRAMES, max(_LEAST_FRAMES, total // _SHARDS))
    most = max(1, min(most, _PIXELS // max(1, pixels_per_frame)))
    shards: list[list[Planned]] = []
    frames = 0
    for one in episodes:
        if not shards or frames + one.length > most or len(shards[-1]) == _EPISODES:
            shards.append([])
            frames = 0
        shards[-1].append(one)
        frames += one.length
    return tuple(Shard(job, number, tuple(part)) for number, part in enumerate(shards))


def write_shard(shard: Shard) -> int:
    """Write the files of a shard, unless they are there; gives the number of frames.

    Raises:
        ValueError: when an episode is damaged, or has changed since it was planned.
    """
    frames = sum(one.length for one in shard.episodes)
    done = marker(Path(shard.job.folder), shard.number)
    if done.exists():
        return frames
    job = shard.job
    mapped = mapped_source(job)
    position = _position(shard.number, int(job.stored_info["chunks_size"]))
    videos = [key for key, one in job.stored_info["features"].items() if one["dtype"] == "video"]
    copied = {key for key in videos if _copy_video(shard, mapped, key, position)}
    files = EpisodeFiles(
        Path(job.folder),
        stored_info={
            **job.stored_info,
            "data_files_size_in_mb": 1 << 30,
            "video_files_size_in_mb": 1 << 30,
        },
        encoder=job.encoder,
        data_position=position,
        video_positions={key: position for key in videos if key not in copied},
        image_statistics={},
        ready_videos=dict.fromkeys(sorted(copied), position),
    )
    try:
        rows = [
            {
                **_add(files, mapped, one, job.stored_info["features"]),
                "meta/episodes/chunk_index": position[0],
                "meta/episodes/file_index": position[1],
            }
            for one in shard.episodes
        ]
        files.close()
    except BaseException:
        files.abandon()
        raise
    chunk, file = position
    path = Path(job.folder) / EPISODES_PATH.format(chunk_index=chunk, file_index=file)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, version="2.6", write_page_checksum=True)
    _write_marker(done, files.image_statistics)
    return frames


def marker(folder: Path, shard: int) -> Path:
    """The file that stands once a shard is whole; it holds the statistics of its frames."""
    return folder / "shards" / f"{shard:06d}.json"


def read_marker(path: Path) -> dict[str, FeatureStatistics]:
    """Statistics of the frames of a shard, feature of a camera to statistics."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    return {key: statistics_from_json(one) for key, one in stored.items()}


def data_files(folder: Path, shards: Sequence[Shard]) -> list[Path]:
    """The parquet files of the shards, in order."""
    files = []
    for shard in shards:
        stored = shard.job.stored_info
        chunk, file = _position(shard.number, int(stored["chunks_size"]))
        files.append(folder / stored["data_path"].format(chunk_index=chunk, file_index=file))
    return files


def _add(
    files: EpisodeFiles, mapped: MappedSource, planned: Planned, features: Mapping[str, Feature]
) -> dict[str, Any]:
    recording = mapped.source.recording(planned.source_index)
    episode = mapped.episode(recording, planned.evidence)
    if len(episode) != planned.length:
        raise ValueError(
            f"{recording.name} of {mapped.source.path} has {len(episode)} steps now, but had "
            f"{planned.length} a moment ago; leave the source alone while it is read"
        )
    frames, encoded = {}, {}
    for camera in mapped.cameras:
        as_stored = None
        if features[IMAGES + camera]["dtype"] == "image":
            as_stored = mapped.encoded_frames(planned.source_index, camera, episode.steps)
        if as_stored is not None:
            encoded[camera] = as_stored
        else:
            frames[camera] = mapped.frames(planned.source_index, camera, episode.steps)
    row = files.add(episode.columns, frames, place=planned.place, encoded=encoded)
    return row | {
        "tasks": [planned.task],
        "demonstrator": recording.demonstrator,
        "outcome": planned.outcome,
        "outcome_source": planned.evidence.source,
        "source_name": recording.name,
    }


def _copy_video(shard: Shard, mapped: MappedSource, key: str, position: tuple[int, int]) -> bool:
    """Whether the frames of a camera could be copied as they are coded in the source."""
    segments = [
        mapped.video_segment(one.source_index, key.removeprefix(IMAGES), frames=one.length)
        for one in shard.episodes
    ]
    found = [segment for segment in segments if segment is not None]
    if len(found) < len(segments):
        return False
    stored = shard.job.stored_info
    path = stored["video_path"].format(
        video_key=key, chunk_index=position[0], file_index=position[1]
    )
    return copy_segments(Path(shard.job.folder) / path, found, fps=stored["fps"])


def _write_marker(path: Path, statistics: Mapping[str, FeatureStatistics]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {key: statistics_to_json(one, dtype="image") for key, one in statistics.items()}
    writing = path.with_suffix(f".{os.getpid()}")
    writing.write_text(json.dumps(stored), encoding="utf-8")
    writing.replace(path)


def _position(shard: int, chunk_size: int) -> tuple[int, int]:
    return divmod(shard, chunk_size)
