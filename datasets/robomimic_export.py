"""Demonstrations of any format, seen through a field map, as a robomimic HDF5 file.

    actions                        the map's action
    rewards                        next.reward, which pays at most 1 per episode
    dones                          1 where the task is solved (robomimic's done_mode 0), and at the
                                   last step where the task itself ended otherwise
    obs/state, obs/environment_state   the map's vectors; where a part is a whole column below obs/
                                   that nothing is done to, that column under its own name instead
    obs/<camera>_image             frames, upright
    obs/<name>                     kept columns of numbers; "states", "actions_abs" and what is
                                   below obs/ or action_dict/ keep their place; text is left out
    mask/<split>                   the source's splits
    mask/outcome_unknown           demos whose rewards are 0 because nobody knows how they ended

An action that is one whole column, as are those of robomimic's own files in the suggested map,
keeps the type that it is stored in. `env_args` tells the steps per second and the robot, and no
path of the machine that recorded.

Shape legend: A action dimensions, T steps.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.features import (
    ACTION,
    DONE,
    ENVIRONMENT_STATE,
    REWARD,
    STATE,
    SUCCESS,
    TRUNCATED,
)
from robot_qsft.datasets.field_map import Part
from robot_qsft.datasets.formats.robomimic import UNKNOWN_MASK
from robot_qsft.datasets.formats.robomimic_writer import Demo, write_robomimic
from robot_qsft.datasets.labels import Label, apply_labels
from robot_qsft.datasets.mapped import MappedEpisode, MappedSource, settle
from robot_qsft.datasets.outcomes import Evidence
from robot_qsft.datasets.source import Column, Recording

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is, and how much there is."""

_OBSERVATIONS = "obs/"
_OWN_PLACE = (_OBSERVATIONS, "action_dict/")
_OWN_NAME = ("states", "actions_abs")
_OF_THE_MAP = (ACTION, STATE, ENVIRONMENT_STATE, REWARD, SUCCESS, DONE, TRUNCATED)
"""Our columns that are not among those kept, whatever the map keeps under such a name."""
_OF_GYM = 2
"""The `type` of an environment that is none of robosuite's."""


def export_robomimic(
    mapped: MappedSource,
    path: Path,
    *,
    labels: Mapping[int, Label] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> int:
    """Write all episodes to one file, which appears when it is complete.

    Args:
        mapped: what is read, and how.
        path: of the file; nothing may be there.
        labels: of people, which count more than what the source tells; None for none.
        progress: told of episodes looked at and written.

    Returns:
        How many episodes have rewards of 0 because nobody knows how they ended; they are listed in
        `mask/outcome_unknown`.

    Raises:
        ValueError: when something is at `path`, an episode is damaged, a label does not fit, or two
            columns or cameras would be called the same.
    """
    settled = settle(_evidences(mapped, labels or {}, progress), assume=mapped.field_map.assume)
    unknown = tuple(index for index, (_, outcome) in enumerate(settled) if outcome == "unknown")
    splits = dict(mapped.source.info.splits)
    if unknown:
        splits[UNKNOWN_MASK] = unknown
    write_robomimic(
        path,
        demos=_demos(mapped, [evidence for evidence, _ in settled], progress),
        env_args=_env_args(mapped),
        splits=splits,
    )
    return len(unknown)


def _evidences(
    mapped: MappedSource, labels: Mapping[int, Label], progress: Progress
) -> list[Evidence]:
    evidences, names, lengths = [], [], []
    for index in range(len(mapped)):
        recording = mapped.source.recording(index)
        evidences.append(mapped.evidence(recording))
        names.append(recording.name)
        lengths.append(len(recording))
        progress("episodes", index + 1, len(mapped))
    return apply_labels(evidences, labels, names=names, lengths=lengths)


def _env_args(mapped: MappedSource) -> dict[str, Any]:
    robot = mapped.source.info.robot_type
    rate_hz = int(mapped.fps) if mapped.fps == int(mapped.fps) else mapped.fps
    kwargs: dict[str, Any] = {"control_freq": rate_hz}
    if robot is not None:
        kwargs["robots"] = robot.split("+")
    return {"env_name": robot or "unknown", "type": _OF_GYM, "env_kwargs": kwargs}


def _demos(
    mapped: MappedSource, evidences: Sequence[Evidence], progress: Progress
) -> Iterator[Demo]:
    cameras = {f"{name}_image": name for name in mapped.cameras}
    for index, evidence in enumerate(evidences):
        recording = mapped.source.recording(index)
        episode = mapped.episode(recording, evidence)
        columns = _columns(mapped, recording, episode)
        _check_apart([*columns, *(_OBSERVATIONS + key for key in cameras)])
        yield Demo(
            columns,
            {key: mapped.frames(index, name, episode.steps) for key, name in cameras.items()},
            episode.instruction,
        )
        progress("written", index + 1, len(evidences))


def _columns(
    mapped: MappedSource, recording: Recording, episode: MappedEpisode
) -> dict[str, NDArray[Any]]:
    one, ours = mapped.field_map, episode.columns
    theirs = mapped.source.info.columns
    merged = not np.array_equal(episode.steps, np.arange(len(episode)))

    def as_stored(name: str) -> NDArray[Any]:
        """(T, ...)."""
        return recording.columns[name][episode.steps]

    action = None if merged else _whole_column(one.action, theirs)
    terminated = ours[DONE] & ~ours[TRUNCATED]
    columns = {
        "actions": ours[ACTION] if action is None else as_stored(action).reshape(len(episode), -1),
        "rewards": ours[REWARD],
        "dones": (ours[SUCCESS] | terminated).astype(np.int64),
    }
    restored: set[str] = set()
    for vector, parts in ((STATE, one.state), (ENVIRONMENT_STATE, one.environment_state)):
        names = [_whole_column([part], theirs) or "" for part in parts]
        if all(name.startswith(_OBSERVATIONS) for name in names):
            columns |= {name: as_stored(name) for name in names}
            restored.update(names)
        else:
            columns[_OBSERVATIONS + vector.removeprefix("observation.")] = ours[vector]
    for name in one.keep:
        called = one.rename.get(name, name)
        again = called in _OF_THE_MAP or (called == name and name in restored)
        if again or theirs[name].dtype == "string":
            continue
        at_home = called in _OWN_NAME or called.startswith(_OWN_PLACE)
        key = called if at_home else _OBSERVATIONS + called
        if key in columns:
            raise _called_twice(key)
        columns[key] = ours[called]
    return columns


def _whole_column(parts: Sequence[Part], columns: Mapping[str, Column]) -> str | None:
    """The column that the parts are together, as it is stored; None where they are none."""
    names = {part.column for part in parts}
    if len(names) != 1 or any(part.to_unit or part.to_rotation or part.convert for part in parts):
        return None
    (name,) = names
    every = range(math.prod(columns[name].shape))
    entries = [entry for part in parts for entry in part.entries or every]
    return name if entries == list(every) else None


def _check_apart(keys: Sequence[str]) -> None:
    """Refuse what would lie in one place, or below something that is no group."""
    for key in keys:
        if keys.count(key) > 1:
            raise _called_twice(key)
        if any(other.startswith(key + "/") for other in keys):
            raise ValueError(
                f"robomimic's file cannot hold {key!r} and something below it; call one of them "
                "otherwise by 'rename' in the field map"
            )


def _called_twice(key: str) -> ValueError:
    return ValueError(
        f"two columns or cameras would be {key!r} in robomimic's file; call one of them otherwise "
        "by 'rename' or 'cameras' in the field map"
    )
