"""Field maps: there and back as YAML, and every mistake that people make in one."""

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robot_qsft.datasets.field_map import (
    UNITS,
    FieldMap,
    Part,
    SuccessRule,
    field_map_text,
    read_field_map,
)
from robot_qsft.datasets.rotations import REPRESENTATIONS

EXAMPLE = """
fps: 20
resample_fps: null
instruction: null
cameras: {front: agentview_image}
state:
  - obs/robot0_eef_pos
  - {column: obs/robot0_eef_quat, rotation: quaternion_xyzw, to_rotation: axis_angle}
action:
  - {column: actions, entries: [0, 1, 2], unit: mm, to_unit: m, kind: delta}
  - {column: actions, entries: [6], names: [gripper]}
reward: success
success: {column: rewards, at_least: 1}
assume: null
end_at_success: true
terminated: null
keep: [observation.force]
"""
hasty = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "map.yaml"


def test_example_is_read(file: Path) -> None:
    file.write_text(EXAMPLE)
    assert read_field_map(file) == FieldMap(
        action=(
            Part("actions", entries=(0, 1, 2), unit="mm", to_unit="m", kind="delta"),
            Part("actions", entries=(6,), names=("gripper",)),
        ),
        state=(
            Part("obs/robot0_eef_pos"),
            Part("obs/robot0_eef_quat", rotation="quaternion_xyzw", to_rotation="axis_angle"),
        ),
        cameras={"front": "agentview_image"},
        success=SuccessRule("rewards", 1.0),
        fps=20,
        keep=("observation.force",),
    )


def test_what_is_left_out_or_null_has_its_default(file: Path) -> None:
    file.write_text("action: [actions]\nstate:\ncameras:\nreward:\nend_at_success:\nkeep:\n")
    assert read_field_map(str(file)) == FieldMap(action=(Part("actions"),))
    file.write_text("action:\n- column: a\n  entries:\n  names:\n  unit:\n  kind:\n  reference:\n")
    assert read_field_map(file) == FieldMap(action=(Part("a"),))
    file.write_text("\ufeffaction: [a]\r\nsuccess: {column: r}\r\n", encoding="utf-8")
    assert read_field_map(file) == FieldMap(action=(Part("a"),), success=SuccessRule("r"))


def test_an_anchor_saves_writing_a_part_twice(file: Path) -> None:
    file.write_text(
        "state: [&pose {column: pose}]\naction: [{column: a, convert: delta, reference: *pose}]\n"
    )
    pose = Part("pose")
    assert read_field_map(file) == FieldMap(
        action=(Part("a", convert="delta", reference=pose),), state=(pose,)
    )


def test_text_has_a_heading_and_leaves_defaults_of_parts_out() -> None:
    text = field_map_text(
        FieldMap(action=(Part("a", entries=(2, 0)),), instruction="öffne: die Tür"),
        heading=["one", "two: {"],
    )
    lines = text.splitlines()
    assert lines[:2] == ["# one", "# two: {"]
    assert lines[lines.index("action:") + 1 :][:4] == [
        "- column: a",
        "  entries:",
        "  - 2",
        "  - 0",
    ]
    assert "instruction: 'öffne: die Tür'" in lines and "rotation" not in text


def _distinct(*values: str) -> st.SearchStrategy[Any]:
    return st.sampled_from(("", *values))


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
rates = st.one_of(st.none(), st.integers(1, 99_999), st.floats(1e-3, 9e4))


@st.composite
def parts(draw: st.DrawFn, *, reference: bool = True) -> Part:
    rotation = draw(_distinct(*REPRESENTATIONS))
    unit = draw(_distinct("rad", "deg") if rotation else _distinct(*UNITS))
    alike = [name for name in UNITS if unit and UNITS[name][0] == UNITS[unit][0]]
    to_unit = draw(_distinct(*alike))
    convert = draw(_distinct("absolute", "delta")) if reference else ""
    reached = to_unit or unit
    of = Part(draw(texts), unit=reached, rotation=rotation) if convert else None
    return Part(
        draw(texts),
        entries=tuple(draw(st.lists(st.integers(0, 1 << 40), max_size=4))),
        names=tuple(draw(st.lists(texts, max_size=3))),
        unit=unit,
        to_unit=to_unit,
        rotation=rotation,
        to_rotation=draw(_distinct(*REPRESENTATIONS)) if rotation else "",
        kind=draw(st.sampled_from([k for k in ("", "absolute", "delta") if not k or k != convert])),
        convert=convert,
        reference=of,
    )


@st.composite
def field_maps(draw: st.DrawFn) -> FieldMap:
    def some(least: int) -> tuple[Part, ...]:
        return tuple(draw(st.lists(parts(), min_size=least, max_size=3)))

    cameras = st.dictionaries(st.from_regex(r"[A-Za-z0-9_.\-]{1,8}", fullmatch=True), texts)
    return FieldMap(
        action=some(1),
        state=some(0),
        environment_state=some(0),
        cameras=draw(cameras),
        instruction=draw(st.none() | texts | st.just("")),
        reward=draw(texts),
        success=draw(
            st.none()
            | st.builds(SuccessRule, texts, st.floats(allow_nan=False, allow_infinity=False))
        ),
        assume=draw(st.sampled_from([None, "success", "failure"])),
        end_at_success=draw(st.booleans()),
        terminated=draw(st.none() | texts),
        fps=draw(rates),
        resample_fps=draw(rates),
        keep=tuple(draw(st.lists(texts, max_size=3))),
        rename=draw(st.dictionaries(texts, texts, max_size=2)),
    )


@settings(hasty, max_examples=150)
@given(field_map=field_maps())
def test_yaml_there_and_back(field_map: FieldMap, tmp_path: Path) -> None:
    file = tmp_path / "map.yaml"
    file.write_text(field_map_text(field_map, heading=["a", "b"]), encoding="utf-8")
    assert read_field_map(file) == field_map


A = "action: [a]\n"
MISTAKES = [
    ("", "the map should be a mapping of action, state"),
    ("- action", "the map should be a mapping"),
    ("state: [s]", "needs at least one part of 'action'; name its column"),
    ("action: []", "needs at least one part of 'action'"),
    ("action:", "needs at least one part of 'action'"),
    ("actions: [a]", "the map knows no 'actions', only action, state"),
    ("1: 2", "the map knows no 1, only"),
    ("action: a", "action should be a list, but 'a' came"),
    ("action: {column: a}", "action should be a list, but {'column': 'a'} came"),
    ("action: [1]", "a part of action should be a mapping of column, entries"),
    ("action: [{entries: [1]}]", "every part of action needs a 'column', but {'entries'.* came"),
    ("action: [{column: 3}]", "every part of action needs a 'column'"),
    ("action: [{colum: a}]", "a part of action knows no 'colum', only column, entries"),
    ("action: [{column: a, entries: 3}]", "entries of 'a' should be a list, but 3 came"),
    ("action: [{column: a, entries: [x]}]", r"entries of 'a' cannot be \['x'\]"),
    ("action: [{column: a, entries: [1.0]}]", r"entries of 'a' cannot be \[1.0\]"),
    ("action: [{column: a, entries: [true]}]", r"entries of 'a' cannot be \[True\]"),
    ("action: [{column: a, names: gripper}]", "names of 'a' should be a list"),
    ("action: [{column: a, names: [1]}]", r"names of 'a' cannot be \[1\]"),
    ("action: [{column: a, unit: inch}]", "unit of 'a' should be one of m, cm, mm, rad, deg"),
    ("action: [{column: a, unit: 3}]", "unit of 'a' cannot be 3"),
    ("action: [{column: a, to_unit: m}]", "to_unit of 'a' needs the unit as stored; add 'unit'"),
    ("action: [{column: a, unit: deg, to_unit: m}]", "'a' cannot be turned from deg into m"),
    ("action: [{column: a, rotation: quat}]", "rotation of 'a' should be one of quaternion_xyzw"),
    (
        "action: [{column: a, rotation: matrix, to_rotation: 6d}]",
        "to_rotation of 'a' should be one of .* but '6d' came",
    ),
    (
        "action: [{column: a, to_rotation: matrix}]",
        "to_rotation of 'a' needs the representation as stored; add 'rotation'",
    ),
    (
        "action: [{column: a, rotation: euler_xyz, unit: mm}]",
        "'a' is a rotation, which has no length in mm; drop 'unit'",
    ),
    ("action: [{column: a, kind: relative}]", "kind of 'a' should be absolute or delta, but"),
    ("action: [{column: a, kind: [delta]}]", r"kind of 'a' cannot be \['delta'\]"),
    ("action: [{column: a, convert: delta}]", "needs both 'convert' and 'reference'"),
    ("action: [{column: a, reference: s}]", "needs both 'convert' and 'reference'"),
    (
        "action: [{column: a, kind: delta, convert: delta, reference: s}]",
        "'a' is delta already; drop 'convert'",
    ),
    (
        "action: [{column: a, convert: delta, rotation: euler_xyz, reference: s}]",
        "should both be rotations or both be none; add 'rotation'",
    ),
    (
        "action: [{column: a, unit: mm, convert: delta, reference: {column: s, unit: m}}]",
        "'a' comes in mm, but its reference 's' in m; bring both to one unit",
    ),
    (
        "action: [{column: a, convert: delta, reference: {column: s, convert: delta, "
        "reference: b}}]",
        "a reference cannot have a reference of its own",
    ),
    (
        "action: [&a {column: a, convert: delta, reference: *a}]",
        "a reference cannot have a reference of its own",
    ),
    (A + "cameras: [front]", "cameras should map our name to the source's"),
    (A + "cameras: {front: 1}", "cameras should map our name to the source's"),
    (A + "cameras: {1: front}", "cameras should map our name to the source's"),
    (A + "cameras: false", "cameras should map our name to the source's"),
    (A + "cameras: {../a: front}", "camera name '../a' would break a path"),
    (A + "rename: [force]", "rename should map the source's column to ours"),
    (A + "rename: {force: 1}", "rename should map the source's column to ours"),
    (A + "fps: fast", "fps should be a number, but 'fast' came"),
    (A + "fps: true", "fps should be a number, but True came"),
    (A + "fps: 0", "fps should be above 0"),
    (A + "fps: .nan", "fps should be above 0"),
    (A + f"fps: 0x{'f' * 9000}", "fps should be a number, but a number beyond reason came"),
    (A + f"fps: 1{'0' * 9000}", "is no YAML"),
    (A + "resample_fps: -3", "resample_fps should be above 0 steps per second, but -3 came"),
    (A + "resample_fps: .inf", "resample_fps should be above 0"),
    (A + "instruction: 3", "instruction should be text, but 3 came"),
    (A + "instruction: 2020-01-01", "instruction should be text, but datetime.date"),
    (A + r'instruction: "\ud800"', "instruction should be text"),
    (A + "reward: 1", "reward should be 'success' or a column, but 1 came"),
    (A + "success: 1", "success should be a mapping of column, at_least"),
    (A + "success: {at_least: 1}", "success should be {column: NAME, at_least: NUMBER}"),
    (A + "success: {column: r, at_least: much}", "success should be {column: NAME"),
    (A + "success: {column: r, at_least: .nan}", "at_least should be a finite number, but nan"),
    (A + f"success: {{column: r, at_least: 0x{'f' * 400}}}", "success should be {column: NAME"),
    (A + "success: {column: r, above: 1}", "success knows no 'above', only column, at_least"),
    (A + "assume: true", "assume should be success or failure, but True came"),
    (A + "assume: [success]", "assume should be success or failure"),
    (A + "end_at_success: 1", "end_at_success should be true or false, but 1 came"),
    (A + "terminated: true", "terminated should be text, but True came"),
    (A + "keep: force", "keep should be a list, but 'force' came"),
    (A + "keep: [1]", "keep should list columns by name"),
    ("action: [a", "is no YAML .*; mend it"),
    ("a: b: c", "is no YAML"),
    ("\taction: [a]", "is no YAML"),
    ("action: \x07", "is no YAML"),
    ("!!python/object/apply:os.system ['true']", "is no YAML"),
    (A + "end_at_success: !!bool maybe", "is no YAML"),
    (A + "fps: !!int ''", "is no YAML"),
    (A + "fps: !!float ''", "is no YAML"),
    (A + "instruction: !!timestamp soon", "is no YAML"),
    (A + f"fps: 1{':59' * 2000}.5", "is no YAML"),
    ("base: &b {fps: 1}\n<<: *b\n", "is no YAML .*'<<' is not read"),
    ("[" * 5000, "is no YAML"),
    ("? {a: b}\n: c", "is no YAML"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_mistakes_are_told_in_one_sentence(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_field_map(file)
    told = str(caught.value)
    assert told.startswith(str(file)) and "\n" not in told and len(told) < 800


def test_files_that_are_none(tmp_path: Path, file: Path) -> None:
    for path in (file, tmp_path, tmp_path / "x" / "y"):
        with pytest.raises(
            ValueError, match=r"expected a field map at .* but there is none; write"
        ):
            read_field_map(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_field_map("x" * 5000)
    file.write_bytes(b"action: [\xff]")
    with pytest.raises(ValueError, match=r"cannot be read .*; name the YAML file"):
        read_field_map(file)
    file.write_text("#" * 70_000)
    with pytest.raises(ValueError, match="too large for a field map"):
        read_field_map(file)


def test_aliases_cannot_fill_the_memory(file: Path) -> None:
    """Ten lists of ten of the one before: ten thousand million if anyone wrote them out."""
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 11)]
    merges = ["m0: &m0 {fps: 1}"]
    merges += [f"m{n}: &m{n} {{<<: [*m{n - 1}, *m{n - 1}]}}" for n in range(1, 40)]
    began_s = time.monotonic()
    for lines, last in ((levels, "action: *a10"), (levels, "action: [*a10]"), (merges, A)):
        for text in ("\n".join([*lines, last]), f"{last}\nkeep: {{{', '.join(lines)}}}"):
            file.write_text(text)
            with pytest.raises(ValueError) as caught:
                read_field_map(file)
            assert len(str(caught.value)) < 800
    file.write_text("\n".join(["action:", *(f"- {line[4:]}" for line in levels)]))
    with pytest.raises(ValueError, match="a part of action should be a mapping"):
        read_field_map(file)
    file.write_text("action: &a [*a]")
    with pytest.raises(ValueError, match="a part of action should be a mapping"):
        read_field_map(file)
    file.write_text("action: [{column: a, entries: &a [*a]}]")
    with pytest.raises(ValueError, match="entries of 'a' cannot be"):
        read_field_map(file)
    assert time.monotonic() - began_s < 60


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 1 << 70)
    | st.floats()
    | st.sampled_from(["a", "success", "delta", "matrix", "deg", "m", "failure", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [*Part.__dataclass_fields__, *FieldMap.__dataclass_fields__, "at_least", "x", 3]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=25,
)


@settings(hasty, max_examples=200)
@given(
    stored=st.fixed_dictionaries(
        {"action": st.just([{"column": "a"}]) | st.lists(plain, min_size=1)},
        optional={
            name: plain if name != "state" else st.lists(plain)
            for name in FieldMap.__dataclass_fields__
            if name != "action"
        },
    )
    | plain
)
def test_whatever_the_values_a_map_or_one_sentence(stored: Any, tmp_path: Path) -> None:
    file = tmp_path / "map.yaml"
    file.write_text(yaml.safe_dump(stored))
    _read_or_refuse(file)


@settings(hasty, max_examples=200)
@given(data=st.data())
def test_whatever_the_text_a_map_or_one_sentence(data: st.DataObject, tmp_path: Path) -> None:
    file = tmp_path / "map.yaml"
    text = list(EXAMPLE)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        piece = data.draw(
            st.sampled_from([*"[]{}:,-?!&*#|>'\"%@`\t\n \0", "!!int ", "!!map ", "&a ", "*a", "- "])
            | st.text(max_size=3)
        )
        text[at : at + data.draw(st.integers(0, 12))] = [piece]
    file.write_bytes("".join(text).encode("utf-8", "surrogatepass"))
    _read_or_refuse(file)


def _read_or_refuse(file: Path) -> None:
    try:
        field_map = read_field_map(file)
    except ValueError as error:
        assert str(error).startswith(str(file)) and "\n" not in str(error)
    else:
        file.write_text(field_map_text(field_map), encoding="utf-8")
        assert read_field_map(file) == field_map


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FieldMap(action=()), "at least one part of 'action'"),
        (lambda: FieldMap(action=(Part("a"),), fps=1e6), "fps should be above 0"),
        (lambda: Part("a", kind="velocity"), "kind of 'a' should be absolute or delta"),  # type: ignore[arg-type]
        (lambda: SuccessRule("r", float("inf")), "at_least should be a finite number"),
    ],
)
def test_maps_made_in_code_are_checked_too(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
