"""Intervals against published examples, brute force and simulated coverage."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from robot_qsft.intervals import (
    bootstrap_median,
    over_seeds,
    paired_difference,
    spearman,
    wilson,
)

outcomes = st.lists(st.booleans(), min_size=1, max_size=40).map(np.array)
pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40).map(np.array)


def successes(count: int, n: int) -> NDArray[np.bool_]:
    return np.arange(n) < count


def paired(
    *, both: int, only_first: int, only_second: int, neither: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    counts = [both, only_first, only_second, neither]
    first = np.repeat([True, True, False, False], counts)
    second = np.repeat([True, False, True, False], counts)
    return first, second


def test_wilson_by_hand() -> None:
    estimate = wilson(successes(8, 10))
    assert (estimate.value, estimate.n) == (0.8, 10)
    assert (estimate.low, estimate.high) == (
        pytest.approx(0.490, abs=5e-4),
        pytest.approx(0.943, abs=5e-4),
    )


def test_wilson_solves_the_score_equation() -> None:
    """Its ends are the rates p at which |8/10 - p| is 1.96 standard errors of p itself."""
    estimate = wilson(successes(8, 10))
    for end in (estimate.low, estimate.high):
        assert abs(0.8 - end) / math.sqrt(end * (1 - end) / 10) == pytest.approx(1.959964)


def test_wilson_of_no_success_is_not_a_point() -> None:
    """0 of n reaches up to z^2 / (n + z^2) = 3.8415 / 103.8415."""
    estimate = wilson(successes(0, 100))
    assert (estimate.value, estimate.low) == (0, pytest.approx(0, abs=1e-12))
    assert estimate.high == pytest.approx(0.036994, abs=1e-6)


@given(outcomes)
def test_wilson_holds_the_rate_and_mirrors_failures(trials: NDArray[np.bool_]) -> None:
    estimate, mirrored = wilson(trials), wilson(~trials)
    assert 0 <= estimate.low <= estimate.value + 1e-12
    assert estimate.value - 1e-12 <= estimate.high <= 1
    assert estimate.low == pytest.approx(1 - mirrored.high, abs=1e-12)


def test_no_trial_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one episode"):
        wilson(np.zeros(0, np.bool_))


def test_paired_difference_of_a_published_example() -> None:
    """Bentur et al. 2009 in Fagerland, Lydersen and Laake 2014 (Stat. Med. 33, 2850-2875).

    Airway hyper-responsiveness before and after transplantation, 1 / 1 / 7 / 12 children:
    Newcombe's square-and-add interval is -0.507 to -0.026.
    """
    estimate = paired_difference(*paired(both=1, only_first=1, only_second=7, neither=12))
    assert estimate.value == pytest.approx(-6 / 21)
    assert estimate.low == pytest.approx(-0.507, abs=5e-4)
    assert estimate.high == pytest.approx(-0.026, abs=5e-4)


@pytest.mark.parametrize(
    "p", [(0.6, 0.2, 0.05, 0.15), (0.02, 0.7, 0.0, 0.28), (0.3, 0.3, 0.3, 0.1)]
)
def test_paired_difference_covers_the_truth(p: tuple[float, ...]) -> None:
    """Of 2,000 experiments with 60 start states about 95% cover it; ± 4 standard errors is 2%."""
    rng = np.random.default_rng(0)
    truth = p[1] - p[2]
    covered = 0
    for both, first, second, neither in rng.multinomial(60, p, size=2000):
        trials = paired(both=both, only_first=first, only_second=second, neither=neither)
        estimate = paired_difference(*trials)
        covered += estimate.low <= truth <= estimate.high
    assert 0.93 <= covered / 2000 <= 0.985


@given(pairs)
def test_paired_difference_is_antisymmetric(trials: NDArray[np.bool_]) -> None:
    forth = paired_difference(trials[:, 0], trials[:, 1])
    back = paired_difference(trials[:, 1], trials[:, 0])
    assert forth.value == pytest.approx(-back.value)
    assert forth.low == pytest.approx(-back.high)
    assert -1 <= forth.low <= forth.value <= forth.high <= 1


def test_pairs_that_agree_say_more_than_pairs_that_do_not() -> None:
    agreeing = paired_difference(*paired(both=40, only_first=20, only_second=0, neither=40))
    crossing = paired_difference(*paired(both=20, only_first=40, only_second=20, neither=20))
    assert agreeing.value == crossing.value == pytest.approx(0.2)
    assert agreeing.high - agreeing.low < 0.8 * (crossing.high - crossing.low)


def test_start_states_must_match() -> None:
    with pytest.raises(ValueError, match="got 3 and 4"):
        paired_difference(successes(1, 3), successes(1, 4))


def test_interval_over_seeds_holds_the_luck_of_training() -> None:
    """One seed always succeeds, one never: two draws of seeds give 0, 1/2 or 1."""
    estimate = over_seeds(np.array([[1.0] * 50, [0.0] * 50]), np.random.default_rng(0))
    assert (estimate.value, estimate.low, estimate.high) == (0.5, 0, 1)


def test_interval_over_one_seed_is_that_of_its_episodes() -> None:
    """Standard error of 100 trials of rate 0.5 is 0.05."""
    estimate = over_seeds(successes(50, 100)[None], np.random.default_rng(0))
    assert estimate.low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.015)
    assert estimate.high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.015)


def test_interval_over_seeds_of_equal_outcomes_is_a_point() -> None:
    estimate = over_seeds(np.full((3, 20), 0.25), np.random.default_rng(0))
    assert (estimate.value, estimate.low, estimate.high, estimate.n) == (0.25, 0.25, 0.25, 60)


def test_median_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    found = [bootstrap_median(rng.normal(3, 1, 40), rng) for _ in range(60)]
    assert sum(each.low <= 3 <= each.high for each in found) >= 51
    assert all(each.low <= each.value <= each.high for each in found)


def brute_force_spearman(first: list[int], second: list[int]) -> float:
    """Pearson's correlation of mean ranks, each rank counted out."""

    def ranks(values: list[int]) -> list[float]:
        return [
            1 + sum(other < value for other in values) + (values.count(value) - 1) / 2
            for value in values
        ]

    one, two = np.array(ranks(first)), np.array(ranks(second))
    one, two = one - one.mean(), two - two.mean()
    return float((one * two).sum() / math.sqrt((one**2).sum() * (two**2).sum()))


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=20))
def test_spearman_is_that_of_brute_force(rows: list[tuple[int, int]]) -> None:
    first, second = ([row[index] for row in rows] for index in (0, 1))
    if len(set(first)) == 1 or len(set(second)) == 1:
        return
    estimate = spearman(
        np.array(first, np.float64),
        np.array(second, np.float64),
        np.arange(len(rows)),
        np.random.default_rng(0),
    )
    assert estimate.value == pytest.approx(brute_force_spearman(first, second))


def test_spearman_by_hand() -> None:
    """Ranks 1 2 3 4 5 against 2 1 4 3 5: 1 - 6 * 4 / (5 * 24) = 0.8."""
    first, second = np.array([1.0, 2, 3, 4, 5]), np.array([20.0, 10, 40, 30, 50])
    estimate = spearman(first, second, np.arange(5), np.random.default_rng(0))
    assert estimate.value == pytest.approx(0.8)


def test_spearman_counts_episodes_not_steps() -> None:
    """The same 400 steps, as 400 episodes or as 8 whose steps all agree."""
    rng = np.random.default_rng(0)
    first = np.repeat(rng.normal(size=8), 50)
    second = np.repeat(rng.normal(size=8), 50) + 0.5 * first
    steps = spearman(first, second, np.arange(400), np.random.default_rng(0))
    episodes = spearman(first, second, np.repeat(np.arange(8), 50), np.random.default_rng(0))
    assert (steps.n, episodes.n) == (400, 8)
    assert steps.value == episodes.value
    assert episodes.high - episodes.low > 2 * (steps.high - steps.low)
