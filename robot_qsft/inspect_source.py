"""What a source of demonstrations holds, on one screen; its report and a first field map."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from robot_qsft.console import console, progress_bar
from robot_qsft.datasets import suggest_map
from robot_qsft.datasets.features import ACTION, Camera
from robot_qsft.datasets.field_map import FieldMap, read_field_map
from robot_qsft.datasets.formats.detect import open_source
from robot_qsft.datasets.labels import Label, Labels, labels_path
from robot_qsft.datasets.source import EpisodeSource, SourceInfo
from robot_qsft.datasets.source_facts import SourceFacts, gather_facts
from robot_qsft.datasets.tables import Outcome
from robot_qsft.datasets.vector_facts import BINS, Dimension
from robot_qsft.inspect_findings import counted, warnings
from robot_qsft.inspect_report import duration, title_of, write_inspection
from robot_qsft.report_figures import number

_WIDEST = 100
_BAR = 32
_SPARK = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 16
_SHOWN_INSTRUCTIONS = 5
_SHOWN_DIMENSIONS = 24
_SHOWN_LINES = 8
_LONGEST_TEXT = 200
_LONGEST_NAME = 40
_FEW_EPISODES = 1000
"""Episodes up to which starting further processes takes longer than looking."""
_OUTCOMES: tuple[tuple[Outcome, str, str], ...] = (
    ("success", "█", "green"),
    ("failure", "▒", "red"),
    ("unknown", "░", "yellow"),
)


def inspect_source(
    path: Path,
    *,
    map_file: Path | None = None,
    suggest: Path | None = None,
    html: Path | None = None,
    labels: Path | None = None,
) -> int:
    """Print what a source holds; exit status 0.

    Args:
        path: of the source, in whichever format.
        map_file: field map; None for the one that would be suggested.
        suggest: file that the suggested field map is written to; it must not be there yet.
        html: file that the report is written to.
        labels: sidecar of labels; None for the source's own, where it has any.

    Raises:
        ValueError: when the source, the map or the labels cannot be read, or there is a file at
            `suggest` already.
    """
    if suggest is not None and suggest.exists():
        raise ValueError(
            f"a field map should be written to {suggest}, but that is there already, perhaps "
            "with somebody's changes; name another file or remove it"
        )
    source = open_source(path)
    field_map = suggest_map.suggest(source) if map_file is None else read_field_map(map_file)
    if suggest is not None:
        suggested = field_map if map_file is None else suggest_map.suggest(source)
        _write_new(suggest, suggest_map.suggestion_text(source, suggested))
        console.print(f"field map in {suggest}", soft_wrap=True, markup=False)
    with progress_bar() as progress:
        task = progress.add_task("looking at episodes", total=len(source), note="")
        found = gather_facts(
            source,
            field_map,
            labels=_labels(source, labels),
            progress=lambda done, total: progress.update(task, completed=done, total=total),
            workers=1 if len(source) <= _FEW_EPISODES else 0,
        )
    console.print(screen(source, field_map, found), width=min(console.width, _WIDEST))
    if html is not None:
        write_inspection(html, source, field_map, found)
        console.print(f"report in {html}", soft_wrap=True, markup=False)
    return 0


def screen(source: EpisodeSource, field_map: FieldMap, found: SourceFacts) -> RenderableType:
    """Everything on one screen of 80 to 100 columns."""
    info = source.info
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    for label, content in _facts(info, field_map, found):
        facts.add_row(label, Text(content) if isinstance(content, str) else content)
    head = Text.assemble((_plain(title_of(source.path)), "bold"), "  ", _plain(info.format))
    remarks = [
        *(Text.assemble(("! ", "bold yellow"), _plain(one)) for one in warnings(found, field_map)),
        *(Text.assemble(("· ", "dim"), _plain(one)) for one in _shortened(info.notes)),
    ]
    table = _action_table(found.vectors[ACTION].dimensions)
    parts: list[RenderableType] = [head, Text(), facts, Text(), table]
    if remarks:
        parts += [Text(), *remarks]
    return Padding(Group(*parts), (1, 0))


def _facts(
    info: SourceInfo, field_map: FieldMap, found: SourceFacts
) -> Iterator[tuple[str, RenderableType]]:
    fps = found.fps
    time = "" if fps is None else f" · {' '.join(duration(found.steps / fps))}"
    rate = "unknown rate" if fps is None else f"{number(fps, 'g')} steps/s"
    robot = f" · {_plain(info.robot_type)}" if info.robot_type else ""
    amount = f"{counted(len(found.episodes), 'episode')} · {counted(found.steps, 'step')}"
    yield "holds", f"{amount}{time} · {rate}{robot}"
    yield "outcomes", _outcome_bar(found)
    yield "instructions", _instructions(found.instructions)
    cameras = [
        f"{_plain(ours)} {described_camera(info.cameras[theirs])}"
        for ours, theirs in field_map.cameras.items()
    ]
    yield "cameras", "\n".join(_shortened(cameras)) or "none"
    yield "steps", _summary(found.lengths, "an episode")
    if found.reward_column is not None:
        column = _plain(found.reward_column)
        yield "returns", f"{_summary(found.returns, 'an episode')}, the sum of {column}"
    if info.splits:
        yield (
            "splits",
            " · ".join(
                f"{_plain(name)} {len(episodes):,}"
                for name, episodes in list(info.splits.items())[:_SHOWN_LINES]
            ),
        )
    for name, vector in found.vectors.items():
        if name != ACTION:
            label = name.removeprefix("observation.").replace("_", " ")
            listed = condensed([_plain(one.name, most=_LONGEST_NAME) for one in vector.dimensions])
            yield label, ", ".join(_shortened(listed, most=_SHOWN_DIMENSIONS))


def condensed(names: Sequence[str]) -> list[str]:
    """Names with runs of numbered ones drawn together.

    >>> condensed(["q_0", "q_1", "q_2", "gripper"])
    ['q_0 … 2', 'gripper']
    """
    runs: list[tuple[str, int, int]] = []
    for name in names:
        stem, _, digits = name.rpartition("_")
        number_of = int(digits) if stem and digits.isascii() and digits.isdigit() else -1
        if runs and number_of > 0 and runs[-1][0] == stem and runs[-1][2] == number_of - 1:
            runs[-1] = (stem, runs[-1][1], number_of)
        else:
            runs.append((stem, number_of, number_of) if number_of >= 0 else (name, -1, -1))
    return [
        stem if first < 0 else f"{stem}_{first}" + (f" … {last}" if last > first else "")
        for stem, first, last in runs
    ]


def described_camera(camera: Camera) -> str:
    """Such as "480×640 video", height first."""
    return f"{camera.height}×{camera.width} {camera.storage}"


def _outcome_bar(found: SourceFacts) -> Text:
    counts = found.outcomes
    total = max(1, sum(counts.values()))
    bar, legend = Text(), Text()
    for outcome, sign, style in _OUTCOMES:
        count = counts[outcome]
        width = round(_BAR * count / total)
        bar.append(sign * (max(1, width) if count else 0), style)
        if count or outcome != "unknown":
            legend.append(f"{sign} ", style).append(f"{count:,} {outcome}  ")
    sources = ", ".join(
        f"{_plain(name)} ({count:,})" for name, count in found.outcome_sources.items()
    )
    told = f"as told by {sources}" if sources else "nothing tells how they ended"
    return Text("\n").join([bar, legend, Text(told, "dim")])


def _instructions(counts: Mapping[str, int]) -> Text:
    lines = [
        Text.assemble(
            (f"{count:>7,}  ", "dim"), _plain(text) if text else ("none recorded", "italic dim")
        )
        for text, count in list(counts.items())[:_SHOWN_INSTRUCTIONS]
    ]
    more = len(counts) - len(lines)
    if more > 0:
        lines.append(Text(f"         and {more:,} more", "dim"))
    return Text("\n").join(lines)


def _summary(values: NDArray[np.float64], each: str) -> str:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return "none is finite"
    if finite.min() == finite.max():
        return f"{number(float(finite[0]), ',.6g')} {each}"
    low, middle, high = (number(float(v), ",.4g") for v in np.quantile(finite, (0, 0.5, 1)))
    return f"{low} to {high} {each}, median {middle}"


def _action_table(dimensions: Sequence[Dimension]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    # The only column that gives way where the screen is narrow.
    table.add_column("action", overflow="ellipsis", max_width=20)
    for heading in ("q01 … q99", "min … max", "bins used", "bounds"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column(f"{BINS} bins", no_wrap=True)
    for one in dimensions[:_SHOWN_DIMENSIONS]:
        table.add_row(Text(_plain(one.name, most=_LONGEST_NAME)), *_dimension_cells(one))
    if len(dimensions) > _SHOWN_DIMENSIONS:
        table.add_row(f"and {len(dimensions) - _SHOWN_DIMENSIONS} more")
    return table


def _dimension_cells(one: Dimension) -> tuple[RenderableType, ...]:
    bounds = f"{number(one.minimum, '.3g')} … {number(one.maximum, '.3g')}"
    if one.constant:
        alike = Text("constant", "bold yellow")
        return "", number(one.minimum, ".3g"), alike, "", ""
    middle = f"{number(one.q01, '.3g')} … {number(one.q99, '.3g')}"
    if one.discrete:
        return middle, bounds, f"{one.distinct} values", "", sparkline(one.bins)
    return middle, bounds, f"{one.bins_used}", f"{one.at_bounds:.1%}", sparkline(one.bins)


def sparkline(bins: NDArray[np.int64]) -> str:
    """A histogram in letters; the root of a count is its height, so that rare ones are seen."""
    counts = np.sqrt(bins.reshape(_SPARK_WIDTH, -1).sum(axis=1))
    tallest = counts.max()
    heights = np.ceil(counts / max(tallest, 1e-9) * len(_SPARK)).astype(int)
    return "".join(_SPARK[height - 1] if height else " " for height in heights)


def _shortened(lines: Sequence[str], *, most: int = _SHOWN_LINES) -> list[str]:
    more = len(lines) - most
    return [*lines[:most], *([f"and {more} more"] if more > 0 else [])]


def _plain(text: str, *, most: int = _LONGEST_TEXT) -> str:
    """Text from a file that neither moves the cursor nor floods the screen."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text[:most])
    return shown + ("…" if len(text) > most else "")


def _labels(source: EpisodeSource, path: Path | None) -> Mapping[int, Label]:
    if path is not None and not path.exists():
        raise ValueError(f"expected labels at {path}, but nothing is there; mend the path")
    return Labels.read(path or labels_path(source.path), episodes=len(source))


def _write_new(path: Path, text: str) -> None:
    """Write a file that must not be there yet."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror}); name another file"
        ) from error
