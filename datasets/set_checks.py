"""All checks of numbers over a set, episode by episode.

Shape legend: A action dimensions, S state dimensions, T steps.
"""

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.action_checks import ActionRanges, Alignment, matching_entries
from robot_qsft.datasets.checks import (
    LARGEST_NUMBER,
    Finding,
    check_finite,
    check_instructions,
    check_length,
    check_outcomes,
    check_rewards,
    check_timestamps,
)
from robot_qsft.datasets.field_map import SUCCESS_REWARD, FieldMap, Part
from robot_qsft.datasets.frame_checks import Motion
from robot_qsft.datasets.labels import Label, apply_labels
from robot_qsft.datasets.mapped import MappedSource, settle
from robot_qsft.datasets.outcomes import Evidence
from robot_qsft.datasets.parts import names_of, vector_of
from robot_qsft.datasets.source import Column, EpisodeSource, Recording
from robot_qsft.datasets.suggest_map import suggest


class Roles:
    """Which columns of a source are action, state, reward and time, and which cameras count.

    Attributes:
        actions: parts laid end to end.
        states: likewise; () where there is none.
        action_names: A in all.
        state_names: S in all.
        rewards: columns of recorded reward; () where the reward follows from the outcome.
        times: columns of time, one at most.
        cameras: in the source's names.
        fps: steps per second of the source; None where nobody tells.
    """

    def __init__(self, source: EpisodeSource, field_map: FieldMap | None) -> None:
        """Find them by the map, or else as one would be suggested, in the source's own units.

        Raises:
            ValueError: when the map does not fit the source.
        """
        columns = source.info.columns
        self.fps = source.info.fps
        self.times = _named(columns, "timestamp", "timestamps", single=True)[:1]
        self.rewards = _named(columns, "reward", "rewards", single=True)
        self.cameras = tuple(source.info.cameras)
        self.actions: tuple[Part, ...] = ()
        self.states: tuple[Part, ...] = ()
        self._mapped = None if field_map is None else MappedSource(source, field_map)
        if self._mapped is None:
            with suppress(ValueError):  # no action is a finding
                suggested = suggest(source)
                self.actions, self.states = _stored(suggested.action), _stored(suggested.state)
        else:
            settled = self._mapped.field_map
            self.fps = settled.fps or self.fps
            # A reward that is made of the outcome is right by construction.
            self.rewards = () if settled.reward == SUCCESS_REWARD else (settled.reward,)
            self.cameras = tuple(settled.cameras.values())
            self.actions, self.states = settled.action, settled.state
        self.action_names = names_of(self.actions, columns)
        self.state_names = names_of(self.states, columns)
        self.assume = None if self._mapped is None else self._mapped.field_map.assume

    def vectors(self, recording: Recording) -> tuple[NDArray[Any], NDArray[Any]]:
        """Actions (T, A) and states (T, S) of an episode.

        Raises:
            ValueError: when the map's conversions are impossible there.
        """

        def vector(parts: Sequence[Part]) -> NDArray[Any]:
            if not parts:
                return np.zeros((len(recording), 0))
            return vector_of(parts, recording.columns)

        return vector(self.actions), vector(self.states)

    def evidence(self, recording: Recording) -> Evidence:
        """How an episode ended."""
        return recording.evidence if self._mapped is None else self._mapped.evidence(recording)

    def instruction(self, recording: Recording) -> str:
        """What was asked for."""
        fixed = None if self._mapped is None else self._mapped.field_map.instruction
        return recording.instruction if fixed is None else fixed

    def used_rows(self, recording: Recording, evidence: Evidence) -> int:
        """How many rows of an episode training would see."""
        cut = self._mapped is not None and self._mapped.field_map.end_at_success
        if cut and evidence.success and evidence.frame is not None:
            return min(evidence.frame + 1, len(recording))
        return len(recording)


class SetChecks:
    """What is gathered over the episodes of a set.

    Attributes:
        lengths: steps of the episodes taken in, by episode.
    """

    def __init__(self, roles: Roles) -> None:
        """Begin with no episode."""
        self.lengths: dict[int, int] = {}
        self._roles = roles
        self._low = np.full(len(roles.state_names or roles.action_names), math.inf)
        self._high = -self._low
        self._evidences: dict[int, Evidence] = {}
        self._instructions: dict[int, str] = {}
        self._ranges = ActionRanges(roles.action_names)
        self._alignment = Alignment(matching_entries(roles.action_names, roles.state_names))

    def add(self, episode: int, recording: Recording, label: Label | None) -> list[Finding]:
        """Take in an episode; gives what is wrong with it by itself.

        Raises:
            ValueError: when the field map judges success by a column that is not there.
        """
        roles, columns = self._roles, recording.columns
        self.lengths[episode] = len(recording)
        findings = check_length(len(recording), episode=episode)
        findings += check_finite(columns, episode=episode)
        for name in roles.times:
            findings += check_timestamps(columns[name], fps=roles.fps, episode=episode, name=name)
        evidence = roles.evidence(recording)
        rows = roles.used_rows(recording, evidence)
        for name in roles.rewards:
            findings += check_rewards(
                columns[name][:rows],
                success_frame=evidence.frame if evidence.success else None,
                episode=episode,
                name=name,
            )
        if label is not None:
            try:
                (evidence,) = apply_labels(
                    [evidence], {0: label}, names=[recording.name], lengths=[len(recording)]
                )
            except ValueError as error:
                mend = "label it again"
                findings.append(Finding("error", "label-misfit", str(error), mend, episode))
        self._evidences[episode] = evidence
        self._instructions[episode] = roles.instruction(recording)
        try:
            actions, states = roles.vectors(recording)
        except ValueError as error:
            mend = "mend the field map, or drop the episode"
            findings.append(Finding("error", "not-mappable", str(error), mend, episode))
            return findings
        self._ranges.add(actions)
        self._alignment.add(actions, states)
        motion = _moving(actions, states).astype(np.float64)
        finite = motion[(np.abs(motion) < LARGEST_NUMBER).all(axis=1)]
        if len(finite):
            self._low = np.minimum(self._low, finite.min(axis=0))
            self._high = np.maximum(self._high, finite.max(axis=0))
        return findings

    def motion(self, recording: Recording) -> Motion | None:
        """How the robot moves in an episode, measured by the whole set; None where NaN hides it.

        Call it once all episodes are taken in.
        """
        try:
            values = _moving(*self._roles.vectors(recording)).astype(np.float64)
        except ValueError:
            return None  # a finding already
        if not values.size or not (np.abs(values) < LARGEST_NUMBER).all():
            return None
        return Motion(values, self._high - self._low)

    def findings(self) -> list[Finding]:
        """What is wrong with the set as a whole."""
        settled = settle(list(self._evidences.values()), assume=self._roles.assume)
        outcomes = {
            episode: outcome for episode, (_, outcome) in zip(self._evidences, settled, strict=True)
        }
        findings = []
        if not self._roles.actions:
            message = "no column is known to hold actions"
            findings.append(Finding("error", "no-action", message, "name it in a field map"))
        return [
            *findings,
            *check_outcomes(outcomes),
            *check_instructions(self._instructions),
            *self._ranges.findings(),
            *self._alignment.findings(),
        ]


def _stored(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts as recorded, without any conversion."""
    return tuple(
        Part(part.column, part.entries, names=() if part.to_rotation else part.names)
        for part in parts
    )


def _moving(actions_TA: NDArray[Any], states_TS: NDArray[Any]) -> NDArray[Any]:
    return states_TS if states_TS.shape[1] else actions_TA


def _named(columns: Mapping[str, Column], *endings: str, single: bool = False) -> tuple[str, ...]:
    """Columns of numbers whose name ends so, after the last dot or slash."""
    return tuple(
        name
        for name, column in columns.items()
        if re.split(r"[./]", name)[-1] in endings
        and column.dtype != "string"
        and (not single or math.prod(column.shape) == 1)
    )
