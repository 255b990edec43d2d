"""Which columns of a source are state, action, reward: a small YAML file that people edit.

    fps: 20                      # steps per second of the source
    resample_fps: null           # a lower rate to resample to
    instruction: null            # text for every episode; null: as recorded
    cameras: {front: agentview_image}      # our name: the source's
    state:
      - column: obs/robot0_eef_pos
      - {column: obs/robot0_eef_quat, rotation: quaternion_xyzw, to_rotation: axis_angle}
    action:
      - {column: actions, entries: [0, 1, 2], unit: mm, to_unit: m, kind: delta}
      - {column: actions, entries: [6], names: [gripper]}
    reward: success              # 1 at the first success; or a column, at most 1 in all
    success: {column: rewards, at_least: 1}    # null: what the format tells
    assume: null                 # outcome of episodes that nothing is known of
    end_at_success: true         # leave out what came after the first success
    terminated: null             # column that is true where the task itself ended
    keep: [observation.force]    # further columns
    rename: {observation.force: observation.wrench}    # what kept columns are called with us

`convert: delta` (or `absolute`) with a `reference` part turns absolute actions into differences
from it (or back): position minus position, and the rotation that turns the reference into the
action, both in the base frame.

A rotation in angles is in radians unless `unit: deg` says otherwise.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import yaml

from robot_qsft.datasets.plain_yaml import is_number, is_text, load_yaml, shown
from robot_qsft.datasets.rotations import REPRESENTATIONS, Representation

UNITS: Mapping[str, tuple[str, float]] = MappingProxyType(
    {
        "m": ("length", 1.0),
        "cm": ("length", 0.01),
        "mm": ("length", 0.001),
        "rad": ("angle", 1.0),
        "deg": ("angle", 0.017453292519943295),
    }
)
"""Unit to what it measures and its size in metres or radians."""
SUCCESS_REWARD = "success"
_LARGEST_FILE = 1 << 16
_LINE_BREAK = re.compile("[\x85\u2028\u2029]")
"""Line breaks that PyYAML writes as they are and reads as spaces."""


@dataclass(frozen=True)
class Part:
    """Some entries of a column, and what becomes of them.

    Attributes:
        column: in the source.
        entries: which of them, flattened; () for all.
        names: ours, one per entry that results; () for the source's.
        unit: as stored; "" where it does not matter.
        to_unit: as wanted.
        rotation: representation as stored; "" where the entries are no rotation.
        to_rotation: as wanted.
        kind: whether an action is a target or a difference; resampling needs to know.
        convert: what to make of an action, measured from `reference`; "" for nothing.
        reference: the part of the same step that differences are measured from.
    """

    column: str
    entries: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    unit: str = ""
    to_unit: str = ""
    rotation: Representation | Literal[""] = ""
    to_rotation: Representation | Literal[""] = ""
    kind: Literal["absolute", "delta", ""] = ""
    convert: Literal["absolute", "delta", ""] = ""
    reference: "Part | None" = None

    def __post_init__(self) -> None:
        """Refuse what makes no sense together.

        Raises:
            ValueError: naming the column and the mend.
        """
        for name in ("rotation", "to_rotation"):
            if getattr(self, name) not in ("", *REPRESENTATIONS):
                raise ValueError(
                    f"{name} of {self.column!r} should be one of {', '.join(REPRESENTATIONS)}, "
                    f"but {getattr(self, name)!r} came"
                )
        for name in ("kind", "convert"):
            if getattr(self, name) not in ("", "absolute", "delta"):
                raise ValueError(
                    f"{name} of {self.column!r} should be absolute or delta, "
                    f"but {getattr(self, name)!r} came"
                )
        if bool(self.unit) != bool(self.to_unit) and self.to_unit:
            raise ValueError(f"to_unit of {self.column!r} needs the unit as stored; add 'unit'")
        for unit in filter(None, (self.unit, self.to_unit)):
            if unit not in UNITS:
                raise ValueError(
                    f"the unit of {self.column!r} should be one of {', '.join(UNITS)}, "
                    f"but {unit!r} came"
                )
        if self.to_unit and UNITS[self.unit][0] != UNITS[self.to_unit][0]:
            raise ValueError(
                f"{self.column!r} cannot be turned from {self.unit} into {self.to_unit}"
            )
        if self.to_rotation and not self.rotation:
            raise ValueError(
                f"to_rotation of {self.column!r} needs the representation as stored; add 'rotation'"
            )
        if bool(self.convert) != (self.reference is not None):
            raise ValueError(
                f"{self.column!r} needs both 'convert' and 'reference', or neither of them"
            )
        if self.convert and self.convert == self.kind:
            raise ValueError(f"{self.column!r} is {self.kind} already; drop 'convert'")
        if self.rotation and UNITS.get(self.unit, ("angle",))[0] != "angle":
            raise ValueError(
                f"{self.column!r} is a rotation, which has no length in {self.unit}; drop 'unit'"
            )
        if self.reference is not None:
            self._check_reference(self.reference)

    def _check_reference(self, reference: "Part") -> None:
        if reference.reference is not None:
            raise ValueError(
                f"the reference of {self.column!r} cannot have a reference of its own; drop it"
            )
        if bool(self.rotation) != bool(reference.rotation):
            raise ValueError(
                f"{self.column!r} and its reference {reference.column!r} should both be rotations "
                "or both be none; add 'rotation' to the other, too"
            )
        units = (self.to_unit or self.unit, reference.to_unit or reference.unit)
        if not self.rotation and all(units) and units[0] != units[1]:
            raise ValueError(
                f"{self.column!r} comes in {units[0]}, but its reference {reference.column!r} in "
                f"{units[1]}; bring both to one unit by 'to_unit'"
            )


@dataclass(frozen=True)
class SuccessRule:
    """A step succeeds where a column is at least so large.

    Attributes:
        column: in the source, one number a step.
        at_least: threshold.
    """

    column: str
    at_least: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a threshold that is none.

        Raises:
            ValueError: when it is NaN or infinite.
        """
        if not math.isfinite(self.at_least):
            raise ValueError(f"at_least should be a finite number, but {self.at_least} came")


def _no_names() -> Mapping[str, str]:
    return {}


@dataclass(frozen=True)
class FieldMap:
    """How a source is read; see the module's example.

    Attributes:
        action: parts laid end to end; at least one.
        state: likewise, proprioception.
        environment_state: likewise, ground truth of a simulator.
        cameras: our name to the source's.
        instruction: for every episode; None for the recorded one.
        reward: "success" pays 1 at the first success; else a column, at most 1 per episode in all.
        success: None for what the format tells.
        assume: outcome of episodes of which nothing is known; None leaves them unknown.
        end_at_success: whether to leave out what came after the first success.
        terminated: column that is true at the last step where the task itself ended; None: the task
            ends at success only.
        fps: steps per second of the source; None for what the source tells.
        resample_fps: a lower rate to resample to; None for the source's.
        keep: further columns.
        rename: what some of these are called with us; the others keep their names.
    """

    action: tuple[Part, ...]
    state: tuple[Part, ...] = ()
    environment_state: tuple[Part, ...] = ()
    cameras: Mapping[str, str] = field(default_factory=_no_names)
    instruction: str | None = None
    reward: str = SUCCESS_REWARD
    success: SuccessRule | None = None
    assume: Literal["success", "failure"] | None = None
    end_at_success: bool = True
    terminated: str | None = None
    fps: float | None = None
    resample_fps: float | None = None
    keep: tuple[str, ...] = ()
    rename: Mapping[str, str] = field(default_factory=_no_names)

    def __post_init__(self) -> None:
        """Refuse a map without actions, and rates that are none.

        Raises:
            ValueError: naming the field and the mend.
        """
        if not self.action:
            raise ValueError("a field map needs at least one part of 'action'; name its column")
        for name in ("fps", "resample_fps"):
            rate = getattr(self, name)
            if rate is not None and not 0 < rate < 100_000:
                raise ValueError(f"{name} should be above 0 steps per second, but {rate} came")
        if self.assume not in (None, "success", "failure"):
            raise ValueError(f"assume should be success or failure, but {self.assume!r} came")
        for name in self.cameras:
            if not re.fullmatch(r"[A-Za-z0-9_.\-]+", name):
                raise ValueError(
                    f"camera name {name!r} would break a path: use letters, digits, '_', '-', '.'"
                )


def read_field_map(path: Path | str) -> FieldMap:
    """Read a field map.

    Raises:
        ValueError: when the file is missing, no YAML, or says what no map can.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise ValueError(
                f"expected a field map at {path}, but there is none; write one with "
                "'robot-qsft inspect SOURCE --suggest MAP'"
            )
        if path.stat().st_size > _LARGEST_FILE:
            raise ValueError(f"{path} is too large for a field map; name the YAML file")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); name the YAML file") from error
    try:
        stored = load_yaml(text)
    except ValueError as error:
        raise ValueError(f"{path} is no YAML ({error}); mend it") from error
    try:
        return _field_map(stored)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def field_map_text(field_map: FieldMap, *, heading: Sequence[str] = ()) -> str:
    """The YAML of a field map; what stands at its default within a part is left out.

    Args:
        field_map: to be written.
        heading: lines of comment above it.
    """
    plain: dict[str, Any] = {
        "fps": field_map.fps,
        "resample_fps": field_map.resample_fps,
        "instruction": field_map.instruction,
        "cameras": dict(field_map.cameras),
        "state": [_plain(part) for part in field_map.state],
        "environment_state": [_plain(part) for part in field_map.environment_state],
        "action": [_plain(part) for part in field_map.action],
        "reward": field_map.reward,
        "success": None if field_map.success is None else asdict(field_map.success),
        "assume": field_map.assume,
        "end_at_success": field_map.end_at_success,
        "terminated": field_map.terminated,
        "keep": list(field_map.keep),
        "rename": dict(field_map.rename),
    }
    comment = "".join(f"# {line}\n" for line in heading)
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)
    if _LINE_BREAK.search(text):
        text = yaml.safe_dump(plain, sort_keys=False, width=100)
    return comment + text


def _plain(part: Part) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for one in fields(Part):
        value = getattr(part, one.name)
        if one.default is MISSING or value != one.default:
            plain[one.name] = (
                _plain(value)
                if isinstance(value, Part)
                else list(value)
                if isinstance(value, tuple)
                else value
            )
    return plain


def _field_map(stored: Any) -> FieldMap:
    known = _checked(stored, FieldMap, "the map")
    for name in ("action", "state", "environment_state"):
        known[name] = tuple(_part(one, name) for one in _list(known.get(name), name))
    for name, form in (
        ("cameras", "our name to the source's, such as {front: image}"),
        ("rename", "the source's column to ours, such as {force: wrench}"),
    ):
        known[name] = names = _given(known, name, {})
        if not isinstance(names, dict) or not _all(str, [*names, *names.values()]):
            raise ValueError(f"{name} should map {form}")
    rule = known.get("success")
    if rule is not None:
        rule = _checked(rule, SuccessRule, "success")
        at_least = _given(rule, "at_least", 1)
        if not isinstance(rule.get("column"), str) or not is_number(at_least):
            raise ValueError("success should be {column: NAME, at_least: NUMBER}")
        known["success"] = SuccessRule(rule["column"], float(at_least))
    for name in ("instruction", "terminated"):
        if known.get(name) is not None and not is_text(known[name]):
            raise ValueError(f"{name} should be text, but {shown(known[name])} came")
    for name in ("fps", "resample_fps"):
        if known.get(name) is not None and not is_number(known[name]):
            raise ValueError(f"{name} should be a number, but {shown(known[name])} came")
    known["reward"] = _given(known, "reward", SUCCESS_REWARD)
    if not isinstance(known["reward"], str):
        raise ValueError(
            f"reward should be 'success' or a column, but {shown(known['reward'])} came"
        )
    known["end_at_success"] = _given(known, "end_at_success", True)
    if not isinstance(known["end_at_success"], bool):
        raise ValueError(
            f"end_at_success should be true or false, but {shown(known['end_at_success'])} came"
        )
    known["keep"] = tuple(_list(known.get("keep"), "keep"))
    if not _all(str, known["keep"]):
        raise ValueError("keep should list columns by name")
    return FieldMap(**known)


def _part(stored: Any, where: str) -> Part:
    if isinstance(stored, str):
        return Part(stored)
    known = _checked(stored, Part, f"a part of {where}")
    if not isinstance(known.get("column"), str):
        raise ValueError(f"every part of {where} needs a 'column', but {shown(stored)} came")
    column = known["column"]
    for name, kind in (("entries", int), ("names", str)):
        values = _list(known.get(name), f"{name} of {column!r}")
        if not _all(kind, values):
            raise ValueError(f"{name} of {column!r} cannot be {shown(values)}")
        known[name] = tuple(values)
    for name in ("unit", "to_unit", "rotation", "to_rotation", "kind", "convert"):
        known[name] = _given(known, name, "")
        if not isinstance(known[name], str):
            raise ValueError(f"{name} of {column!r} cannot be {shown(known[name])}")
    if known.get("reference") is not None:
        if where == "reference":
            raise ValueError("a reference cannot have a reference of its own; drop it")
        known["reference"] = _part(known["reference"], "reference")
    return Part(**known)


def _checked(stored: Any, kind: type, where: str) -> dict[str, Any]:
    names = [one.name for one in fields(kind)]
    if not isinstance(stored, dict):
        raise ValueError(f"{where} should be a mapping of {', '.join(names)}")
    for key in stored:
        if key not in names:
            raise ValueError(f"{where} knows no {shown(key)}, only {', '.join(names)}")
    return dict(stored)


def _given(known: Mapping[str, Any], name: str, default: Any) -> Any:
    """A value; null, as what is not there, means the default."""
    value = known.get(name)
    return default if value is None else value


def _list(stored: Any, where: str) -> list[Any]:
    if stored is None:
        return []
    if not isinstance(stored, list):
        raise ValueError(f"{where} should be a list, but {shown(stored)} came")
    return stored


def _all(kind: type, values: Any) -> bool:
    if kind is str:
        return all(is_text(value) for value in values)
    return all(isinstance(value, kind) and not isinstance(value, bool) for value in values)
