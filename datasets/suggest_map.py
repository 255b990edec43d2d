"""A first field map for a source, from how its format names things; people edit it.

Where the names leave it open, the first readable episode decides: four numbers are a quaternion
only if they have length 1.

Shape legend: R numbers of a rotation, T steps.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.features import (
    ACTION,
    ENVIRONMENT_STATE,
    IMAGES,
    INDEX_DTYPES,
    REWARD,
    STATE,
)
from robot_qsft.datasets.field_map import SUCCESS_REWARD, FieldMap, Part, field_map_text
from robot_qsft.datasets.rotations import SIZES, Representation
from robot_qsft.datasets.source import Column, Columns, EpisodeSource
from robot_qsft.datasets.wording import listed

_LOOKED_AT = 8
"""Episodes whose rewards are added up to see whether training can take them."""
_LARGEST_RETURN = 1 + 1e-4
_LARGEST_OF_GROUP = 64
"""Numbers up to which one of many columns below "observation/" is taken as state."""
_ROTATION_TOLERANCE = 1e-2

_ACTIONS = ("actions", "action")
_TERMINATED = ("terminations", "terminals")
_STATES = ("observation/state", "observation/proprio", "state", "observations")
_ROBOSUITE_STATE = ("eef_pos", "eef_quat", "gripper_qpos")
_LIBERO_STATE = ("obs/ee_pos", "obs/ee_ori", "obs/gripper_states", "obs/joint_states")
_LIBERO_POSE = "obs/ee_states"
_ROBOSUITE_ACTION = 7
_POSE_6D = 10
"""Numbers of an arm's pose with a rotation of six numbers, and its gripper."""
_NOT_STATE = re.compile(
    r"language|embedding|instruction|timestamp|reward|discount|is_(first|last|terminal)|image|depth"
)
_ROBOT_COLUMN = re.compile(r"robot\d*_(eef_pose|joint|gripper)")
_CAMERA_SUFFIX = re.compile(r"[_.\-](images?|img|rgb|colou?r)$", re.IGNORECASE)


def suggest(source: EpisodeSource) -> FieldMap:
    """A field map by the names of a source's columns; a few episodes are read.

    Raises:
        ValueError: when no column holds actions, listing those that there are.
    """
    columns = source.info.columns
    cameras = _cameras(source.info.cameras)
    if source.info.format.startswith("LeRobot"):
        return _lerobot(source, cameras)
    first = next(_readable(source, 1), {})
    # Of what is no rotation, squares may go beyond all numbers.
    with np.errstate(over="ignore", invalid="ignore"):
        action, state = _action(source, first), _state(columns, first)
    return FieldMap(
        action=action,
        state=state,
        environment_state=_environment_state(columns, only=not state),
        cameras=cameras,
        terminated=next((name for name in _TERMINATED if name in columns), None),
    )


def suggestion_text(source: EpisodeSource, field_map: FieldMap) -> str:
    """The YAML of a suggested map, with comments that explain it and list what else there is."""
    info = source.info
    lines = [
        f"How robot-qsft reads {source.path} ({info.format}). Edit it, then pass it as --map.",
        "action, state: parts laid end to end, each of a column and, where not all of it, entries.",
        "  units: unit: mm, to_unit: m; rotations: rotation: quaternion_xyzw, to_rotation:",
        f"  axis_angle ({', '.join(SIZES)});",
        "  kind: absolute or delta says what an action means; resample_fps needs it.",
        (
            "reward: success pays 1 at the first success."
            if field_map.reward == SUCCESS_REWARD
            else f"reward: {field_map.reward} pays at most 1 per episode, as training needs it."
        ),
        "success: null takes the format's own evidence; {column: NAME, at_least: NUMBER} a rule.",
        "assume: success or failure is for episodes of which nothing is known; null leaves them.",
    ]
    if info.fps is None and field_map.fps is None:
        lines.append("fps: the source does not tell; fill in its steps per second.")
    if any(part.rotation or part.kind for part in field_map.action):
        lines.append("The meaning of the action's parts follows from the format: check it.")
    used = _used(field_map)
    others = {name: column for name, column in info.columns.items() if name not in used}
    if others:
        lines.append("Other columns of the source:")
        lines += [f"  {name}: {described(column)}" for name, column in sorted(others.items())]
    return field_map_text(field_map, heading=[_one_line(line) for line in lines])


def described(column: Column) -> str:
    """Such as "float32 (3, 4)", or "int64" for a single number."""
    return f"{column.dtype} {column.shape}" if column.shape else column.dtype


def _lerobot(source: EpisodeSource, cameras: Mapping[str, str]) -> FieldMap:
    """The identity: nothing is renamed, cut off or left out."""
    columns = source.info.columns
    if ACTION not in columns or columns[ACTION].dtype == "string":
        raise _no_action(source)
    taken = {ACTION, *INDEX_DTYPES}
    vectors: dict[str, tuple[Part, ...]] = {}
    for name in (STATE, ENVIRONMENT_STATE):
        if name in columns and columns[name].dtype != "string":
            vectors[name] = (Part(name),)
            taken.add(name)
    return FieldMap(
        action=(Part(ACTION),),
        state=vectors.get(STATE, ()),
        environment_state=vectors.get(ENVIRONMENT_STATE, ()),
        cameras=cameras,
        reward=REWARD if _pays_at_most_one(source) else SUCCESS_REWARD,
        end_at_success=False,
        keep=tuple(name for name in columns if name not in taken),
    )


def _pays_at_most_one(source: EpisodeSource) -> bool:
    """Whether the rewards of the first episodes are such as training takes."""
    column = source.info.columns.get(REWARD)
    if column is None or column.dtype == "string" or math.prod(column.shape) != 1:
        return False
    for columns in _readable(source, _LOOKED_AT):
        with np.errstate(over="ignore", invalid="ignore"):
            rewards = columns[REWARD].astype(np.float64)
            if not (np.isfinite(rewards).all() and (rewards >= 0).all()):
                return False
            if rewards.sum() > _LARGEST_RETURN:
                return False
    return True


def _readable(source: EpisodeSource, count: int) -> Iterator[Columns]:
    """The columns of the first episodes that can be read, of so many that are tried."""
    for index in range(min(_LOOKED_AT, len(source))):
        if count == 0:
            return
        try:
            columns = source.recording(index).columns
        except ValueError:
            continue
        count -= 1
        yield columns


def _action(source: EpisodeSource, first: Columns) -> tuple[Part, ...]:
    columns = source.info.columns
    for name in _ACTIONS:
        if name in columns and _is_vector(columns[name]):
            return _action_parts(source.info.format, name, columns[name], first)
    spread = _grouped(columns, "action") or _grouped(columns, "actions")
    if not spread:
        raise _no_action(source)
    return tuple(Part(name) for name in spread)


def _action_parts(format_name: str, name: str, column: Column, first: Columns) -> tuple[Part, ...]:
    size = math.prod(column.shape)
    robosuite = re.search("robomimic|robosuite|libero", format_name, re.IGNORECASE)
    if robosuite and size == _ROBOSUITE_ACTION:
        return (
            Part(name, entries=(0, 1, 2), names=("x", "y", "z"), kind="delta"),
            Part(
                name,
                entries=(3, 4, 5),
                names=("rx", "ry", "rz"),
                rotation="axis_angle",
                kind="delta",
            ),
            Part(name, entries=(6,), names=("gripper",), kind="absolute"),
        )
    arms = size // _POSE_6D
    if size % _POSE_6D == 0 and 1 <= arms <= 2:
        starts = [arm * _POSE_6D for arm in range(arms)]
        if all(_is_rotation(name, range(s + 3, s + 9), "rotation_6d", first) for s in starts):
            return tuple(part for s in starts for part in _pose_6d(name, s, arms))
    return (Part(name),)


def _pose_6d(name: str, start: int, arms: int) -> Iterator[Part]:
    """Position, rotation and gripper of one arm, as targets."""
    arm = f"{start // _POSE_6D}_" if arms > 1 else ""
    entries = tuple(range(start, start + _POSE_6D))
    yield Part(name, entries[:3], tuple(f"{arm}{axis}" for axis in "xyz"), kind="absolute")
    yield Part(
        name,
        entries[3:9],
        tuple(f"{arm}r{number}" for number in range(6)),
        rotation="rotation_6d",
        kind="absolute",
    )
    yield Part(name, entries[9:], (f"{arm}gripper",), kind="absolute")


def _state(columns: Mapping[str, Column], first: Columns) -> tuple[Part, ...]:
    """Proprioception: the format's usual columns, or else all that are named like it."""
    if _LIBERO_STATE[0] not in columns and _LIBERO_POSE in columns:
        pose = (
            Part(_LIBERO_POSE, entries=(0, 1, 2)),
            Part(_LIBERO_POSE, entries=(3, 4, 5), rotation="axis_angle"),
        )
        whole = columns[_LIBERO_POSE].shape == (6,)
        rest = _state_parts(_LIBERO_STATE[2:], columns, first)
        return (*(pose if whole else (Part(_LIBERO_POSE),)), *rest)
    robots = sorted(
        {match[1] for name in columns if (match := re.fullmatch(r"(.*robot\d+_)eef_pos", name))}
    )
    usual = [f"{robot}{name}" for robot in robots for name in _ROBOSUITE_STATE]
    groups = ("obs", "observation", "observations", "state")
    choices = (
        usual,
        _LIBERO_STATE if _LIBERO_STATE[0] in columns else (),
        [name for name in _STATES if name in columns][:1],
        *(_grouped(columns, group) for group in groups),
        [name for name in columns if _ROBOT_COLUMN.fullmatch(name)],
    )
    parts = (tuple(_state_parts(names, columns, first)) for names in choices)
    return next(filter(None, parts), ())


def _state_parts(
    names: Iterable[str], columns: Mapping[str, Column], first: Columns
) -> Iterator[Part]:
    for name in names:
        if name not in columns or not _is_vector(columns[name]):
            continue
        rotation = ""
        stem = name.split("/")[-1]
        if re.search("quat", stem) and _is_rotation(name, range(4), "quaternion_xyzw", first):
            rotation = "quaternion_xyzw"
        elif name == "obs/ee_ori" and columns[name].shape == (3,):
            rotation = "axis_angle"
        yield Part(name, rotation=rotation)  # type: ignore[arg-type]


def _environment_state(columns: Mapping[str, Column], *, only: bool) -> tuple[Part, ...]:
    """What a simulator alone knows: its objects, or all of its state where there is `only` that."""
    for name in ("obs/object", "obs/object-state", *(["states"] if only else [])):
        if name in columns and _is_vector(columns[name]):
            return (Part(name),)
    return ()


def _grouped(columns: Mapping[str, Column], group: str) -> list[str]:
    """Vectors named "group/...", "group.x" or "group_0", in the source's order."""
    named = re.compile(rf"{group}[/._].+")
    return [
        name
        for name, column in columns.items()
        if named.fullmatch(name)
        and not _NOT_STATE.search(name)
        and not name.endswith("terminate_episode")
        and _is_vector(column)
        and math.prod(column.shape) <= _LARGEST_OF_GROUP
    ]


def _is_vector(column: Column) -> bool:
    return column.dtype != "string" and len(column.shape) <= 1 and 0 not in column.shape


def _is_rotation(name: str, entries: range, representation: Representation, first: Columns) -> bool:
    """Whether entries of a column are a rotation in the first episode: of length 1, and upright."""
    if name not in first:
        return False
    flat: NDArray[Any] = first[name].reshape(len(first[name]), -1)
    if flat.shape[1] < entries.stop or flat.dtype == object:
        return False
    rows = flat[:, entries].astype(np.float64)
    parts = rows.reshape(len(rows), -1, 4 if SIZES[representation] == 4 else 3)
    lengths = np.linalg.norm(parts, axis=2)
    unit = bool((np.abs(lengths - 1) < _ROTATION_TOLERANCE).all())
    if not unit or parts.shape[1] == 1:
        return unit
    return bool((np.abs((parts[:, 0] * parts[:, 1]).sum(1)) < _ROTATION_TOLERANCE).all())


def _cameras(theirs: Iterable[str]) -> dict[str, str]:
    """Our names of cameras, fit for a path, to the source's."""

    def full(name: str) -> str:
        return name.removeprefix(IMAGES).removeprefix("observation.")

    def short(name: str) -> str:
        stem = _CAMERA_SUFFIX.sub("", full(name).split("/")[-1])
        return stem or name

    names = list(theirs)
    for naming in (short, full):
        ours = [_path_safe(naming(name)) for name in names]
        if len(set(ours)) == len(ours):
            return dict(zip(ours, names, strict=True))
    return {f"camera_{number}": name for number, name in enumerate(names)}


def _path_safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.\-]", "_", name).lstrip(".") or "camera"


def _used(field_map: FieldMap) -> set[str]:
    parts = (*field_map.action, *field_map.state, *field_map.environment_state)
    singles = (field_map.reward, field_map.terminated or "")
    return {*(part.column for part in parts), *singles, *field_map.keep}


def _no_action(source: EpisodeSource) -> ValueError:
    columns = source.info.columns
    told = listed(f"{name} ({described(columns[name])})" for name in sorted(columns))
    return ValueError(
        f"no column of {source.path} is named like an action; there are {told}: "
        "write a field map that names it, and pass it with --map"
    )


def _one_line(text: str) -> str:
    """Text that cannot end a comment, whatever somebody has called a column."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
