"""The report on a source of demonstrations: one HTML file that needs nothing else.

Shape legend: H height, W width.
"""

import base64
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from robot_qsft.datasets.features import ACTION
from robot_qsft.datasets.field_map import FieldMap
from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.source import EpisodeSource
from robot_qsft.datasets.source_facts import EpisodeFacts, SourceFacts
from robot_qsft.datasets.suggest_map import described
from robot_qsft.datasets.tables import Outcome
from robot_qsft.datasets.vector_facts import BINS, Dimension
from robot_qsft.film import jpeg
from robot_qsft.inspect_findings import counted, outliers, warnings
from robot_qsft.report_figures import histogram, number

_FOLDER = Path(__file__).parent
_OUTCOMES: tuple[Outcome, ...] = ("success", "failure", "unknown")
_EPISODES_SHOWN = 2
"""Episodes of each outcome whose frames are shown."""
_CAMERAS_SHOWN = 2
_THUMBNAIL_PX = 240
_MOMENTS = 3
_CHARTS = 48
_LARGEST = 1e100
_FINEST = 1e-3
"""Of a histogram's width: what neighbouring numbers may lie apart at most."""
_ROWS = 200
"""Columns, instructions, notes and unreadable episodes beyond so many are counted, not shown."""


@dataclass(frozen=True)
class _Thumbnails:
    """First, middle and last frame of an episode as one camera saw it; else why there are none."""

    camera: str
    stills: tuple[tuple[int, str], ...]
    complaint: str = ""


def write_inspection(
    path: Path, source: EpisodeSource, field_map: FieldMap, found: SourceFacts
) -> None:
    """Write the report, under a temporary name first; frames of a few episodes are decoded.

    Args:
        path: of the file; missing folders are made, a report that is there is replaced.
        source: what was looked at.
        field_map: how.
        found: what was seen.

    Raises:
        ValueError: when the file cannot be written.
    """
    page = _render(source, field_map, found)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # A lone surrogate in somebody's text must not keep the report from being written.
            temporary.write_text(page, encoding="utf-8", errors="replace")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror}); name another file"
        ) from error


def title_of(path: Path) -> str:
    """Name of a source; that of the folder above goes with one that is a mere version."""
    path = path.resolve()
    version = re.fullmatch(r"[\d.]+|.*-v\d+", path.name)
    return f"{path.parent.name}/{path.name}" if version else path.name


def duration(seconds: float) -> tuple[str, str]:
    """A time in the unit that suits it: 5,400 s are "1.50" and "hours", 90 s "1.5", "minutes"."""
    if seconds >= 3600:
        return number(seconds / 3600, ",.2f"), "hours"
    if seconds >= 60:
        return number(seconds / 60, ".1f"), "minutes"
    return number(seconds, ".1f"), "seconds"


def _render(source: EpisodeSource, field_map: FieldMap, found: SourceFacts) -> str:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "described": described, "counted": counted}
    styles = [
        (_FOLDER / name).read_text(encoding="utf-8") for name in ("report.css", "inspect.css")
    ]
    actions = found.vectors[ACTION]
    return environment.get_template("inspect.html").render(
        style=Markup("\n".join(styles)),
        name=title_of(source.path),
        info=source.info,
        field_map=field_map,
        found=found,
        rows=_ROWS,
        time=None if found.fps is None else duration(found.steps / found.fps),
        outcomes=_OUTCOMES,
        warnings=warnings(found, field_map),
        shown=[
            (outcome, [_episode(one, source, field_map, found.fps) for one in chosen])
            for outcome in _OUTCOMES
            if (chosen := _typical(found, outcome))
        ],
        actions=[
            _dimension(one, actions.sample[:, index])
            for index, one in enumerate(actions.dimensions[:_CHARTS])
        ],
        more_actions=max(0, len(actions.dimensions) - _CHARTS),
        bins=BINS,
        vectors={name: vector for name, vector in found.vectors.items() if name != ACTION},
        lengths=_chart(found.lengths, "steps per episode"),
        returns=_chart(found.returns, "return per episode") if len(found.returns) else None,
        outliers=outliers(found),
        columns=sorted(source.info.columns.items())[:_ROWS],
        instructions=list(found.instructions.items())[:_ROWS],
    )


def _typical(found: SourceFacts, outcome: Outcome) -> list[EpisodeFacts]:
    """A few episodes of an outcome, of about the median length of those."""
    ended = [one for one in found.episodes if one.outcome == outcome]
    median = float(np.median([one.steps for one in ended])) if ended else 0.0
    return sorted(ended, key=lambda one: abs(one.steps - median))[:_EPISODES_SHOWN]


def _episode(
    one: EpisodeFacts, source: EpisodeSource, field_map: FieldMap, fps: float | None
) -> dict[str, Any]:
    cameras = list(field_map.cameras.items())[:_CAMERAS_SHOWN]
    return {
        "facts": one,
        "seconds": None if fps is None else one.steps / fps,
        "cameras": [_thumbnails(source, one, ours, theirs) for ours, theirs in cameras],
    }


def _thumbnails(source: EpisodeSource, one: EpisodeFacts, ours: str, theirs: str) -> _Thumbnails:
    moments = sorted({round(place) for place in np.linspace(0, one.steps - 1, _MOMENTS)})
    stills = []
    try:
        for step, image in enumerate(source.frames(one.index, theirs)):
            if step in moments:
                stills.append((step, _data_uri(jpeg(_thumbnail(image)))))
            if step == moments[-1]:
                break
    except ValueError as error:
        return _Thumbnails(ours, tuple(stills), str(error))
    return _Thumbnails(ours, tuple(stills))


def _thumbnail(image: Image) -> Image:
    """The image, shrunk where its width is above what a page has room for."""
    height, width = image.shape[:2]
    if width <= _THUMBNAIL_PX:
        return np.ascontiguousarray(image)
    size = (_THUMBNAIL_PX, max(1, round(height * _THUMBNAIL_PX / width)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _dimension(one: Dimension, sample: NDArray[np.float64]) -> dict[str, Any]:
    return {
        "facts": one,
        "chart": _chart(sample, one.name),
        "bins": None if one.discrete else bin_strip(one),
    }


def bin_strip(one: Dimension) -> Markup:
    """One cell per bin, darker where more actions fall into it, on a logarithmic scale."""
    full = max(1.0, float(np.log1p(one.bins.max())))
    cells = Markup("").join(
        Markup('<rect x="{}" width="1" height="1" fill-opacity="{:.2f}"/>').format(
            index, 0.2 + 0.8 * float(np.log1p(count)) / full
        )
        for index, count in enumerate(one.bins.tolist())
        if count
    )
    return Markup(
        '<svg class="bins" viewBox="0 0 {} 1" preserveAspectRatio="none" role="img" '
        'aria-label="{}: {} of {} bins are used">{}</svg>'
    ).format(len(one.bins), one.name, one.bins_used, len(one.bins), cells)


def _chart(samples: NDArray[np.float64], name: str) -> Markup | None:
    """A histogram; None where the numbers lie too close together, or too far apart, for bins."""
    finite = np.abs(samples[np.isfinite(samples)])
    if len(finite):
        largest = float(finite.max())
        width = float(np.ptp(samples[np.isfinite(samples)])) if largest < _LARGEST else np.inf
        if not np.spacing(largest) < _FINEST * (width or 1.0) < np.inf:
            return None
    return histogram(samples, name=name, colour="var(--data)")


def _data_uri(content: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
