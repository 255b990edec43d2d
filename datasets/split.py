"""Whole episodes for training and for validation.

Shape legend: M episodes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.tables import Tables


@dataclass(frozen=True, eq=False)
class Split:
    """Episode indices, int64, ascending; none is in both.

    Attributes:
        training: to fit.
        validation: to judge the fit.
    """

    training: NDArray[np.int64]
    validation: NDArray[np.int64]


def split_episodes(
    tables: Tables, *, validation_fraction: float, generator: np.random.Generator
) -> Split:
    """Draw validation episodes, in proportion from every demonstrator and outcome.

    Of a kind with n episodes n * `validation_fraction` are drawn, rounded; at least one stays for
    training. The same data and generator state give the same split.

    Raises:
        ValueError: when the fraction is not in [0, 1).
    """
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction must be in [0, 1), but {validation_fraction} came")
    kinds: dict[tuple[str, bool], list[int]] = {}
    for episode, kind in enumerate(
        zip(tables.demonstrators, tables.episode_successes.tolist(), strict=True)
    ):
        kinds.setdefault(kind, []).append(episode)
    validation: list[int] = []
    for kind in sorted(kinds):
        episodes = generator.permutation(kinds[kind])
        count = min(round(len(episodes) * validation_fraction), len(episodes) - 1)
        validation += episodes[:count].tolist()
    chosen = np.zeros(len(tables.episode_starts), np.bool_)
    chosen[validation] = True
    return Split(training=np.flatnonzero(~chosen), validation=np.flatnonzero(chosen))
