"""What may be wrong with recorded episodes: numbers, times, rewards, outcomes, instructions.

Pure functions of columns; `frame_checks` looks at images and `action_checks` at whole sets.

Shape legend: T steps.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.source import Columns
from robot_qsft.datasets.tables import Outcome

Severity: TypeAlias = Literal["error", "warning", "note"]

LARGEST_RETURN = 1 + 1e-4
_SHORT = 2
LARGEST_NUMBER = 1e100
"""Beyond it a number says only that it is damaged, and its square is infinite."""
_REPEAT = 0.1
_GAP = 1.5
_TIME_UNITS_S = (1.0, 1e-3, 1e-6, 1e-9)


@dataclass(frozen=True)
class Finding:
    """One thing that is or may be wrong.

    Attributes:
        severity: "error" where training would fail or learn something false, "warning" where it may
            well, "note" where people should know.
        code: stable name of the kind of finding, in kebab-case.
        message: one sentence, without the episode.
        mend: what to do about it.
        episode: that it is about; None for the whole set.
        step: where in the episode it is seen first; None where there is no such place.
    """

    severity: Severity
    code: str
    message: str
    mend: str
    episode: int | None = None
    step: int | None = None


def check_length(steps: int, *, episode: int) -> list[Finding]:
    """An episode of one or two steps is hardly an attempt at anything."""
    if steps > _SHORT:
        return []
    message = f"it has {steps} step{'s' if steps > 1 else ''}"
    return [Finding("warning", "short-episode", message, "drop it", episode)]


def check_finite(columns: Columns, *, episode: int) -> list[Finding]:
    """NaN and infinity, one finding per column that holds any."""
    findings = []
    for name, column in columns.items():
        if column.dtype.kind not in "fc":
            continue
        rows = column.reshape(len(column), -1)
        bad_T: NDArray[np.bool_] = np.any(~np.isfinite(rows), axis=1)
        if bad_T.any():
            message = f"{name!r} holds NaN or infinity in {bad_T.sum()} of {len(bad_T)} rows"
            step = int(bad_T.argmax())
            findings.append(
                Finding("error", "not-finite", message, "drop or mend the episode", episode, step)
            )
    return findings


def check_timestamps(
    times_T: NDArray[Any], *, fps: float | None, episode: int, name: str = "timestamp"
) -> list[Finding]:
    """Times that stand still, run backwards, leap, or tell another rate than the source does.

    Times in milli-, micro- or nanoseconds are recognised by the rate.

    Args:
        times_T: one per step.
        fps: that the source claims; None where it tells none, and the usual distance counts.
        episode: for the findings.
        name: of the column.
    """
    times = times_T.astype(np.float64).reshape(-1)
    if len(times) < 3 or not (np.abs(times) < LARGEST_NUMBER).all():
        return []
    distances = np.diff(times)
    forward = distances[distances > 0]
    usual = float(np.median(forward)) if len(forward) else 0.0
    findings = []
    repeats = (distances >= 0) & (distances <= _REPEAT * usual)
    for code, told, bad in (
        ("timestamp-backwards", "run backwards", distances < 0),
        ("timestamp-repeated", "repeat the one before", repeats),
    ):
        if bad.any():
            message = f"{bad.sum()} of {len(times)} values of {name!r} {told}"
            mend = "drop the rows recorded twice, or number the times anew"
            step = int(bad.argmax()) + 1
            findings.append(Finding("error", code, message, mend, episode, step))
    if usual == 0:
        return findings
    if fps is not None:
        unit_s = min(_TIME_UNITS_S, key=lambda unit: abs(np.log(usual * unit * fps)))
        rate = 1 / (usual * unit_s)
        if abs(rate / fps - 1) > 0.1:
            message = f"{name!r} tells {rate:.3g} steps per second, but the source {fps:g}"
            mend = "set 'fps' in the field map to the rate that is true"
            findings.append(Finding("error", "timestamp-rate", message, mend, episode))
        else:
            usual = 1 / (fps * unit_s)
    gaps = distances > _GAP * usual
    if gaps.any():
        missing = int(np.round(distances[gaps] / usual - 1).sum())
        message = (
            f"{name!r} has {gaps.sum()} gap{'s' if gaps.sum() > 1 else ''}, of up to "
            f"{distances.max() / usual:.3g} steps: about {missing} frames are missing"
        )
        mend = "drop the episode, or split it at the gaps"
        step = int(gaps.argmax()) + 1
        findings.append(Finding("warning", "timestamp-gap", message, mend, episode, step))
    return findings


def check_rewards(
    rewards_T: NDArray[Any], *, success_frame: int | None, episode: int, name: str
) -> list[Finding]:
    """Rewards below 0, paid again after the first success, or of more than 1 in all.

    Args:
        rewards_T: of every step.
        success_frame: step that solved the task first, where the source tells; else the first 1 of
            a reward that is 0 or 1 throughout.
        episode: for the findings.
        name: of the column.
    """
    rewards = rewards_T.astype(np.float64).reshape(-1)
    if not (np.abs(rewards) < LARGEST_NUMBER).all():
        return []
    findings = []
    mend = "set 'reward: success' in the field map, which pays 1 at the first success"
    if (rewards < 0).any():
        step = int((rewards < 0).argmax())
        message = f"{name!r} goes down to {rewards.min():g}, and Q-SFT needs rewards from 0 to 1"
        findings.append(Finding("warning", "reward-negative", message, mend, episode, step))
    if success_frame is None and np.isin(rewards, (0, 1)).all() and rewards.any():
        success_frame = int(rewards.argmax())
    at = len(rewards) if success_frame is None else success_frame
    later = rewards[at + 1 :] != 0
    if later.any() and rewards[: at + 1].any():
        step = at + 1 + int(later.argmax())
        message = (
            f"{name!r} is paid at {later.sum()} steps after the first success (step {at}), "
            f"{rewards.sum():g} in all"
        )
        findings.append(Finding("warning", "reward-repeated", message, mend, episode, step))
    elif rewards.sum() > LARGEST_RETURN:
        message = f"{name!r} totals {rewards.sum():g}, and Q-SFT needs at most 1 per episode"
        findings.append(Finding("warning", "return-above-one", message, mend, episode))
    return findings


def check_outcomes(outcomes: Mapping[int, Outcome]) -> list[Finding]:
    """A set that ended one way only, and episodes of which nobody knows how they ended.

    Args:
        outcomes: by episode.
    """
    unknown = [episode for episode, outcome in outcomes.items() if outcome == "unknown"]
    known = set(outcomes.values()) - {"unknown"}
    findings = []
    if unknown:
        first = unknown[0]
        message = f"nothing tells how {len(unknown)} of {len(outcomes)} episodes ended"
        mend = f"label them with 'robot-qsft label' (the first is {first})"
        findings.append(Finding("warning", "outcome-unknown", message, mend))
    if len(known) == 1 and len(outcomes) - len(unknown) > 1:
        (only,) = known
        message = (
            f"all {len(outcomes) - len(unknown)} episodes of known outcome end in {only}, so there "
            "is nothing to tell apart"
        )
        other = "failures" if only == "success" else "successes"
        mend = f"add {other}, or train behaviour cloning"
        findings.append(Finding("warning", "one-outcome", message, mend))
    return findings


def check_instructions(instructions: Mapping[int, str]) -> list[Finding]:
    """Instructions that are missing, or differ in nothing but case, spaces and punctuation.

    Args:
        instructions: by episode.
    """
    empty = [episode for episode, text in instructions.items() if not text.strip()]
    mend = "set 'instruction' in the field map"
    findings = []
    if empty and len(empty) == len(instructions):
        message = "no episode has an instruction"
        findings.append(Finding("note", "instruction-empty", message, mend))
    else:
        message = "it has no instruction, while others do"
        findings += [
            Finding("warning", "instruction-empty", message, mend, episode) for episode in empty
        ]
    spellings: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for episode, text in instructions.items():
        if text.strip():
            spellings[" ".join(re.findall(r"\w+", text.casefold()))][text].append(episode)
    for key, variants in spellings.items():
        if key and len(variants) > 1:
            told = ", ".join(f"{text!r} ({len(those)}×)" for text, those in variants.items())
            rarest = min(variants.values(), key=len)
            message = f"one instruction is spelt in {len(variants)} ways: {told:.300}"
            mend = "spell it alike in all episodes"
            findings.append(
                Finding("note", "instruction-variants", message, mend, episode=rarest[0])
            )
    return findings
