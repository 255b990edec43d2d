"""State and action vectors from the columns of a recording, as a field map asks for them.

Shape legend: D entries of a vector, R numbers of a part as stored, T steps.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.field_map import UNITS, Part
from robot_qsft.datasets.rotations import (
    ANGLES,
    SIZES,
    Representation,
    from_rotation,
    to_rotation,
)
from robot_qsft.datasets.source import Column, Columns
from robot_qsft.datasets.wording import listed


def vector_of(parts: Sequence[Part], columns: Columns) -> NDArray[Any]:
    """The parts laid end to end, (T, D).

    A single column that is taken as it is keeps its dtype; all else becomes float32.

    Args:
        parts: that `names_of` has nothing against.
        columns: of a recording, T rows.

    Raises:
        ValueError: when entries should be a rotation and are none.
    """
    if len(parts) == 1 and _untouched(parts[0]):
        return _flat(parts[0], columns)
    return _float32([_converted(part, columns) for part in parts])


def dtype_of(parts: Sequence[Part], columns: Mapping[str, Column]) -> str:
    """The dtype of what `vector_of` gives."""
    if len(parts) == 1 and _untouched(parts[0]):
        return columns[parts[0].column].dtype
    return "float32"


def names_of(parts: Sequence[Part], columns: Mapping[str, Column]) -> tuple[str, ...]:
    """One name per entry of `vector_of`.

    Raises:
        ValueError: when a column is missing, text, or has no such entry, the names of a part are
            too many or too few, or a reference does not fit.
    """
    return tuple(name for part in parts for name in _part_names(part, columns))


def check_kinds(parts: Sequence[Part]) -> None:
    """Refuse actions that `merged_actions` cannot merge.

    Raises:
        ValueError: when a part says neither `kind` nor `convert`.
    """
    for part in parts:
        if not (part.kind or part.convert):
            raise ValueError(
                f"resampling needs to know whether {part.column!r} holds targets or differences; "
                "add 'kind: absolute' or 'kind: delta' to the field map"
            )


def merged_actions(
    parts: Sequence[Part], columns: Columns, steps: NDArray[np.int64]
) -> NDArray[Any]:
    """One action for each of fewer steps: differences add up, of targets the last one counts.

    Of a target that is to become a difference, too, the last one counts, measured from the
    reference where the longer step begins: that is not the sum, as the robot was on its way.

    Args:
        parts: of the action, that `check_kinds` has nothing against.
        columns: at the full rate, T rows.
        steps: rows that are kept, ascending from 0.

    Raises:
        ValueError: as `vector_of` does, or when whole numbers add up to more than their dtype
            holds.
    """
    ends = np.append(steps[1:], len(next(iter(columns.values()))))
    if len(parts) == 1 and _untouched(parts[0]):
        return _merged(parts[0], columns, steps, ends)
    return _float32([_merged(part, columns, steps, ends) for part in parts])


def _merged(
    part: Part, columns: Columns, steps: NDArray[np.int64], ends: NDArray[np.int64]
) -> NDArray[Any]:
    """One part at fewer steps; of the dtype of its column where it is untouched."""
    if part.convert == "delta":
        return _converted(part, columns, rows=ends - 1, reference_rows=steps)
    if part.convert == "absolute" or part.kind == "absolute":
        whole = _flat(part, columns) if _untouched(part) else _converted(part, columns)
        return whole[ends - 1]
    if part.rotation:
        rotations = _rotations(part, columns)
        totals = []
        for begin, end in zip(steps.tolist(), ends.tolist(), strict=True):
            total = rotations[begin : begin + 1]
            for step in range(begin + 1, end):
                total = rotations[step] * total
            totals.append(_stored(part, total))
        merged = np.concatenate(totals)
        return merged.astype(columns[part.column].dtype) if _untouched(part) else merged
    values = _flat(part, columns) if _untouched(part) else _converted(part, columns)
    sums: NDArray[Any] = np.add.reduceat(values, steps, axis=0)
    merged = sums.astype(values.dtype)
    if values.dtype.kind != "f" and not np.array_equal(merged, sums):
        raise ValueError(
            f"the differences in {part.column!r} add up to more than {values.dtype} holds; leave "
            "resample_fps out, or record them as float32"
        )
    return merged


def _untouched(part: Part) -> bool:
    return not (part.entries or part.to_unit or part.to_rotation or part.convert)


def _float32(values: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    # What is too large becomes infinite, which whoever reads the vectors refuses.
    with np.errstate(over="ignore"):
        return np.concatenate(values, axis=1).astype(np.float32)


def _flat(part: Part, columns: Columns) -> NDArray[Any]:
    """The entries of a part as they are stored, (T, R)."""
    column = columns[part.column]
    flat = column.reshape(len(column), -1)
    return flat[:, list(part.entries)] if part.entries else flat


def _converted(
    part: Part,
    columns: Columns,
    *,
    rows: NDArray[np.int64] | None = None,
    reference_rows: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """The part in float64, (T, D), in the units and representation asked for.

    Args:
        part: to be converted.
        columns: of the source.
        rows: of it that are taken, T in all; None for all.
        reference_rows: that its reference is taken at; None for the same.
    """
    rows = np.arange(len(columns[part.column])) if rows is None else rows
    reference_rows = rows if reference_rows is None else reference_rows
    reference = part.reference
    if part.rotation:
        rotations = _rotations(part, columns)[rows]
        if reference is not None:
            measured_from = _rotations(reference, columns)[reference_rows]
            if part.convert == "delta":
                measured_from = measured_from.inv()
            rotations = rotations * measured_from
        return _stored(part, rotations)
    values: NDArray[np.float64] = _flat(part, columns)[rows].astype(np.float64)
    if part.to_unit:
        values = values * (UNITS[part.unit][1] / UNITS[part.to_unit][1])
    if reference is None:
        return values
    start = _converted(reference, columns, rows=reference_rows)
    return values - start if part.convert == "delta" else values + start


def _rotations(part: Part, columns: Columns) -> Any:
    """T rotations (`scipy.spatial.transform.Rotation`)."""
    assert part.rotation
    values = _flat(part, columns).astype(np.float64) * _radians(part.unit, part.rotation)
    try:
        return to_rotation(values, part.rotation)
    except ValueError as error:
        raise ValueError(f"{part.column!r}: {error}") from error


def _stored(part: Part, rotations: Any) -> NDArray[np.float64]:
    """Rotations in the representation and unit that a part asks for."""
    representation = part.to_rotation or part.rotation
    assert representation
    return from_rotation(rotations, representation) / _radians(
        part.to_unit or part.unit, representation
    )


def _radians(unit: str, representation: Representation) -> float:
    """What a number of a representation is multiplied by to be in radians, if it is an angle."""
    return UNITS[unit][1] if unit and representation in ANGLES else 1.0


def _part_names(part: Part, columns: Mapping[str, Column]) -> tuple[str, ...]:
    column, entries = _entries(part, columns)
    resulting = SIZES[part.to_rotation] if part.to_rotation else len(entries)
    reference = part.reference
    if reference is not None:
        # Rotations may differ in representation, so long as each has its own size.
        size = len(_entries(reference, columns)[1])
        if not part.rotation and size != len(entries):
            raise ValueError(
                f"{part.column!r} has {len(entries)} entries, but its reference "
                f"{reference.column!r} has {size}; mend the field map"
            )
    if part.names:
        if len(part.names) != resulting:
            raise ValueError(
                f"{part.column!r} has {len(part.names)} names for {resulting} entries; "
                "mend the field map"
            )
        return part.names
    size = math.prod(column.shape)
    own = column.names if len(column.names) == size else ()
    if own and not part.to_rotation:
        return tuple(own[entry] for entry in entries)
    stem = part.column.removeprefix("observation.").split("/")[-1]
    if part.to_rotation:
        return tuple(f"{stem}_{part.to_rotation}_{number}" for number in range(resulting))
    return (stem,) if size == 1 else tuple(f"{stem}_{entry}" for entry in entries)


def _entries(part: Part, columns: Mapping[str, Column]) -> tuple[Column, tuple[int, ...]]:
    """The column of a part, and which entries are taken of it, as they are stored."""
    if part.column not in columns:
        raise ValueError(
            f"the field map asks for the column {part.column!r}, but there are only "
            f"{listed(sorted(columns))}; mend the map"
        )
    column = columns[part.column]
    if column.dtype == "string":
        raise ValueError(f"the column {part.column!r} is text, not numbers; mend the field map")
    size = math.prod(column.shape)
    entries = part.entries or tuple(range(size))
    if not entries:
        raise ValueError(f"the column {part.column!r} has no entries; take it out of the field map")
    for entry in entries:
        if not 0 <= entry < size:
            raise ValueError(
                f"the field map asks for entry {entry} of {part.column!r}, which has {size} "
                "(from 0 on); mend the map"
            )
    if part.rotation and len(entries) != SIZES[part.rotation]:
        raise ValueError(
            f"{part.rotation} needs {SIZES[part.rotation]} numbers, but {len(entries)} entries of "
            f"{part.column!r} come; mend the field map"
        )
    return column, entries
