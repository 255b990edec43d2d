"""Which episodes succeeded, as far as the data set tells, and whether Q-learning can use it.

Shape legend: M episodes, T steps.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.tables import Outcome, Source, Tables

_LARGEST_RETURN = 1 + 1e-4


@dataclass(frozen=True)
class Evidence:
    """What an episode's own record says of how it ended.

    Attributes:
        source: what says so, such as "next.success" or "file path"; "none" when nothing does.
        success: True, False, or None where the record does not tell (a reward that is neither 0 nor
            1, say).
        frame: step whose action solved the task first; None when it was not solved, or the record
            does not tell when.
        certain: whether False means failure by itself. Where it does not, as with a column that may
            be a placeholder, it does only if the same source says True of another episode.
    """

    source: str
    success: bool | None
    frame: int | None = None
    certain: bool = False


NO_EVIDENCE = Evidence("none", None)


def flag_evidence(flags_T: NDArray[Any], source: str) -> Evidence:
    """Evidence in a column that is true once the task is solved."""
    solved_T = np.asarray(flags_T).reshape(-1).astype(np.bool_)
    solved = bool(solved_T.any())
    return Evidence(source, solved, int(solved_T.argmax()) if solved else None)


def reward_evidence(rewards_T: NDArray[Any], source: str) -> Evidence:
    """Evidence in a reward that is 0 or 1 throughout; a dense reward tells nothing."""
    if not np.isin(rewards_T, (0, 1)).all():
        return Evidence(source, None)
    return flag_evidence(rewards_T, source)


def judge(evidences: Sequence[Evidence]) -> tuple[Outcome, ...]:
    """The outcome of every episode of a set, M in all.

    A source that leaves any episode open (as a dense reward does) tells nothing of the others, and
    one that is nowhere true may be a mere placeholder: its False is no failure.
    """
    silent = {one.source for one in evidences if one.success is None and not one.certain}
    speaking = {one.source for one in evidences if one.success} - silent

    def outcome(one: Evidence) -> Outcome:
        if one.success is None or (one.source in silent and not one.certain):
            return "unknown"
        if one.success:
            return "success"
        return "failure" if one.certain or one.source in speaking else "unknown"

    return tuple(outcome(one) for one in evidences)


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
    """Judge every episode by labels, the success column, or a reward that is 0 or 1 throughout.

    A column that is nowhere positive may be a mere placeholder: then nothing is known. The end of
    a recording and a dense reward tell nothing either.
    """
    if tables.outcomes is not None:
        return Outcomes(outcomes=tables.outcomes, source=tables.success_source)
    solved_M = tables.episode_successes
    known = bool(solved_M.any())
    otherwise: Outcome = "failure" if known else "unknown"
    outcomes: list[Outcome] = ["success" if solved else otherwise for solved in solved_M]
    return Outcomes(outcomes=tuple(outcomes), source=tables.success_source if known else "none")


def check_outcomes_known(tables: Tables) -> None:
    """Refuse data that says of some episodes that nobody knows how they ended.

    Raises:
        ValueError: naming one, and the mend.
    """
    if tables.outcomes is None or "unknown" not in tables.outcomes:
        return
    raise ValueError(
        f"Q-SFT needs to know how every episode ended, but of {tables.outcomes.count('unknown')} "
        f"of the {len(tables.outcomes)} it is unknown, such as episode "
        f"{tables.outcomes.index('unknown')}; label them with 'robot-qsft label', or train on the "
        "others alone (--episodes known)"
    )


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
