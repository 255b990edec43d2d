"""How sure a success rate is: 95% intervals for proportions, differences and correlations."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Z_95 = 1.959963984540054
"""Two-sided 95% quantile of the standard normal distribution."""

_RESAMPLES = 4000


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval."""

    value: float
    low: float
    high: float
    n: int


def wilson(successes: NDArray[np.bool_]) -> Estimate:
    """Success rate of independent trials, bool (n,), with Wilson's score interval (1927).

    8 of 10 gives 0.8 in [0.490, 0.943].

    Raises:
        ValueError: when there is no trial.
    """
    n = len(successes)
    if n == 0:
        raise ValueError("a success rate needs at least one episode")
    rate = float(np.mean(successes))
    centre = (rate + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
    half = Z_95 / (1 + Z_95**2 / n) * math.sqrt(rate * (1 - rate) / n + Z_95**2 / (4 * n * n))
    return Estimate(rate, max(0.0, centre - half), min(1.0, centre + half), n)


def paired_difference(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Estimate:
    """Difference of two success rates over the same start states, `first` - `second`.

    Newcombe's square-and-add interval for paired proportions (1998, Statistics in Medicine 17,
    2635-2650, method 10): it uses that the two outcomes of a start state go together.

    Raises:
        ValueError: when the two were not run on equally many start states.
    """
    if len(first) != len(second):
        raise ValueError(
            f"a paired comparison needs the same start states, got {len(first)} and {len(second)}"
        )
    n = len(first)
    one, two = wilson(first), wilson(second)
    both, neither = int(np.sum(first & second)), int(np.sum(~first & ~second))
    only_first, only_second = int(np.sum(first & ~second)), int(np.sum(~first & second))
    margins = (
        (both + only_first)
        * (only_second + neither)
        * (both + only_second)
        * (only_first + neither)
    )
    covariance: float = both * neither - only_first * only_second
    if covariance > 0:  # continuity correction
        covariance = max(covariance - n / 2, 0)
    correlation = covariance / math.sqrt(margins) if margins else 0.0
    difference = one.value - two.value
    below = _add_squares(one.value - one.low, two.high - two.value, correlation)
    above = _add_squares(one.high - one.value, two.value - two.low, correlation)
    return Estimate(difference, max(-1.0, difference - below), min(1.0, difference + above), n)


def _add_squares(one: float, two: float, correlation: float) -> float:
    return math.sqrt(max(0.0, one * one - 2 * correlation * one * two + two * two))


def over_seeds(
    outcomes_SN: NDArray[np.floating] | NDArray[np.bool_], rng: np.random.Generator
) -> Estimate:
    """Mean of outcomes (training seeds S, start states N), by a crossed bootstrap.

    Both the seeds and the start states are drawn anew, so the interval covers the luck of training
    as well as that of the episodes (Owen 2007, Annals of Applied Statistics 1, 386-411). Give
    differences of outcomes for a paired comparison.
    """
    values_SN = np.asarray(outcomes_SN, np.float64)
    seeds, states = values_SN.shape
    means = np.empty(_RESAMPLES)
    for index in range(_RESAMPLES):
        chosen_seeds = rng.integers(seeds, size=seeds)
        chosen_states = rng.integers(states, size=states)
        means[index] = values_SN[np.ix_(chosen_seeds, chosen_states)].mean()
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(values_SN.mean()), float(low), float(high), values_SN.size)


def bootstrap_median(samples: NDArray[np.floating], rng: np.random.Generator) -> Estimate:
    """Median of independent measurements (n,), by the percentile bootstrap."""
    draws = rng.choice(samples, (_RESAMPLES, len(samples)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return Estimate(float(np.median(samples)), float(low), float(high), len(samples))


def spearman(
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    groups: NDArray[np.integer],
    rng: np.random.Generator,
) -> Estimate:
    """Rank correlation of two quantities (n,), by a bootstrap over groups.

    NaN where one of them is constant. Steps of one episode are no independent evidence, so whole
    episodes (`groups`) are drawn.
    """
    if np.ptp(first) == 0 or np.ptp(second) == 0:  # nothing to rank
        return Estimate(math.nan, math.nan, math.nan, len(np.unique(groups)))
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    draws = []
    for _ in range(_RESAMPLES // 10):
        chosen = rng.integers(len(members), size=len(members))
        rows = np.concatenate([members[index] for index in chosen])
        if np.ptp(first[rows]) > 0 and np.ptp(second[rows]) > 0:
            draws.append(_rank_correlation(first[rows], second[rows]))
    low, high = np.quantile(draws or [math.nan], [0.025, 0.975])
    return Estimate(_rank_correlation(first, second), float(low), float(high), len(members))


def _rank_correlation(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Ranks (n,); equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return ranks
