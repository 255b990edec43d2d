"""What an arm is: joints, limits, gripper, workspace. A robot without limits does not start.

A description is a YAML file; `descriptions/` holds those of arms that people own. All lengths are
in metres, all angles in radians, all positions in the frame of the arm's base.

Shape legend: J joints.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, TypeAlias, cast, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.plain_yaml import is_number, is_text, load_yaml, shown
from robot_qsft.datasets.wording import listed

FOLDER = Path(__file__).parent / "descriptions"
Triple: TypeAlias = tuple[float, float, float]
Option: TypeAlias = float | int | bool | str


def _no_options() -> Mapping[str, Option]:
    return {}


@dataclass(frozen=True)
class JointDescription:
    """A revolute joint.

    Attributes:
        name: as in the arm's URDF.
        low_rad: least position; the soft margin lies inside it.
        high_rad: greatest position.
        velocity_rad_s: greatest speed.
        acceleration_rad_s2: greatest acceleration.
        jerk_rad_s3: greatest jerk.
        origin_m: of the joint in the link before it.
        origin_rpy_rad: orientation of it there, as a URDF's.
        axis: that it turns about, in its own frame.
    """

    name: str
    low_rad: float
    high_rad: float
    velocity_rad_s: float
    acceleration_rad_s2: float
    jerk_rad_s3: float
    origin_m: Triple
    origin_rpy_rad: Triple
    axis: Triple


@dataclass(frozen=True)
class Tool:
    """The point that does the work, in the frame of the last joint."""

    origin_m: Triple = (0.0, 0.0, 0.0)
    origin_rpy_rad: Triple = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Gripper:
    """How a gripper opens.

    Attributes:
        open_m: distance of its fingers when open.
        speed_per_s: greatest change of the opening (0 … 1) in a second.
    """

    open_m: float
    speed_per_s: float


@dataclass(frozen=True)
class Box:
    """A box along the axes of the base."""

    low_m: Triple
    high_m: Triple


@dataclass(frozen=True)
class Workspace:
    """Where the tool may be.

    Attributes:
        inside: it stays in this box.
        keep_out: and out of these.
    """

    inside: Box
    keep_out: tuple[Box, ...] = ()


@dataclass(frozen=True)
class RobotDescription:
    """An arm, its limits and how to talk to it.

    Attributes:
        name: of the model.
        driver: which of `arms/` drives it.
        control_hz: commands in a second.
        joints: from the base on.
        workspace: of the tool.
        tool: where it is.
        gripper: None where there is none.
        home_rad: where an operator may send it, one per joint.
        margin_rad: soft margin inside the position limits.
        jump_rad: a target further than this from the commanded position is refused.
        tracking_error_rad: the arm further than this from where it was commanded is a fault.
        watchdog_s: after which the arm itself comes to rest; None where it has no watchdog.
        address: where it is found unless another is given: host, host:port, or a device.
        urdf: file to draw it from; "" draws it from its joints.
        options: of the driver.
    """

    name: str
    driver: str
    control_hz: float
    joints: tuple[JointDescription, ...]
    workspace: Workspace
    tool: Tool
    gripper: Gripper | None
    home_rad: tuple[float, ...]
    margin_rad: float
    jump_rad: float
    tracking_error_rad: float
    watchdog_s: float | None
    address: str = ""
    urdf: str = ""
    options: Mapping[str, Option] = field(default_factory=_no_options)

    @property
    def joint_names(self) -> tuple[str, ...]:
        """From the base on."""
        return tuple(joint.name for joint in self.joints)

    @property
    def period_s(self) -> float:
        """Between two commands."""
        return 1 / self.control_hz

    def of_joints(self, field: str) -> NDArray[np.float64]:
        """A number of every joint, float64 (J,), such as "velocity_rad_s"."""
        return np.array([getattr(joint, field) for joint in self.joints], np.float64)

    def option(self, name: str, default: Any) -> Any:
        """An option of the driver, or what it is unless the description says otherwise."""
        return self.options.get(name, default)


def known_robots() -> list[str]:
    """Names of the descriptions that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_description(robot: str, address: str = "") -> RobotDescription:
    """The description called `robot`, or the one in the file of that path.

    Args:
        robot: name or path.
        address: where the arm is found, instead of what the description says.

    Raises:
        ValueError: when there is none, or it is not fit to drive an arm by.
    """
    by_name = robot in known_robots()
    path = FOLDER / f"{robot}.yaml" if by_name else Path(robot)
    if not by_name and path.suffix not in (".yaml", ".yml"):
        raise ValueError(
            f"there is no robot {robot!r}; name a description file such as mine.yaml, or one of "
            f"{listed(known_robots())}"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); name a description file, or one of "
            f"{listed(known_robots())}"
        ) from error
    try:
        description = read_description(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return replace(description, address=address) if address else description


def read_description(text: str) -> RobotDescription:
    """The description in a YAML text.

    Raises:
        ValueError: naming the field, what was expected and what came.
    """
    try:
        value = load_yaml(text)
    except ValueError as error:
        raise ValueError(f"not YAML: {error}") from error
    description: RobotDescription = _read(RobotDescription, value, "robot")
    _check(description)
    return description


def description_text(description: RobotDescription) -> str:
    """A text that `read_description` makes the same description of."""
    return json.dumps(asdict(description))


def _read(kind: Any, value: Any, where: str) -> Any:
    """A value of the annotated kind from plain values, naming what does not fit."""
    if is_dataclass(kind):
        return _read_fields(cast(type, kind), value, where)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:  # with None
        return None if value is None else _read(inner[0], value, where)
    if origin is tuple:
        if not isinstance(value, list) or (inner[-1] is not ... and len(value) != len(inner)):
            count = "" if inner[-1] is ... else f" of {len(inner)}"
            raise ValueError(f"{where} must be a list{count}, got {shown(value)}")
        return tuple(_read(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Mapping:
        return _read_options(value, where)
    if kind is str:
        if not is_text(value):
            raise ValueError(f"{where} must be text, got {shown(value)}")
        return value
    if not is_number(value) or not math.isfinite(value):
        raise ValueError(f"{where} must be a finite number, got {shown(value)}")
    return float(value)


def _read_fields(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must have named entries, got {shown(value)}")
    known = {field.name: field for field in fields(kind)}
    if unknown := [shown(name) for name in value if name not in known]:
        raise ValueError(f"{where} does not know {listed(unknown)}; it has {listed(known)}")
    needed = [
        name
        for name, field in known.items()
        if field.default is MISSING and field.default_factory is MISSING
    ]
    if missing := [name for name in needed if name not in value]:
        raise ValueError(f"{where} lacks {listed(missing)}")
    hints = get_type_hints(kind)
    return kind(
        **{name: _read(hints[name], item, f"{where}.{name}") for name, item in value.items()}
    )


def _read_options(value: Any, where: str) -> dict[str, Option]:
    if not isinstance(value, dict) or not all(is_text(name) for name in value):
        raise ValueError(f"{where} must be names with values, got {shown(value)}")
    for name, item in value.items():
        if not isinstance(item, bool | int | float | str):
            raise ValueError(f"{where}.{name} must be a number or text, got {shown(item)}")
    return dict(value)


def _check(description: RobotDescription) -> None:
    """Refuse a description that an arm cannot be driven by.

    Raises:
        ValueError: naming the field.
    """
    if not description.joints:
        raise ValueError("joints is empty; an arm has at least one")
    positive = {
        name: getattr(description, name)
        for name in ("control_hz", "jump_rad", "tracking_error_rad")
    }
    if description.watchdog_s is not None:
        positive["watchdog_s"] = description.watchdog_s
    if description.gripper is not None:
        positive["gripper.open_m"] = description.gripper.open_m
        positive["gripper.speed_per_s"] = description.gripper.speed_per_s
    for joint in description.joints:
        for name in ("velocity_rad_s", "acceleration_rad_s2", "jerk_rad_s3"):
            positive[f"{name} of {joint.name}"] = getattr(joint, name)
    for name, value in positive.items():
        if value <= 0:
            raise ValueError(f"{name} must be above 0, got {value:g}")
    if len(description.home_rad) != len(description.joints):
        raise ValueError(
            f"home_rad must be {len(description.joints)} numbers, got {description.home_rad}"
        )
    if description.margin_rad < 0:
        raise ValueError(f"margin_rad must be at least 0, got {description.margin_rad:g}")
    if len(set(description.joint_names)) < len(description.joints):
        raise ValueError(f"two joints have one name: {listed(description.joint_names)}")
    for joint, home_rad in zip(description.joints, description.home_rad, strict=True):
        low_rad = joint.low_rad + description.margin_rad
        high_rad = joint.high_rad - description.margin_rad
        if low_rad >= high_rad:
            raise ValueError(
                f"{joint.name} has no room between {joint.low_rad:g} and {joint.high_rad:g} rad "
                f"with a margin of {description.margin_rad:g}"
            )
        if not low_rad <= home_rad <= high_rad:
            raise ValueError(
                f"home_rad of {joint.name} must lie in [{low_rad:g}, {high_rad:g}], "
                f"got {home_rad:g}"
            )
        if not math.isclose(math.hypot(*joint.axis), 1, abs_tol=1e-6):
            raise ValueError(f"axis of {joint.name} must have length 1, got {joint.axis}")
    for box in (description.workspace.inside, *description.workspace.keep_out):
        if not all(low < high for low, high in zip(box.low_m, box.high_m, strict=True)):
            raise ValueError(f"a box's low_m must lie below its high_m, got {box}")
