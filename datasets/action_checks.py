"""What may be wrong with the actions of a whole set, gathered episode by episode.

Shape legend: A action dimensions, F = 2 forms of an action, L = 5 shifts, P pairs of an action and
a state entry, S state dimensions, T steps, X = L + 1.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.checks import LARGEST_NUMBER, Finding

_FEWEST_ROWS = 10
_DISCRETE = 8
_SATURATED = 0.25

SHIFTS = (-2, -1, 0, 1, 2)
_FEWEST_WINDOWS = 200
_STRONG = 0.7
_MARGIN = 0.6
_SIGNIFICANT = 5.0
_PURE = 0.7
_ROUNDING = 1e-9
_TELLING = 0.99
"""Correlation of neighbouring rows from which on a delay looks like any slow answer."""


class ActionRanges:
    """The extremes of every action dimension and how often they are met exactly."""

    def __init__(self, names: Sequence[str]) -> None:
        """Begin with no action.

        Args:
            names: of the dimensions, A in all.
        """
        self._names = tuple(names)
        count = len(self._names)
        self._rows = 0
        self._bounds = np.array([[math.inf] * count, [-math.inf] * count])
        self._hits = np.zeros((2, count), np.int64)
        self._values: list[set[float]] = [set() for _ in range(count)]

    def add(self, actions_TA: NDArray[Any]) -> None:
        """Take in the actions of an episode; rows with NaN or infinity do not count."""
        actions = actions_TA[np.isfinite(actions_TA).all(axis=1)].astype(np.float64)
        if len(actions) == 0:
            return
        self._rows += len(actions)
        for side, extremes in enumerate((actions.min(axis=0), actions.max(axis=0))):
            beyond = extremes < self._bounds[0] if side == 0 else extremes > self._bounds[1]
            self._hits[side, beyond] = 0
            self._bounds[side, beyond] = extremes[beyond]
            self._hits[side] += (actions == self._bounds[side]).sum(axis=0)
        for values, column in zip(self._values, actions.T, strict=True):
            if len(values) <= _DISCRETE:
                values.update(np.unique(column)[: _DISCRETE + 1].tolist())

    def findings(self) -> list[Finding]:
        """Dimensions that never change, and those often at a limit that cuts them off.

        A dimension of a few values, such as a gripper that opens and closes, is at its limits by
        nature, and so is a gripper that is told so by its name.
        """
        if self._rows < _FEWEST_ROWS:
            return []
        findings = []
        for entry, name in enumerate(self._names):
            low, high = self._bounds[:, entry]
            shares = self._hits[:, entry] / self._rows
            if low == high:
                message = f"action dimension {name!r} is {low:g} in all {self._rows} rows"
                mend = "leave it out in the field map, unless the robot needs it"
                findings.append(Finding("warning", "action-constant", message, mend))
            elif (
                len(self._values[entry]) > _DISCRETE
                and shares.sum() >= _SATURATED
                and "grip" not in name.lower()
            ):
                message = (
                    f"action dimension {name!r} is exactly at its least value {low:g} in "
                    f"{shares[0]:.0%} of the rows and at its greatest {high:g} in {shares[1]:.0%}"
                )
                mend = "see whether the recorder cuts it off there"
                findings.append(Finding("warning", "action-saturated", message, mend))
        return findings


def matching_entries(
    action_names: Sequence[str], state_names: Sequence[str]
) -> tuple[tuple[str, int, int], ...]:
    """Name, action entry and state entry of what belongs together.

    By name where any name is in both, else by order.
    """
    common = [name for name in action_names if name in set(state_names)]
    if common:
        return tuple(
            (name, list(action_names).index(name), list(state_names).index(name)) for name in common
        )
    count = min(len(action_names), len(state_names))
    return tuple((action_names[entry], entry, entry) for entry in range(count))


@dataclass(frozen=True)
class Shift:
    """How one action dimension goes with the state that it moves.

    Attributes:
        name: of the dimension.
        rows: by which its effect comes late (above 0) or had come already (below 0).
        correlation: of action and change of state at that shift, without its sign.
        as_recorded: the same at no shift.
        pure: whether neighbouring rows explain nothing more, as with rows that were moved; a robot
            that follows slowly answers to several of them.
    """

    name: str
    rows: int
    correlation: float
    as_recorded: float
    pure: bool


class Alignment:
    """Lagged correlation of actions with the changes of state that they should cause.

    An action that is a difference should go with the next change of the state, s(t+1) - s(t); a
    target should do so by its own change, a(t) - a(t-1). Both forms are tried, the better counts.
    """

    def __init__(self, pairs: Sequence[tuple[str, int, int]]) -> None:
        """Begin with no episode.

        Args:
            pairs: as `matching_entries` gives them, P in all.
        """
        self._pairs = tuple(pairs)
        size = len(SHIFTS) + 1
        self._count = 0
        self._sums_FPX = np.zeros((2, len(pairs), size))
        self._products_FPXX = np.zeros((2, len(pairs), size, size))

    def add(self, actions_TA: NDArray[Any], states_TS: NDArray[Any]) -> None:
        """Take in an episode; it is left out where it is too short or holds NaN or the like."""
        windows = len(actions_TA) - 5
        if not self._pairs or windows < 1:
            return
        _, action_entries, state_entries = (list(part) for part in zip(*self._pairs, strict=True))
        actions_TP = actions_TA[:, action_entries].astype(np.float64)
        states_TP = states_TS[:, state_entries].astype(np.float64)
        for values in (actions_TP, states_TP):
            if not (np.abs(values) < LARGEST_NUMBER).all():  # so neither NaN
                return
        # Window i is about the change from row i + 3 on: two rows behind and ahead of it, and one
        # more that the change of a target needs.
        changes_P = np.diff(states_TP, axis=0)[3 : 3 + windows]
        self._count += windows
        for form, causes in enumerate((actions_TP[1:], np.diff(actions_TP, axis=0))):
            lagged = [causes[2 - shift : 2 - shift + windows] for shift in SHIFTS]
            rows_TPX = np.stack([*lagged, changes_P], axis=-1)
            self._sums_FPX[form] += rows_TPX.sum(axis=0)
            self._products_FPXX[form] += np.einsum("tpx,tpy->pxy", rows_TPX, rows_TPX)

    def shifts(self) -> list[Shift]:
        """The dimensions whose actions clearly move the state, and with which shift."""
        if self._count < _FEWEST_WINDOWS:
            return []
        means_FPX = self._sums_FPX / self._count
        covariances = self._products_FPXX / self._count
        covariances = covariances - means_FPX[..., :, None] * means_FPX[..., None, :]
        found = [
            _shift(name, covariances[:, pair], self._count)
            for pair, (name, _, _) in enumerate(self._pairs)
        ]
        return [one for one in found if one is not None]

    def findings(self) -> list[Finding]:
        """At most one: what most dimensions agree on, where that is a shift."""
        shifts = self.shifts()
        votes = Counter(one.rows for one in shifts)
        rows = next((rows for rows, count in votes.items() if 2 * count > len(shifts)), 0)
        if rows == 0:
            return []
        agreeing = [one for one in shifts if one.rows == rows]
        evidence = ", ".join(
            f"{one.name} {one.correlation:.2f} instead of {one.as_recorded:.2f}"
            for one in agreeing[:4]
        )
        often = f"{abs(rows)} row{'s' if abs(rows) > 1 else ''}"
        correlation = f"(correlation of action and change of state: {evidence})"
        if rows < 0:
            message = f"actions go best with changes of the state {often} before them {correlation}"
            mend = (
                f"pair the state of row t with the action of row t+{-rows}: states seem to be "
                "read after the action of their row"
            )
            return [Finding("warning", "action-shifted", message, mend)]
        message = f"actions go best with changes of the state {often} after them {correlation}"
        if 2 * sum(one.pure for one in agreeing) > len(agreeing):
            mend = (
                f"pair the state of row t with the action of row t-{rows}, unless the robot "
                "really takes so long to follow"
            )
            return [Finding("warning", "action-shifted", message, mend)]
        mend = "nothing, if the robot follows its commands so slowly"
        return [Finding("note", "action-delayed", message, mend)]


def _shift(name: str, covariance_FXX: NDArray[np.float64], count: int) -> Shift | None:
    """The verdict on one dimension; None where the action does not clearly move the state."""
    best: Shift | None = None
    for covariance in covariance_FXX:
        spread = np.sqrt(np.diag(covariance).clip(min=0))
        if spread.min() <= 1e-9 * max(1.0, spread.max()):
            continue
        matrix = covariance / np.outer(spread, spread)
        correlations = np.abs(matrix[-1, :-1])
        peak, here = int(correlations.argmax()), SHIFTS.index(0)
        strength = float(correlations[peak])
        if strength < _STRONG or (best is not None and strength <= best.correlation):
            continue
        # Neighbouring rows are alike, so fewer of them count (Bartlett 1935).
        neighbours = min(abs(float(matrix[here, here + 1])), 1 - 1e-9)
        alike = neighbours**2
        counting = count * (1 - alike) / (1 + alike)
        if math.atanh(min(strength, 1 - 1e-12)) * math.sqrt(max(counting - 3, 0)) < _SIGNIFICANT:
            continue
        left, left_here = 1 - strength**2, 1 - float(correlations[here]) ** 2
        coefficients = np.linalg.lstsq(matrix[:-1, :-1], matrix[-1, :-1], rcond=None)[0]
        left_by_all = 1 - float(coefficients @ matrix[-1, :-1])
        best = Shift(
            name=name,
            rows=SHIFTS[peak] if left <= _MARGIN * left_here else 0,
            correlation=strength,
            as_recorded=float(correlations[here]),
            pure=neighbours < _TELLING and left_by_all + _ROUNDING >= _PURE * (left + _ROUNDING),
        )
    return best
