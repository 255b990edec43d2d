"""Statistics against numpy and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from robot_qsft.datasets.statistics import (
    QUANTILES,
    FeatureStatistics,
    ImageStatistics,
    combine,
    feature_statistics,
    statistics_from_json,
    statistics_to_json,
)

matrices = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 30), st.integers(1, 3)),
    elements=st.floats(-100, 100, width=32),
)


@settings(deadline=None)
@given(matrices)
def test_numbers_are_those_of_numpy(values: np.ndarray) -> None:
    statistics = feature_statistics(values)
    exact = values.astype(np.float64)
    np.testing.assert_array_equal(statistics.minimum, exact.min(axis=0))
    np.testing.assert_array_equal(statistics.maximum, exact.max(axis=0))
    np.testing.assert_allclose(statistics.mean, exact.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(statistics.std, exact.std(axis=0), atol=1e-9)
    assert statistics.count == len(values)
    for name, quantile in QUANTILES.items():
        expected = np.quantile(exact, quantile, axis=0)
        np.testing.assert_allclose(getattr(statistics, name), expected, atol=1e-9)


@settings(deadline=None)
@given(matrices, st.integers(1, 29))
def test_combined_parts_are_the_whole(values: np.ndarray, cut: int) -> None:
    if cut >= len(values):
        return
    whole = feature_statistics(values)
    parts = combine(feature_statistics(values[:cut]), feature_statistics(values[cut:]))
    for name in ("minimum", "maximum", "mean", "std", "count"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), atol=1e-9)


def test_combined_quantiles_are_weighted_by_count() -> None:
    one = feature_statistics(np.array([[1.0]]))
    three = feature_statistics(np.full((3, 1), 5.0))
    np.testing.assert_allclose(combine(one, three).q50, [4.0])


def test_frames_by_hand() -> None:
    """Two frames of one pixel row: red 0 and 255 in equal parts, green 51, blue 255 in one of 4."""
    frames = np.zeros((2, 1, 2, 3), np.uint8)
    frames[0, ..., 0] = 255
    frames[..., 1] = 51
    frames[0, 0, 0, 2] = 255
    statistics = image_statistics(frames)
    np.testing.assert_allclose(statistics.mean, [0.5, 0.2, 0.25])
    np.testing.assert_allclose(statistics.std, [0.5, 0, np.sqrt(0.1875)], atol=1e-12)
    np.testing.assert_allclose(statistics.minimum, [0, 0.2, 0])
    np.testing.assert_allclose(statistics.maximum, [1, 0.2, 1])
    np.testing.assert_allclose(statistics.q50, [0.5, 0.2, 0])
    np.testing.assert_allclose(statistics.q99, [1, 0.2, 0.97])
    assert statistics.count == 2


@settings(deadline=None, max_examples=30)
@given(hnp.arrays(np.uint8, st.tuples(*[st.integers(1, 6)] * 3, st.just(3))))
def test_frames_are_those_of_numpy(frames: np.ndarray) -> None:
    statistics = image_statistics(frames)
    flat = frames.reshape(-1, 3) / 255.0
    np.testing.assert_allclose(statistics.mean, flat.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(statistics.std, flat.std(axis=0), atol=1e-7)
    for name, quantile in QUANTILES.items():
        expected = np.quantile(flat, quantile, axis=0)
        np.testing.assert_allclose(getattr(statistics, name), expected, atol=1e-9)


def test_many_and_large_frames_are_thinned() -> None:
    frames = np.zeros((500, 1, 1, 3), np.uint8)
    assert image_statistics(frames).count == 105  # 500 ** 0.75
    frames = np.zeros((1, 400, 302, 3), np.uint8)
    frames[0, ::2, ::2] = 255  # 400 pixels are thinned by 400 // 150 = 2
    np.testing.assert_allclose(image_statistics(frames).mean, 1)


@pytest.mark.parametrize(
    ("dtype", "bound"), [("float32", float), ("int64", int), ("bool", bool), ("image", float)]
)
def test_json_form(dtype: str, bound: type) -> None:
    image = dtype == "image"
    values = np.array([[0, 1, 1], [1, 1, 0]])
    statistics = feature_statistics(values)
    stored = statistics_to_json(statistics, dtype=dtype)
    assert np.shape(stored["min"]) == ((3, 1, 1) if image else (3,))
    assert type(stored["min"][0][0][0] if image else stored["min"][0]) is bound
    assert stored["count"] == [2]
    back = statistics_from_json(stored)
    for name in ("minimum", "maximum", "mean", "std", "count", *QUANTILES):
        np.testing.assert_array_equal(getattr(back, name), getattr(statistics, name))


def image_statistics(frames: np.ndarray) -> FeatureStatistics:
    statistics = ImageStatistics(len(frames))
    assert len(list(statistics.passing(frames))) == len(frames)
    return statistics.result()


def test_no_rows() -> None:
    with pytest.raises(ValueError, match="rows x dimensions"):
        feature_statistics(np.zeros((0, 2)))
