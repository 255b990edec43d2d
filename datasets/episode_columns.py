"""An episode as columns of `data/*.parquet`, with its statistics.

Shape legend: H height, T steps, W width.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from robot_qsft.datasets.episode import Episode
from robot_qsft.datasets.features import (
    ACTION,
    DONE,
    ENVIRONMENT_STATE,
    IMAGES,
    REWARD,
    STATE,
    SUCCESS,
    TRUNCATED,
    DatasetInfo,
)
from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.parquet import column_of
from robot_qsft.datasets.statistics import FeatureStatistics, feature_statistics

_LARGEST_PIECE_BYTES = 1 << 25


@dataclass(frozen=True)
class EpisodePlace:
    """The numbers that an episode bears in its data set.

    Attributes:
        episode_index: its own.
        first_index: of its first row, counted over the whole data set.
        task_index: of its instruction.
    """

    episode_index: int
    first_index: int
    task_index: int


def check_fits(episode: Episode, info: DatasetInfo) -> None:
    """Refuse an episode that the data set has no room for.

    Raises:
        ValueError: naming the field, what was expected and what came.
    """
    for name, expected in (
        ("states", len(info.state_names)),
        ("environment_states", len(info.environment_state_names)),
        ("actions", len(info.action_names)),
    ):
        shape = getattr(episode, name).shape
        if shape != (len(episode), expected):
            raise ValueError(
                f"expected {name} of {expected} entries per step, but shape {shape} came; "
                "name each entry in the DatasetInfo"
            )
    if set(episode.images) != set(info.cameras):
        raise ValueError(
            f"expected images of the cameras {sorted(info.cameras)}, but "
            f"{sorted(episode.images)} came; give the DatasetInfo the same cameras"
        )
    for name, camera in info.cameras.items():
        frames = episode.images[name]
        if frames.shape[1:] != (camera.height, camera.width, 3) or frames.dtype != np.uint8:
            raise ValueError(
                f"expected uint8 frames of {camera.height}x{camera.width}x3 from camera "
                f"{name!r}, but {frames.dtype} of {frames.shape[1:]} came; resize them"
            )


def number_columns(episode: Episode) -> dict[str, NDArray[Any]]:
    """Every column of an episode that holds numbers, (T,) or (T, size); none of size 0."""
    steps = np.arange(len(episode))
    last = steps == len(episode) - 1
    columns: dict[str, NDArray[Any]] = {
        STATE: episode.states.astype(np.float32),
        ENVIRONMENT_STATE: episode.environment_states.astype(np.float32),
        ACTION: episode.actions.astype(np.float32),
        REWARD: episode.rewards.astype(np.float32),
        DONE: last & (episode.terminated or episode.truncated),
        SUCCESS: episode.successes,
        TRUNCATED: last & episode.truncated,
    }
    return {key: column for key, column in columns.items() if column.size}


def place_columns(length: int, *, fps: float, place: EpisodePlace) -> dict[str, NDArray[Any]]:
    """The columns that number the rows of an episode, each (T,)."""
    steps = np.arange(length)
    return {
        "timestamp": (steps / fps).astype(np.float32),
        "frame_index": steps,
        "index": place.first_index + steps,
        "episode_index": np.full(length, place.episode_index),
        "task_index": np.full(length, place.task_index),
    }


def episode_tables(
    numbers: Mapping[str, NDArray[Any]],
    encoded: Mapping[str, Iterable[bytes]],
    schema: pa.Schema,
    *,
    largest_bytes: int = _LARGEST_PIECE_BYTES,
) -> Iterator[pa.Table]:
    """The rows of an episode as they are stored: in one piece, or in several if images are many.

    Args:
        numbers: column name to rows; text as well.
        encoded: camera name to PNGs or JPEGs, for the cameras that `schema` names.
        schema: of the data files.
        largest_bytes: a piece ends once its images take so much.
    """
    length = len(next(iter(numbers.values())))
    pictures = {
        field.name: iter(encoded[field.name.removeprefix(IMAGES)])
        for field in schema
        if field.name not in numbers
    }
    first = 0
    while first < length:
        rows: dict[str, list[dict[str, Any]]] = {key: [] for key in pictures}
        size, last = 0, first
        while last < length and size < largest_bytes:
            for key, contents in pictures.items():
                content = next(contents)
                rows[key].append({"bytes": content, "path": f"frame-{last:06d}.png"})
                size += len(content)
            last = last + 1 if pictures else length
        columns = [
            pa.array(rows[field.name], field.type)
            if field.name in rows
            else column_of(numbers[field.name][first:last], field.type)
            for field in schema
        ]
        yield pa.table(columns, schema=schema)
        first = last
    for contents in pictures.values():
        # The frames are counted where they come from, once they have all been asked for.
        for _ in contents:
            pass


def number_statistics(numbers: Mapping[str, NDArray[Any]]) -> dict[str, FeatureStatistics]:
    """Statistics of every column over one episode; text has none."""
    rows = {
        key: column.reshape(len(column), -1)
        for key, column in numbers.items()
        if column.dtype != object
    }
    together = feature_statistics(np.concatenate(list(rows.values()), axis=1, dtype=np.float64))
    statistics, first = {}, 0
    for key, values in rows.items():
        last = first + values.shape[1]
        statistics[key] = together.dimensions(first, last)
        first = last
    return statistics


def to_png(frame: Image) -> bytes:
    """A frame, RGB uint8 (H, W, 3), as PNG."""
    stored, encoded = cv2.imencode(".png", frame[..., ::-1])
    assert stored
    content: bytes = encoded.tobytes()
    return content
