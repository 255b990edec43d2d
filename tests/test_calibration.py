"""Predicted values against the returns that followed."""

import numpy as np
import pytest

from robot_qsft.calibration import calibration, discounted_returns
from robot_qsft.evaluate import EpisodeResult, Evaluation


def episode(seed: int, success: bool, values: list[float]) -> EpisodeResult:
    return EpisodeResult(seed, success, len(values), values, [[0.0]] * len(values))


def test_return_is_what_the_last_step_paid_discounted():
    assert discounted_returns(episode(0, True, [0.0] * 3), 0.5).tolist() == [0.25, 0.5, 1.0]
    assert discounted_returns(episode(0, False, [0.0] * 3), 0.5).tolist() == [0.0, 0.0, 0.0]


def test_steps_of_all_episodes_are_pooled():
    solved, failed = episode(0, True, [0.3, 0.6, 0.9]), episode(1, False, [0.2, 0.1])
    measured = calibration(Evaluation((solved, failed)), 0.5)
    assert measured.values.tolist() == [0.3, 0.6, 0.9, 0.2, 0.1]
    assert measured.returns.tolist() == [0.25, 0.5, 1.0, 0.0, 0.0]
    assert measured.episodes.tolist() == [0, 0, 0, 1, 1]
    # Ranks (3, 4, 5, 2, 1) and (3, 4, 5, 1.5, 1.5): covariance 9.5 over sqrt(10 * 9.5).
    assert measured.rank_correlation.value == pytest.approx(np.sqrt(9.5 / 10))
    assert measured.rank_correlation.n == 2
