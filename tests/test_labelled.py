"""Labels laid over tables: rewards, ends and outcomes, by hand."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from robot_qsft.datasets.labelled import labelled
from robot_qsft.datasets.labels import Label
from robot_qsft.datasets.outcomes import check_outcomes_known, check_rewards, infer_outcomes
from robot_qsft.datasets.tables import Tables


def label(episode: int, outcome: Any, frame: int | None = None) -> Label:
    return Label(episode, "", outcome, frame, "person", "me", "2025-06-01T12:00:00+00:00")


@pytest.fixture
def tables() -> Tables:
    """Episodes of 2, 3, 1 and 4 steps; the second succeeds at its end, the last is cut off."""
    rewards = np.zeros(10, np.float32)
    rewards[[2, 4]] = 0.25, 0.75
    successes = np.zeros(10, np.bool_)
    successes[4] = True
    return Tables(
        states=np.zeros((10, 1), np.float32),
        environment_states=np.zeros((10, 0), np.float32),
        actions=np.arange(10, dtype=np.float32)[:, None],
        rewards=rewards,
        successes=successes,
        episode_starts=np.array([0, 2, 5, 6]),
        terminated=np.array([True, True, False, False]),
        truncated=np.array([False, False, True, True]),
        task_indices=np.zeros(4, np.int64),
        tasks=("lift",),
        demonstrators=("",) * 4,
        reward_source="next.reward",
        success_source="next.success",
    )


def rows_of(values: np.ndarray) -> list[list[float]]:
    return [part.tolist() for part in np.split(values, [2, 5, 6])]


def test_without_labels_nothing_changes(tables: Tables) -> None:
    assert labelled(tables, {}) is tables


def test_labels_say_what_is_paid_and_how_it_ended(tables: Tables) -> None:
    before = {one.name: getattr(tables, one.name) for one in fields(tables)}
    copies = {name: value.copy() for name, value in before.items() if isinstance(value, np.ndarray)}
    labels = {
        1: label(1, "failure"),
        2: label(2, "unclear"),
        3: label(3, "success", 1),
    }
    found = labelled(tables, labels)
    assert rows_of(found.rewards) == [[0, 0], [0, 0, 0], [0], [0, 1, 0, 0]]
    assert rows_of(found.successes) == [
        [False] * 2,
        [False] * 3,
        [False],
        [False, True, True, True],
    ]
    # The first is as it was, a failure, since the column spoke of another's success.
    assert found.outcomes == ("failure", "failure", "unknown", "success")
    assert found.terminated.tolist() == [True, False, False, True]
    assert found.truncated.tolist() == [False, True, True, False]
    assert found.reward_source == found.success_source == "label"
    assert found.actions is tables.actions
    for name, value in copies.items():
        np.testing.assert_array_equal(getattr(tables, name), value, err_msg=name)


def test_without_a_frame_the_last_is_paid(tables: Tables) -> None:
    found = labelled(tables, {0: label(0, "success"), 3: label(3, "success")})
    assert rows_of(found.rewards) == [[0, 1], [0.25, 0, 0.75], [0], [0, 0, 0, 1]]
    assert rows_of(found.successes)[3] == [False, False, False, True]
    assert found.outcomes == ("success", "success", "failure", "success")


def test_the_first_and_the_last_frame_can_be_marked(tables: Tables) -> None:
    found = labelled(
        tables, {0: label(0, "success", 0), 2: label(2, "success", 0), 3: label(3, "success", 3)}
    )
    assert rows_of(found.rewards) == [[1, 0], [0.25, 0, 0.75], [1], [0, 0, 0, 1]]
    assert rows_of(found.successes)[0] == [True, True]


def test_unlabelled_episodes_of_a_silent_source_stay_unknown(tables: Tables) -> None:
    silent = replace(
        tables,
        rewards=np.zeros(10, np.float32),
        successes=np.zeros(10, np.bool_),
        reward_source="none",
        success_source="none",
    )
    found = labelled(silent, {0: label(0, "success")})
    assert found.outcomes == ("success", "unknown", "unknown", "unknown")
    assert found.reward_source == "label"
    assert infer_outcomes(found).counts == {"success": 1, "failure": 0, "unknown": 3}
    with pytest.raises(ValueError, match="of 3 of the 4 it is unknown, such as episode 1"):
        check_outcomes_known(found)
    failures = labelled(silent, {episode: label(episode, "failure") for episode in range(4)})
    assert failures.outcomes == ("failure",) * 4 and failures.reward_source == "none"
    with pytest.raises(ValueError, match="needs rewards"):
        check_rewards(failures)


def test_labels_go_over_the_outcomes_of_an_ingestion(tables: Tables) -> None:
    ingested = replace(tables, outcomes=("unknown", "success", "unknown", "unknown"))
    found = labelled(ingested, {0: label(0, "failure"), 3: label(3, "success", 0)})
    assert found.outcomes == ("failure", "success", "unknown", "success")


def test_labels_make_one_sided_data_fit_for_training(tables: Tables) -> None:
    with_labels = labelled(
        tables, {0: label(0, "failure"), 2: label(2, "success"), 3: label(3, "failure")}
    )
    check_rewards(with_labels)
    check_outcomes_known(with_labels)
    np.testing.assert_array_equal(with_labels.episode_returns, [0, 1, 1, 0])


@pytest.mark.parametrize(("episode", "frame", "length"), [(0, 2, 2), (2, 1, 1), (3, 2**62, 4)])
def test_a_frame_beyond_the_end(tables: Tables, episode: int, frame: int, length: int) -> None:
    with pytest.raises(ValueError) as caught:
        labelled(tables, {episode: label(episode, "success", frame)})
    assert str(caught.value) == (
        f"the label of episode {episode} has its success at frame {frame}, but the episode has "
        f"{length}; label it again"
    )
