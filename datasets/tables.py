"""All numbers of a data set, episodes laid end to end, without its images.

Shape legend: A action dimensions, E environment-state dimensions, M episodes, N frames,
S state dimensions.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.interface import Vector

Source: TypeAlias = Literal["next.reward", "next.success", "is_success", "label", "none"]
Outcome: TypeAlias = Literal["success", "failure", "unknown"]


@dataclass(frozen=True, eq=False)
class Tables:
    """Low-dimensional columns of a data set.

    Attributes:
        states: float32 (N, S), proprioception.
        environment_states: float32 (N, E), simulator ground truth; E may be 0.
        actions: float32 (N, A).
        rewards: float32 (N,), reward of the action in the same row; all 0 where the source is
            "none".
        successes: bool (N,), whether the task is solved after the action; all False where the
            source is "none".
        episode_starts: int64 (M,), first frame of every episode, ascending from 0.
        terminated: bool (M,), the last action ended the task.
        truncated: bool (M,), recording stopped while the task could have gone on.
        task_indices: int64 (M,), entry of `tasks`.
        tasks: the different instructions.
        demonstrators: who acted, one per episode; "" when unknown.
        reward_source: the column that the rewards come from; "next.success" or "is_success" means
            1 at the first success of an episode.
        success_source: the column that the successes come from; "label" where people marked them.
        outcomes: how every episode ended, where labels or the ingestion tell it; None where only
            the columns do.
    """

    states: Vector
    environment_states: Vector
    actions: Vector
    rewards: Vector
    successes: NDArray[np.bool_]
    episode_starts: NDArray[np.int64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    task_indices: NDArray[np.int64]
    tasks: tuple[str, ...]
    demonstrators: tuple[str, ...]
    reward_source: Source
    success_source: Source
    outcomes: tuple[Outcome, ...] | None = None

    @property
    def episode_lengths(self) -> NDArray[np.int64]:
        """Steps of every episode, int64 (M,)."""
        return np.diff(np.append(self.episode_starts, len(self.actions)))

    @property
    def episode_returns(self) -> NDArray[np.float64]:
        """Undiscounted sum of rewards of every episode, float64 (M,)."""
        return np.add.reduceat(self.rewards, self.episode_starts, dtype=np.float64)

    @property
    def episode_successes(self) -> NDArray[np.bool_]:
        """Whether an episode was solved at any step, bool (M,)."""
        return np.logical_or.reduceat(self.successes, self.episode_starts)

    @property
    def instructions(self) -> tuple[str, ...]:
        """What each episode was asked to do, M in all."""
        return tuple(self.tasks[index] for index in self.task_indices)
