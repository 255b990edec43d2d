"""`episodes.yaml`: what the files of a folder of videos are; its format is told in `video_folder`.

A pattern is a path from the folder on, with `{episode}` for the name of the episode.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from robot_qsft.datasets.formats.aligned_video import read_video_info
from robot_qsft.datasets.formats.episode_tables import read_text
from robot_qsft.datasets.plain_yaml import load_yaml

MAPPING = "episodes.yaml"
OUTCOMES = "outcomes.csv"
_LARGEST_MAPPING = 1 << 16
_EPISODE = "{episode}"
_TABLES = (".csv", ".json")
_KEYS = ("fps", "table", "cameras", "instruction", "success", "timestamp")
_EXAMPLE = {
    "fps": 30.0,
    "table": "{episode}/steps.csv",
    "cameras": {"front": "{episode}/front.mp4"},
    "instruction": "what was asked for",
}
_MOST_FOLDERS = 20
"""Folders that are looked into to see whether they hold episodes."""


@dataclass(frozen=True)
class EpisodeMapping:
    """What `episodes.yaml` says.

    Attributes:
        fps: rows per second.
        table: pattern of the table of an episode.
        cameras: name to pattern of the video of an episode.
        instruction: of every episode; "" where the column tells, or nothing.
        instruction_column: of the table; "" where there is none.
        success_column: of the table; "" where there is none.
        timestamp_column: of the table, in seconds; "" where row i is frame i.
    """

    fps: float
    table: str
    cameras: Mapping[str, str]
    instruction: str
    instruction_column: str
    success_column: str
    timestamp_column: str


def read_mapping(folder: Path) -> EpisodeMapping:
    """Read `episodes.yaml`.

    Raises:
        ValueError: when it is missing (then a fitting one is told), damaged, or its patterns lead
            out of the folder.
    """
    file = folder / MAPPING
    if not file.is_file():
        raise ValueError(
            f"expected {file}, which tells what the videos and tables are, but it is missing; "
            f"write it, such as {suggest_mapping(folder)}"
        )
    text = read_text(file, limit=_LARGEST_MAPPING)
    try:
        stored = load_yaml(text)
    except ValueError as error:
        raise ValueError(f"expected YAML in {file}, but {error}; mend it") from error
    if not isinstance(stored, dict):
        raise ValueError(f"expected {', '.join(_KEYS)} in {file}, but it has no keys; add them")
    unknown = [key for key in stored if key not in _KEYS]
    if unknown:
        raise ValueError(
            f"expected no keys but {', '.join(_KEYS)} in {file}, but {_short(unknown[0])} came; "
            "mend it"
        )
    fps = stored.get("fps")
    if not isinstance(fps, int | float) or isinstance(fps, bool) or not 0 < fps <= 1e6:
        raise ValueError(
            f"expected fps, the rows per second, as a number above 0 in {file}, but {_short(fps)} "
            "came; mend it"
        )
    cameras = stored.get("cameras") or {}
    if not isinstance(cameras, dict) or not all(isinstance(name, str) for name in cameras):
        raise ValueError(
            f"expected cameras in {file} to map names to patterns, such as "
            "{front: '{episode}/front.mp4'}, but others came; mend it"
        )
    table = _pattern(stored.get("table"), "table", file)
    if not table.endswith(_TABLES):
        raise ValueError(
            f"expected the table in {file} to end in .csv or .json, but {table!r:.80} does not; "
            "mend it"
        )
    instruction = stored.get("instruction", "")
    in_column = isinstance(instruction, dict) and list(instruction) == ["column"]
    return EpisodeMapping(
        fps=float(fps),
        table=table,
        cameras={name: _pattern(one, name, file) for name, one in cameras.items()},
        instruction="" if in_column else _text(instruction, "instruction", file),
        instruction_column=_text(instruction["column"], "instruction", file) if in_column else "",
        success_column=_text(stored.get("success", ""), "success", file),
        timestamp_column=_text(stored.get("timestamp", ""), "timestamp", file),
    )


def fill_in(pattern: str, episode: str) -> str:
    """The path that a pattern means for an episode."""
    return pattern.replace(_EPISODE, episode)


def find_episodes(folder: Path, table: str) -> tuple[str, ...]:
    """Names of the episodes that have a table, numbers in them counting as numbers.

    Raises:
        ValueError: when the folder cannot be read.
    """
    parts = PurePosixPath(table).parts
    at = next(number for number, part in enumerate(parts) if _EPISODE in part)
    before, after = parts[at].split(_EPISODE, 1)
    name = re.compile(
        re.escape(before) + "(.+)" + re.escape(after).replace(re.escape(_EPISODE), r"\1")
    )
    try:
        entries = [entry.name for entry in folder.joinpath(*parts[:at]).iterdir()]
    except OSError as error:
        raise ValueError(
            f"expected a folder for the tables {table!r:.80} in {folder}, but it cannot be read "
            f"({error.strerror}); mend the pattern"
        ) from error
    found = (match[1] for match in map(name.fullmatch, entries) if match)
    return tuple(
        sorted(
            (
                episode
                for episode in found
                if not episode.startswith(".")
                and fill_in(table, episode) != OUTCOMES
                and (folder / fill_in(table, episode)).is_file()
            ),
            key=_in_order,
        )
    )


def suggest_mapping(folder: Path) -> str:
    """A mapping in one line of YAML that fits the first episode of a folder, or else an example.

    Raises:
        ValueError: when the video of that episode is damaged.
    """
    try:
        fitting = next(filter(None, (_fitting(place, folder) for place in _places(folder))), {})
    except OSError:
        fitting = {}
    suggested = _EXAMPLE | fitting
    return str(
        yaml.safe_dump(suggested, default_flow_style=True, sort_keys=False, width=10_000)
    ).strip()


def holds_episodes(folder: Path) -> bool:
    """Whether a folder, or one of the first in it, has videos beside tables."""
    return any(
        any(file.suffix == ".mp4" for file in place)
        and any(file.suffix in _TABLES for file in place)
        for place in _places(folder)
    )


def _fitting(place: list[Path], folder: Path) -> dict[str, Any]:
    """Rate, table and cameras of the first episode among the files of one folder."""
    tables = [file for file in place if file.suffix in _TABLES and file.name != OUTCOMES]
    for table in sorted(tables, key=lambda file: (file.suffix, file.name)):
        in_folder = table.parent != folder
        episode = "" if in_folder else table.stem
        videos = [file for file in place if file.suffix == ".mp4" and file.stem.startswith(episode)]
        if videos:
            prefix = f"{_EPISODE}/" if in_folder else _EPISODE
            names = [file.stem.removeprefix(episode).strip("_-.") or "front" for file in videos]
            return {
                "fps": round(read_video_info(videos[0]).rate_hz, 3),
                "table": prefix + table.name.removeprefix(episode),
                "cameras": {
                    name: prefix + file.name.removeprefix(episode)
                    for name, file in zip(names, videos, strict=True)
                },
            }
    return {}


def _places(folder: Path) -> Iterator[list[Path]]:
    """The files of a folder, then those of the first folders in it."""
    entries = sorted(folder.iterdir(), key=lambda entry: _in_order(entry.name))
    yield [entry for entry in entries if entry.is_file() and entry.name != MAPPING]
    for inner in [entry for entry in entries if entry.is_dir()][:_MOST_FOLDERS]:
        yield sorted(file for file in inner.iterdir() if file.is_file())


def _in_order(name: str) -> list[tuple[int, int, str]]:
    """Sorts "take_2" before "take_10"."""
    parts = re.split(r"([0-9]{1,18})", name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]


def _pattern(stored: Any, about: str, file: Path) -> str:
    """A pattern that stays in the folder."""
    path = PurePosixPath(stored) if isinstance(stored, str) else None
    if path is None or _EPISODE not in path.as_posix():
        raise ValueError(
            f"expected a pattern with {_EPISODE} for {about!r:.80} in {file}, but {_short(stored)} "
            "came; mend it"
        )
    pattern = path.as_posix()
    out = path.is_absolute() or ".." in path.parts or "\\" in pattern or re.match(r".:", pattern)
    if out or not pattern.isprintable():
        raise ValueError(
            f"expected a pattern within the folder for {about!r:.80} in {file}, but "
            f"{pattern!r:.80} leads out of it; mend it"
        )
    return pattern


def _text(stored: Any, about: str, file: Path) -> str:
    if not isinstance(stored, str):
        raise ValueError(
            f"expected text for {about} in {file}, but {_short(stored)} came; put it in quotes"
        )
    return stored


def _short(value: Any) -> str:
    """A value for a message; what is nested is not spelt out, as it may be without end."""
    plain = isinstance(value, str | int | float | None)
    return f"{value!r:.80}" if plain else f"a {type(value).__name__}"
