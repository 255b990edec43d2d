"""What the environments of every engine check and offer alike.

Shape legend: A action dimensions, E environment-state dimensions, S state dimensions.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

_LEAST_PIXELS = 8


def check_choices(choices: Mapping[str, tuple[Any, Collection[Any]]]) -> None:
    """Refuse a field whose value is none of its choices.

    Args:
        choices: name of the field to its value and what that may be.

    Raises:
        ValueError: naming the field.
    """
    for name, (value, possible) in choices.items():
        if value not in possible:
            raise ValueError(f"{name} must be one of {', '.join(possible)}, got {value!r}")


def check_view(
    cameras: Collection[str], *, known: Collection[str], image_size: int, max_steps: int
) -> None:
    """Refuse cameras that are not known, images too small to see anything, and no steps at all.

    Raises:
        ValueError: naming the field.
    """
    unknown = set(cameras) - set(known)
    if unknown:
        raise ValueError(f"cameras are {', '.join(known)}, got {sorted(unknown)}")
    if image_size < _LEAST_PIXELS:
        raise ValueError(f"image_size must be at least {_LEAST_PIXELS} pixels, got {image_size}")
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")


def observation_space(
    *,
    state: int,
    environment_state: int,
    cameras: Collection[str],
    image_size: int,
    instruction: gymnasium.spaces.Text,
) -> gymnasium.spaces.Dict:
    """The space of observations with S = `state` and E = `environment_state` numbers."""
    spaces: dict[str, gymnasium.Space[Any]] = {
        "state": _unbounded(state),
        "environment_state": _unbounded(environment_state),
        "instruction": instruction,
    }
    if cameras:
        image = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        spaces["images"] = gymnasium.spaces.Dict(dict.fromkeys(cameras, image))
    return gymnasium.spaces.Dict(spaces)


def checked_action(action: NDArray[Any], names: Sequence[str]) -> NDArray[np.float64]:
    """An action, float64 (A,), with values beyond [-1, 1] clipped.

    Raises:
        ValueError: when it is not one finite number per name.
    """
    action = np.asarray(action, np.float64)
    if action.shape != (len(names),) or not np.isfinite(action).all():
        raise ValueError(
            f"the action must be {len(names)} finite numbers "
            f"({', '.join(names)}), got {action.tolist()}"
        )
    return action.clip(-1, 1)


def _unbounded(size: int) -> gymnasium.spaces.Box:
    return gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)
