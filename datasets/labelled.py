"""People's labels laid over the tables of a data set, whose files stay as they are.

Shape legend: M episodes, N frames.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from robot_qsft.datasets.labels import Label
from robot_qsft.datasets.outcomes import infer_outcomes
from robot_qsft.datasets.tables import Tables


def labelled(tables: Tables, labels: Mapping[int, Label]) -> Tables:
    """The tables as they are where nobody labelled, else as the labels say.

    A labelled success is paid 1 at its success frame (its last one where none is marked) and solved
    from there on; a labelled failure is paid nothing.

    Raises:
        ValueError: when a label's frame lies beyond the end of its episode.
    """
    if not labels:
        return tables
    rewards, successes = tables.rewards.copy(), tables.successes.copy()
    terminated, truncated = tables.terminated.copy(), tables.truncated.copy()
    outcomes = list(infer_outcomes(tables).outcomes)
    lengths = tables.episode_lengths
    for episode, label in labels.items():
        start, length = int(tables.episode_starts[episode]), int(lengths[episode])
        frame = length - 1 if label.success_frame is None else label.success_frame
        if frame >= length:
            raise ValueError(
                f"the label of episode {episode} has its success at frame {frame}, but the episode "
                f"has {length}; label it again"
            )
        rows = slice(start, start + length)
        rewards[rows], successes[rows] = 0, False
        outcomes[episode] = "unknown" if label.outcome == "unclear" else label.outcome
        if label.outcome == "success":
            rewards[start + frame] = 1
            successes[start + frame : start + length] = True
        terminated[episode] = label.outcome == "success"
        truncated[episode] = not terminated[episode]
    paid = bool(np.any(rewards)) or tables.reward_source != "none"
    return replace(
        tables,
        rewards=rewards,
        successes=successes,
        terminated=terminated,
        truncated=truncated,
        outcomes=tuple(outcomes),
        reward_source="label" if paid else "none",
        success_source="label",
    )
