"""What `meta/` says of a LeRobot data set: its kind, and where its episodes lie.

Shape legend: M episodes.
"""

import json
import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path, PurePosixPath
from sys import intern
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from robot_qsft.datasets.features import is_colour_camera
from robot_qsft.datasets.freed_memory import give_back_freed_memory
from robot_qsft.datasets.outcomes import Evidence
from robot_qsft.datasets.parquet import open_parquet, read_columns, read_tasks
from robot_qsft.datasets.statistics import (
    QUANTILES,
    FeatureStatistics,
    combine,
    statistics_from_json,
)
from robot_qsft.datasets.tables import Outcome

EPISODES_GLOB = "meta/episodes/chunk-*/file-*.parquet"
_OURS = ("demonstrator", "outcome", "outcome_source")
"""Columns of `meta/episodes` that only our own writer adds."""


@dataclass(frozen=True, eq=False)
class EpisodeIndex:
    """Where the episodes lie; every array int64 (M,) unless said otherwise.

    Attributes:
        starts: first row, counted over the whole set.
        lengths: number of rows.
        data_files: path of the data file of each episode, relative to the set.
        video_files: feature to path of the video file of each episode, relative to the set.
        video_starts_s: feature to time of an episode's first frame in its file, float64.
        tasks: the instructions, in the order of their index.
        demonstrators: who acted, "" when unknown.
        recorded: what was known of each episode's end when it was written; None where the data set
            does not say.
        meta_files: the files that the episodes were read from, relative to the set.
        task_file: the file that the tasks were read from, relative to the set.
    """

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    data_files: tuple[str, ...]
    video_files: Mapping[str, tuple[str, ...]]
    video_starts_s: Mapping[str, NDArray[np.float64]]
    tasks: tuple[str, ...]
    demonstrators: tuple[str, ...]
    recorded: tuple[Evidence, ...] | None
    meta_files: tuple[str, ...]
    task_file: str


def read_info(path: Path) -> dict[str, Any]:
    """Read `meta/info.json` of a data set of version 2.0, 2.1 or 3.0.

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
        if file.stat().st_size > _LARGEST_INFO:
            raise ValueError(f"it has more than {_LARGEST_INFO} bytes")
        stored = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON ({error}); restore it or record again") from error
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}); restore the file") from error
    version = str(stored.get("codebase_version")) if isinstance(stored, dict) else "none"
    if version not in ("v2.0", "v2.1") and version.split(".")[0] != "v3":
        raise ValueError(
            f"expected codebase_version v2.0, v2.1 or v3.0 in {file}, but "
            f"{version.encode('unicode_escape').decode():.40} came; convert the data set with "
            "LeRobot's own tools"
        )
    missing = [key for key in _KINDS if key not in stored]
    if missing:
        raise ValueError(f"expected {missing[0]!r} in {file}, but it is missing; restore the file")
    for key, kinds in _KINDS.items():
        if not isinstance(stored[key], kinds) or isinstance(stored[key], bool):
            raise ValueError(f"{key!r} in {file} cannot be {stored[key]!r:.80}; restore the file")
    if isinstance(stored["fps"], float) and stored["fps"].is_integer():
        stored["fps"] = int(stored["fps"])
    _check_features(stored["features"], file)
    return dict(stored)


_KINDS: Mapping[str, Any] = {
    "fps": (int, float),
    "features": dict,
    "total_episodes": int,
    "data_path": str,
}
_MOST_EPISODES = 1 << 40
_LARGEST_INFO = 1 << 26
_LATEST_S = 1e9
"""Time that no frame of a video is later than: thirty years."""
_LARGEST_ROW = 1 << 26
"""Numbers (or pixels) that one feature may hold in a step: more than any camera has."""


def _check_features(features: Mapping[str, Any], file: Path) -> None:
    for key, feature in features.items():
        shape = feature.get("shape") if isinstance(feature, dict) else None
        sound = (
            isinstance(shape, list)
            and len(shape) <= 8
            and all(isinstance(size, int) and size > 0 for size in shape)
            and math.prod(shape) <= _LARGEST_ROW
            and isinstance(feature.get("dtype"), str)
        )
        if not sound:
            raise ValueError(
                f"feature {key!r} in {file} should have a dtype and a shape of whole numbers above "
                f"0, but {feature!r:.80} came; restore the file"
            )


def version_of(stored: Mapping[str, Any]) -> str:
    """The version of a data set, such as "v2.1"."""
    return str(stored["codebase_version"])


def file_path(template: str, **fields: Any) -> str:
    """A path relative to the data set, from a template of `meta/info.json`.

    Raises:
        ValueError: when the template asks for more than the fields, or leads out of the data set.
    """
    try:
        # Attributes of the fields are none of a path's business, and a width can fill any memory.
        for _, name, spec, conversion in string.Formatter().parse(template):
            if name is not None and (name not in fields or conversion or len(spec or "") > 4):
                raise ValueError(name)
        path = template.format(**fields)
    except (KeyError, IndexError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(
            f"the path {template!r:.200} in meta/info.json cannot be filled in; restore the file"
        ) from error
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts:
        raise ValueError(
            f"the path {template!r:.200} in meta/info.json leads out of the data set; restore the "
            "file"
        )
    if not path.isprintable() or any(len(part.encode()) > 255 for part in pure.parts):
        raise ValueError(
            f"the path {template!r:.200} in meta/info.json is none that a file can have; restore "
            "the file"
        )
    return path


def video_keys(stored: Mapping[str, Any]) -> list[str]:
    """The features whose frames are in video files.

    Raises:
        ValueError: when there are some, but no path to them.
    """
    keys = [
        key
        for key, feature in stored["features"].items()
        if feature["dtype"] == "video" and is_colour_camera(feature)
    ]
    if keys and not isinstance(stored.get("video_path"), str):
        raise ValueError(
            f"expected 'video_path' in meta/info.json, for the camera {keys[0]!r}, but it is "
            "missing; restore the file"
        )
    return keys


def read_index(path: Path, stored: Mapping[str, Any]) -> EpisodeIndex:
    """Read `meta/episodes` and `meta/tasks.parquet` of a v3.0 data set.

    Raises:
        ValueError: when a file is missing or damaged, or episodes are missing.
    """
    total = int(stored["total_episodes"])
    last = min(total, _MOST_EPISODES)
    videos = video_keys(stored)
    needed = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    for key in videos:
        needed += [
            f"videos/{key}/{part}" for part in ("chunk_index", "file_index", "from_timestamp")
        ]
    parts, meta_files = [], []
    for file in sorted(path.glob(EPISODES_GLOB)):
        with open_parquet(file) as opened:
            known = [name for name in _OURS if name in opened.schema_arrow.names]
        part = read_columns(file, [*needed, *known])
        for name in _OURS:
            if name not in known:
                part = part.append_column(name, pa.array([""] * len(part), pa.string()))
        parts.append(part)
        meta_files.append(file.relative_to(path).as_posix())
    try:
        # An interrupted append may have left episodes that info.json does not count.
        parts = [part.filter(pc.less(part.column("episode_index"), last)) for part in parts]
        rows = pa.concat_tables(parts).sort_by("episode_index") if parts else pa.table({})
    except pa.ArrowException as error:
        raise ValueError(
            f"the files of {path}/meta/episodes do not fit together ({error}); restore that folder"
        ) from error
    if total < 1 or len(rows) != total:
        raise ValueError(
            f"expected the {total} episodes that info.json counts in {path}/meta/episodes, at "
            f"least one, but {len(rows)} came; restore that folder or record again"
        )
    give_back_freed_memory()
    columns = {name: _column(rows, name, path) for name in needed}
    lengths = checked_lengths(columns["length"], columns["episode_index"], path=path)

    def paths(template: str, prefix: str, **more: str) -> tuple[str, ...]:
        chunks = columns[f"{prefix}/chunk_index"].tolist()
        files = columns[f"{prefix}/file_index"].tolist()
        return tuple(
            intern(file_path(template, chunk_index=chunk, file_index=file, **more))
            for chunk, file in zip(chunks, files, strict=True)
        )

    task_file = "meta/tasks.parquet"
    return EpisodeIndex(
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        data_files=paths(stored["data_path"], "data"),
        video_files={
            key: paths(stored["video_path"], f"videos/{key}", video_key=key) for key in videos
        },
        video_starts_s={
            key: _times(columns[f"videos/{key}/from_timestamp"], key, path) for key in videos
        },
        tasks=read_tasks(path / task_file),
        demonstrators=tuple(name or "" for name in _texts(rows, "demonstrator", path)),
        recorded=_recorded(rows, path),
        meta_files=tuple(file for file, part in zip(meta_files, parts, strict=True) if len(part)),
        task_file=task_file,
    )


def checked_lengths(
    lengths: NDArray[Any], episode_indices: NDArray[Any], *, path: Path
) -> NDArray[np.int64]:
    """Lengths of the episodes, int64 (M,), which must be numbered from 0 on and not be empty.

    Raises:
        ValueError: when they are not.
    """
    if not np.array_equal(episode_indices, np.arange(len(lengths))):
        raise ValueError(
            f"expected the episodes of {path} to be numbered from 0 on without gaps, but they are "
            "not; restore meta/ or record again"
        )
    if lengths.dtype.kind not in "iu" or not ((lengths > 0) & (lengths < 1 << 40)).all():
        raise ValueError(
            f"expected every episode of {path} to have a length above 0, but meta/ tells another; "
            "restore meta/ or record again"
        )
    return lengths.astype(np.int64)


def _column(rows: pa.Table, name: str, path: Path) -> NDArray[Any]:
    column = rows.column(name)
    if column.null_count or not (
        pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    ):
        raise ValueError(
            f"expected numbers in the column {name!r} of {path}/meta/episodes, but {column.type} "
            "or nothing came; restore that folder or record again"
        )
    values: NDArray[Any] = column.to_numpy()
    return values


def _times(times_s: NDArray[Any], key: str, path: Path) -> NDArray[np.float64]:
    if not ((times_s >= 0) & (times_s < _LATEST_S)).all():
        raise ValueError(
            f"expected times in seconds in the column 'videos/{key}/from_timestamp' of "
            f"{path}/meta/episodes, but others came; restore that folder or record again"
        )
    return times_s.astype(np.float64)


def _texts(rows: pa.Table, name: str, path: Path) -> list[str | None]:
    """A column that only our own writer adds, and so may hold anything if others do."""
    try:
        texts: list[str | None] = rows.column(name).cast(pa.string()).to_pylist()
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(
            f"expected text in the column {name!r} of {path}/meta/episodes, but it holds something "
            "else; restore that folder or leave the column out"
        ) from error
    return texts


def _recorded(rows: pa.Table, path: Path) -> tuple[Evidence, ...] | None:
    """What we wrote of how the episodes ended, if we wrote them."""
    outcomes = _texts(rows, "outcome", path)
    if not all(outcome in get_args(Outcome) for outcome in outcomes):
        return None
    sources = _texts(rows, "outcome_source", path)
    success = {"success": True, "failure": False, "unknown": None}
    return tuple(
        Evidence(source or "none", success[str(outcome)], certain=True)
        for outcome, source in zip(outcomes, sources, strict=True)
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
