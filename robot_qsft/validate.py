"""Whether demonstrations can be trained on: every check, on every episode."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from rich.markup import escape
from rich.table import Table

from robot_qsft.console import console
from robot_qsft.datasets.checks import Finding, Severity
from robot_qsft.datasets.field_map import FieldMap
from robot_qsft.datasets.formats.detect import open_source
from robot_qsft.datasets.frame_checks import check_frames
from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.labels import Label, Labels, labels_path
from robot_qsft.datasets.set_checks import Roles, SetChecks
from robot_qsft.datasets.source import EpisodeSource

Frames: TypeAlias = Literal["all", "sampled", "none"]
Progress: TypeAlias = Callable[[int, int], None]

JSON_VERSION = 1
_SAMPLED = 20
_SHOWN_EPISODES = 5
_COLOURS: dict[Severity, str] = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_SEVERITIES: tuple[Severity, ...] = get_args(Severity)


@dataclass(frozen=True)
class Validation:
    """What was found.

    Attributes:
        source: path of the demonstrations.
        format: of them; "" where they could not be opened.
        episodes: how many there are.
        frames_read: of how many episodes every frame was decoded.
        findings: of the whole set, then by episode.
    """

    source: Path
    format: str
    episodes: int
    frames_read: int
    findings: tuple[Finding, ...]

    def count(self, severity: Severity) -> int:
        """Findings of a severity."""
        return sum(one.severity == severity for one in self.findings)

    def status(self, *, strict: bool) -> int:
        """Exit status: 1 where there is an error, with `strict` also where there is a warning."""
        return int(self.count("error") + strict * self.count("warning") > 0)

    def to_json(self) -> dict[str, Any]:
        """For other programs.

        `version` (of this layout, 1), `source`, `format`, `episodes`, `frames_read`, `findings` (a
        list of `severity`, `code`, `message`, `mend`, `episode` and `step`, the last two null where
        there is none) and `counts` (findings by severity, all three named).
        """
        return {
            "version": JSON_VERSION,
            "source": str(self.source),
            "format": self.format,
            "episodes": self.episodes,
            "frames_read": self.frames_read,
            "findings": [asdict(one) for one in self.findings],
            "counts": {severity: self.count(severity) for severity in _SEVERITIES},
        }


def validate_path(
    path: Path,
    *,
    field_map: FieldMap | None = None,
    labels: Path | None = None,
    frames: Frames = "sampled",
    strict: bool = False,
    as_json: bool = False,
    progress: Progress | None = None,
) -> int:
    """Like `validate_source`; what cannot even be opened is a finding too."""
    try:
        source = open_source(path)
    except (ValueError, OSError) as error:
        mend = "restore it from a copy, or mend the path"
        finding = Finding("error", "source-unreadable", _sentence(error), mend)
        return _report(Validation(path, "", 0, 0, (finding,)), strict=strict, as_json=as_json)
    return validate_source(
        source,
        field_map=field_map,
        labels=labels,
        frames=frames,
        strict=strict,
        as_json=as_json,
        progress=progress,
    )


def validate_source(
    source: EpisodeSource,
    *,
    field_map: FieldMap | None = None,
    labels: Path | None = None,
    frames: Frames = "sampled",
    strict: bool = False,
    as_json: bool = False,
    progress: Progress | None = None,
) -> int:
    """Check demonstrations, print what was found, and give the exit status.

    Args:
        source: of the demonstrations.
        field_map: what of them is state, action and reward; None to go by the usual names.
        labels: sidecar of outcomes; None for the one beside the source, if there is any.
        frames: whose frames to decode: those of all episodes, of a sample, or none.
        strict: whether warnings count as errors.
        as_json: print JSON, see `Validation.to_json`, instead of a table.
        progress: told of steps of work done and in all; it must not print to standard output where
            JSON goes there.

    Raises:
        ValueError: when the field map does not fit the source.
    """
    found = validate(source, field_map=field_map, labels=labels, frames=frames, progress=progress)
    return _report(found, strict=strict, as_json=as_json)


def validate(
    source: EpisodeSource,
    *,
    field_map: FieldMap | None = None,
    labels: Path | None = None,
    frames: Frames = "sampled",
    progress: Progress | None = None,
) -> Validation:
    """Check demonstrations; see `validate_source`. One episode is in memory at a time."""
    roles = Roles(source, field_map)
    sampled = _sampled(len(source), frames) if roles.cameras else []
    total = len(source) + len(sampled)
    checks = SetChecks(roles)
    findings: list[Finding] = []
    known_labels, unreadable = _labels(labels or labels_path(source.path), len(source))
    findings += unreadable
    for episode in range(len(source)):
        try:
            recording = source.recording(episode)
        except (ValueError, OSError) as error:
            mend = "restore the file, or drop the episode"
            findings.append(Finding("error", "episode-unreadable", _sentence(error), mend, episode))
        else:
            findings += checks.add(episode, recording, known_labels.get(episode))
        if progress is not None:
            progress(episode + 1, total)
    for done, episode in enumerate(sampled, start=len(source) + 1):
        if episode in checks.lengths:
            findings += _frame_findings(source, roles, checks, episode)
        if progress is not None:
            progress(done, total)
    findings += checks.findings()
    findings.sort(key=_order)
    return Validation(source.path, source.info.format, len(source), len(sampled), tuple(findings))


def _frame_findings(
    source: EpisodeSource, roles: Roles, checks: SetChecks, episode: int
) -> list[Finding]:
    motion = checks.motion(source.recording(episode))
    findings = []
    for camera in roles.cameras:
        findings += check_frames(
            _frames(source, episode, camera),
            steps=checks.lengths[episode],
            camera=camera,
            stored=source.info.cameras[camera],
            motion=motion,
            fps=roles.fps,
            episode=episode,
        )
    return findings


def _frames(source: EpisodeSource, episode: int, camera: str) -> Iterator[Image]:
    # Within a generator, so that a source that refuses at once does so while being read.
    yield from source.frames(episode, camera)


def _labels(path: Path, episodes: int) -> tuple[dict[int, Label], list[Finding]]:
    try:
        return dict(Labels.read(path, episodes=episodes)), []
    except (ValueError, OSError) as error:
        mend = "restore the labels, or label again"
        return {}, [Finding("error", "labels-unreadable", _sentence(error), mend)]


def _sampled(episodes: int, frames: Frames) -> list[int]:
    if frames == "none" or episodes == 0:
        return []
    count = episodes if frames == "all" else min(_SAMPLED, episodes)
    spread: list[int] = np.linspace(0, episodes - 1, count).round().astype(int).tolist()
    return spread


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())


def _order(finding: Finding) -> tuple[bool, int, int]:
    return finding.episode is not None, finding.episode or 0, _SEVERITIES.index(finding.severity)


def _report(found: Validation, *, strict: bool, as_json: bool) -> int:
    if as_json:
        print(json.dumps(found.to_json(), indent=1))
        return found.status(strict=strict)
    counts = ", ".join(f"{one}s: {found.count(one)}" for one in _SEVERITIES)
    if found.findings:
        console.print(_table(found.findings))
    console.print(
        escape(
            f"{found.source}: {found.format or 'not readable'}, {found.episodes} episodes "
            f"(frames of {found.frames_read} decoded); {counts}"
        ),
        soft_wrap=True,
    )
    return found.status(strict=strict)


def _table(findings: Sequence[Finding]) -> Table:
    by_code: dict[tuple[Severity, str], list[Finding]] = defaultdict(list)
    for one in findings:
        by_code[one.severity, one.code].append(one)
    table = Table("", "finding", "times", "episodes", "such as", "mend", show_lines=True)
    for severity, code in sorted(by_code, key=lambda key: _SEVERITIES.index(key[0])):
        those = by_code[severity, code]
        episodes = Counter(one.episode for one in those if one.episode is not None)
        shown = ", ".join(str(episode) for episode in list(episodes)[:_SHOWN_EPISODES])
        more = f" and {len(episodes) - _SHOWN_EPISODES} more"
        first = those[0]
        where = "" if first.step is None else f" (step {first.step})"
        table.add_row(
            f"[{_COLOURS[severity]}]{severity}[/]",
            code,
            str(len(those)),
            shown + (more if len(episodes) > _SHOWN_EPISODES else ""),
            escape(first.message + where),
            escape(first.mend),
        )
    return table
