"""Observations as they travel: names as openpi's examples have them, shapes as the policy needs.

Read are `state` or `observation/state`, `prompt`, `environment_state`, and for camera `wrist` any
of `images/wrist`, `observation/images/wrist`, `observation/wrist` and `observation/wrist_image`,
where a slash stands for a map within a map as well. Images are uint8, (H, W, 3) or (3, H, W); those
of another size are resized as for training.

Shape legend: A action dimensions, C chunk length, E environment-state dimensions, H height, S state
dimensions, W width.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.interface import Image, Observation, Vector
from robot_qsft.datasets.wording import listed


@dataclass(frozen=True)
class ObservationSpec:
    """What a policy reads and writes.

    Attributes:
        cameras: names.
        image_size: (H, W) in pixels.
        state_size: S.
        environment_state_size: E; 0 on a real robot.
        action_size: A.
    """

    cameras: tuple[str, ...]
    image_size: tuple[int, int]
    state_size: int
    environment_state_size: int
    action_size: int

    def blank(self) -> Observation:
        """An observation of nothing, to warm up by."""
        return Observation(
            np.zeros(self.state_size, np.float32),
            "",
            {camera: np.zeros((*self.image_size, 3), np.uint8) for camera in self.cameras},
            np.zeros(self.environment_state_size, np.float32),
        )


def observation_from(message: Mapping[str, Any], spec: ObservationSpec) -> Observation:
    """The observation in a message.

    Raises:
        ValueError: naming what is missing or does not fit.
    """
    entries = dict(_flat(message))
    prompt = entries.get("prompt", "")
    if not isinstance(prompt, str):
        raise ValueError(f"prompt must be text, got {type(prompt).__name__}")
    images = {camera: _image(entries, camera, spec.image_size) for camera in spec.cameras}
    state = _vector(entries, ("state", "observation/state"), spec.state_size)
    truth = ("environment_state", "observation/environment_state")
    size = spec.environment_state_size
    return Observation(
        state, prompt, images, _vector(entries, truth, size) if size else np.zeros(0, np.float32)
    )


def message_from(observation: Observation) -> dict[str, Any]:
    """The message of an observation, which `observation_from` reads."""
    message: dict[str, Any] = {
        "state": observation.state,
        "prompt": observation.instruction,
        "images": dict(observation.images),
    }
    if len(observation.environment_state):
        message["environment_state"] = observation.environment_state
    return message


def committed_from(value: Any, spec: ObservationSpec) -> NDArray[np.float32]:
    """Committed actions, float32 (C, A), from what came with a message; (0, A) for none.

    Raises:
        ValueError: when they are not finite numbers of that shape.
    """
    if value is None:
        return np.zeros((0, spec.action_size), np.float32)
    try:
        committed_CA = np.asarray(value, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"committed must be rows of {spec.action_size} numbers") from error
    if committed_CA.size == 0:
        return np.zeros((0, spec.action_size), np.float32)
    if committed_CA.ndim != 2 or committed_CA.shape[1] != spec.action_size:
        raise ValueError(
            f"committed must be rows of {spec.action_size} numbers, got {committed_CA.shape}"
        )
    if not np.isfinite(committed_CA).all():
        raise ValueError("committed holds NaN or infinity")
    return committed_CA


def _flat(message: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in message.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}/")
        else:
            yield f"{above}{name}", value


def _vector(entries: Mapping[str, Any], names: tuple[str, ...], size: int) -> Vector:
    name, value = _first(entries, names)
    vector = np.asarray(value)
    if vector.shape != (size,) or vector.dtype.kind not in "fiu":
        raise ValueError(
            f"{name} must be {size} numbers, got {vector.dtype} of shape {vector.shape}"
        )
    if not np.isfinite(vector).all():
        raise ValueError(f"{name} holds NaN or infinity")
    with np.errstate(over="ignore"):
        numbers: Vector = vector.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise ValueError(f"{name} holds a number beyond float32")
    return numbers


def _image(entries: Mapping[str, Any], camera: str, size: tuple[int, int]) -> Image:
    names = (
        f"images/{camera}",
        f"observation/images/{camera}",
        f"observation/{camera}",
        f"observation/{camera}_image",
    )
    name, image = _first(entries, names)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3:
        raise ValueError(f"{name} must be a uint8 image (H, W, 3)")
    if image.shape[2] != 3 and image.shape[0] == 3:
        image = image.transpose(1, 2, 0)
    if image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"{name} must be (H, W, 3) or (3, H, W), got {image.shape}")
    pixels: Image = image
    if pixels.shape[:2] != size:
        height, width = size
        pixels = np.asarray(
            cv2.resize(np.ascontiguousarray(pixels), (width, height), interpolation=cv2.INTER_AREA),
            np.uint8,
        )
    return pixels


def _first(entries: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, Any]:
    for name in names:
        if name in entries:
            return name, entries[name]
    told = listed(entries, nothing="nothing")
    raise ValueError(f"the observation lacks {names[0]!r}; it has {told}")
