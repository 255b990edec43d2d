"""A source seen through a field map: episodes with the columns that training knows.

Shape legend: H height, M episodes, T steps, W width.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.episode import Episode
from robot_qsft.datasets.features import (
    ACTION,
    DONE,
    ENVIRONMENT_STATE,
    INDEX_DTYPES,
    REWARD,
    STATE,
    SUCCESS,
    TRUNCATED,
    Camera,
)
from robot_qsft.datasets.field_map import SUCCESS_REWARD, FieldMap
from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.outcome_columns import outcome_columns
from robot_qsft.datasets.outcomes import Evidence, judge
from robot_qsft.datasets.parts import (
    check_kinds,
    dtype_of,
    merged_actions,
    names_of,
    vector_of,
)
from robot_qsft.datasets.source import (
    Column,
    EncodedFrames,
    EpisodeSource,
    Recording,
    VideoSegments,
)
from robot_qsft.datasets.tables import Outcome
from robot_qsft.datasets.video_copy import VideoSegment
from robot_qsft.datasets.wording import listed

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class MappedEpisode:
    """An episode in our columns, without its images.

    Attributes:
        name: what the source calls it.
        columns: name to (T, *shape): `action`, `observation.state`, `next.reward` and so on, and
            what the map keeps.
        instruction: what was asked for.
        steps: rows of the source that these are, int64 (T,); frames are taken at them.
        evidence: of how it ended, its frame counted in these rows.
    """

    name: str
    columns: Mapping[str, NDArray[Any]]
    instruction: str
    steps: NDArray[np.int64]
    evidence: Evidence

    def __len__(self) -> int:
        """Number of steps, T."""
        return len(self.steps)


class MappedSource:
    """A source as a field map has it.

    Attributes:
        source: what is read.
        field_map: how.
        columns: our column names to what they hold; the same for every episode.
        cameras: our name of a camera to size and storage.
        fps: steps per second of the result.
    """

    def __init__(self, source: EpisodeSource, field_map: FieldMap) -> None:
        """See that the map fits the source; no episode is read.

        Raises:
            ValueError: when the map names what the source does not have, or the rate is unknown.
        """
        self.source = source
        self.field_map = field_map
        info = source.info
        source_fps = field_map.fps if field_map.fps is not None else info.fps
        if source_fps is None:
            raise ValueError(
                f"{source.path} does not tell its steps per second; add 'fps' to the field map"
            )
        if field_map.resample_fps is not None and field_map.resample_fps > source_fps:
            raise ValueError(
                f"resampling goes to a lower rate only, but {field_map.resample_fps:g} steps per "
                f"second are asked of {source_fps:g}; lower resample_fps"
            )
        self._source_fps = source_fps
        self.fps = field_map.resample_fps or source_fps
        if self.fps != source_fps:
            check_kinds(field_map.action)
        self.field_map = _with_names(field_map, info.columns)
        for name in field_map.cameras.values():
            if name not in info.cameras:
                raise ValueError(
                    f"the field map asks for the camera {name!r}, but {source.path} has "
                    f"{listed(info.cameras)}; mend the map"
                )
        self.cameras: Mapping[str, Camera] = {
            ours: info.cameras[theirs] for ours, theirs in field_map.cameras.items()
        }
        self.columns = self._columns()

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.source)

    def evidence(self, recording: Recording) -> Evidence:
        """How an episode ended, by the map's rule or else by the format's."""
        rule = self.field_map.success
        if rule is None:
            return recording.evidence
        values = recording.columns[rule.column].reshape(len(recording), -1)
        solved_T = (values >= rule.at_least).any(axis=1)
        frame = int(solved_T.argmax()) if solved_T.any() else None
        source = f"{rule.column} >= {rule.at_least:g}"
        return Evidence(source, frame is not None, frame, certain=True)

    def kept_steps(self, length: int, evidence: Evidence) -> NDArray[np.int64]:
        """The rows of an episode that are kept, of `length` that were recorded, int64 (T,)."""
        rows = self._rows_used(length, evidence)
        if self.fps == self._source_fps:
            return np.arange(rows)
        count = int(np.ceil(rows * self.fps / self._source_fps))
        # The nearest row, the later one where two are as near: so gaps differ by at most one row.
        nearest = np.floor(np.arange(count) * self._source_fps / self.fps + 0.5)
        steps = np.unique(nearest.astype(np.int64))
        return steps[steps < rows]

    def episode(self, recording: Recording, evidence: Evidence) -> MappedEpisode:
        """An episode in our columns.

        Args:
            recording: of the source.
            evidence: final word on how it ended, from `settle`.

        Raises:
            ValueError: when it holds NaN where training cannot have any, or rewards that are none.
        """
        try:
            # What goes beyond all numbers is refused where it matters, and needs no warning.
            with np.errstate(over="ignore", invalid="ignore"):
                return self._episode(recording, evidence)
        except ValueError as error:
            raise ValueError(f"{recording.name} of {self.source.path}: {error}") from error

    def _episode(self, recording: Recording, evidence: Evidence) -> MappedEpisode:
        one = self.field_map
        steps = self.kept_steps(len(recording), evidence)
        rows = self._rows_used(len(recording), evidence)
        theirs = {name: column[:rows] for name, column in recording.columns.items()}
        if len(steps) == rows:
            actions = vector_of(one.action, theirs)
        else:
            actions = merged_actions(one.action, theirs, steps)
        columns: dict[str, NDArray[Any]] = {ACTION: actions}
        for name, parts in ((STATE, one.state), (ENVIRONMENT_STATE, one.environment_state)):
            if parts:
                columns[name] = vector_of(parts, theirs)[steps]
        frame = None
        if evidence.success:
            last = rows - 1 if evidence.frame is None else min(evidence.frame, rows - 1)
            frame = int(np.searchsorted(steps, last, side="right")) - 1
        as_recorded = one.success is None and _agree(recording.evidence, evidence)
        evidence = replace(evidence, frame=frame)
        columns |= outcome_columns(one, theirs, steps, evidence=evidence, as_recorded=as_recorded)
        if as_recorded and len(steps) == len(recording):
            for name in (SUCCESS, DONE, TRUNCATED):
                if self.source.info.columns.get(name) == Column("bool"):
                    columns[name] = theirs[name]
        for name in one.keep:
            columns.setdefault(one.rename.get(name, name), theirs[name][steps])
        for name in (ACTION, STATE, ENVIRONMENT_STATE, REWARD):
            values = columns.get(name)
            if values is not None and not np.isfinite(values).all():
                step = int(steps[np.argwhere(~np.isfinite(values))[0][0]])
                raise ValueError(
                    f"{name!r} holds NaN or infinity at step {step}; drop or mend the episode"
                )
        return MappedEpisode(
            name=recording.name,
            columns=columns,
            instruction=recording.instruction if one.instruction is None else one.instruction,
            steps=steps,
            evidence=evidence,
        )

    def frames(self, index: int, camera: str, steps: NDArray[np.int64]) -> Iterator[Image]:
        """Yield the frames of a camera at some rows of an episode, RGB uint8 (H, W, 3).

        Raises:
            ValueError: as `EpisodeSource.frames` does.
        """
        images = self.source.frames(index, self._their_camera(camera))
        about = f"camera {camera!r} of episode {index} of {self.source.path}"
        return _picked(images, steps, about=about)

    def encoded_frames(
        self, index: int, camera: str, steps: NDArray[np.int64]
    ) -> Iterator[tuple[Image, bytes]] | None:
        """The same frames with their PNG or JPEG; None where the source does not keep them so."""
        if not isinstance(self.source, EncodedFrames):
            return None
        images = self.source.encoded_frames(index, self._their_camera(camera))
        about = f"camera {camera!r} of episode {index} of {self.source.path}"
        return None if images is None else _picked(images, steps, about=about)

    def video_segment(self, index: int, camera: str, *, frames: int) -> VideoSegment | None:
        """Where in a video the first frames of an episode are; None where they are in none."""
        if self.fps != self._source_fps or not isinstance(self.source, VideoSegments):
            return None
        segment = self.source.video_segment(index, self._their_camera(camera))
        return (
            None if segment is None or segment.frames < frames else replace(segment, frames=frames)
        )

    def _rows_used(self, length: int, evidence: Evidence) -> int:
        if not (evidence.success and self.field_map.end_at_success) or evidence.frame is None:
            return length
        return min(length, evidence.frame + 1)

    def _their_camera(self, camera: str) -> str:
        if camera not in self.cameras:
            raise ValueError(
                f"camera {camera!r} asked for, but the field map has "
                f"{listed(self.cameras)}; choose one of these"
            )
        return self.field_map.cameras[camera]

    def _columns(self) -> dict[str, Column]:
        one, theirs = self.field_map, self.source.info.columns
        columns = {}
        for name, parts in (
            (STATE, one.state),
            (ENVIRONMENT_STATE, one.environment_state),
            (ACTION, one.action),
        ):
            if parts:
                names = names_of(parts, theirs)
                columns[name] = Column(dtype_of(parts, theirs), (len(names),), names)
        for name in one.keep:
            if name not in theirs:
                raise ValueError(
                    f"the field map asks for the column {name!r}, but there are only "
                    f"{listed(sorted(theirs))}; mend the map"
                )
        if one.success is not None:
            self._one_number("success", one.success.column)
        if one.terminated is not None:
            self._one_number("terminated", one.terminated)
        columns[REWARD] = Column("float32")
        if one.reward != SUCCESS_REWARD:
            columns[REWARD] = Column(self._one_number("reward", one.reward).dtype)
        columns |= {name: Column("bool") for name in (DONE, SUCCESS, TRUNCATED)}
        for name, ours in one.rename.items():
            if name not in one.keep:
                raise ValueError(
                    f"the field map renames {name!r}, but keeps only "
                    f"{listed(one.keep, nothing='nothing')}; mend the map"
                )
            others = [one.rename.get(other, other) for other in one.keep if other != name]
            if ours in (*columns, *INDEX_DTYPES, *others):
                raise ValueError(
                    f"the field map calls {name!r} {ours!r}, but another column is called so; "
                    "choose another name in 'rename'"
                )
        for name in one.keep:
            columns.setdefault(one.rename.get(name, name), theirs[name])
        return columns

    def _one_number(self, role: str, name: str) -> Column:
        columns = self.source.info.columns
        fitting = {
            key: column
            for key, column in columns.items()
            if column.dtype != "string" and math.prod(column.shape) == 1
        }
        if name not in fitting:
            raise ValueError(
                f"{role} should be a column of one number a step, but {name!r} came, which is none "
                f"of {listed(sorted(fitting), nothing='these (there are none)')}; mend the map"
            )
        return fitting[name]


def settle(
    evidences: Sequence[Evidence], *, assume: Literal["success", "failure"] | None
) -> tuple[tuple[Evidence, Outcome], ...]:
    """The final word on every episode of a set, and the outcome that follows, M in all.

    Args:
        evidences: one per episode, labels applied.
        assume: outcome of the episodes of which nothing is known.
    """
    settled: list[tuple[Evidence, Outcome]] = []
    for one, outcome in zip(evidences, judge(evidences), strict=True):
        # Who looked at an episode and could not tell knows more than whoever assumes.
        if outcome == "unknown" and assume is not None and one.source != "label":
            settled.append((Evidence("assumed", assume == "success", certain=True), assume))
        else:
            success = {"success": True, "failure": False, "unknown": None}[outcome]
            settled.append((replace(one, success=success, certain=True), outcome))
    return tuple(settled)


def to_episode(mapped: MappedEpisode, images: Mapping[str, Image]) -> Episode:
    """An episode as training and viewers take it, in float32."""
    columns = mapped.columns
    rows = len(mapped)

    def vector(name: str) -> NDArray[np.float32]:
        return columns.get(name, np.zeros((rows, 0))).astype(np.float32)

    truncated = bool(columns[TRUNCATED][-1])
    return Episode(
        states=vector(STATE),
        actions=vector(ACTION),
        rewards=columns[REWARD].astype(np.float32),
        successes=columns[SUCCESS],
        terminated=bool(columns[DONE][-1]) and not truncated,
        truncated=truncated,
        instruction=mapped.instruction,
        images=images,
        environment_states=vector(ENVIRONMENT_STATE),
    )


def _agree(recorded: Evidence, settled: Evidence) -> bool:
    """Whether the final word on an episode is that of its own record."""
    same = (recorded.source, recorded.frame) == (settled.source, settled.frame)
    return same and settled.success in (None, recorded.success)


def _picked(items: Iterator[T], steps: NDArray[np.int64], *, about: str) -> Iterator[T]:
    """The items at some rows, which must all be there."""
    wanted = iter(steps.tolist())
    step = next(wanted, None)
    for row, item in enumerate(items):
        if row == step:
            yield item
            step = next(wanted, None)
        if step is None:
            return
    raise ValueError(f"expected a frame {step} of {about}, but there is none; drop that episode")


def _with_names(field_map: FieldMap, columns: Mapping[str, Column]) -> FieldMap:
    """The map with every name of an entry filled in."""

    def named(field: str) -> Any:
        return tuple(
            replace(part, names=names_of([part], columns)) for part in getattr(field_map, field)
        )

    return replace(
        field_map,
        action=named("action"),
        state=named("state"),
        environment_state=named("environment_state"),
    )
