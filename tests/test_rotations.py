"""Rotations: by hand, there and back, and numbers that are none."""

import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from robot_qsft.datasets.rotations import (
    REPRESENTATIONS,
    SIZES,
    Representation,
    from_rotation,
    to_rotation,
)

pytest.importorskip("scipy")

HALF = np.sqrt(0.5)
# A quarter turn about z takes x to y: the rows of its matrix are (0 -1 0), (1 0 0), (0 0 1).
QUARTER_ABOUT_Z = {
    "quaternion_xyzw": [0, 0, HALF, HALF],
    "quaternion_wxyz": [HALF, 0, 0, HALF],
    "axis_angle": [0, 0, np.pi / 2],
    "euler_xyz": [0, 0, np.pi / 2],
    "rotation_6d": [0, -1, 0, 1, 0, 0],
    "matrix": [0, -1, 0, 1, 0, 0, 0, 0, 1],
}
# About the fixed x axis by a quarter, then about the fixed z axis by a quarter: x goes to y, y over
# z to z, z over -y to x.
X_THEN_Z = {
    "quaternion_xyzw": [0.5, 0.5, 0.5, 0.5],
    "quaternion_wxyz": [0.5, 0.5, 0.5, 0.5],
    "axis_angle": list(np.full(3, 2 * np.pi / 3 / np.sqrt(3))),
    "euler_xyz": [np.pi / 2, 0, np.pi / 2],
    "rotation_6d": [0, 0, 1, 1, 0, 0],
    "matrix": [0, 0, 1, 1, 0, 0, 0, 1, 0],
}


def test_sizes_are_told_of_every_representation() -> None:
    assert set(SIZES) == set(REPRESENTATIONS)


@pytest.mark.parametrize("known", [QUARTER_ABOUT_Z, X_THEN_Z])
@pytest.mark.parametrize("stored", REPRESENTATIONS)
@pytest.mark.parametrize("wanted", REPRESENTATIONS)
def test_known_rotations(
    known: dict[str, list[float]], stored: Representation, wanted: Representation
) -> None:
    rotations = to_rotation(np.array([known[stored]] * 2), stored)
    np.testing.assert_allclose(from_rotation(rotations, wanted), [known[wanted]] * 2, atol=1e-12)


finite = st.floats(-1, 1)


@st.composite
def unit_quaternions(draw: st.DrawFn) -> np.ndarray:
    q = np.array(draw(st.tuples(finite, finite, finite, finite)))
    return q / np.linalg.norm(q) if np.linalg.norm(q) > 0.1 else np.array([0, 0, 0, 1.0])


@settings(max_examples=60, deadline=None)
@given(
    quaternions=st.lists(unit_quaternions(), min_size=1, max_size=4),
    by=st.sampled_from(REPRESENTATIONS),
)
def test_there_and_back_is_the_same_rotation(
    quaternions: list[np.ndarray], by: Representation
) -> None:
    """A rotation is what it does to vectors: q and -q are one, and so are many Euler angles."""
    before = to_rotation(np.array(quaternions), "quaternion_xyzw")
    values = from_rotation(before, by)
    assert values.shape == (len(quaternions), SIZES[by]) and values.dtype == np.float64
    after = to_rotation(values, by)
    np.testing.assert_allclose(after.as_matrix(), before.as_matrix(), atol=1e-6)
    # Written a second time they are the same numbers, except where angles jump at half a turn.
    if by in ("rotation_6d", "matrix"):
        np.testing.assert_allclose(from_rotation(after, by), values, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(q=unit_quaternions(), scale=st.floats(0.01, 100))
def test_quaternions_come_with_w_of_at_least_0(q: np.ndarray, scale: float) -> None:
    assume(abs(q[3]) > 1e-6)  # half turns have two quaternions that are as good
    for sign in (1, -1):
        xyzw = from_rotation(
            to_rotation(sign * scale * q[None], "quaternion_xyzw"), REPRESENTATIONS[0]
        )
        assert xyzw[0, 3] >= 0
        assert abs(xyzw[0] @ q) == pytest.approx(1)
        wxyz = from_rotation(to_rotation(sign * q[None], "quaternion_xyzw"), "quaternion_wxyz")
        np.testing.assert_allclose(wxyz[0, [1, 2, 3, 0]], xyzw[0], atol=1e-9)


def test_rows_are_made_orthonormal() -> None:
    """Rows (2 0 0), (3 4 0): the first becomes x, the second less its share of x becomes y."""
    rotations = to_rotation(np.array([[2, 0, 0, 3, 4, 0]]), "rotation_6d")
    np.testing.assert_allclose(rotations.as_matrix()[0], np.eye(3), atol=1e-12)


def test_a_right_angle_about_y_warns_nobody() -> None:
    """Then x and z turn about one axis, and only their difference, 0.1 - 0.3, is told."""
    rotations = to_rotation(np.array([[0.1, np.pi / 2, 0.3]]), "euler_xyz")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        angles = from_rotation(rotations, "euler_xyz")
    np.testing.assert_allclose(angles, [[-0.2, np.pi / 2, 0]], atol=1e-6)


def test_float32_and_many_steps() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(1000, 4)).astype(np.float32)
    np.testing.assert_allclose(
        from_rotation(to_rotation(values, "quaternion_wxyz"), "matrix")[7],
        to_rotation(values[7:8, [1, 2, 3, 0]], "quaternion_xyzw").as_matrix().reshape(9),
        atol=1e-6,
    )


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_is_told_with_its_step(representation: Representation, bad: float) -> None:
    values = np.array([QUARTER_ABOUT_Z[representation]] * 3, np.float64)
    values[2, 1] = bad
    with pytest.raises(ValueError, match=f"{representation} holds no rotation at step 2, but") as e:
        to_rotation(values, representation)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("representation", "row", "message"),
    [
        ("quaternion_xyzw", [0, 0, 0, 0], "quaternion_xyzw holds no rotation at step 1"),
        ("quaternion_wxyz", [1e200, 0, 0, 1e200], "holds no rotation at step 1"),
        ("rotation_6d", [1, 0, 0, 0, 0, 0], "holds no rotation at step 1"),
        ("rotation_6d", [1, 0, 0, -2, 0, 0], "holds no rotation at step 1"),
        ("matrix", [0] * 9, "matrix holds no rotation at step 1"),
        ("matrix", [1, 0, 0, 0, 1, 0, 0, 0, -1], "matrix holds no rotation at step 1"),
        ("matrix", [1, 0, 0, 0, 1, 0, 1, 0, 0], "matrix holds no rotation at step 1"),
        ("matrix", [1, 0, 0, 1, 0, 0, 0, 0, 1], "matrix holds no rotation at step 1"),
    ],
)
def test_what_is_no_rotation(
    representation: Representation, row: list[float], message: str
) -> None:
    values = np.array([QUARTER_ABOUT_Z[representation], row, row])
    with pytest.raises(ValueError, match=message):
        to_rotation(values, representation)


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("shape", [(2, 5), (2, 0), (4,), (1, 2, 3)])
def test_other_sizes_are_refused(representation: Representation, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"{representation} needs {SIZES[representation]} numbers"):
        to_rotation(np.ones(shape), representation)
