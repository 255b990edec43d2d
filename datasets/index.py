"""What `meta/` says of a LeRobot v3.0 data set: its kind, and where its episodes lie.

Shape legend: M episodes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from robot_qsft.datasets.features import is_colour_camera
from robot_qsft.datasets.parquet import open_parquet, read_columns
from robot_qsft.datasets.statistics import (
    QUANTILES,
    FeatureStatistics,
    combine,
    statistics_from_json,
)

EPISODES_GLOB = "meta/episodes/chunk-*/file-*.parquet"


@dataclass(frozen=True, eq=False)
class EpisodeIndex:
    """Where the episodes lie; every array int64 (M,) unless said otherwise.

    Attributes:
        starts: first row, counted over the whole set.
        lengths: number of rows.
        data_files: path of the data file of each episode, relative to the set.
        video_files: feature to path of the video file of each episode, relative to the set.
        video_starts_s: feature to time of an episode's first frame in its file, float64.
        demonstrators: who acted, "" when unknown.
        meta_files: the files that this was read from, relative to the set.
    """

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    data_files: tuple[str, ...]
    video_files: Mapping[str, tuple[str, ...]]
    video_starts_s: Mapping[str, NDArray[np.float64]]
    demonstrators: tuple[str, ...]
    meta_files: tuple[str, ...]


def read_info(path: Path) -> dict[str, Any]:
    """Read `meta/info.json` of a v3.0 data set.

    Raises:
        ValueError: when there is none, it is damaged, or of another version.
    """
    file = path / "meta/info.json"
    if not path.is_dir():
        raise ValueError(
            f"expected a data set at {path}, but there is no such folder; mend the path"
        )
    if not file.is_file():
        raise ValueError(
            f"expected a LeRobot data set at {path}, but it has no meta/info.json; "
            "name the folder that holds meta/, data/ and videos/"
        )
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); restore it or record again") from error
    version = str(stored.get("codebase_version")) if isinstance(stored, dict) else "none"
    if version.split(".")[0] != "v3":
        raise ValueError(
            f"expected codebase_version v3.0 in {file}, but {version} came; convert the data set "
            "with LeRobot's convert_dataset_v21_to_v30"
        )
    missing = [
        key for key in ("fps", "features", "total_episodes", "data_path") if key not in stored
    ]
    if missing:
        raise ValueError(f"expected {missing[0]!r} in {file}, but it is missing; restore the file")
    return dict(stored)


def read_index(path: Path, stored: Mapping[str, Any]) -> EpisodeIndex:
    """Read `meta/episodes`.

    Raises:
        ValueError: when a file is missing or damaged, or episodes are missing.
    """
    total = int(stored["total_episodes"])
    videos = [
        key
        for key, f in stored["features"].items()
        if f["dtype"] == "video" and is_colour_camera(f)
    ]
    needed = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    for key in videos:
        needed += [
            f"videos/{key}/{part}" for part in ("chunk_index", "file_index", "from_timestamp")
        ]
    parts, meta_files = [], []
    for file in sorted(path.glob(EPISODES_GLOB)):
        with open_parquet(file) as opened:
            known = "demonstrator" in opened.schema_arrow.names
        part = read_columns(file, [*needed, "demonstrator"] if known else needed)
        if not known:
            part = part.append_column("demonstrator", pa.array([""] * len(part), pa.string()))
        # An interrupted append may have left episodes that info.json does not count.
        part = part.filter(pc.less(part.column("episode_index"), total))
        if len(part):
            parts.append(part)
            meta_files.append(file.relative_to(path).as_posix())
    rows = pa.concat_tables(parts).sort_by("episode_index") if parts else pa.table({})
    if total == 0 or len(rows) != total:
        raise ValueError(
            f"expected the {total} episodes that info.json counts in {path}/meta/episodes, at "
            f"least one, but {len(rows)} came; restore that folder or record again"
        )
    lengths = rows.column("length").to_numpy().astype(np.int64)

    def paths(template: str, prefix: str, **more: str) -> tuple[str, ...]:
        chunks = rows.column(f"{prefix}/chunk_index").to_pylist()
        files = rows.column(f"{prefix}/file_index").to_pylist()
        return tuple(
            template.format(chunk_index=chunk, file_index=file, **more)
            for chunk, file in zip(chunks, files, strict=True)
        )

    return EpisodeIndex(
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        data_files=paths(stored["data_path"], "data"),
        video_files={
            key: paths(stored["video_path"], f"videos/{key}", video_key=key) for key in videos
        },
        video_starts_s={
            key: rows.column(f"videos/{key}/from_timestamp").to_numpy() for key in videos
        },
        demonstrators=tuple(name or "" for name in rows.column("demonstrator").to_pylist()),
        meta_files=tuple(meta_files),
    )


def image_statistics_of(key: str, path: Path, meta_files: Sequence[str]) -> FeatureStatistics:
    """Statistics of a camera over all episodes, from those that each episode's row holds.

    Args:
        key: feature of the camera.
        path: of the data set.
        meta_files: files of `meta/episodes`, relative to the data set.

    Raises:
        ValueError: when the rows hold none, as in data sets converted from v2.1.
    """
    columns = [f"stats/{key}/{part}" for part in ("min", "max", "mean", "std", "count", *QUANTILES)]
    rows = [row for file in meta_files for row in read_columns(path / file, columns).to_pylist()]
    return reduce(
        combine,
        (
            statistics_from_json({name.split("/")[-1]: value for name, value in row.items()})
            for row in rows
        ),
    )
