"""Which episodes succeeded, as far as the data set tells, and whether Q-learning can use it.

Shape legend: M episodes.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from robot_qsft.datasets.tables import Source, Tables

Outcome: TypeAlias = Literal["success", "failure", "unknown"]

_LARGEST_RETURN = 1 + 1e-4


@dataclass(frozen=True)
class Outcomes:
    """How the episodes of a data set ended.

    Attributes:
        outcomes: one per episode, M in all.
        source: the column that says so; "none" when none does.
    """

    outcomes: tuple[Outcome, ...]
    source: Source

    @property
    def counts(self) -> Mapping[Outcome, int]:
        """Episodes per outcome, all three named."""
        counted = Counter(self.outcomes)
        return {
            "success": counted["success"],
            "failure": counted["failure"],
            "unknown": counted["unknown"],
        }


def infer_outcomes(tables: Tables) -> Outcomes:
    """Judge every episode by the success column, or else by a reward that is 0 or 1 throughout.

    A column that is nowhere positive may be a mere placeholder: then nothing is known. The end of
    a recording and a dense reward tell nothing either.
    """
    solved_M = tables.episode_successes
    known = bool(solved_M.any())
    otherwise: Outcome = "failure" if known else "unknown"
    outcomes: list[Outcome] = ["success" if solved else otherwise for solved in solved_M]
    return Outcomes(outcomes=tuple(outcomes), source=tables.success_source if known else "none")


def check_rewards(tables: Tables) -> None:
    """Refuse data whose rewards Q-learning of probabilities cannot use.

    The value of a step must lie in [0, 1], and there must be something to tell apart.

    Raises:
        ValueError: when there is no reward, none above zero, one below zero, more than 1 in an
            episode, or the same return in every episode.
    """
    if tables.reward_source == "none":
        raise ValueError(
            "Q-SFT needs rewards, but the data set has neither next.reward nor next.success; "
            "label its episodes, or train behaviour cloning, which needs none"
        )
    if (tables.rewards < 0).any():
        row = int(np.argmax(tables.rewards < 0))
        episode = int(np.searchsorted(tables.episode_starts, row, side="right")) - 1
        raise ValueError(
            f"Q-SFT needs rewards from 0 to 1, but episode {episode} has {tables.rewards[row]:g} "
            f"at step {row - tables.episode_starts[episode]}; shift or replace the rewards"
        )
    returns_M = tables.episode_returns
    if returns_M.max() > _LARGEST_RETURN:
        raise ValueError(
            f"Q-SFT needs rewards of at most 1 per episode in all, but episode "
            f"{returns_M.argmax()} has {returns_M.max():g}; pay the reward once, at first success, "
            "or divide all rewards by the largest return"
        )
    if returns_M.max() == 0:
        raise ValueError(
            f"Q-SFT needs some episodes with a reward, but all {len(returns_M)} have none; add "
            "successful episodes, or train behaviour cloning"
        )
    if (returns_M == returns_M[0]).all():
        raise ValueError(
            f"Q-SFT needs episodes that succeed and others that fail, but all {len(returns_M)} "
            f"have one outcome only, a return of {returns_M[0]:g}; add failures, or train "
            "behaviour cloning"
        )
