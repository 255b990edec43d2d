"""What a source holds, told after one pass over its columns; no image is decoded.

Shape legend: A action dimensions, T steps.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.features import ACTION, ENVIRONMENT_STATE, REWARD, STATE
from robot_qsft.datasets.field_map import SUCCESS_REWARD, FieldMap
from robot_qsft.datasets.formats.detect import open_source
from robot_qsft.datasets.labels import Label, apply_labels
from robot_qsft.datasets.mapped import MappedSource, settle
from robot_qsft.datasets.outcomes import NO_EVIDENCE, Evidence
from robot_qsft.datasets.parallel import in_processes
from robot_qsft.datasets.parts import vector_of
from robot_qsft.datasets.source import Column, EpisodeSource
from robot_qsft.datasets.tables import Outcome
from robot_qsft.datasets.vector_facts import VectorFacts, VectorTally

REWARD_COLUMNS = (REWARD, "rewards", "reward")
"""What sources call a reward, in the order that they are looked for."""
_TOGETHER = 512
"""Episodes that a process looks at in one go."""
_ANY_FPS = 1.0


@dataclass(frozen=True, eq=False)
class EpisodeFacts:
    """One episode as recorded, before anything is cut off at its success.

    Attributes:
        index: in the source.
        name: what the source calls it.
        steps: T.
        instruction: what was asked for.
        recorded_return: undiscounted sum of the recorded rewards; None where there are none, NaN
            where one is NaN.
        outcome: how it ended, labels and the map's `assume` applied.
        outcome_source: what says so, such as "next.success" or "label".
        success_frame: step whose action solved the task first; None where that is not known.
        action_minimum: smallest finite action (A,), NaN where there is none.
        action_maximum: largest likewise.
    """

    index: int
    name: str
    steps: int
    instruction: str
    recorded_return: float | None
    outcome: Outcome
    outcome_source: str
    success_frame: int | None
    action_minimum: NDArray[np.float64]
    action_maximum: NDArray[np.float64]


@dataclass(frozen=True)
class Unreadable:
    """An episode that cannot be read, and the sentence that says why."""

    index: int
    reason: str


@dataclass(frozen=True, eq=False)
class SourceFacts:
    """What a source holds.

    Attributes:
        episodes: those that can be read, in order.
        unreadable: the others.
        vectors: "action", "observation.state" and "observation.environment_state", those that the
            map has, as recorded: neither cut off at success nor resampled.
        fps: steps per second of the source; None where nobody tells.
        reward_column: the source's column that `recorded_return` sums; None where it has none.
    """

    episodes: tuple[EpisodeFacts, ...]
    unreadable: tuple[Unreadable, ...]
    vectors: Mapping[str, VectorFacts]
    fps: float | None
    reward_column: str | None

    @property
    def steps(self) -> int:
        """Of all episodes."""
        return sum(one.steps for one in self.episodes)

    @property
    def outcomes(self) -> Mapping[Outcome, int]:
        """Episodes per outcome, all three named."""
        counted = Counter(one.outcome for one in self.episodes)
        return {
            "success": counted["success"],
            "failure": counted["failure"],
            "unknown": counted["unknown"],
        }

    @property
    def outcome_sources(self) -> Mapping[str, int]:
        """Episodes of known outcome per source that tells it, the commonest first."""
        known = (one.outcome_source for one in self.episodes if one.outcome != "unknown")
        return dict(Counter(known).most_common())

    @property
    def instructions(self) -> Mapping[str, int]:
        """Episodes per instruction, the commonest first."""
        return dict(Counter(one.instruction for one in self.episodes).most_common())

    @property
    def lengths(self) -> NDArray[np.float64]:
        """Steps of every episode."""
        return np.array([one.steps for one in self.episodes], np.float64)

    @property
    def returns(self) -> NDArray[np.float64]:
        """Recorded return of every episode; empty where the source has no rewards."""
        totals = [one.recorded_return for one in self.episodes]
        return np.array([total for total in totals if total is not None], np.float64)


@dataclass(frozen=True, eq=False)
class _Seen:
    """An episode before the others are known, on which its outcome may depend."""

    index: int
    name: str
    steps: int
    instruction: str
    recorded_return: float | None
    evidence: Evidence
    action_minimum: NDArray[np.float64]
    action_maximum: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Chunk:
    """What was found in some episodes."""

    seen: tuple[_Seen, ...]
    unreadable: tuple[Unreadable, ...]
    tallies: Mapping[str, VectorTally]


def gather_facts(
    source: EpisodeSource,
    field_map: FieldMap,
    *,
    labels: Mapping[int, Label] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    workers: int = 1,
) -> SourceFacts:
    """Look at every episode once; memory grows by less than a kilobyte for each.

    An episode that cannot be read is listed and left out. The result does not depend on `workers`.

    Args:
        source: what is looked at.
        field_map: how; it need not tell the steps per second.
        labels: what people say of how episodes ended, by episode.
        progress: called with episodes done and in all.
        workers: processes, 0 for one per core; where not 1, they open the source by its path.

    Raises:
        ValueError: when the map does not fit the source, a label does not fit its episode, or no
            episode can be read.
    """
    mapped, fps = _mapped(source, field_map)
    total = len(source)
    chunks = [range(first, min(first + _TOGETHER, total)) for first in range(0, total, _TOGETHER)]
    look = (
        partial(_look, mapped) if workers == 1 else partial(_look_by_path, source.path, field_map)
    )
    seen: list[_Seen] = []
    unreadable: list[Unreadable] = []
    tallies: dict[str, VectorTally] = {}
    for chunk, found in zip(chunks, in_processes(look, chunks, workers=workers), strict=True):
        seen += found.seen
        unreadable += found.unreadable
        for name, tally in found.tallies.items():
            if name in tallies:
                tallies[name].merge(tally)
            else:
                tallies[name] = tally
        progress(chunk.stop, total)
    if not seen:
        reason = f"the first says: {unreadable[0].reason}" if unreadable else "it has none"
        raise ValueError(f"no episode of {source.path} can be read; {reason}")
    return SourceFacts(
        episodes=_settled(seen, total=total, field_map=field_map, labels=labels or {}),
        unreadable=tuple(unreadable),
        vectors={name: tally.facts(mapped.columns[name].names) for name, tally in tallies.items()},
        fps=fps,
        reward_column=reward_column(field_map, source.info.columns),
    )


def reward_column(field_map: FieldMap, columns: Mapping[str, Column]) -> str | None:
    """The column of recorded rewards: the map's, or one called like a reward; None without any."""
    if field_map.reward != SUCCESS_REWARD:
        return field_map.reward
    for name in REWARD_COLUMNS:
        column = columns.get(name)
        if column is not None and column.dtype != "string" and math.prod(column.shape) == 1:
            return name
    return None


def _mapped(source: EpisodeSource, field_map: FieldMap) -> tuple[MappedSource, float | None]:
    """The source seen through the map, and its steps per second where somebody tells them."""
    fps = source.info.fps if field_map.fps is None else field_map.fps
    # Nothing is resampled here, so that any rate will do.
    seen = replace(field_map, fps=_ANY_FPS if fps is None else fps, resample_fps=None)
    return MappedSource(source, seen), fps


def _look_by_path(path: Path, field_map: FieldMap, episodes: range) -> _Chunk:
    return _look(_mapped(open_source(path), field_map)[0], episodes)


def _look(mapped: MappedSource, episodes: range) -> _Chunk:
    seen, unreadable = [], []
    tallies: dict[str, VectorTally] = {}
    for index in episodes:
        try:
            one, vectors = _see(mapped, index)
        except ValueError as error:
            unreadable.append(Unreadable(index, str(error)))
            continue
        seen.append(one)
        keys = np.random.default_rng(index).random(one.steps)
        for name, values in vectors.items():
            tallies.setdefault(name, VectorTally(values.shape[1])).add(values, keys)
    return _Chunk(tuple(seen), tuple(unreadable), tallies)


def _see(mapped: MappedSource, index: int) -> tuple[_Seen, dict[str, NDArray[Any]]]:
    recording = mapped.source.recording(index)
    one, columns = mapped.field_map, recording.columns
    vectors = {
        name: vector_of(parts, columns)
        for name, parts in (
            (ACTION, one.action),
            (STATE, one.state),
            (ENVIRONMENT_STATE, one.environment_state),
        )
        if parts
    }
    actions = vectors[ACTION].astype(np.float64)
    finite = np.isfinite(actions)
    none = ~finite.any(axis=0)
    reward = reward_column(one, mapped.source.info.columns)
    with np.errstate(over="ignore", invalid="ignore"):
        total = None if reward is None else float(columns[reward].astype(np.float64).sum())
    seen = _Seen(
        index=index,
        name=recording.name,
        steps=len(recording),
        instruction=recording.instruction if one.instruction is None else one.instruction,
        recorded_return=total,
        evidence=mapped.evidence(recording),
        action_minimum=np.where(none, np.nan, np.where(finite, actions, np.inf).min(axis=0)),
        action_maximum=np.where(none, np.nan, np.where(finite, actions, -np.inf).max(axis=0)),
    )
    return seen, vectors


def _settled(
    seen: list[_Seen], *, total: int, field_map: FieldMap, labels: Mapping[int, Label]
) -> tuple[EpisodeFacts, ...]:
    """Episodes with their outcome, which may depend on what the others say."""
    evidences = [NO_EVIDENCE] * total
    names, lengths = [""] * total, [0] * total
    for one in seen:
        evidences[one.index] = one.evidence
        names[one.index], lengths[one.index] = one.name, one.steps
    # A label of an episode that cannot be read has nothing to be compared with.
    fitting = {
        episode: label for episode, label in labels.items() if episode >= total or lengths[episode]
    }
    merged = apply_labels(evidences, fitting, names=names, lengths=lengths)
    settled = settle([merged[one.index] for one in seen], assume=field_map.assume)
    return tuple(
        EpisodeFacts(
            index=one.index,
            name=one.name,
            steps=one.steps,
            instruction=one.instruction,
            recorded_return=one.recorded_return,
            outcome=outcome,
            outcome_source=evidence.source,
            success_frame=evidence.frame if outcome == "success" else None,
            action_minimum=one.action_minimum,
            action_maximum=one.action_maximum,
        )
        for one, (evidence, outcome) in zip(seen, settled, strict=True)
    )
