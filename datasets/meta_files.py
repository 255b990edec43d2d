"""The files below `meta/` of a LeRobot v3.0 data set, written."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.features import Feature, is_visual
from robot_qsft.datasets.order_statistics import streamed_statistics
from robot_qsft.datasets.parquet import number_chunks, write_tasks
from robot_qsft.datasets.statistics import FeatureStatistics, statistics_to_json

EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"


def new_info(
    features: Mapping[str, Feature],
    *,
    fps: int,
    robot_type: str | None,
    data_file_size_mb: int = 100,
    video_file_size_mb: int = 200,
) -> dict[str, Any]:
    """The `meta/info.json` of a data set without episodes."""
    has_videos = any(feature["dtype"] == "video" for feature in features.values())
    return {
        "codebase_version": "v3.0",
        "robot_type": robot_type,
        "total_episodes": 0,
        "total_frames": 0,
        "total_tasks": 0,
        "chunks_size": 1000,
        "data_files_size_in_mb": data_file_size_mb,
        "video_files_size_in_mb": video_file_size_mb,
        "fps": fps,
        "splits": {},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": (
            "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
            if has_videos
            else None
        ),
        "features": dict(features),
    }


def write_meta(
    folder: Path,
    *,
    stored_info: Mapping[str, Any],
    tasks: Sequence[str],
    episodes: int,
    frames: int,
    data_files: Sequence[Path],
    image_statistics: Mapping[str, FeatureStatistics],
) -> None:
    """Write `info.json`, `stats.json` and `tasks.parquet`.

    Statistics of numbers are exact, read from the data files; no frame is decoded.

    Args:
        folder: `meta/` of the data set.
        stored_info: what `info.json` says but for the totals.
        tasks: instructions in the order of their index.
        episodes: how many.
        frames: how many.
        data_files: every parquet file of the data set, in order.
        image_statistics: feature of a camera to its statistics.
    """
    features: Mapping[str, Feature] = stored_info["features"]
    statistics = {}
    for key, feature in features.items():
        if feature["dtype"] == "string":
            continue
        one = (
            image_statistics[key]
            if is_visual(feature)
            else _whole_statistics(key, feature, data_files, rows=frames)
        )
        statistics[key] = statistics_to_json(one, dtype=feature["dtype"])
    write_tasks(folder / "tasks.parquet", tasks)
    _write_json(folder / "stats.json", statistics)
    totals = {
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": len(tasks),
        "splits": {"train": f"0:{episodes}"},
    }
    _write_json(folder / "info.json", {**stored_info, **totals})


def _whole_statistics(
    key: str, feature: Feature, data_files: Sequence[Path], *, rows: int
) -> FeatureStatistics:
    width = int(np.prod(feature["shape"]))

    def chunks() -> Iterator[NDArray[Any]]:
        for file in data_files:
            yield from number_chunks(file, key, width=width)

    return streamed_statistics(chunks, rows=rows, dimensions=width)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
