"""One recorded attempt at a task, successful or not.

Shape legend: A action dimensions, E environment-state dimensions, H height, S state dimensions,
T steps, W width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.interface import Image, Vector


@dataclass(frozen=True, eq=False)
class Episode:
    """Observations and the actions that followed them, row t being observation t and action t.

    Rewards are those of the action in the same row and total at most 1. The observation after
    the last action is not kept, as in the LeRobot layout.

    Attributes:
        states: float32 (T, S), proprioception.
        actions: float32 (T, A).
        rewards: float32 (T,), reward of action t.
        successes: bool (T,), whether the task is solved after action t.
        terminated: the last action ended the task (success, or a failure that cannot be mended).
        truncated: recording stopped while the task could have gone on (time-out).
        instruction: what was asked for.
        images: camera name to RGB frames, uint8 (T, H, W, 3).
        environment_states: float32 (T, E), simulator ground truth; E may be 0.
        demonstrator: who acted, such as "stitch/prior"; "" when unknown.
    """

    states: Vector
    actions: Vector
    rewards: Vector
    successes: NDArray[np.bool_]
    terminated: bool
    truncated: bool
    instruction: str
    images: Mapping[str, Image]
    environment_states: Vector
    demonstrator: str = ""

    def __post_init__(self) -> None:
        """Refuse an episode whose parts do not fit together.

        Raises:
            ValueError: naming the field, what was expected and what came.
        """
        steps = len(self.actions)
        if steps == 0:
            raise ValueError("an episode needs at least one step, but actions is empty")
        parts: dict[str, NDArray[np.generic]] = {
            "states": self.states,
            "rewards": self.rewards,
            "successes": self.successes,
            "environment_states": self.environment_states,
            **{f"images[{name}]": frames for name, frames in self.images.items()},
        }
        for name, part in parts.items():
            if len(part) != steps:
                raise ValueError(f"{name} has {len(part)} rows, but actions has {steps}")
        for name in ("states", "actions", "rewards", "environment_states"):
            if not np.isfinite(getattr(self, name)).all():
                row = int(np.argwhere(~np.isfinite(getattr(self, name)))[0][0])
                raise ValueError(f"{name} holds NaN or infinity at step {row}; drop or mend it")
        if self.terminated and self.truncated:
            raise ValueError("an episode is terminated or truncated, not both")

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.actions)

    @property
    def success(self) -> bool:
        """Whether the task was solved at any step."""
        return bool(self.successes.any())

    @property
    def episode_return(self) -> float:
        """Undiscounted sum of rewards."""
        return float(self.rewards.sum())
