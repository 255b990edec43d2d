"""What stands out in a source: warnings about the whole, and episodes unlike the others.

Shape legend: A action dimensions, M episodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.features import ACTION
from robot_qsft.datasets.field_map import SUCCESS_REWARD, FieldMap
from robot_qsft.datasets.source_facts import EpisodeFacts, SourceFacts
from robot_qsft.report_figures import number

_FAR = 5.0
"""Robust standard deviations from the median at which an episode is unlike the others."""
_SMALLEST_SCALE = 0.1
"""Of the range from the 1% to the 99% quantile: what differs by less is alike."""
_MOST_OF_A_KIND = 4
_LARGEST_RETURN = 1 + 1e-4


@dataclass(frozen=True)
class Outlier:
    """An episode unlike the others, and in what."""

    episode: EpisodeFacts
    reason: str


def warnings(facts: SourceFacts, field_map: FieldMap) -> tuple[str, ...]:
    """What should be known before training on this, one sentence each."""
    total = len(facts.episodes)
    found = []
    if facts.unreadable:
        first = facts.unreadable[0]
        found.append(
            f"Unreadable: {_of(len(facts.unreadable), total + len(facts.unreadable))}, such as "
            f"episode {first.index}: {first.reason}."
        )
    counts = facts.outcomes
    if counts["unknown"]:
        found.append(
            f"How {_of(counts['unknown'], total)} ended is unknown: label them with 'robot-qsft "
            "label', or set 'success' or 'assume' in the field map."
        )
    for count, word in ((counts["success"], "succeeds"), (counts["failure"], "fails")):
        if count and count == total - counts["unknown"]:
            found.append(
                f"Every episode of known outcome {word}: there is nothing to tell apart, so that "
                "Q-SFT would learn what behaviour cloning learns."
            )
    if facts.fps is None:
        found.append("The steps per second are unknown: add 'fps' to the field map.")
    if field_map.reward != SUCCESS_REWARD and len(facts.returns):
        low, high = facts.returns.min(), facts.returns.max()
        if not (low >= 0 and high <= _LARGEST_RETURN):
            found.append(
                f"Rewards total {number(low, 'g')} to {number(high, 'g')} per episode, but "
                "training needs 0 to 1: set 'reward: success' in the field map."
            )
    unasked = facts.instructions.get("", 0)
    if unasked and unasked < total:
        found.append(f"There is no instruction in {_of(unasked, total)}.")
    return (*found, *_warnings_of_numbers(facts))


def _warnings_of_numbers(facts: SourceFacts) -> list[str]:
    found = []
    for name, vector in facts.vectors.items():
        broken = [one.name for one in vector.dimensions if one.not_finite]
        if broken:
            found.append(f"{name} holds NaN or infinity in {_listed(broken)}.")
    actions = facts.vectors[ACTION].dimensions
    constant = [one.name for one in actions if one.constant]
    if constant:
        found.append(f"The action is the same number throughout in {_listed(constant)}.")
    narrow = [one.name for one in actions if not one.discrete and one.q01 == one.q99]
    if narrow:
        found.append(
            f"98% of the actions are one number in {_listed(narrow)}: there is no room for bins "
            "between the quantiles."
        )
    return found


def outliers(facts: SourceFacts) -> tuple[Outlier, ...]:
    """Episodes unlike the others: in length, in their largest actions, in what was asked for."""
    return (*_by_length(facts), *_by_action(facts), *_by_instruction(facts))


def _by_length(facts: SourceFacts) -> list[Outlier]:
    lengths = facts.lengths
    median = float(np.median(lengths))
    if lengths.min() == lengths.max():
        return []
    found = []
    for word, place in (("shortest", int(lengths.argmin())), ("longest", int(lengths.argmax()))):
        alike = int((lengths == lengths[place]).sum())
        others = {1: "", 2: ", as is one other"}.get(alike, f", as are {alike - 1} others")
        found.append(
            Outlier(
                facts.episodes[place],
                f"{word}: {lengths[place]:,.0f} steps{others}, where the median is {median:,.0f}",
            )
        )
    return found


def _by_action(facts: SourceFacts) -> list[Outlier]:
    """Episodes with an action further out than those of the others.

    The largest distance of an episode from the median action is compared with the same of all
    episodes, by their median and 1.4826 times their median absolute deviation.
    """
    dimensions = facts.vectors[ACTION].dimensions
    scores_MA = np.full((len(facts.episodes), len(dimensions)), -np.inf)
    for index, one in enumerate(dimensions):
        if one.discrete or not np.isfinite(one.q99 - one.q01):
            continue
        lows = np.array([episode.action_minimum[index] for episode in facts.episodes])
        highs = np.array([episode.action_maximum[index] for episode in facts.episodes])
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            farthest = np.fmax(np.abs(lows - one.q50), np.abs(highs - one.q50))
            scores_MA[:, index] = robust_scores(
                farthest, smallest_scale=_SMALLEST_SCALE * (one.q99 - one.q01)
            )
    if not len(dimensions):
        return []
    scores_MA = np.nan_to_num(scores_MA, nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    best_M, dimension_M = scores_MA.max(axis=1), scores_MA.argmax(axis=1)
    order = [place for place in np.argsort(-best_M, kind="stable") if best_M[place] > _FAR]
    found = []
    for place in order[:_MOST_OF_A_KIND]:
        episode, index = facts.episodes[place], int(dimension_M[place])
        one = dimensions[index]
        ends = (episode.action_minimum[index], episode.action_maximum[index])
        far = max(ends, key=lambda end: abs(end - one.q50))
        found.append(
            Outlier(
                episode,
                f"action {one.name} reaches {number(far, '.3g')}, where 98% of all are "
                f"{number(one.q01, '.3g')} to {number(one.q99, '.3g')}",
            )
        )
    return found


def _by_instruction(facts: SourceFacts) -> list[Outlier]:
    """Episodes that alone were asked for something, where others share what they were asked for."""
    counts = facts.instructions
    alone = [one for one in facts.episodes if counts[one.instruction] == 1]
    if not alone or len(alone) > len(facts.episodes) // 10:
        return []
    return [
        Outlier(
            one,
            f"the only one asked for {one.instruction!r}"
            if one.instruction
            else "the only one without an instruction",
        )
        for one in alone[:_MOST_OF_A_KIND]
    ]


def robust_scores(
    values: NDArray[np.float64], *, smallest_scale: float = 0.0
) -> NDArray[np.float64]:
    """(x − median) / max(1.4826 · median |x − median|, `smallest_scale`); NaN where both are 0.

    1.4826 makes the median absolute deviation of a normal distribution its standard deviation.

    Args:
        values: any number; those that are not finite do not count for the median.
        smallest_scale: least divisor.
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        return np.full(values.shape, np.nan)
    median = np.median(finite)
    scale = max(1.4826 * float(np.median(np.abs(finite - median))), smallest_scale)
    if scale == 0:
        return np.full(values.shape, np.nan)
    scores: NDArray[np.float64] = (values - median) / scale
    return scores


def counted(count: int, noun: str) -> str:
    """1 is "1 episode", 2,000 "2,000 episodes"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _of(count: int, total: int) -> str:
    if count < total:
        return f"{count:,} of {counted(total, 'episode')}"
    return "the only episode" if total == 1 else f"all {total:,} episodes"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - 6
    return ", ".join(names[:6]) + (f" and {more} more" if more > 0 else "")
