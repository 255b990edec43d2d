"""All numbers of a data set, episodes laid end to end, without its images.

Shape legend: A action dimensions, C chunk length, E environment-state dimensions, M episodes,
N frames, S state dimensions.
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


def action_chunks(actions: Vector, episode_starts: NDArray[np.int64], *, length: int) -> Vector:
    """Every frame's action and those that follow it, end to end: float32 (N, C * A).

    After an episode's last action that one is repeated. Actions 1, 2, 3 of one episode make the
    chunks (1, 2), (2, 3), (3, 3) of length 2.

    Args:
        actions: float32 (N, A).
        episode_starts: int64 (M,), ascending from 0.
        length: C.
    """
    count = len(actions)
    ends = np.append(episode_starts[1:], count)
    last_N = np.repeat(ends, ends - episode_starts) - 1
    rows_NC = np.minimum(np.arange(count)[:, None] + np.arange(length), last_N[:, None])
    chunks: Vector = actions[rows_NC].reshape(count, -1)
    return chunks
