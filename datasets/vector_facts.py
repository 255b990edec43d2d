"""How the numbers of a vector are spread, one dimension at a time, told after one pass.

Shape legend: B bins, D dimensions, R rows of the sample, T steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

BINS: Final = 256
"""B, equally wide, from the 1% to the 99% quantile."""
MANY_VALUES: Final = 1000
"""Distinct values are counted up to this number."""
DISCRETE_VALUES: Final = 3
"""Distinct values up to which training gives each its own bin."""
_SAMPLE_ROWS = 100_000
_SAMPLE_NUMBERS = 4_000_000
_FEWEST_SAMPLE_ROWS = 100
_QUANTILES = (0.01, 0.5, 0.99)


@dataclass(frozen=True, eq=False)
class Dimension:
    """One dimension over all rows; NaN where no number is finite.

    Attributes:
        name: such as "gripper".
        minimum: exact, as are all numbers but the quantiles and the bins.
        maximum: of the finite numbers, as everywhere here.
        mean: arithmetic mean.
        std: population standard deviation.
        q01: 1% quantile of the sample, linear between neighbours, as are the others.
        q50: median of the sample.
        q99: 99% quantile of the sample.
        at_minimum: share of the numbers that equal the minimum.
        at_maximum: share that equals the maximum.
        distinct: different numbers; `MANY_VALUES` for so many or more.
        not_finite: how many are NaN or infinite.
        bins: how many of the sample fall into each bin, int64 (B,); the outermost two also hold
            what lies beyond the quantiles.
    """

    name: str
    minimum: float
    maximum: float
    mean: float
    std: float
    q01: float
    q50: float
    q99: float
    at_minimum: float
    at_maximum: float
    distinct: int
    not_finite: int
    bins: NDArray[np.int64]

    @property
    def constant(self) -> bool:
        """Whether it is the same number throughout."""
        return self.distinct <= 1

    @property
    def discrete(self) -> bool:
        """Whether it takes so few values, as an open or closed gripper does, that each is a bin."""
        return self.distinct <= DISCRETE_VALUES

    @property
    def at_bounds(self) -> float:
        """Share of the numbers that equal the minimum or the maximum."""
        return 1.0 if self.constant else self.at_minimum + self.at_maximum

    @property
    def bins_used(self) -> int:
        """Bins with a number in them."""
        return int(np.count_nonzero(self.bins))


@dataclass(frozen=True, eq=False)
class VectorFacts:
    """A vector over all rows.

    Attributes:
        dimensions: D in all.
        rows: how many rows were seen.
        sample: rows drawn evenly from all of them, or all where they fit, float64 (R, D).
    """

    dimensions: tuple[Dimension, ...]
    rows: int
    sample: NDArray[np.float64]


class VectorTally:
    """Counts up what `VectorFacts` tells; two tallies of different rows can be merged.

    Bounds, moments and counts are exact. Quantiles and bins come from a sample of at most 100,000
    rows (fewer where D is above 40), those with the smallest of random keys: exact up to so many
    rows, and the same whichever way the rows were shared out.
    """

    def __init__(self, dimensions: int) -> None:
        """Nothing is counted yet."""
        self.rows = 0
        self._counts = np.zeros(dimensions, np.int64)
        self._minimum = np.full(dimensions, np.inf)
        self._maximum = np.full(dimensions, -np.inf)
        self._at_minimum = np.zeros(dimensions, np.int64)
        self._at_maximum = np.zeros(dimensions, np.int64)
        self._mean = np.zeros(dimensions)
        self._squares = np.zeros(dimensions)
        self._distinct: list[NDArray[np.float64] | None] = [np.zeros(0)] * dimensions
        fitting = _SAMPLE_NUMBERS // max(dimensions, 1)
        self._room = min(max(fitting, _FEWEST_SAMPLE_ROWS), _SAMPLE_ROWS)
        self._keys = [np.zeros(0)]
        self._sample = [np.zeros((0, dimensions))]
        self._held = 0

    def add(self, values_TD: NDArray[Any], keys_T: NDArray[np.float64]) -> None:
        """Count the rows of one episode.

        Args:
            values_TD: numbers or booleans, T of at least 1.
            keys_T: random, in [0, 1), the same whenever this episode is counted.
        """
        values = values_TD.astype(np.float64)
        finite = np.isfinite(values)
        other = VectorTally(values.shape[1])
        other.rows = len(values)
        other._counts = counts = finite.sum(axis=0)
        other._minimum = np.where(finite, values, np.inf).min(axis=0)
        other._maximum = np.where(finite, values, -np.inf).max(axis=0)
        other._at_minimum = (finite & (values == other._minimum)).sum(axis=0)
        other._at_maximum = (finite & (values == other._maximum)).sum(axis=0)
        with np.errstate(over="ignore", invalid="ignore"):
            numbers = np.where(finite, values, 0.0)
            other._mean = numbers.sum(axis=0) / np.maximum(counts, 1)
            deviations = np.where(finite, values - other._mean, 0.0)
            other._squares = (deviations**2).sum(axis=0)
        other._distinct = [
            None if seen is None else np.unique(column[kept])
            for seen, column, kept in zip(self._distinct, values.T, finite.T, strict=True)
        ]
        other._keys, other._sample, other._held = [keys_T], [values], len(values)
        self.merge(other)

    def merge(self, other: "VectorTally") -> None:
        """Count what another tally of the same vector has counted (Chan et al. 1983)."""
        self.rows += other.rows
        counts = self._counts + other._counts
        minimum = np.minimum(self._minimum, other._minimum)
        maximum = np.maximum(self._maximum, other._maximum)
        self._at_minimum = self._at_minimum * (self._minimum == minimum) + other._at_minimum * (
            other._minimum == minimum
        )
        self._at_maximum = self._at_maximum * (self._maximum == maximum) + other._at_maximum * (
            other._maximum == maximum
        )
        self._minimum, self._maximum = minimum, maximum
        with np.errstate(over="ignore", invalid="ignore"):
            share = other._counts / np.maximum(counts, 1)
            apart = other._mean - self._mean
            self._mean = self._mean + share * apart
            self._squares = self._squares + other._squares + apart**2 * self._counts * share
        self._counts = counts
        self._distinct = [
            _union(*both) for both in zip(self._distinct, other._distinct, strict=True)
        ]
        self._keys += other._keys
        self._sample += other._sample
        self._held += other._held
        if self._held > 2 * self._room:
            self._thin_out()

    def facts(self, names: Sequence[str]) -> VectorFacts:
        """What was counted, the D dimensions under these names."""
        self._thin_out()
        (sample,) = self._sample
        known = self._counts > 0
        shares = np.maximum(self._counts, 1)
        with np.errstate(invalid="ignore"):
            deviations = np.sqrt(self._squares / shares)

        def dimension(index: int, name: str) -> Dimension:
            def told(values: NDArray[np.float64]) -> float:
                return float(values[index]) if known[index] else float("nan")

            finite = np.sort(sample[:, index][np.isfinite(sample[:, index])])
            low, middle, high = (_quantile(finite, quantile) for quantile in _QUANTILES)
            distinct = self._distinct[index]
            return Dimension(
                name=name,
                minimum=told(self._minimum),
                maximum=told(self._maximum),
                mean=told(self._mean),
                std=told(deviations),
                q01=low,
                q50=middle,
                q99=high,
                at_minimum=float(self._at_minimum[index] / shares[index]),
                at_maximum=float(self._at_maximum[index] / shares[index]),
                distinct=MANY_VALUES if distinct is None else len(distinct),
                not_finite=self.rows - int(self._counts[index]),
                bins=bin_counts(finite, low, high),
            )

        return VectorFacts(
            dimensions=tuple(dimension(index, name) for index, name in enumerate(names)),
            rows=self.rows,
            sample=sample,
        )

    def _thin_out(self) -> None:
        """Keep the rows with the smallest keys, as many as there is room for."""
        keys, sample = np.concatenate(self._keys), np.concatenate(self._sample)
        order = np.argsort(keys, kind="stable")[: self._room]
        self._keys, self._sample, self._held = [keys[order]], [sample[order]], len(order)


def bin_counts(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.int64]:
    """Numbers per bin, int64 (B,), of B equally wide ones from `low` to `high`.

    What lies beyond falls into the outermost bins; with no width, all fall into the first.

    >>> bin_counts(np.array([-3.0, 0.1, 255.9, 300.0]), 0.0, 256.0).nonzero()[0].tolist()
    [0, 255]
    """
    with np.errstate(over="ignore"):
        width = (high - low) / BINS
    if not (len(values) and np.isfinite(width) and width > 0):
        return np.bincount(np.zeros(len(values), np.int64), minlength=BINS)
    places = np.floor((np.clip(values, low, high) - low) / width)
    return np.bincount(places.clip(0, BINS - 1).astype(np.int64), minlength=BINS)


def _union(
    first: NDArray[np.float64] | None, second: NDArray[np.float64] | None
) -> NDArray[np.float64] | None:
    """All numbers of both; None once they are many."""
    if first is None or second is None:
        return None
    both = np.union1d(first, second)
    return None if len(both) >= MANY_VALUES else both


def _quantile(ascending: NDArray[np.float64], quantile: float) -> float:
    """Linear between neighbours; NaN of no numbers."""
    if not len(ascending):
        return float("nan")
    position = quantile * (len(ascending) - 1)
    below = int(position)
    above = min(below + 1, len(ascending) - 1)
    part = position - below
    return float((1 - part) * ascending[below] + part * ascending[above])
