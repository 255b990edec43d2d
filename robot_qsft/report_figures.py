"""The charts of a report, as SVG that takes its colours from the page's style sheet.

Shape legend: B bins, T steps, n points.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from robot_qsft.intervals import Z_95

Floats = NDArray[np.floating]

_HEAT_CELLS = 25
_RELIABILITY_BINS = 10
_HISTOGRAM_BINS = 24
_CELLS_WITH_GAPS = 200
"""Start states up to which the cells of an outcome strip are set apart."""


@dataclass(frozen=True)
class Bin:
    """What came of the steps whose predicted value fell into one bin.

    Attributes:
        predicted: mean predicted value.
        actual: mean discounted return.
        low: lower end of its 95% interval; NaN when all steps are from one episode.
        high: upper end.
        steps: how many.
    """

    predicted: float
    actual: float
    low: float
    high: float
    steps: int


def number(value: float, form: str = ".2f") -> str:
    """A number for reading, with a true minus sign; a dash where it is not finite."""
    return format(value, form).replace("-", "−") if math.isfinite(value) else "–"


def ticks(ends: tuple[float, float], *, count: int, whole: bool = False) -> list[tuple[float, str]]:
    """About `count` round numbers within two ends, with their text; `whole` ones where asked."""
    low, high = ends
    places = MaxNLocator(count, steps=[1, 2, 2.5, 5, 10], integer=whole).tick_values(low, high)
    spare = 1e-9 * (high - low)
    return [(float(t), number(t, "g")) for t in places if low - spare <= t <= high + spare]


def reliability_bins(predicted: Floats, actual: Floats, episodes: NDArray[np.integer]) -> list[Bin]:
    """Mean return over ten equally wide bins of the predicted value; arrays (n,), no empty bins.

    Steps of an episode go together, so the interval of a mean m over N steps of G episodes is
    m ± 1.96·√(G/(G−1)·Σ_g(Σ_{i∈g}(y_i − m))²)/N, the cluster-robust one (Liang & Zeger 1986,
    Biometrika 73, 13-22).
    """
    place = np.clip((predicted * _RELIABILITY_BINS).astype(int), 0, _RELIABILITY_BINS - 1)
    bins = []
    for index in np.unique(place):
        inside = place == index
        mean = float(actual[inside].mean())
        _, group = np.unique(episodes[inside], return_inverse=True)
        deviation = np.bincount(group, weights=actual[inside] - mean)
        groups, steps = len(deviation), int(inside.sum())
        half = math.nan
        if groups > 1:
            half = Z_95 * math.sqrt(groups / (groups - 1) * float(deviation @ deviation)) / steps
        bins.append(Bin(float(predicted[inside].mean()), mean, mean - half, mean + half, steps))
    return bins


def reliability_chart(
    predicted: Floats, actual: Floats, episodes: NDArray[np.integer], *, colour: str
) -> Markup | None:
    """Binned mean return over predicted value, above a map of all steps; None without any.

    Args:
        predicted: values (n,).
        actual: discounted returns (n,).
        episodes: which episode each step is of (n,).
        colour: of the curve, as CSS has it.
    """
    finite = np.isfinite(predicted) & np.isfinite(actual)
    if not finite.any():
        return None
    predicted, actual, episodes = predicted[finite], actual[finite], episodes[finite]
    axes = _Axes(width=480, height=420, x_range=(0.0, 1.0), y_range=(0.0, 1.0))
    parts = [_heat_map(axes, predicted.clip(0, 1), actual.clip(0, 1))]
    parts.append(axes.line([0, 1], [0, 1], "reference"))
    bins = reliability_bins(predicted, actual, episodes)
    parts.append(axes.line([b.predicted for b in bins], [b.actual for b in bins], "series"))
    for b in bins:
        if math.isfinite(b.low):
            ends = [max(b.low, 0.0), min(b.high, 1.0)]
            parts.append(axes.line([b.predicted] * 2, ends, "whisker-line"))
        note = (
            f"predicted {number(b.predicted)}, came to {number(b.actual)} "
            f"[{number(b.low)}, {number(b.high)}], {b.steps:,} steps"
        )
        parts.append(
            Markup(
                '<circle class="point" cx="{:.1f}" cy="{:.1f}" r="5"><title>{}</title></circle>'
            ).format(axes.x(b.predicted), axes.y(b.actual), note)
        )
    return axes.chart(
        parts,
        title=f"Discounted return against predicted value over {len(predicted):,} steps",
        x_label="predicted value",
        y_label="discounted return that came",
        colour=colour,
    )


def trace_chart(values: Floats, returns: Floats, marks: Sequence[int], *, colour: str) -> Markup:
    """Predicted value (solid) and discounted return (dashed) along an episode.

    Args:
        values: (T,).
        returns: (T,).
        marks: steps of which stills are shown.
        colour: of the predicted value, as CSS has it.
    """
    finite = np.concatenate([values[np.isfinite(values)], returns[np.isfinite(returns)], [0, 1]])
    axes = _Axes(
        width=480,
        height=270,
        x_range=(0.0, max(1.0, len(values) - 1.0)),
        y_range=(float(finite.min()), float(finite.max())),
    )
    steps = list(range(len(values)))
    parts = [axes.line([mark, mark], list(axes.y_range), "mark") for mark in marks]
    parts.append(axes.area(steps, values.tolist()))
    parts.append(axes.line(steps, returns.tolist(), "reference"))
    parts.append(axes.line(steps, values.tolist(), "series"))
    return axes.chart(
        parts,
        title=f"Predicted value and discounted return over {len(values)} control steps",
        x_label="control step",
        y_label="value",
        colour=colour,
        whole_x=True,
    )


def histogram(samples: Floats, *, name: str, colour: str) -> Markup:
    """How often each range of values occurs; what is not finite is left out."""
    finite = samples[np.isfinite(samples)]
    whole = bool(len(finite)) and bool((finite == finite.round()).all())
    if whole and np.ptp(finite) < _HISTOGRAM_BINS:
        edges = np.arange(finite.min() - 0.5, finite.max() + 1.5)
    else:
        edges = np.histogram_bin_edges(finite, _HISTOGRAM_BINS) if len(finite) else np.arange(2.0)
    counts, _ = np.histogram(finite, edges)
    axes = _Axes(
        width=300,
        height=170,
        x_range=(float(edges[0]), float(edges[-1])),
        y_range=(0.0, max(1.0, float(counts.max()))),
        left=16,
    )
    parts = []
    for count, low, high in zip(counts.tolist(), edges[:-1], edges[1:], strict=True):
        left, right, top = axes.x(low), axes.x(high), axes.y(count)
        parts.append(
            Markup(
                '<rect class="bin" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
                "<title>{} … {}: {:,}</title></rect>"
            ).format(
                left + 0.5,
                top,
                max(right - left - 1, 0.5),
                axes.y(0) - top,
                number(low, ".3g"),
                number(high, ".3g"),
                count,
            )
        )
    return axes.chart(
        parts,
        title=f"Histogram of {name} over {len(finite):,} samples",
        x_label=name,
        y_label="",
        colour=colour,
    )


def _heat_map(axes: "_Axes", x: Floats, y: Floats) -> Markup:
    """Where the points (n,) in [0, 1] are, denser cells being darker, on a logarithmic scale."""
    counts, _, _ = np.histogram2d(x, y, bins=_HEAT_CELLS, range=[[0, 1], [0, 1]])
    full = math.log1p(counts.max())
    cells = Markup("").join(
        Markup(
            '<rect class="heat" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" '
            'fill-opacity="{:.2f}"/>'
        ).format(
            axes.x(column / _HEAT_CELLS),
            axes.y((row + 1) / _HEAT_CELLS),
            axes.x(1 / _HEAT_CELLS) - axes.x(0),
            axes.y(0) - axes.y(1 / _HEAT_CELLS),
            0.05 + 0.4 * math.log1p(counts[column, row]) / full,
        )
        for column, row in np.argwhere(counts)
    )
    return Markup('<g shape-rendering="crispEdges">{}</g>').format(cells)


def outcome_strip(successes: NDArray[np.bool_], *, name: str, colour: str) -> Markup:
    """One cell per start state, bool (n,), filled where the task was solved."""
    n = len(successes)
    width = 0.8 if n <= _CELLS_WITH_GAPS else 1.0
    cells = Markup("").join(
        Markup('<rect class="{}" x="{}" width="{}" height="1"/>').format(
            "solved" if success else "unsolved", index, width
        )
        for index, success in enumerate(successes)
    )
    return Markup(
        '<svg class="strip-cells" viewBox="0 0 {} 1" preserveAspectRatio="none" role="img" '
        'style="--c:{}" aria-label="{}: {} of {} start states solved">{}</svg>'
    ).format(n, colour, name, int(successes.sum()), n, cells)


@dataclass(frozen=True)
class _Axes:
    """A plotting area in the units of its own view box."""

    width: int
    height: int
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    left: int = 52

    _right = 14
    _top = 12
    _bottom = 48

    def x(self, value: float) -> float:
        """Horizontal place of a value."""
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.width - self.left - self._right)

    def y(self, value: float) -> float:
        """Vertical place of a value."""
        low, high = self.y_range
        span = self.height - self._top - self._bottom
        return self.height - self._bottom - (value - low) / (high - low) * span

    def line(self, xs: Sequence[float], ys: Sequence[float], kind: str) -> Markup:
        """A line that breaks where a value is not finite."""
        path, pen = [], "M"
        for x, y in zip(xs, ys, strict=True):
            if math.isfinite(x) and math.isfinite(y):
                path.append(f"{pen}{self.x(x):.1f} {self.y(y):.1f}")
                pen = "L"
            else:
                pen = "M"
        return Markup('<path class="{}" d="{}"/>').format(kind, " ".join(path))

    def area(self, xs: Sequence[float], ys: Sequence[float]) -> Markup:
        """The area between a line and zero."""
        points = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
        if not points:
            return Markup("")
        around = [(points[0][0], 0.0), *points, (points[-1][0], 0.0)]
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in around)
        return Markup('<polygon class="area" points="{}"/>').format(path)

    def chart(
        self,
        parts: Sequence[Markup],
        *,
        title: str,
        x_label: str,
        y_label: str,
        colour: str,
        whole_x: bool = False,
    ) -> Markup:
        """The finished picture: grid, what is drawn on it, ticks and labels."""
        base, middle = self.y(self.y_range[0]), (self.left + self.width - self._right) / 2
        furniture = []
        if y_label:
            for tick, text in ticks(self.y_range, count=5):
                furniture.append(self.line(self.x_range, [tick, tick], "grid"))
                furniture.append(_text(self.left - 8, self.y(tick) + 4.5, text, "end"))
            upright = f"translate(14 {(self._top + base) / 2:.0f}) rotate(-90)"
            furniture.append(
                Markup('<text class="label" text-anchor="middle" transform="{}">{}</text>').format(
                    upright, y_label
                )
            )
        for tick, text in ticks(self.x_range, count=self.width // 80, whole=whole_x):
            furniture.append(_text(self.x(tick), base + 18, text, "middle"))
        furniture.append(self.line(self.x_range, [self.y_range[0]] * 2, "axis-line"))
        furniture.append(
            Markup('<text class="label" text-anchor="middle" x="{:.0f}" y="{}">{}</text>').format(
                middle, self.height - 8, x_label
            )
        )
        return Markup(
            '<svg class="chart" viewBox="0 0 {} {}" role="img" style="--c:{}" '
            'aria-label="{}">{}{}</svg>'
        ).format(
            self.width,
            self.height,
            colour,
            title,
            Markup("").join(furniture),
            Markup("").join(parts),
        )


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        x, y, anchor, text
    )
