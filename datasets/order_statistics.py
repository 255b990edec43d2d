"""Exact quantiles of more numbers than fit in memory.

Numbers are mapped to whole ones of the same order, and the k-th smallest is found digit by digit:
one pass over the data counts how many begin with which digit, the next looks at those that begin
like the one sought (radix selection).

Shape legend: D dimensions, N rows.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.statistics import QUANTILES, FeatureStatistics, feature_statistics

Chunks: TypeAlias = Callable[[], Iterable[NDArray[Any]]]

_IN_MEMORY_BYTES = 1 << 26
_DIGIT_BITS = 16
_BLOCK = 16
"""Dimensions looked at together; each takes a table of counts for every number sought."""


# Columns that are merely kept may hold infinities, whose mean and deviation are none.
@np.errstate(over="ignore", invalid="ignore")
def streamed_statistics(
    chunks: Chunks, *, rows: int, dimensions: int, in_memory_bytes: int = _IN_MEMORY_BYTES
) -> FeatureStatistics:
    """Exact statistics per dimension in bounded memory.

    Args:
        chunks: gives (n, D) arrays of one dtype, the same in the same order at every call.
        rows: N in all, at least 1.
        dimensions: D.
        in_memory_bytes: data of at most so many bytes is sorted in memory instead.
    """
    if rows * dimensions * 8 <= in_memory_bytes:
        return feature_statistics(np.concatenate(list(chunks())))
    minimum = np.full(dimensions, np.inf)
    maximum = np.full(dimensions, -np.inf)
    total = np.zeros(dimensions)
    for chunk in chunks():
        values = chunk.astype(np.float64)
        minimum = np.minimum(minimum, values.min(axis=0, initial=np.inf))
        maximum = np.maximum(maximum, values.max(axis=0, initial=-np.inf))
        total += values.sum(axis=0)
    mean = total / rows
    squares = np.zeros(dimensions)
    for chunk in chunks():
        squares += ((chunk.astype(np.float64) - mean) ** 2).sum(axis=0)
    positions = {name: q * (rows - 1) for name, q in QUANTILES.items()}
    ranks = sorted(
        {
            rank
            for position in positions.values()
            for rank in (int(position), min(int(position) + 1, rows - 1))
        }
    )
    found = np.concatenate(
        [
            _order_statistics(chunks, ranks, first, min(first + _BLOCK, dimensions))
            for first in range(0, dimensions, _BLOCK)
        ]
    )
    quantiles = {}
    for name, position in positions.items():
        below = int(position)
        part = position - below
        low = found[:, ranks.index(below)]
        high = found[:, ranks.index(min(below + 1, rows - 1))]
        quantiles[name] = (1 - part) * low + part * high if part else low
    return FeatureStatistics(
        minimum=minimum,
        maximum=maximum,
        mean=mean,
        std=np.sqrt(squares / rows),
        **quantiles,
        count=rows,
    )


def _order_statistics(
    chunks: Chunks, ranks: list[int], first: int, last: int
) -> NDArray[np.float64]:
    """The numbers of the given ranks (from 0) in dimensions `first` to `last`, (D, ranks)."""
    dtype = next(iter(chunks())).dtype
    bits = 8 * max(dtype.itemsize, 2)
    width = last - first
    prefixes = np.zeros((width, len(ranks)), np.uint64)
    remaining = np.tile(np.array(ranks, np.int64), (width, 1))
    for shift in range(bits - _DIGIT_BITS, -1, -_DIGIT_BITS):
        counts = [
            {int(prefix): np.zeros(1 << _DIGIT_BITS, np.int64) for prefix in set(row.tolist())}
            for row in prefixes
        ]
        for keys in _keys(chunks, first, last):
            for dimension, table in enumerate(counts):
                column = keys[:, dimension]
                digits = ((column >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.int64)
                if shift == bits - _DIGIT_BITS:
                    table[0] += np.bincount(digits, minlength=1 << _DIGIT_BITS)
                    continue
                above = column >> np.uint64(shift + _DIGIT_BITS)
                for prefix, count in table.items():
                    begins_alike = digits[above == np.uint64(prefix)]
                    count += np.bincount(begins_alike, minlength=1 << _DIGIT_BITS)
        for dimension in range(width):
            for place in range(len(ranks)):
                cumulative = counts[dimension][int(prefixes[dimension, place])].cumsum()
                digit = int(np.searchsorted(cumulative, remaining[dimension, place], side="right"))
                if digit:
                    remaining[dimension, place] -= cumulative[digit - 1]
                prefixes[dimension, place] = (
                    prefixes[dimension, place] << np.uint64(_DIGIT_BITS)
                ) | np.uint64(digit)
    return _from_keys(prefixes, dtype).astype(np.float64)


def _keys(chunks: Chunks, first: int, last: int) -> Iterator[NDArray[np.uint64]]:
    for chunk in chunks():
        yield _to_keys(np.ascontiguousarray(chunk[:, first:last]))


def _to_keys(values: NDArray[Any]) -> NDArray[np.uint64]:
    """Whole numbers in the order of the values."""
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind in "bu":
        return values.astype(np.uint64)
    if kind == "i":
        size = max(size, 2)
        return values.astype(f"i{size}").view(f"u{size}").astype(np.uint64) ^ _sign(size)
    bits = values.view(f"u{size}").astype(np.uint64)
    sign = _sign(size)
    # Among negative floats a larger pattern is a smaller number; -0.0 comes just before 0.0.
    mask = np.uint64((1 << (8 * size)) - 1)
    return np.where(bits & sign, ~bits & mask, bits | sign)


def _from_keys(keys: NDArray[np.uint64], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The reverse of `_to_keys`."""
    size = dtype.itemsize
    if dtype.kind in "bu":
        return keys.astype(dtype)
    if dtype.kind == "i":
        size = max(size, 2)
        return (keys ^ _sign(size)).astype(f"u{size}").view(f"i{size}").astype(dtype)
    sign = _sign(size)
    mask = np.uint64((1 << (8 * size)) - 1)
    bits = np.where(keys & sign, keys & ~sign, ~keys & mask)
    return bits.astype(f"u{size}").view(dtype)


def _sign(size: int) -> np.uint64:
    """The highest bit of a number of so many bytes."""
    return np.uint64(1 << (8 * size - 1))
