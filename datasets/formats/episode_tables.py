"""The table of one episode, in a CSV or JSON file of a person's own making.

CSV: a line of names, then one line per step; a column is numbers where every cell of the first
episode is a number, `true` or `false` (1 and 0), and text otherwise; an empty cell among numbers is
NaN. JSON: a list of steps, `[{"x": 1, "q": [0, 2]}, ...]`; or an object that has it as `"steps"`,
or columns, `{"x": [1, 3], ...}`, and tells what else holds for the episode as a whole, such as
`"success": true`.

Shape legend: T steps.
"""

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.source import Column, string_column

_LARGEST_FILE = 1 << 26
_MOST_AXES = 4
_STEPS = "steps"
_FLAGS = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True, eq=False)
class EpisodeTable:
    """What a file holds.

    Attributes:
        cells: name of a column to its T cells: text, as CSV has it, or what JSON has.
        about: what is told of the episode as a whole.
        file: for messages.
    """

    cells: Mapping[str, list[Any]]
    about: Mapping[str, Any]
    file: Path

    def columns(self) -> dict[str, Column]:
        """What every column holds.

        Raises:
            ValueError: when the vectors of a column differ in length.
        """
        return {name: _column(name, cells, self.file) for name, cells in self.cells.items()}

    def values(self, name: str, column: Column) -> NDArray[Any]:
        """A column as the first episode has it: float64 (T, *shape), or text (T,).

        Raises:
            ValueError: when it is missing, or holds something else.
        """
        cells = self.cells.get(name)
        if cells is None:
            raise ValueError(
                f"expected a column {name!r:.80} in {self.file}, as in the first episode, but it "
                "is missing; mend the table or drop the episode"
            )
        if column.dtype == "string":
            if not all(cell is None or isinstance(cell, str | int | float) for cell in cells):
                raise ValueError(
                    f"expected text or numbers in column {name!r:.80} of {self.file}, but lists or "
                    "objects came; take the column out or make it numbers"
                )
            return string_column(["" if cell is None else str(cell) for cell in cells])
        rows = []
        for number, cell in enumerate(cells):
            row = _numbers(cell)
            if row is None or row.shape != column.shape:
                raise ValueError(
                    f"expected {'a number' if not column.shape else f'{column.shape} numbers'} in "
                    f"column {name!r:.80} of {self.file} at step {number}, as in the first "
                    "episode, but something else came; mend the table or drop the episode"
                )
            rows.append(row)
        return np.array(rows, np.float64).reshape(len(cells), *column.shape)


def read_table(file: Path) -> EpisodeTable:
    """Read a CSV or JSON file, told apart by its ending.

    Raises:
        ValueError: when it is missing, too large or damaged, or has no steps.
    """
    text = read_text(file, limit=_LARGEST_FILE)
    cells, about = _parse_csv(text, file) if file.suffix == ".csv" else _parse_json(text, file)
    lengths = {name: len(column) for name, column in cells.items()}
    if not lengths or min(lengths.values()) == 0 or len(set(lengths.values())) > 1:
        came = [f"{name!r:.40} has {length}" for name, length in list(lengths.items())[:10]]
        raise ValueError(
            f"expected columns of one length, at least 1, in {file}, but "
            f"{', '.join(came) or 'no column'} came; mend the table or drop the episode"
        )
    return EpisodeTable(cells=cells, about=about, file=file)


def read_text(file: Path, *, limit: int) -> str:
    """The text of a file, of `limit` bytes at most.

    Raises:
        ValueError: when it is missing, larger, or not UTF-8.
    """
    try:
        if file.stat().st_size > limit:
            raise ValueError(
                f"expected at most {limit} bytes in {file}, but it is larger; split it"
            )
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(
            f"expected a readable file at {file}, but it is none ({error.strerror}); restore it"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"expected text in UTF-8 in {file}, but {error}; save it so") from error


def parse_rows(text: str, *, file: Path) -> tuple[list[str], list[list[str]]]:
    """The names and the rows of a CSV; empty lines do not count.

    Raises:
        ValueError: when it is no CSV, a name comes twice, or a row has more or fewer cells.
    """
    try:
        lines = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except csv.Error as error:
        raise ValueError(f"expected a CSV in {file}, but it is none ({error}); mend it") from error
    if not lines:
        raise ValueError(f"expected a line of names in {file}, but it is empty; restore it")
    names, *rows = lines
    names = [name.strip() for name in names]
    if len(set(names)) < len(names):
        raise ValueError(f"expected every name once in the first line of {file}; rename the others")
    for number, row in enumerate(rows):
        if len(row) != len(names):
            raise ValueError(
                f"expected {len(names)} cells in row {number} of {file}, but {len(row)} came; "
                "mend the table"
            )
    return names, rows


def _parse_csv(text: str, file: Path) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    names, rows = parse_rows(text, file=file)
    return {name: [row[at] for row in rows] for at, name in enumerate(names)}, {}


def _parse_json(text: str, file: Path) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    try:
        stored = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected JSON in {file}, but {error}; restore it") from error
    about: dict[str, Any] = {}
    if isinstance(stored, dict):
        listed = {name: value for name, value in stored.items() if isinstance(value, list)}
        about = {name: value for name, value in stored.items() if name not in listed}
        if _STEPS not in listed:
            return listed, about
        stored = listed[_STEPS]
    if not isinstance(stored, list) or not all(isinstance(row, dict) for row in stored):
        raise ValueError(
            f"expected a list of steps or an object of columns in {file}, but it holds neither; "
            "mend it"
        )
    names = list(stored[0]) if stored else []
    for number, row in enumerate(stored):
        if list(row) != names and set(row) != set(names):
            raise ValueError(
                f"expected the same names in every step of {file}, but step {number} has others; "
                "mend it"
            )
    return {name: [row[name] for row in stored] for name in names}, about


def _column(name: str, cells: list[Any], file: Path) -> Column:
    rows = [_numbers(cell) for cell in cells]
    numbers = [row for row in rows if row is not None]
    if len(numbers) < len(rows):
        return Column("string")
    shapes = {row.shape for row in numbers}
    if len(shapes) > 1:
        raise ValueError(
            f"expected vectors of one length in column {name!r:.80} of {file}, but "
            f"{', '.join(map(str, sorted(shapes)[:5]))} came; mend the table"
        )
    return Column("float64", shapes.pop())


def _numbers(cell: Any, axes: int = 0) -> NDArray[np.float64] | None:
    """The number, vector or matrix of a cell; None where it holds something else."""
    if not isinstance(cell, list):
        number = _number(cell)
        return None if number is None else np.array(number)
    entries = [_numbers(entry, axes + 1) for entry in cell] if axes < _MOST_AXES else []
    known = [entry for entry in entries if entry is not None]
    alike = len(known) == len(cell) > 0 and len({entry.shape for entry in known}) == 1
    return np.stack(known) if alike else None


def _number(cell: Any) -> float | None:
    if isinstance(cell, str):
        cell = cell.strip().lower()
        if not cell:
            return math.nan
        if cell in _FLAGS:
            return _FLAGS[cell]
    if cell is None:
        return math.nan
    if not isinstance(cell, str | int | float):
        return None
    try:
        return float(cell)
    except (ValueError, OverflowError):
        return None
