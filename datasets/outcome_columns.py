"""Reward, success, done and truncated of an episode, as they follow from how it ended.

Shape legend: T steps.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.features import DONE, REWARD, SUCCESS, TRUNCATED
from robot_qsft.datasets.field_map import SUCCESS_REWARD, FieldMap
from robot_qsft.datasets.outcomes import Evidence

_LARGEST_RETURN = 1 + 1e-4


def outcome_columns(
    field_map: FieldMap,
    theirs: Mapping[str, NDArray[Any]],
    steps: NDArray[np.int64],
    *,
    evidence: Evidence,
    as_recorded: bool,
) -> dict[str, NDArray[Any]]:
    """The four columns, (T,) each.

    Args:
        field_map: how the source is read.
        theirs: columns of the source, without the rows after the end.
        steps: rows that are kept, ascending from 0, T in all.
        evidence: final word on how the episode ended, its frame counted in `steps`.
        as_recorded: whether that is what its own record says.

    Raises:
        ValueError: when a recorded reward is below 0, or more than 1 in all.
    """
    count = len(steps)
    frame = evidence.frame
    solved = np.zeros(count, np.bool_)
    if frame is not None:
        solved[frame:] = True
    last = np.arange(count) == count - 1
    terminated = bool(evidence.success) and frame == count - 1
    if field_map.terminated is not None:
        terminated = bool(theirs[field_map.terminated].reshape(-1)[-1]) or terminated
    return {
        REWARD: _reward(field_map, theirs, steps, evidence=evidence, as_recorded=as_recorded),
        SUCCESS: solved,
        DONE: last,
        TRUNCATED: last & (not terminated),
    }


def _reward(
    field_map: FieldMap,
    theirs: Mapping[str, NDArray[Any]],
    steps: NDArray[np.int64],
    *,
    evidence: Evidence,
    as_recorded: bool,
) -> NDArray[Any]:
    paid_once = field_map.reward == SUCCESS_REWARD
    # A label that contradicts the record says of its reward, too, that it is wrong.
    if paid_once or (evidence.source == "label" and not as_recorded):
        reward = np.zeros(len(steps), np.float32 if paid_once else theirs[field_map.reward].dtype)
        if evidence.frame is not None:
            reward[evidence.frame] = 1
        return reward
    recorded = theirs[field_map.reward].reshape(-1)
    numbers = recorded.astype(np.float64)
    if (numbers < 0).any() or numbers.sum() > _LARGEST_RETURN:
        raise ValueError(
            f"rewards should be 0 or more and at most 1 per episode in all, but "
            f"{field_map.reward!r} holds {numbers.min():g} to {numbers.max():g}, "
            f"{numbers.sum():g} in all; set 'reward: success' in the field map, which pays 1 at "
            "the first success"
        )
    if len(steps) == len(recorded):
        return recorded
    # Rows that are left out are paid with the row before.
    sums: NDArray[Any] = np.add.reduceat(numbers, steps).astype(recorded.dtype)
    return sums
