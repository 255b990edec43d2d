"""Exact statistics in bounded memory, against sorting."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from robot_qsft.datasets.order_statistics import streamed_statistics
from robot_qsft.datasets.statistics import QUANTILES, FeatureStatistics, feature_statistics

DTYPES = [
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64"),
]


def streamed(values_ND: np.ndarray, *cuts: int) -> FeatureStatistics:
    """As if nothing fitted into memory, in pieces that end at `cuts`."""
    passes = 0

    def chunks() -> Iterator[np.ndarray]:
        nonlocal passes
        passes += 1
        yield from np.split(values_ND, cuts)

    statistics = streamed_statistics(
        chunks, rows=len(values_ND), dimensions=values_ND.shape[1], in_memory_bytes=0
    )
    assert passes > 2
    return statistics


def brute_force(values_ND: np.ndarray) -> dict[str, np.ndarray]:
    """Quantiles between the sorted numbers, written out."""
    ordered = np.sort(values_ND, axis=0).astype(np.float64)
    found = {}
    for name, q in QUANTILES.items():
        position = q * (len(ordered) - 1)
        low = int(np.floor(position))
        high = min(low + 1, len(ordered) - 1)
        part = position - low
        found[name] = (1 - part) * ordered[low] + part * ordered[high]
    return found


def check(values_ND: np.ndarray, *cuts: int) -> None:
    found = streamed(values_ND, *cuts)
    for name, expected in brute_force(values_ND).items():
        np.testing.assert_array_equal(getattr(found, name), expected, err_msg=name)
    whole = feature_statistics(values_ND)
    np.testing.assert_array_equal(found.minimum, whole.minimum)
    np.testing.assert_array_equal(found.maximum, whole.maximum)
    scale = max(1.0, float(np.abs(values_ND.astype(np.float64)).max()))
    np.testing.assert_allclose(found.mean / scale, whole.mean / scale, atol=1e-12)
    np.testing.assert_allclose(found.std / scale, whole.std / scale, atol=1e-12)
    assert found.count == len(values_ND)


def test_by_hand() -> None:
    """Of 0 to 100, 1% is 1 and 99% is 99; of 5, 3, 1 the median is 3, and 10% is 1 + 0.2 * 2."""
    values = np.random.default_rng(0).permutation(101).astype(np.float32)
    one = streamed(values[:, None], 17, 60)
    assert (one.q01, one.q10, one.q50, one.q90, one.q99) == (1, 10, 50, 90, 99)
    assert (one.minimum, one.maximum, one.mean) == (0, 100, 50)
    assert one.std[0] == pytest.approx(np.sqrt((101**2 - 1) / 12))
    two = streamed(np.array([[5], [3], [1]], np.int8))
    assert two.q50 == 3 and two.q10[0] == pytest.approx(1.4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "dimensions"), [(1, 1), (2, 3), (101, 2), (997, 1)])
def test_like_sorting_for_every_dtype(dtype: str, rows: int, dimensions: int) -> None:
    rng = np.random.default_rng(rows)
    if np.dtype(dtype).kind == "f":
        values = (rng.normal(size=(rows, dimensions)) * 100).astype(dtype)
    elif dtype == "bool":
        values = rng.random((rows, dimensions)) > 0.7
    else:
        about = np.iinfo(dtype)
        values = rng.integers(about.min, about.max, (rows, dimensions), dtype, endpoint=True)
    check(values, rows // 3)


def test_more_dimensions_than_are_looked_at_together() -> None:
    values = np.random.default_rng(1).normal(size=(50, 35)).astype(np.float32)
    check(values * np.arange(35, dtype=np.float32), 20)


@pytest.mark.parametrize(
    "values",
    [
        np.array([-0.0, 0.0, -0.0, 0.0, 1e-45, -1e-45], np.float32),
        np.array([np.finfo(np.float32).max, np.finfo(np.float32).min, 0, -1, 1], np.float32),
        np.array([7.0] * 300 + [7.5], np.float64),
        np.array([0.1] * 3),
        np.array([-(2**63), 2**63 - 1, 0, -1, 1], np.int64),
        np.array([-(2**63)] * 5 + [-(2**63) + 1], np.int64),
        np.array([0, 2**64 - 1, 2**63, 2**63 - 1], np.uint64),
        np.array([-128, 127, 0, -1], np.int8),
        np.array([False, True, True]),
        np.array([6e-8, 65504, -65504, -6e-8], np.float16),
        np.array([2.0**-1074, -(2.0**-1074), 1e150, -1e150]),
    ],
)
def test_numbers_at_the_edge(values: np.ndarray) -> None:
    check(values[:, None])
    check(np.stack([values, values[::-1]], axis=1), 1)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_infinities_are_ordered_too(dtype: str) -> None:
    """Of 101 numbers, 60 of them infinite: positions of the quantiles are whole numbers."""
    values = np.concatenate([np.arange(41), [np.inf] * 30, [-np.inf] * 30]).astype(dtype)
    found = streamed(np.random.default_rng(0).permutation(values)[:, None], 50)
    assert (found.minimum, found.maximum) == (-np.inf, np.inf)
    assert found.q50 == 20  # thirty are below 0, so the fiftieth from 0 on is 20
    assert (found.q10, found.q90) == (-np.inf, np.inf)
    assert np.isnan(found.mean)
    # The number after a quantile is no part of it where the quantile is a number itself.
    assert streamed(np.array([0, 1, np.inf], dtype)[:, None]).q50 == 1


def test_empty_pieces_are_passed_over() -> None:
    values = np.arange(6, dtype=np.int64).reshape(3, 2)
    check(values, 0, 0, 2, 2, 3)


def test_what_fits_is_sorted_in_memory() -> None:
    values = np.random.default_rng(2).normal(size=(20, 3))
    passes: list[int] = []

    def chunks() -> Iterator[np.ndarray]:
        passes.append(1)
        yield from (values[:5], values[5:])

    found = streamed_statistics(chunks, rows=20, dimensions=3)
    assert len(passes) == 1
    np.testing.assert_array_equal(found.q90, feature_statistics(values).q90)
    np.testing.assert_array_equal(found.std, feature_statistics(values).std)


def _arrays(dtype: str) -> st.SearchStrategy[np.ndarray]:
    elements: dict[str, Any] = {}
    if np.dtype(dtype).kind == "f":
        # Larger ones overflow in the square, here as in memory.
        largest = {"float16": 6e4, "float32": 2.0**127, "float64": 1e150}[dtype]
        elements = {"min_value": -largest, "max_value": largest}
    shape = hnp.array_shapes(min_dims=2, max_dims=2, max_side=6)
    return hnp.arrays(dtype, shape, elements=elements, fill=st.nothing())


@settings(max_examples=80, deadline=None)
@given(values=st.sampled_from(DTYPES).flatmap(_arrays), data=st.data())
def test_like_sorting_whatever_the_numbers(values: np.ndarray, data: st.DataObject) -> None:
    check(values, data.draw(st.integers(0, len(values))))
