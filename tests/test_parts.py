"""Vectors from columns: entries, units, rotations, differences, fewer steps; by hand."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from robot_qsft.datasets.field_map import Part
from robot_qsft.datasets.parts import (
    check_kinds,
    dtype_of,
    merged_actions,
    names_of,
    vector_of,
)
from robot_qsft.datasets.rotations import REPRESENTATIONS, SIZES, from_rotation, to_rotation
from robot_qsft.datasets.source import Column, string_column

T = 4
COLUMNS: dict[str, np.ndarray] = {
    "pos": np.arange(12, dtype=np.float64).reshape(T, 3),
    "force": np.arange(24, dtype=np.float32).reshape(T, 2, 3),
    "grip": np.array([0, 1, 1, 0], np.int64),
    "flag": np.array([True, False, True, False]),
    "text": string_column(["a", "b", "c", "d"]),
}
INFO = {
    "pos": Column("float64", (3,), ("x", "y", "z")),
    "force": Column("float32", (2, 3)),
    "grip": Column("int64"),
    "flag": Column("bool"),
    "text": Column("string"),
    "none": Column("float32", (0,)),
}


def test_a_column_taken_as_it_is_keeps_its_dtype_and_bits() -> None:
    for name in ("pos", "force", "grip", "flag"):
        parts = [Part(name, names=names_of([Part(name)], INFO))]
        vector = vector_of(parts, COLUMNS)
        assert vector.dtype == COLUMNS[name].dtype == dtype_of(parts, INFO)
        np.testing.assert_array_equal(vector, COLUMNS[name].reshape(T, -1))


def test_parts_are_laid_end_to_end_in_float32() -> None:
    parts = [Part("force", entries=(5, 0)), Part("grip"), Part("pos", entries=(2,))]
    vector = vector_of(parts, COLUMNS)
    assert vector.dtype == np.float32 and dtype_of(parts, INFO) == "float32"
    # Row t of force is 6t to 6t + 5.
    np.testing.assert_array_equal(
        vector, [[5, 0, 0, 2], [11, 6, 1, 5], [17, 12, 1, 8], [23, 18, 0, 11]]
    )
    assert dtype_of([Part("pos", entries=(0,))], INFO) == "float32"


def test_numbers_too_large_for_float32_become_infinite() -> None:
    vector = vector_of([Part("x", entries=(0,))], {"x": np.array([[1e300], [-1e300]])})
    assert vector.tolist() == [[np.inf], [-np.inf]]


@pytest.mark.parametrize(
    ("unit", "to_unit", "factor"),
    [
        ("mm", "m", 1e-3),
        ("cm", "m", 1e-2),
        ("m", "mm", 1e3),
        ("cm", "mm", 10),
        ("deg", "rad", np.pi / 180),
        ("rad", "deg", 180 / np.pi),
        ("m", "m", 1),
    ],
)
def test_units(unit: str, to_unit: str, factor: float) -> None:
    vector = vector_of([Part("pos", unit=unit, to_unit=to_unit)], COLUMNS)
    assert vector.dtype == np.float32
    np.testing.assert_allclose(vector, COLUMNS["pos"] * factor, rtol=1e-6)


def test_a_unit_alone_changes_nothing() -> None:
    np.testing.assert_array_equal(vector_of([Part("pos", unit="mm")], COLUMNS), COLUMNS["pos"])


def test_names() -> None:
    def names(*parts: Part) -> tuple[str, ...]:
        return names_of(parts, INFO)

    assert names(Part("pos", entries=(2, 0)), Part("grip")) == ("z", "x", "grip")
    assert names(Part("force", entries=(4,))) == ("force_4",)
    assert names(Part("force")) == tuple(f"force_{entry}" for entry in range(6))
    assert names(Part("pos", names=("a", "b", "c"))) == ("a", "b", "c")
    euler = Part("pos", rotation="euler_xyz")
    assert names(euler) == ("x", "y", "z")
    to_quaternion = Part("pos", rotation="euler_xyz", to_rotation="quaternion_xyzw")
    assert names(to_quaternion) == tuple(f"pos_quaternion_xyzw_{entry}" for entry in range(4))
    assert names_of([Part("observation.arm/ee")], {"observation.arm/ee": Column("int8", (2,))}) == (
        "ee_0",
        "ee_1",
    )


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Part("speed"), "asks for the column 'speed', but there are only flag, force, grip"),
        (Part("text"), "the column 'text' is text, not numbers; mend the field map"),
        (Part("none"), "the column 'none' has no entries; take it out of the field map"),
        (Part("pos", entries=(0, 3)), r"entry 3 of 'pos', which has 3 \(from 0 on\); mend the map"),
        (Part("pos", entries=(-1, 7)), "asks for entry -1 of 'pos', which has 3"),
        (Part("pos", names=("x",)), "'pos' has 1 names for 3 entries; mend the field map"),
        (
            Part("pos", rotation="euler_xyz", to_rotation="matrix", names=("a", "b", "c")),
            "'pos' has 3 names for 9 entries",
        ),
        (
            Part("pos", rotation="quaternion_xyzw"),
            "quaternion_xyzw needs 4 numbers, but 3 entries of 'pos' come; mend the field map",
        ),
        (
            Part("pos", convert="delta", reference=Part("speed")),
            "asks for the column 'speed', but there are only",
        ),
        (
            Part("pos", convert="delta", reference=Part("force")),
            "'pos' has 3 entries, but its reference 'force' has 6; mend the field map",
        ),
        (
            Part(
                "pos",
                rotation="euler_xyz",
                convert="delta",
                reference=Part("force", rotation="matrix"),
            ),
            "matrix needs 9 numbers, but 6 entries of 'force' come",
        ),
    ],
)
def test_parts_that_do_not_fit_the_columns(part: Part, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        names_of([Part("grip"), part], INFO)
    assert "\n" not in str(caught.value)


def test_rotations_in_degrees_come_out_as_asked_for() -> None:
    """A quarter turn about x, stored in degrees."""
    columns = {"r": np.array([[90.0, 0, 0]] * 2)}

    def converted(**how: Any) -> np.ndarray:
        return vector_of([Part("r", **{"rotation": "euler_xyz", "unit": "deg", **how})], columns)[1]

    half = np.sqrt(0.5)
    np.testing.assert_allclose(
        converted(to_rotation="quaternion_xyzw"), [half, 0, 0, half], atol=1e-6
    )
    np.testing.assert_allclose(
        converted(to_rotation="axis_angle", to_unit="rad"), [np.pi / 2, 0, 0], atol=1e-6
    )
    np.testing.assert_allclose(converted(to_rotation="axis_angle"), [90, 0, 0], atol=1e-4)
    np.testing.assert_allclose(
        converted(unit="rad", to_unit="deg"),
        np.rad2deg(from_rotation(to_rotation(columns["r"], "euler_xyz"), "euler_xyz"))[1],
        atol=1e-4,
    )
    np.testing.assert_array_equal(converted(), [90, 0, 0])  # nothing is asked for


def test_what_is_no_rotation_is_told_with_column_and_step() -> None:
    columns = {"q": np.array([[0, 0, 0, 1], [0, 0, 0, 0.0]])}
    part = Part("q", rotation="quaternion_xyzw", to_rotation="matrix")
    with pytest.raises(ValueError, match="'q': quaternion_xyzw holds no rotation at step 1"):
        vector_of([part], columns)


def test_differences_from_the_state_by_hand() -> None:
    columns = {"a": np.array([[100.0, 20], [130, 10]]), "s": np.array([[0.04, 0.5], [0.1, 0.02]])}
    reference = Part("s")
    part = Part("a", unit="mm", to_unit="m", convert="delta", reference=reference)
    np.testing.assert_allclose(
        vector_of([part], columns), [[0.06, -0.48], [0.03, -0.01]], atol=1e-7
    )
    back = Part("a", unit="mm", to_unit="m", convert="absolute", reference=reference)
    np.testing.assert_allclose(vector_of([back], columns), [[0.14, 0.52], [0.23, 0.03]], atol=1e-7)


def test_difference_of_rotations_is_in_the_base_frame() -> None:
    """From a quarter turn about z, a further quarter about the base's x, not the tool's."""
    state = to_rotation(np.array([[0, 0, np.pi / 2]]), "axis_angle")
    turn = to_rotation(np.array([[np.pi / 2, 0, 0]]), "axis_angle")
    columns = {
        "a": from_rotation(turn * state, "matrix"),
        "s": from_rotation(state, "quaternion_wxyz"),
    }
    reference = Part("s", rotation="quaternion_wxyz")
    part = Part(
        "a", rotation="matrix", to_rotation="axis_angle", convert="delta", reference=reference
    )
    np.testing.assert_allclose(vector_of([part], columns), [[np.pi / 2, 0, 0]], atol=1e-6)


rows = st.integers(1, 4)
floats = st.floats(-10, 10, width=32)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), rows=rows)
def test_delta_and_absolute_there_and_back(data: st.DataObject, rows: int) -> None:
    action = data.draw(hnp.arrays(np.float32, (rows, 3), elements=floats))
    state = data.draw(hnp.arrays(np.float32, (rows, 3), elements=floats))
    columns = {"a": action, "s": state}
    delta = vector_of([Part("a", convert="delta", reference=Part("s"))], columns)
    np.testing.assert_allclose(delta, action.astype(np.float64) - state, atol=1e-5)
    back = vector_of([Part("a", convert="absolute", reference=Part("s"))], {"a": delta, "s": state})
    np.testing.assert_allclose(back, action, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    rows=rows,
    stored=st.sampled_from(REPRESENTATIONS),
    between=st.sampled_from(REPRESENTATIONS),
    of_state=st.sampled_from(REPRESENTATIONS),
)
def test_delta_and_absolute_there_and_back_of_rotations(
    data: st.DataObject, rows: int, stored: Any, between: Any, of_state: Any
) -> None:
    def turns() -> Any:
        # Quaternions whose w is not 0, so that none of them is nothing.
        return to_rotation(
            np.concatenate(
                [data.draw(hnp.arrays(np.float64, (rows, 3), elements=floats)), np.ones((rows, 1))],
                axis=1,
            ),
            "quaternion_xyzw",
        )

    actions, states = turns(), turns()
    columns = {"a": from_rotation(actions, stored), "s": from_rotation(states, of_state)}
    reference = Part("s", rotation=of_state)
    delta = vector_of(
        [Part("a", rotation=stored, to_rotation=between, convert="delta", reference=reference)],
        columns,
    )
    assert delta.shape == (rows, SIZES[between])
    back = vector_of(
        [
            Part(
                "a", rotation=between, to_rotation="matrix", convert="absolute", reference=reference
            )
        ],
        columns | {"a": delta},
    )
    np.testing.assert_allclose(back, from_rotation(actions, "matrix"), atol=1e-4)


# Six steps merged into three: rows 0 and 1, rows 2 to 4, row 5.
STEPS = np.array([0, 2, 5])


def merged(part: Part, columns: dict[str, np.ndarray]) -> np.ndarray:
    return merged_actions([part], columns, STEPS)


def test_differences_add_up_and_of_targets_the_last_counts() -> None:
    column = np.array([[1, 10], [2, 20], [4, 40], [8, 80], [16, 160], [32, 320]], np.float64)
    columns = {"a": column}
    delta = merged(Part("a", kind="delta"), columns)
    assert delta.dtype == np.float64 and delta.tolist() == [[3, 30], [28, 280], [32, 320]]
    absolute = merged(Part("a", kind="absolute"), columns)
    assert absolute.dtype == np.float64 and absolute.tolist() == [[2, 20], [16, 160], [32, 320]]
    both = merged_actions(
        [
            Part("a", entries=(1,), kind="absolute"),
            Part("a", entries=(0,), unit="cm", to_unit="mm", kind="delta"),
        ],
        columns,
        STEPS,
    )
    assert both.dtype == np.float32 and both.tolist() == [[20, 30], [160, 280], [320, 320]]


def test_whole_numbers_keep_their_dtype_and_never_wrap() -> None:
    columns = {"a": np.array([[50], [60], [1], [2], [3], [4]], np.int8)}
    total = merged(Part("a", kind="delta"), columns)
    assert total.dtype == np.int8 and total.tolist() == [[110], [6], [4]]
    columns["a"][1] = 80
    with pytest.raises(ValueError, match="differences in 'a' add up to more than int8 holds"):
        merged(Part("a", kind="delta"), columns)
    last = merged(Part("a", kind="absolute"), {"a": np.array([True, False] * 3)})
    assert last.dtype == np.bool_ and last.tolist() == [[False], [True], [False]]


def test_a_target_made_a_difference_is_measured_from_where_the_long_step_begins() -> None:
    """The robot stands still until row 2: adding up would count its way thrice."""
    columns = {
        "a": np.array([[1.0], [1], [1], [1], [2], [3]]),
        "s": np.array([[0.0], [0], [0], [0.5], [1], [2]]),
    }
    part = Part("a", convert="delta", reference=Part("s"))
    np.testing.assert_array_equal(merged(part, columns), [[1 - 0], [2 - 0], [3 - 2]])
    # And a difference made a target is that of the last row, whose reference is its own.
    part = Part("a", kind="delta", convert="absolute", reference=Part("s"))
    np.testing.assert_array_equal(merged(part, columns), [[1 + 0], [2 + 1], [3 + 2]])


@pytest.mark.parametrize("to_rotation_", ["", *REPRESENTATIONS])
def test_rotations_compose_in_the_base_frame(to_rotation_: Any) -> None:
    """First about x, then about z: the later one is applied last, and they do not commute."""
    quarter = 90.0
    turns = np.zeros((6, 3))
    turns[0, 0] = turns[1, 2] = quarter  # x, then z
    turns[2, 2] = turns[3, 0] = turns[4, 0] = quarter  # z, then x twice
    part = Part("a", rotation="axis_angle", unit="deg", kind="delta", to_rotation=to_rotation_)
    found = merged(part, {"a": turns})
    x_then_z = [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    # z: x to y and y to -x; half a turn about x: y to -y, z to -z.
    z_then_xx = [[0, -1, 0], [-1, 0, 0], [0, 0, -1]]
    expected = np.array([x_then_z, z_then_xx, np.eye(3)], np.float64).reshape(3, 9)
    if to_rotation_ in ("", "axis_angle", "euler_xyz"):
        found = np.deg2rad(found)
    matrices = to_rotation(found, to_rotation_ or "axis_angle").as_matrix().reshape(3, 9)
    np.testing.assert_allclose(matrices, expected, atol=1e-6)


def test_merged_rotations_differences() -> None:
    """Of a target rotation the last one counts, from the state where the long step begins."""
    angles = np.deg2rad([10, 20, 30, 40, 60, 90])
    columns = {
        "a": np.stack([0 * angles, 0 * angles, angles], axis=1),
        "s": np.stack([0 * angles, 0 * angles, angles / 10], axis=1),
    }
    part = Part(
        "a",
        rotation="axis_angle",
        convert="delta",
        reference=Part("s", rotation="axis_angle"),
        unit="rad",
        to_unit="deg",
    )
    # 20 - 1, 60 - 3, 90 - 9
    np.testing.assert_allclose(merged(part, columns)[:, 2], [19, 57, 81], atol=1e-4)


def test_kinds_must_be_told() -> None:
    check_kinds([Part("a", kind="delta"), Part("b", convert="absolute", reference=Part("s"))])
    with pytest.raises(ValueError, match="whether 'b' holds targets or differences; add 'kind:"):
        check_kinds([Part("a", kind="delta"), Part("b")])
