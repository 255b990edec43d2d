"""What the columns of a data set mean, as told by `features` in a LeRobot `meta/info.json`.

Shape legend: A action dimensions, E environment-state dimensions, H height, S state dimensions,
W width.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import pyarrow as pa

from robot_qsft.datasets.wording import listed

Feature: TypeAlias = dict[str, Any]

ACTION: Final = "action"
STATE: Final = "observation.state"
ENVIRONMENT_STATE = "observation.environment_state"
IMAGES = "observation.images."
REWARD: Final = "next.reward"
DONE = "next.done"
SUCCESS: Final = "next.success"
TRUNCATED = "next.truncated"
INDEX_DTYPES = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
_OUTCOME_DTYPES = {REWARD: "float32", DONE: "bool", SUCCESS: "bool", TRUNCATED: "bool"}


@dataclass(frozen=True)
class Camera:
    """One camera of a data set.

    Attributes:
        height: of a frame, in pixels.
        width: of a frame, in pixels.
        storage: "video" (small, slightly lossy) or "image" (PNG, exact).
    """

    height: int
    width: int
    storage: Literal["video", "image"] = "video"

    def __post_init__(self) -> None:
        """Refuse a size that is no size.

        Raises:
            ValueError: when height or width is not positive or the storage is unknown.
        """
        if self.height <= 0 or self.width <= 0:
            raise ValueError(
                f"a camera needs a positive height and width, but {self.height}x{self.width} came"
            )
        if self.storage not in ("video", "image"):
            raise ValueError(f"storage is 'video' or 'image', but {self.storage!r} came")


def _no_cameras() -> Mapping[str, Camera]:
    return {}


@dataclass(frozen=True)
class DatasetInfo:
    """What every episode of a data set has in common.

    Attributes:
        fps: control steps (and frames) per second.
        action_names: one name per action dimension, A in all, at least one.
        state_names: one name per proprioception entry, S in all.
        environment_state_names: one name per entry of the simulator's ground truth, E in all.
        cameras: camera name to size and storage.
        robot_type: such as "panda"; None when unknown.
    """

    fps: int
    action_names: tuple[str, ...]
    state_names: tuple[str, ...] = ()
    environment_state_names: tuple[str, ...] = ()
    cameras: Mapping[str, Camera] = field(default_factory=_no_cameras)
    robot_type: str | None = None

    def __post_init__(self) -> None:
        """Refuse what no data set can hold.

        Raises:
            ValueError: naming the field, what was expected and what came.
        """
        if not isinstance(self.fps, int) or self.fps <= 0:
            raise ValueError(f"fps must be a whole number above 0, but {self.fps!r} came")
        if not self.action_names:
            raise ValueError("a data set needs at least one action dimension: name it")
        for name in self.cameras:
            if not re.fullmatch(r"[A-Za-z0-9_.\-]+", name):
                raise ValueError(
                    f"camera name {name!r} would break a path: use letters, digits, '_', '-', '.'"
                )


def features_from_info(info: DatasetInfo, *, codec: str) -> dict[str, Feature]:
    """The `features` of `meta/info.json`, in the order of the columns.

    Entries of size zero (no state, no environment state) are left out.

    Args:
        info: of the data set.
        codec: of its videos, such as "av1".
    """
    numbers: dict[str, Feature] = {}
    for key, names in (
        (STATE, info.state_names),
        (ENVIRONMENT_STATE, info.environment_state_names),
        (ACTION, info.action_names),
    ):
        if names:
            numbers[key] = {"dtype": "float32", "shape": [len(names)], "names": list(names)}
    for key, dtype in _OUTCOME_DTYPES.items():
        numbers[key] = {"dtype": dtype, "shape": [1], "names": None}
    return with_cameras_and_places(numbers, cameras=info.cameras, fps=info.fps, codec=codec)


def with_cameras_and_places(
    numbers: Mapping[str, Feature], *, cameras: Mapping[str, Camera], fps: float, codec: str
) -> dict[str, Feature]:
    """All `features` of a data set, from those that hold numbers or text.

    Args:
        numbers: without cameras and without the columns that number rows.
        cameras: name to size and storage.
        fps: frames per second.
        codec: of the videos, such as "av1".
    """
    features = dict(numbers)
    for name, camera in cameras.items():
        feature: Feature = {
            "dtype": camera.storage,
            "shape": [camera.height, camera.width, 3],
            "names": ["height", "width", "channels"],
        }
        if camera.storage == "video":
            feature["info"] = {
                "video.height": camera.height,
                "video.width": camera.width,
                "video.codec": codec,
                "video.pix_fmt": "yuv420p",
                "video.is_depth_map": False,
                "video.fps": fps,
                "video.channels": 3,
                "has_audio": False,
            }
        features[IMAGES + name] = feature
    for key, dtype in INDEX_DTYPES.items():
        features[key] = {"dtype": dtype, "shape": [1], "names": None}
    return features


def info_from_features(
    features: Mapping[str, Feature], *, fps: int, robot_type: str | None
) -> DatasetInfo:
    """Read the `features` that we or LeRobot wrote.

    Vectors of more than one axis are flattened. Depth cameras are left out.

    Raises:
        ValueError: when there is no `action`, or a camera has no readable shape.
    """
    if ACTION not in features:
        raise ValueError(
            f"expected a feature named 'action', but only {listed(sorted(features))} came; "
            "rename the column that holds the actions"
        )
    return DatasetInfo(
        fps=fps,
        action_names=entry_names(ACTION, features[ACTION]),
        state_names=entry_names(STATE, features.get(STATE)),
        environment_state_names=entry_names(ENVIRONMENT_STATE, features.get(ENVIRONMENT_STATE)),
        cameras={
            name: camera_from_feature(key, features[key])
            for name, key in camera_keys(features).items()
        },
        robot_type=robot_type,
    )


def is_visual(feature: Feature) -> bool:
    """Whether the feature holds frames, not numbers."""
    return feature["dtype"] in ("image", "video")


def is_colour_camera(feature: Feature) -> bool:
    """Whether the feature holds colour frames (depth maps do not count)."""
    about = feature.get("info") or feature.get("video_info") or {}
    if not isinstance(about, dict):
        about = {}
    depth = about.get("is_depth_map") or about.get("video.is_depth_map")
    return is_visual(feature) and not depth


def camera_keys(features: Mapping[str, Feature]) -> dict[str, str]:
    """Camera name to feature: `observation.images.front` is called `front`.

    Where two would be called the same, the later one in the alphabet keeps a longer name.
    """
    keys: dict[str, str] = {}
    for key in sorted(features):
        if is_colour_camera(features[key]):
            short = key.removeprefix(IMAGES).removeprefix("observation.")
            keys[key.removeprefix("observation.") if short in keys else short] = key
    return keys


def arrow_schema(features: Mapping[str, Feature]) -> pa.Schema:
    """Column types of `data/*.parquet`; a video has no column there.

    Raises:
        ValueError: when a feature is none of number, vector, text, image, video.
    """
    fields = []
    for key, feature in features.items():
        if feature["dtype"] == "video":
            continue
        if feature["dtype"] == "image":
            kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        elif feature["dtype"] == "string":
            kind = pa.string()
        else:
            try:
                kind = pa.from_numpy_dtype(np.dtype(feature["dtype"]))
            except (TypeError, pa.ArrowException) as error:
                raise ValueError(
                    f"feature {key!r} of type {feature['dtype']} can be read but not written; "
                    "write a new data set without it"
                ) from error
            shape = feature["shape"]
            if len(shape) == 1 and shape != [1]:
                kind = pa.list_(kind, shape[0])
            elif len(shape) > 1:
                for _ in shape:
                    kind = pa.list_(kind)
        fields.append(pa.field(key, kind))
    return pa.schema(fields)


def entry_names(key: str, feature: Feature | None) -> tuple[str, ...]:
    """One name per entry of a vector, made up where the feature has none that fit."""
    if feature is None:
        return ()
    size = math.prod(feature["shape"])
    names = feature.get("names")
    if isinstance(names, dict):
        names = [
            name
            for group in names.values()
            for name in (group if isinstance(group, list) else [group])
        ]
    if not isinstance(names, list) or len(names) != size:
        return tuple(f"{key.removeprefix('observation.')}_{entry}" for entry in range(size))
    return tuple(str(name) for name in names)


def camera_from_feature(key: str, feature: Feature) -> Camera:
    """Size and storage of a camera; heights come first or after the channels, as its names tell.

    Raises:
        ValueError: when its shape is none of an image.
    """
    shape = feature["shape"]
    if len(shape) != 3:
        raise ValueError(f"feature {key!r} should be height x width x channels, but {shape} came")
    names = feature.get("names")
    channels_first = (
        str(names[0]).startswith("channel")
        if isinstance(names, list) and len(names) == 3
        else shape[0] in (1, 3) and shape[2] not in (1, 3)
    )
    height, width = shape[1:] if channels_first else shape[:2]
    return Camera(height=height, width=width, storage=feature["dtype"])
