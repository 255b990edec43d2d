"""The files of a TFDS data set: what `dataset_info.json` says of its splits and shards."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INFO = "dataset_info.json"
_LARGEST_JSON = 64 << 20
_MOST_SHARDS = 1 << 20
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


@dataclass(frozen=True)
class Shard:
    """One TFRecord file.

    Attributes:
        split: that it belongs to.
        path: of the file.
        records: how many it should hold.
    """

    split: str
    path: Path
    records: int


def matches(path: Path) -> bool:
    """Whether the folder, or one just below it, holds a TFDS data set."""
    try:
        return any(_is_tfds(file) for file in (path / INFO, *path.glob(f"*/{INFO}")))
    except OSError:
        return False


def version_folder(path: Path) -> Path:
    """The folder of the one version that lies at a path or just below it.

    Raises:
        ValueError: when there is none, or several.
    """
    if (path / INFO).is_file():
        return path
    versions = sorted(file.parent for file in path.glob(f"*/{INFO}"))
    if not versions:
        raise ValueError(
            f"expected {INFO} in {path} or in a folder of it, but there is none; name the folder "
            "of one version, such as my_data/1.0.0"
        )
    if len(versions) > 1:
        raise ValueError(
            f"expected one version in {path}, but it has "
            f"{', '.join(version.name for version in versions[:10])}; name the folder of one"
        )
    return versions[0]


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object of bounded size.

    Raises:
        ValueError: when the file is missing, too large, or holds no JSON object.
    """
    try:
        if file.stat().st_size > _LARGEST_JSON:
            raise ValueError(f"it has more than {_LARGEST_JSON} bytes")
        stored = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"expected a JSON object in {file}, but it cannot be read ({error}); restore it"
        ) from error
    if not isinstance(stored, dict):
        raise ValueError(f"expected a JSON object in {file}, but it holds none; restore it")
    return stored


def read_shards(folder: Path, info: Mapping[str, Any]) -> tuple[Shard, ...]:
    """The shards of all splits, in the order that `dataset_info.json` has them.

    Args:
        folder: of the version.
        info: what its `dataset_info.json` holds.

    Raises:
        ValueError: when the records are in other files than TFRecord, or the splits are not told.
    """
    file = folder / INFO
    kind = info.get("fileFormat", "tfrecord")
    if kind != "tfrecord":
        raise ValueError(
            f"expected fileFormat 'tfrecord' in {file}, but {_short(kind)} came, which is not read "
            "here; convert it with 'tfds convert_format --out_file_format=tfrecord'"
        )
    name, splits = info.get("name"), info.get("splits")
    if not isinstance(name, str) or not isinstance(splits, list) or not splits:
        raise ValueError(f"expected a name and a list of splits in {file}; restore it")
    shards: list[Shard] = []
    for split in splits:
        split_name = split.get("name") if isinstance(split, dict) else None
        lengths = split.get("shardLengths", []) if isinstance(split, dict) else None
        template = (split.get("filepathTemplate") if isinstance(split, dict) else None) or _TEMPLATE
        if (
            not isinstance(split_name, str)
            or not isinstance(template, str)
            or not isinstance(lengths, list)
            or not all(_is_count(length) for length in lengths)
            or len(shards) + len(lengths) > _MOST_SHARDS
        ):
            raise ValueError(
                f"expected every split in {file} to have a name and the number of records of each "
                f"shard, but {_short(split_name)} has not; restore it"
            )
        for number, length in enumerate(lengths):
            fields = {
                "DATASET": name,
                "SPLIT": split_name,
                "FILEFORMAT": kind,
                "SHARD_INDEX": f"{number:05d}",
                "NUM_SHARDS": f"{len(lengths):05d}",
                "SHARD_X_OF_Y": f"{number:05d}-of-{len(lengths):05d}",
            }
            path = folder / _file_name(template, fields, file)
            shards.append(Shard(split_name, path, int(length)))
    return tuple(shards)


def _is_tfds(file: Path) -> bool:
    """Whether a `dataset_info.json` is that of TFDS; other libraries write files of that name."""
    if not file.is_file():
        return False
    try:
        return isinstance(read_json(file).get("splits"), list)
    except ValueError:
        # Damaged, but of that name: opening it says what is wrong.
        return True


def _is_count(stored: Any) -> bool:
    """Whether it is a whole number from 0 on, which TFDS writes as text."""
    return isinstance(stored, int | str) and re.fullmatch("[0-9]{1,12}", str(stored)) is not None


def _file_name(template: str, fields: Mapping[str, str], file: Path) -> str:
    def fill(match: re.Match[str]) -> str:
        if match[1] not in fields:
            raise ValueError(
                f"the filepathTemplate {_short(template)} in {file} asks for {_short(match[1])}, "
                "which is not known; restore the file"
            )
        return fields[match[1]]

    name = re.sub(r"\{([^{}]*)\}", fill, template)
    if not name.isprintable() or re.search(r"[/\\]", name) or name in ("", ".", ".."):
        raise ValueError(
            f"the filepathTemplate {_short(template)} in {file} leads out of the data set; "
            "restore the file"
        )
    return name


def _short(value: Any) -> str:
    """A value of a damaged file for a message; what is nested is not spelt out."""
    plain = isinstance(value, str | int | float | None)
    return f"{value!r:.80}" if plain else f"a {type(value).__name__}"
