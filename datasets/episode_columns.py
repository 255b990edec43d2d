"""An episode as columns of `data/*.parquet`, with its statistics.

Shape legend: H height, T steps, W width.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
from robot_qsft.datasets.statistics import (
    FeatureStatistics,
    feature_statistics,
    image_statistics,
)


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


def number_columns(episode: Episode, *, fps: int, place: EpisodePlace) -> dict[str, NDArray[Any]]:
    """Every column that holds numbers, (T,) or (T, size); columns of size 0 are left out."""
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
        "timestamp": (steps / fps).astype(np.float32),
        "frame_index": steps,
        "index": place.first_index + steps,
        **{
            name: np.full(len(episode), number)
            for name, number in asdict(place).items()
            if name != "first_index"
        },
    }
    return {key: column for key, column in columns.items() if column.size}


def episode_table(
    numbers: Mapping[str, NDArray[Any]], images: Mapping[str, Image], schema: pa.Schema
) -> pa.Table:
    """The rows of an episode as they are stored; PNG bytes for cameras that `schema` names.

    Args:
        numbers: from `number_columns`.
        images: camera name to frames, uint8 (T, H, W, 3).
        schema: of the data files.
    """
    columns = [
        column_of(numbers[field.name], field.type)
        if field.name in numbers
        else pa.array(_png_rows(images[field.name.removeprefix(IMAGES)]), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def episode_statistics(
    numbers: Mapping[str, NDArray[Any]], images: Mapping[str, Image]
) -> dict[str, FeatureStatistics]:
    """Statistics of every feature over one episode."""
    rows = {key: column.reshape(len(column), -1) for key, column in numbers.items()}
    together = feature_statistics(np.concatenate(list(rows.values()), axis=1, dtype=np.float64))
    statistics, first = {}, 0
    for key, values in rows.items():
        last = first + values.shape[1]
        statistics[key] = together.dimensions(first, last)
        first = last
    for name, frames in images.items():
        statistics[IMAGES + name] = image_statistics(frames)
    return statistics


def _png_rows(frames: Image) -> list[dict[str, Any]]:
    rows = []
    for step, frame in enumerate(frames):
        stored, encoded = cv2.imencode(".png", frame[..., ::-1])
        assert stored
        rows.append({"bytes": encoded.tobytes(), "path": f"frame-{step:06d}.png"})
    return rows
