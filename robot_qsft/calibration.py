"""Predicted values against the returns that followed.

Shape legend: T steps of an episode, n steps of all episodes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robot_qsft.evaluate import EpisodeResult, Evaluation
from robot_qsft.intervals import Estimate, spearman


@dataclass(frozen=True, eq=False)
class Calibration:
    """Predicted values and discounted returns of steps pooled over episodes.

    Attributes:
        values: predicted, float (n,).
        returns: what came, float (n,).
        episodes: which episode each step is of, int (n,).
        rank_correlation: Spearman's, with its 95% interval.
    """

    values: NDArray[np.floating]
    returns: NDArray[np.floating]
    episodes: NDArray[np.integer]
    rank_correlation: Estimate


def discounted_returns(episode: EpisodeResult, discount: float) -> NDArray[np.float64]:
    """Return reached from every step of an episode that pays 1 on success, (T,)."""
    ahead = np.arange(episode.steps - 1, -1, -1, dtype=np.float64)
    return float(episode.success) * discount**ahead


def calibration(evaluation: Evaluation, discount: float) -> Calibration:
    """Predicted value of every chosen action against the return that followed it."""
    values = np.concatenate([episode.values for episode in evaluation.episodes])
    returns = np.concatenate([discounted_returns(one, discount) for one in evaluation.episodes])
    groups = np.repeat(
        np.arange(len(evaluation.episodes)), [episode.steps for episode in evaluation.episodes]
    )
    correlation = spearman(values, returns, groups, np.random.default_rng(0))
    return Calibration(values, returns, groups, correlation)
