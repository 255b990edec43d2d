"""`robot-qsft edit`: a data set with a change, written anew."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import tyro

from robot_qsft.console import progress_bar
from robot_qsft.data_commands import Source, named_bars, read_labels, tell
from robot_qsft.datasets.edit import edit_in_place, split_episodes_by_share
from robot_qsft.datasets.field_map import FieldMap
from robot_qsft.datasets.formats.detect import open_source
from robot_qsft.datasets.ingest import IngestConfig, ingest
from robot_qsft.datasets.mapped import MappedSource
from robot_qsft.datasets.merged import open_sources
from robot_qsft.datasets.suggest_map import suggest
from robot_qsft.datasets.wording import listed


@dataclass(frozen=True)
class Delete:
    """Leave episodes out.

    Attributes:
        episodes: their numbers, from 0 on.
    """

    episodes: tuple[int, ...]


@dataclass(frozen=True)
class Split:
    """Make one data set of each share, such as `--shares train 0.9 valid 0.1`, drawn at random.

    Attributes:
        shares: name to share of the episodes; in all 1. Each becomes OUT/NAME.
        seed: of the draw.
    """

    shares: Mapping[str, float]
    seed: int = 0


@dataclass(frozen=True)
class Merge:
    """Append the episodes of other data sets with the same columns and cameras.

    Attributes:
        others: folders or files.
    """

    others: tuple[Path, ...]


@dataclass(frozen=True)
class Rename:
    """Give columns and cameras other names, such as `--names front top`, old before new.

    Attributes:
        names: old to new.
    """

    names: Mapping[str, str]


@dataclass(frozen=True)
class Resample:
    """Go to fewer steps per second.

    Attributes:
        fps: steps per second wanted.
        actions: whether an action is a target or a difference: of targets the last one of those
            that fall together counts, differences add up; as the field map tells if left out.
    """

    fps: float
    actions: Literal["absolute", "delta", ""] = ""


Change: TypeAlias = Delete | Split | Merge | Rename | Resample


@dataclass(frozen=True)
class Edit:
    """Write a data set anew with a change; the old one stays unless --in-place.

    Attributes:
        source: folder or file of the demonstrations.
        change: what to change.
        out: folder of the new data set.
        in_place: exchange the old data set for the new one, in one step, once that is whole.
        workers: processes; 0 for one per core.
    """

    source: Source
    change: Annotated[Change, tyro.conf.arg(name="")]
    out: Path | None = None
    in_place: bool = False
    workers: int = 0

    def run(self) -> int:
        """Edit."""
        if (self.out is None) != self.in_place:
            raise ValueError("an edit needs either --out FOLDER or --in-place")
        config = IngestConfig(workers=self.workers)
        source = open_source(self.source)
        if isinstance(self.change, Merge):
            source = open_sources([self.source, *self.change.others])
        field_map = suggest(source)
        if isinstance(self.change, Delete):
            config = replace(config, leave_out=self.change.episodes)
        elif isinstance(self.change, Rename):
            field_map = _renamed(field_map, self.change.names)
        elif isinstance(self.change, Resample):
            field_map = _resampled(field_map, self.change)
        mapped = MappedSource(source, field_map)
        if isinstance(self.change, Split):
            parts = split_episodes_by_share(len(source), self.change.shares, seed=self.change.seed)
            if self.out is None:
                raise ValueError("a split makes several data sets; give --out")
            for name, episodes in parts.items():
                self._write(mapped, replace(config, only=episodes), self.out / name)
        else:
            self._write(mapped, config, self.out)
        return 0

    def _write(self, mapped: MappedSource, config: IngestConfig, out: Path | None) -> None:
        merged = isinstance(self.change, Merge)
        labels = None if merged else read_labels(mapped.source, None)
        with progress_bar() as progress:
            bars = named_bars(progress)
            if out is None:
                dataset = edit_in_place(mapped, config, labels=labels, progress=bars)
            else:
                dataset = ingest(mapped, out, config, labels=labels, progress=bars)
        tell(dataset)


def _renamed(field_map: FieldMap, names: Mapping[str, str]) -> FieldMap:
    cameras = {names.get(ours, ours): theirs for ours, theirs in field_map.cameras.items()}
    for old in names:
        if old not in field_map.cameras and old not in field_map.keep:
            raise ValueError(
                f"there is no {old!r} to rename; choose among "
                f"{listed([*field_map.cameras, *field_map.keep])}"
            )
    if len(cameras) != len(field_map.cameras):
        raise ValueError("two cameras cannot have the same name; choose another")
    rename = {old: new for old, new in names.items() if old in field_map.keep}
    return replace(field_map, cameras=cameras, rename=rename)


def _resampled(field_map: FieldMap, change: Resample) -> FieldMap:
    action = field_map.action
    if change.actions:
        action = tuple(replace(part, kind=change.actions) for part in action)
    # Row times follow from the rate.
    keep = tuple(name for name in field_map.keep if name != "timestamp")
    return replace(field_map, resample_fps=change.fps, action=action, keep=keep)
