"""Commands that read, judge and turn demonstrations of whichever format."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.progress import Progress, TaskID

from robot_qsft.console import console, progress_bar
from robot_qsft.datasets.field_map import FieldMap, read_field_map
from robot_qsft.datasets.formats.detect import open_source
from robot_qsft.datasets.ingest import IngestConfig, ingest
from robot_qsft.datasets.labels import Labels, labels_path
from robot_qsft.datasets.mapped import MappedSource
from robot_qsft.datasets.source import EpisodeSource
from robot_qsft.datasets.suggest_map import suggest

Source = Annotated[Path, tyro.conf.Positional]


@dataclass(frozen=True)
class Ingest:
    """Turn demonstrations of any format into a data set to train on; failures are kept.

    Attributes:
        source: folder or file of the demonstrations.
        out: folder of the new data set (LeRobot v3.0 layout).
        map_file: field map; the one that `inspect --suggest` would write if left out.
        labels: sidecar of people's labels; the one beside the source if left out.
        config: what becomes of them.
    """

    source: Source
    out: Path
    map_file: Annotated[Path | None, tyro.conf.arg(name="map")] = None
    labels: Path | None = None
    config: Annotated[IngestConfig, tyro.conf.arg(name="")] = field(default_factory=IngestConfig)

    def run(self) -> int:
        """Ingest; an interrupted run of the same command goes on."""
        mapped = open_mapped(self.source, self.map_file)
        labels = read_labels(mapped.source, self.labels)
        with progress_bar() as progress:
            dataset = ingest(
                mapped, self.out, self.config, labels=labels, progress=named_bars(progress)
            )
        outcomes = dataset.tables().outcomes or ()
        told = ", ".join(f"{outcomes.count(kind)} {kind}" for kind in sorted(set(outcomes)))
        console.print(
            f"{len(dataset)} episodes ({told}), {dataset.frame_count} frames in {self.out}",
            soft_wrap=True,
        )
        return 0


def open_mapped(path: Path, map_file: Path | None) -> MappedSource:
    """A source as a field map has it, or as one would be suggested.

    Raises:
        ValueError: when the source or the map is damaged, or they do not fit.
    """
    source = open_source(path)
    return MappedSource(source, field_map_of(source, map_file))


def field_map_of(source: EpisodeSource, map_file: Path | None) -> FieldMap:
    """The field map in a file, or the one that is suggested."""
    return suggest(source) if map_file is None else read_field_map(map_file)


def read_labels(source: EpisodeSource, path: Path | None) -> Labels:
    """Labels in a file that must be there, or in the sidecar of a source, which need not.

    Raises:
        ValueError: when the file is missing or damaged.
    """
    if path is not None and not path.is_file():
        raise ValueError(f"expected labels at {path}, but there is no such file; mend the path")
    return Labels.read(path or labels_path(source.path), episodes=len(source))


def named_bars(progress: Progress) -> Callable[[str, int, int], None]:
    """Bars that appear with the first count of their name; call with name, done and in all."""
    bars: dict[str, TaskID] = {}

    def update(name: str, done: int, total: int) -> None:
        if name not in bars:
            bars[name] = progress.add_task(name, total=total, note="")
        progress.update(bars[name], completed=done)

    return update
