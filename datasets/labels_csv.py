"""Labels to and from a CSV table, as spreadsheets have them."""

import csv
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from robot_qsft.datasets.labels import (
    LARGEST_FILE,
    SCHEMA,
    Label,
    Labels,
    check_label,
    now_utc,
    unwritable,
)
from robot_qsft.datasets.wording import listed


def export_csv(labels: Labels, file: Path) -> None:
    """Write all labels as a table with a header, in the columns of the sidecar.

    Raises:
        ValueError: when the file cannot be written.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as opened:
            writer = csv.DictWriter(opened, SCHEMA.names)
            writer.writeheader()
            writer.writerows(asdict(label) for label in labels.values())
        temporary.replace(file)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise unwritable(file, error) from error


def import_csv(
    labels: Labels, file: Path, *, names: Sequence[str], lengths: Sequence[int], by: str
) -> int:
    """Take labels from a table with a header: all of them or, when one is wrong, none.

    The column `outcome` is needed, and `episode` or `name` or both; `success_frame`, `source`,
    `by` and `when` may be left out or empty. Labels that the episodes have are replaced.

    Args:
        labels: opened by `Labels.edit`.
        file: as `export_csv` or a spreadsheet writes it, UTF-8.
        names: what the source calls its episodes.
        lengths: steps of each.
        by: who gave the labels, where the table does not say.

    Returns:
        How many labels were taken.

    Raises:
        ValueError: naming the line that is wrong, or when a file cannot be read or written.
    """
    found: dict[int, tuple[int, Label]] = {}
    fallback = {"source": "csv", "by": by, "when": now_utc()}
    repeated = {name for name, count in Counter(names).items() if count > 1}
    indices = {name: index for index, name in enumerate(names)}
    for line, row in _rows(file):
        try:
            episode = _episode_of(row, names=names, indices=indices, repeated=repeated)
            label = _label_of(fallback | {key: text for key, text in row.items() if text})
            label = replace(label, episode=episode, name=names[episode])
            check_label(label, name=names[episode], length=lengths[episode])
            if episode in found:
                raise ValueError(
                    f"episode {episode} has a label in line {found[episode][0]} already"
                )
        except ValueError as error:
            raise ValueError(
                f"{file}, line {line}: {error}; mend the line, no label was taken"
            ) from error
        found[episode] = line, label
    labels.set(*(label for _, label in found.values()))
    return len(found)


def _rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and fields, stripped, of each row below the header."""
    if not file.is_file():
        raise ValueError(f"expected a CSV file at {file}, but there is none; mend the path")
    if file.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{file} is larger than labels ever are; name the file of the labels")
    try:
        # Spreadsheets put a byte-order mark before the header.
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.reader(opened, strict=True)
            header = [name.strip() for name in next(reader, [])]
            _check_header(file, header)
            for fields in reader:
                if not any(field.strip() for field in fields):
                    continue
                if len(fields) != len(header):
                    raise ValueError(
                        f"{file}, line {reader.line_num}: expected {len(header)} fields, but "
                        f"{len(fields)} came; mend the line, no label was taken"
                    )
                texts = (field.strip() for field in fields)
                yield reader.line_num, dict(zip(header, texts, strict=True))
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise ValueError(
            f"expected a CSV table in UTF-8 at {file}, but it cannot be read ({error}); save it "
            "as CSV again"
        ) from error


def _check_header(file: Path, header: Sequence[str]) -> None:
    wrong = [name for name in header if name not in SCHEMA.names or header.count(name) > 1]
    if wrong or "outcome" not in header or not {"episode", "name"} & set(header):
        raise ValueError(
            f"expected a header of outcome, episode or name, and maybe "
            f"success_frame, source, by, when in {file}, but {listed(header, nothing='nothing')} "
            f"came; mend {repr(wrong[0][:50]) if wrong else 'the header'}"
        )


def _episode_of(
    row: Mapping[str, str],
    *,
    names: Sequence[str],
    indices: Mapping[str, int],
    repeated: Collection[str],
) -> int:
    """The episode that a row of a CSV table means, by index or by name."""
    number, name = row.get("episode", ""), row.get("name", "")
    if number:
        episode = _whole("episode", number)
        if episode >= len(names):
            raise ValueError(f"episode {episode} came, but the source has {len(names)}")
        if name and names[episode] != name:
            raise ValueError(
                f"the source calls episode {episode} {names[episode]!r}, but {name!r} came"
            )
        return episode
    if name not in indices:
        raise ValueError(f"the source has no episode named {name!r}")
    if name in repeated:
        raise ValueError(f"several episodes are named {name!r}; tell which by its number")
    return indices[name]


def _label_of(texts: Mapping[str, str]) -> Label:
    """A label from the texts of a row; which episode it is for is found out elsewhere."""
    frame = texts.get("success_frame")
    outcome: Any = texts.get("outcome", "").casefold()
    return Label(
        episode=0,
        name="",
        outcome=outcome,
        success_frame=None if frame is None else _whole("success_frame", frame),
        source=texts["source"],
        by=texts["by"],
        when=texts["when"],
    )


def _whole(name: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,12}", text):
        raise ValueError(f"{name} should be a number from 0, but {text[:50]!r} came")
    return int(text)
