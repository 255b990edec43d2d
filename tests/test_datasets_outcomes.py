"""Outcomes of episodes, fitness for Q-learning, and the split."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_qsft.datasets.outcomes import check_rewards, infer_outcomes
from robot_qsft.datasets.split import split_episodes
from robot_qsft.datasets.tables import Source, Tables


def make_tables(
    rewards: list[list[float]],
    *,
    source: Source = "next.reward",
    success_source: Source = "next.success",
    demonstrators: tuple[str, ...] | None = None,
) -> Tables:
    lengths = [len(episode) for episode in rewards]
    flat = np.array([reward for episode in rewards for reward in episode], np.float32)
    count = len(rewards)
    return Tables(
        states=np.zeros((len(flat), 1), np.float32),
        environment_states=np.zeros((len(flat), 0), np.float32),
        actions=np.zeros((len(flat), 1), np.float32),
        rewards=flat,
        successes=flat >= 1,
        episode_starts=np.cumsum(lengths) - lengths,
        terminated=np.zeros(count, np.bool_),
        truncated=np.ones(count, np.bool_),
        task_indices=np.zeros(count, np.int64),
        tasks=("lift",),
        demonstrators=demonstrators or ("",) * count,
        reward_source=source,
        success_source=success_source,
    )


def test_mixed_outcomes() -> None:
    tables = make_tables([[0, 1], [0, 0, 0], [1]])
    outcomes = infer_outcomes(tables)
    assert outcomes.outcomes == ("success", "failure", "success")
    assert outcomes.counts == {"success": 2, "failure": 1, "unknown": 0}
    assert outcomes.source == "next.success"
    check_rewards(tables)


def test_a_column_that_is_nowhere_positive_tells_nothing() -> None:
    outcomes = infer_outcomes(make_tables([[0, 0], [0]]))
    assert outcomes.counts == {"success": 0, "failure": 0, "unknown": 2}
    assert outcomes.source == "none"


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([[0, 0], [0]], "all 2 have none; add successful episodes"),
        ([[0, 1], [1]], "one outcome only, a return of 1; add failures"),
        (
            [[0], [0, 1, 1]],
            "at most 1 per episode in all, but episode 1 has 2; pay",
        ),
        ([[0, 1], [0, -0.5]], "episode 1 has -0.5 at step 1; shift or replace"),
    ],
)
def test_unfit_rewards(rewards: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_rewards(make_tables(rewards))


def test_rewards_that_add_up_to_one_within_rounding() -> None:
    check_rewards(make_tables([[0.1] * 10, [0]]))


@settings(deadline=None)
@given(
    kinds=st.lists(st.tuples(st.sampled_from(["a", "b"]), st.booleans()), min_size=1, max_size=60),
    fraction=st.floats(0, 0.9),
    seed=st.integers(0, 5),
)
def test_split(kinds: list[tuple[str, bool]], fraction: float, seed: int) -> None:
    tables = make_tables(
        [[float(success)] for _, success in kinds],
        demonstrators=tuple(demonstrator for demonstrator, _ in kinds),
    )
    split, again = (
        split_episodes(tables, validation_fraction=fraction, generator=np.random.default_rng(seed))
        for _ in range(2)
    )
    np.testing.assert_array_equal(split.validation, again.validation)
    together = np.sort(np.concatenate([split.training, split.validation]))
    np.testing.assert_array_equal(together, np.arange(len(kinds)))
    for kind in set(kinds):
        count = kinds.count(kind)
        drawn = sum(kinds[episode] == kind for episode in split.validation)
        assert drawn <= count - 1 and abs(drawn - count * fraction) <= 1


def test_split_refuses_to_leave_nothing() -> None:
    with pytest.raises(ValueError, match=r"in \[0, 1\), but 1.0 came"):
        split_episodes(
            make_tables([[1], [0]]), validation_fraction=1.0, generator=np.random.default_rng(0)
        )
