"""The report of a run: one HTML file that shows what the numbers mean.

Shape legend: A action dimensions, E episodes, H height, N frames of the data, T steps, W width,
k stills, n start states or steps.
"""

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from robot_qsft.calibration import Calibration
from robot_qsft.datasets.interface import Image
from robot_qsft.film import encode_mp4, film_strip, jpeg
from robot_qsft.intervals import Estimate
from robot_qsft.report_figures import (
    histogram,
    number,
    outcome_strip,
    reliability_chart,
    ticks,
    trace_chart,
)

_FOLDER = Path(__file__).parent
_STILLS = 4
_COLOURS = 8
"""Colours for methods that the style sheet has; a ninth method would share the first one's."""


@dataclass(frozen=True, eq=False)
class Method:
    """One way of acting, tried on every start state.

    Attributes:
        name: short, and the same wherever the method is meant.
        description: such as "behaviour head of the same network, greedy decoding".
        successes: bool (n,), over start states that all methods share, in one order.
        rate: success rate in [0, 1] with its 95% Wilson interval.
    """

    name: str
    description: str
    successes: NDArray[np.bool_]
    rate: Estimate


@dataclass(frozen=True)
class Difference:
    """Success of one method minus that of another over the same start states.

    Attributes:
        first: name of the method that is compared.
        second: name of the one that is taken away.
        estimate: difference in [-1, 1] with its 95% interval.
    """

    first: str
    second: str
    estimate: Estimate


@dataclass(frozen=True, eq=False)
class Film:
    """One episode of one method.

    Attributes:
        method: its name.
        frames: RGB, uint8 (T, H, W, 3).
        success: whether the episode solved the task.
        seed: of its start state.
        fps: frames per second.
    """

    method: str
    frames: Image
    success: bool
    seed: int
    fps: float


@dataclass(frozen=True, eq=False)
class ValueTrace:
    """What was predicted along an episode, and what came.

    Attributes:
        label: which episode this is.
        values: predicted value at every step, float (T,).
        returns: discounted return from every step on, float (T,).
        stills: a few frames, RGB uint8 (k, H, W, 3).
        still_steps: the step of each still.
    """

    label: str
    values: NDArray[np.floating]
    returns: NDArray[np.floating]
    stills: Image
    still_steps: tuple[int, ...]


@dataclass(frozen=True)
class Outcomes:
    """How many episodes of one demonstrator ended how."""

    demonstrator: str
    successes: int
    failures: int
    unknown: int

    @property
    def total(self) -> int:
        """All episodes of the demonstrator."""
        return self.successes + self.failures + self.unknown


@dataclass(frozen=True, eq=False)
class Example:
    """A frame of the data, RGB uint8 (H, W, 3), and what it shows."""

    image: Image
    caption: str


@dataclass(frozen=True, eq=False)
class DataSummary:
    """What the demonstrations look like.

    Attributes:
        fps: frames per second.
        outcomes: per demonstrator.
        lengths: steps of every episode, int (E,).
        actions: of every frame, float (N, A).
        action_names: of the A dimensions.
        examples: a few frames.
    """

    fps: float
    outcomes: tuple[Outcomes, ...]
    lengths: NDArray[np.integer]
    actions: NDArray[np.floating]
    action_names: tuple[str, ...]
    examples: tuple[Example, ...]


@dataclass(frozen=True, eq=False)
class ReportContents:
    """Everything that a report shows.

    Attributes:
        title: of the page.
        summary: the result in one sentence.
        methods: in the order in which they are shown.
        difference: the comparison that matters most.
        films: one per method.
        value_method: name of the method whose values are shown.
        succeeding: an episode of it that solves the task; None where there was none.
        failing: one that does not; likewise.
        calibration: its predicted values against what came.
        data: the demonstrations.
        facts: what else decides the result, or what it cost, in short strings.
    """

    title: str
    summary: str
    methods: tuple[Method, ...]
    difference: Difference
    films: tuple[Film, ...]
    value_method: str
    succeeding: ValueTrace | None
    failing: ValueTrace | None
    calibration: Calibration
    data: DataSummary
    facts: Mapping[str, str]

    def __post_init__(self) -> None:
        """Names of methods must be those of `methods`, and start states shared."""
        names = [method.name for method in self.methods]
        assert len(set(names)) == len(names), f"method names repeat: {names}"
        mentioned = {self.difference.first, self.difference.second, self.value_method}
        unknown = (mentioned | {film.method for film in self.films}) - set(names)
        assert not unknown, f"not among the methods: {sorted(unknown)}"
        counts = {len(method.successes) for method in self.methods}
        assert len(counts) == 1, (
            f"methods were tried on different numbers of start states: {counts}"
        )


def write_report(path: Path, contents: ReportContents) -> None:
    """Write one HTML file that needs nothing else, under a temporary name first.

    Args:
        path: of the file; missing folders are made.
        contents: what it shows.
    """
    page = _render(contents)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _render(contents: ReportContents) -> str:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": _percent, "points": _points}
    colours = {
        method.name: f"var(--method-{index % _COLOURS})"
        for index, method in enumerate(contents.methods)
    }
    value_colour = colours[contents.value_method]
    calibration, data = contents.calibration, contents.data
    return environment.get_template("report.html").render(
        contents=contents,
        style=Markup((_FOLDER / "report.css").read_text(encoding="utf-8")),
        colours=colours,
        value_colour=value_colour,
        difference=_difference(contents),
        strips=_strips(contents.methods, colours),
        films=[_film(film) for film in contents.films],
        stills=_STILLS,
        traces=[
            _trace(trace, outcome, value_colour)
            for trace, outcome in ((contents.succeeding, True), (contents.failing, False))
        ],
        reliability=reliability_chart(
            calibration.values, calibration.returns, calibration.episodes, colour=value_colour
        ),
        frames=int(data.lengths.sum()),
        hours=float(data.lengths.sum()) / data.fps / 3600,
        longest=max((outcomes.total for outcomes in data.outcomes), default=0),
        lengths=histogram(
            data.lengths.astype(np.float64), name="steps per episode", colour="var(--data)"
        ),
        actions=[
            histogram(data.actions[:, index], name=name, colour="var(--data)")
            for index, name in enumerate(data.action_names)
        ],
        examples=[
            {"image": _data_uri("image/jpeg", jpeg(example.image)), "caption": example.caption}
            for example in data.examples
        ],
    )


def _difference(contents: ReportContents) -> dict[str, Any]:
    """The paired comparison: where it lies on an axis of points, and who solved what alone."""
    estimate = contents.difference.estimate
    by_name = {method.name: method.successes for method in contents.methods}
    first, second = by_name[contents.difference.first], by_name[contents.difference.second]
    ends = [100 * end for end in (estimate.low, estimate.high) if np.isfinite(end)]
    low = 20 * np.floor(min([0.0, *ends]) / 20 - 0.25)
    high = 20 * np.ceil(max([0.0, *ends]) / 20 + 0.25)

    def place(points: float) -> float:
        return float((points - low) / (high - low) * 100)

    return {
        "estimate": estimate,
        "ends": [place(end) for end in ends] if len(ends) == 2 else None,
        "middle": place(100 * estimate.value) if np.isfinite(estimate.value) else None,
        "zero": place(0.0),
        "ticks": [(place(tick), _points(tick / 100)) for tick, _ in ticks((low, high), count=6)],
        "both": int(np.sum(first & second)),
        "only_first": int(np.sum(first & ~second)),
        "only_second": int(np.sum(~first & second)),
        "neither": int(np.sum(~first & ~second)),
    }


def _strips(methods: tuple[Method, ...], colours: Mapping[str, str]) -> list[tuple[str, Markup]]:
    """Who solved which start state; those that most methods solve stand first."""
    successes_MN = np.stack([method.successes for method in methods])
    order = np.lexsort((*~successes_MN, -successes_MN.sum(0)))
    return [
        (
            method.name,
            outcome_strip(method.successes[order], name=method.name, colour=colours[method.name]),
        )
        for method in methods
    ]


def _film(film: Film) -> dict[str, Any]:
    return {
        "method": film.method,
        "success": film.success,
        "seed": film.seed,
        "seconds": len(film.frames) / film.fps,
        "size": film.frames.shape[1:3],
        "video": _data_uri("video/mp4", encode_mp4(film.frames, fps=film.fps)),
        "strip": _data_uri("image/jpeg", jpeg(film_strip(film.frames, count=_STILLS))),
    }


def _trace(trace: ValueTrace | None, success: bool, colour: str) -> dict[str, Any]:
    outcome = {"success": success, "present": trace is not None}
    if trace is None:
        return outcome
    stills = [
        (step, _data_uri("image/jpeg", jpeg(still)))
        for step, still in zip(trace.still_steps, trace.stills, strict=True)
    ]
    chart = trace_chart(trace.values, trace.returns, trace.still_steps, colour=colour)
    return {**outcome, "label": trace.label, "chart": chart, "stills": stills}


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _percent(share: float) -> str:
    """0.873 is "87%"."""
    return f"{number(100 * share, '.0f')}%"


def _points(difference: float) -> str:
    """0.62 is "+62", a difference in percentage points."""
    return "0" if abs(difference) < 0.005 else number(100 * difference, "+.0f")
