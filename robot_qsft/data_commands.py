"""Commands that read, judge and turn demonstrations of whichever format."""

import getpass
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.progress import Progress, TaskID

from robot_qsft.console import complaints, console, progress_bar
from robot_qsft.datasets.field_map import read_field_map
from robot_qsft.datasets.formats.detect import open_source
from robot_qsft.datasets.ingest import IngestConfig, ingest
from robot_qsft.datasets.labels import Labels, labels_path
from robot_qsft.datasets.labels_csv import export_csv, import_csv
from robot_qsft.datasets.mapped import MappedSource
from robot_qsft.datasets.robomimic_export import export_robomimic
from robot_qsft.datasets.source import EpisodeSource
from robot_qsft.datasets.store import Dataset
from robot_qsft.datasets.suggest_map import suggest
from robot_qsft.inspect_source import inspect_source
from robot_qsft.label_server import serve_labels
from robot_qsft.validate import Frames, validate_path
from robot_qsft.view import view_episode

Source = Annotated[Path, tyro.conf.Positional]
MapFile = Annotated[Path | None, tyro.conf.arg(name="map")]


@dataclass(frozen=True)
class Inspect:
    """Say on one screen what demonstrations hold: outcomes, cameras, actions, instructions.

    Attributes:
        source: folder or file of the demonstrations.
        map_file: field map to read them by; the suggested one if left out.
        suggest: write the field map that fits to this file, to be edited.
        html: write a report with pictures to this file.
        labels: sidecar of people's labels; the one beside the source if left out.
    """

    source: Source
    map_file: MapFile = None
    suggest: Path | None = None
    html: Path | None = None
    labels: Path | None = None

    def run(self) -> int:
        """Inspect."""
        return inspect_source(
            self.source,
            map_file=self.map_file,
            suggest=self.suggest,
            html=self.html,
            labels=self.labels,
        )


@dataclass(frozen=True)
class Validate:
    """Look for what is wrong with demonstrations; exit status 1 where training would suffer.

    Attributes:
        source: folder or file of the demonstrations.
        map_file: field map to read them by; the usual names if left out.
        labels: sidecar of people's labels; the one beside the source if left out.
        frames: decode the frames of "all" episodes, of a "sampled" few, or "none".
        strict: count warnings as errors.
        json: print JSON instead of a table.
    """

    source: Source
    map_file: MapFile = None
    labels: Path | None = None
    frames: Frames = "sampled"
    strict: bool = False
    json: bool = False

    def run(self) -> int:
        """Validate."""
        field_map = None if self.map_file is None else read_field_map(self.map_file)
        with progress_bar(complaints if self.json else console) as progress:
            bars = named_bars(progress)
            return validate_path(
                self.source,
                field_map=field_map,
                labels=self.labels,
                frames=self.frames,
                strict=self.strict,
                as_json=self.json,
                progress=lambda done, total: bars("checking", done, total),
            )


@dataclass(frozen=True)
class Label:
    """Let people say on a page how episodes ended; labels lie beside the source.

    Attributes:
        source: folder or file of the demonstrations.
        labels: sidecar to write; the one beside the source if left out.
        port: of the page on this machine; 0 for any that is free.
        by: who labels.
        import_csv: take labels from this file instead of serving the page.
        export_csv: write the labels to this file instead of serving the page.
    """

    source: Source
    labels: Path | None = None
    port: int = 8770
    by: str = field(default_factory=getpass.getuser)
    import_csv: Path | None = None
    export_csv: Path | None = None

    def run(self) -> int:
        """Serve the page, or import and export."""
        source = open_source(self.source)
        file = self.labels or labels_path(source.path)
        if self.import_csv is None and self.export_csv is None:
            serve_labels(source, labels_file=file, port=self.port, by=self.by, ready=_told)
            return 0
        if self.import_csv is not None:
            recordings = [source.recording(episode) for episode in range(len(source))]
            with Labels.edit(file, episodes=len(source)) as labels:
                count = import_csv(
                    labels,
                    self.import_csv,
                    names=[recording.name for recording in recordings],
                    lengths=[len(recording) for recording in recordings],
                    by=self.by,
                )
            console.print(f"{count} labels in {file}", soft_wrap=True, markup=False)
        if self.export_csv is not None:
            known = Labels.read(file, episodes=len(source))
            export_csv(known, self.export_csv)
            console.print(f"{len(known)} labels in {self.export_csv}", soft_wrap=True, markup=False)
        return 0


@dataclass(frozen=True)
class View:
    """Show an episode in Rerun: images, state, action, reward, and what a policy thinks of it.

    Attributes:
        source: folder or file of the demonstrations.
        episode: its number, from 0 on.
        map_file: field map to show it by; as recorded if left out.
        checkpoint: of a trained policy, or its run, to show value and behaviour likelihood.
        labels: sidecar of people's labels; the one beside the source if left out.
        save: write a recording (.rrd) to this file instead of opening the viewer.
    """

    source: Source
    episode: Annotated[int, tyro.conf.Positional]
    map_file: MapFile = None
    checkpoint: Path | None = None
    labels: Path | None = None
    save: Path | None = None

    def run(self) -> int:
        """Open the viewer, or save."""
        try:
            view_episode(
                open_source(self.source),
                self.episode,
                field_map=None if self.map_file is None else read_field_map(self.map_file),
                checkpoint=self.checkpoint,
                labels=self.labels,
                save=self.save,
            )
        except IndexError as error:
            raise ValueError(f"{error}, counted from 0; mend the number") from error
        if self.save is not None:
            console.print(f"recording in {self.save}", soft_wrap=True, markup=False)
        return 0


@dataclass(frozen=True)
class Ingest:
    """Turn demonstrations of any format into a data set to train on; failures are kept.

    Attributes:
        source: folder or file of the demonstrations.
        out: folder of the new data set (LeRobot v3.0 layout); what an interrupted run left there is
            gone on with.
        map_file: field map; the one that `inspect --suggest` would write if left out.
        labels: sidecar of people's labels; the one beside the source if left out.
        config: what becomes of them.
    """

    source: Source
    out: Path
    map_file: MapFile = None
    labels: Path | None = None
    config: Annotated[IngestConfig, tyro.conf.arg(name="")] = field(default_factory=IngestConfig)

    def run(self) -> int:
        """Ingest."""
        source = open_source(self.source)
        field_map = suggest(source) if self.map_file is None else read_field_map(self.map_file)
        labels = read_labels(source, self.labels)
        with progress_bar() as progress:
            dataset = ingest(
                MappedSource(source, field_map),
                self.out,
                self.config,
                labels=labels,
                progress=named_bars(progress),
            )
        tell(dataset)
        return 0


@dataclass(frozen=True)
class Export:
    """Write demonstrations of any format as a robomimic HDF5 file.

    Attributes:
        source: folder or file of the demonstrations.
        out: the new file.
        map_file: field map; the one that `inspect --suggest` would write if left out.
        labels: sidecar of people's labels; the one beside the source if left out.
    """

    source: Source
    out: Path
    map_file: MapFile = None
    labels: Path | None = None

    def run(self) -> int:
        """Export."""
        source = open_source(self.source)
        field_map = suggest(source) if self.map_file is None else read_field_map(self.map_file)
        labels = read_labels(source, self.labels)
        with progress_bar() as progress:
            unknown = export_robomimic(
                MappedSource(source, field_map),
                self.out,
                labels=labels,
                progress=named_bars(progress),
            )
        left_open = f", of {unknown} of which the outcome is unknown" if unknown else ""
        console.print(
            f"{len(source)} episodes{left_open} in {self.out}", soft_wrap=True, markup=False
        )
        return 0


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
        progress.update(bars[name], completed=done, total=total)

    return update


def tell(dataset: Dataset) -> None:
    """Print what a new data set holds."""
    outcomes = dataset.tables().outcomes or ()
    told = ", ".join(f"{outcomes.count(kind)} {kind}" for kind in sorted(set(outcomes)))
    console.print(
        f"{len(dataset)} episodes ({told}), {dataset.frame_count} frames in {dataset.path}",
        soft_wrap=True,
        markup=False,
    )


def _told(address: str) -> None:
    console.print(f"label at {address} (Ctrl-C ends)", soft_wrap=True, markup=False)
