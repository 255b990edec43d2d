"""State and action vectors from the columns of a recording, as a field map asks for them.

Shape legend: D entries of a vector, R numbers of a rotation, T steps.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.field_map import UNITS, Part
from robot_qsft.datasets.rotations import SIZES, from_rotation, to_rotation
from robot_qsft.datasets.source import Column, Columns


def vector_of(parts: Sequence[Part], columns: Columns) -> NDArray[Any]:
    """The parts laid end to end, (T, D).

    A single column that is taken as it is keeps its dtype; all else becomes float32.

    Raises:
        ValueError: when there is no such column or entry, or a conversion is impossible.
    """
    if len(parts) == 1 and _untouched(parts[0]):
        return _flat(parts[0], columns)
    return np.concatenate([_converted(part, columns) for part in parts], axis=1).astype(np.float32)


def dtype_of(parts: Sequence[Part], columns: Mapping[str, Column]) -> str:
    """The dtype of what `vector_of` gives."""
    if len(parts) == 1 and _untouched(parts[0]):
        return columns[parts[0].column].dtype
    return "float32"


def names_of(parts: Sequence[Part], columns: Mapping[str, Column]) -> tuple[str, ...]:
    """One name per entry of `vector_of`.

    Raises:
        ValueError: when a column is missing, text, or has no such entry, or the names of a part
            are too many or too few.
    """
    return tuple(name for part in parts for name in _part_names(part, columns))


def merged_actions(
    parts: Sequence[Part], actions_TD: NDArray[Any], steps: NDArray[np.int64], *, rows: int
) -> NDArray[Any]:
    """One action for each of fewer steps: differences add up, of targets the last one counts.

    Args:
        parts: of the action, each with its `kind`.
        actions_TD: at the full rate, (T, D).
        steps: rows that are kept, ascending from 0.
        rows: T.

    Raises:
        ValueError: when a part does not say its kind.
    """
    ends = np.append(steps[1:], rows)
    merged, first = [], 0
    for part in parts:
        last = first + _size(part, actions_TD.shape[1] - first, only=len(parts) == 1)
        values = actions_TD[:, first:last]
        kind = part.convert or part.kind
        if not kind:
            raise ValueError(
                f"resampling needs to know whether {part.column!r} holds targets or differences; "
                "add 'kind: absolute' or 'kind: delta' to the field map"
            )
        if kind == "absolute":
            merged.append(values[ends - 1])
        elif part.rotation:
            merged.append(_composed(part, values, steps, ends))
        else:
            merged.append(np.add.reduceat(values, steps, axis=0).astype(values.dtype))
        first = last
    return np.concatenate(merged, axis=1).astype(actions_TD.dtype)


def _composed(
    part: Part, values: NDArray[Any], steps: NDArray[np.int64], ends: NDArray[np.int64]
) -> NDArray[np.float64]:
    representation = part.to_rotation or part.rotation
    assert representation
    rotations = to_rotation(values, representation)
    totals = []
    for begin, end in zip(steps.tolist(), ends.tolist(), strict=True):
        total = rotations[begin : begin + 1]
        for step in range(begin + 1, end):
            total = rotations[step] * total
        totals.append(from_rotation(total, representation))
    return np.concatenate(totals)


def _untouched(part: Part) -> bool:
    return not (part.entries or part.to_unit or part.to_rotation or part.convert)


def _size(part: Part, rest: int, *, only: bool) -> int:
    if only:
        return rest
    if part.rotation:
        return SIZES[part.to_rotation or part.rotation]
    if part.entries:
        return len(part.entries)
    assert part.names, "the caller fills in names"
    return len(part.names)


def _flat(part: Part, columns: Columns) -> NDArray[Any]:
    if part.column not in columns:
        raise ValueError(
            f"the field map asks for the column {part.column!r}, but there are only "
            f"{', '.join(sorted(columns))}; mend the map"
        )
    column = columns[part.column]
    if column.dtype == object:
        raise ValueError(f"the column {part.column!r} is text, not numbers; mend the field map")
    flat = column.reshape(len(column), -1)
    if not part.entries:
        return flat
    for entry in part.entries:
        if not 0 <= entry < flat.shape[1]:
            raise ValueError(
                f"the field map asks for entry {entry} of {part.column!r}, which has "
                f"{flat.shape[1]} (from 0 on); mend the map"
            )
    return flat[:, list(part.entries)]


def _converted(part: Part, columns: Columns) -> NDArray[np.float64]:
    """The part in float64, (T, D), in the units and representation asked for."""
    values: NDArray[np.float64] = _flat(part, columns).astype(np.float64)
    if part.to_unit:
        values = values * (UNITS[part.unit][1] / UNITS[part.to_unit][1])
    if not part.rotation:
        if part.reference is None:
            return values
        reference = _converted(part.reference, columns)
        if reference.shape != values.shape:
            raise ValueError(
                f"{part.column!r} has {values.shape[1]} entries, but its reference "
                f"{part.reference.column!r} has {reference.shape[1]}; mend the field map"
            )
        return values - reference if part.convert == "delta" else values + reference
    try:
        rotations = to_rotation(values, part.rotation)
        if part.reference is not None:
            stored = part.reference.to_rotation or part.reference.rotation
            if not stored:
                raise ValueError(f"the reference of {part.column!r} needs a 'rotation'")
            reference_rotations = to_rotation(_converted(part.reference, columns), stored)
            if part.convert == "delta":
                reference_rotations = reference_rotations.inv()
            rotations = rotations * reference_rotations
    except ValueError as error:
        raise ValueError(f"{part.column!r}: {error}") from error
    return from_rotation(rotations, part.to_rotation or part.rotation)


def _part_names(part: Part, columns: Mapping[str, Column]) -> tuple[str, ...]:
    if part.column not in columns:
        raise ValueError(
            f"the field map asks for the column {part.column!r}, but there are only "
            f"{', '.join(sorted(columns))}; mend the map"
        )
    column = columns[part.column]
    if column.dtype == "string":
        raise ValueError(f"the column {part.column!r} is text, not numbers; mend the field map")
    size = int(np.prod(column.shape, dtype=np.int64))
    entries = part.entries or tuple(range(size))
    if max(entries) >= size or min(entries) < 0:
        raise ValueError(
            f"the field map asks for entry {max(entries)} of {part.column!r}, which has {size} "
            "(from 0 on); mend the map"
        )
    if part.rotation and len(entries) != SIZES[part.rotation]:
        raise ValueError(
            f"{part.rotation} needs {SIZES[part.rotation]} numbers, but {len(entries)} entries of "
            f"{part.column!r} come; mend the field map"
        )
    resulting = SIZES[part.to_rotation] if part.to_rotation else len(entries)
    if part.names:
        if len(part.names) != resulting:
            raise ValueError(
                f"{part.column!r} has {len(part.names)} names for {resulting} entries; "
                "mend the field map"
            )
        return part.names
    own = column.names if len(column.names) == size else ()
    if own and not part.to_rotation:
        return tuple(own[entry] for entry in entries)
    stem = part.column.removeprefix("observation.").split("/")[-1]
    if part.to_rotation:
        return tuple(f"{stem}_{part.to_rotation}_{number}" for number in range(resulting))
    return (stem,) if size == 1 else tuple(f"{stem}_{entry}" for entry in entries)
