"""The servos of an arm, and what their ticks mean.

A servo has an id and counts its position in ticks, 4096 to a turn. What a tick means, the
description's options say by the joint's name, here of a joint called "elbow":

    id_elbow: 3             of its servo; its place in the arm, counted from 1, where left out
    model_elbow: 1020       number of the servo's model; that of `model` where left out
    home_ticks_elbow: 2048  where the joint stands at 0 rad; 2048 where left out
    sign_elbow: -1          where ticks count against the joint's axis; 1 where left out

A gripper's servo comes last: `id_gripper`, `model_gripper`, and where it is closed and open,
`gripper_closed_ticks` and `gripper_open_ticks`. `baudrate` is that of the line, 1000000 where left
out. An option that is not known is refused: a slip of the pen in a calibration moves arms.
"""

import math
from dataclasses import dataclass, replace

from robot_qsft.datasets.plain_yaml import shown
from robot_qsft.datasets.wording import listed
from robot_qsft.hardware.description import RobotDescription

TICKS_PER_TURN = 4096
TICKS_PER_RAD = TICKS_PER_TURN / math.tau
GRIPPER = "gripper"
_LARGEST_ID = 252
_GRIPPER_SLACK = 0.25
"""A gripper may stand this share of its way outside it: pressed together, or pulled open."""


@dataclass(frozen=True)
class Servo:
    """One servo, and how its ticks become what it moves: radians, or a gripper's opening.

    One that has a leader obeys the packets of that servo of its joint, and is not commanded.

    >>> elbow = Servo(3, "elbow", 777, zero_ticks=2048, ticks_per_unit=-4096 / math.tau,
    ...               low_ticks=1024, high_ticks=3072)
    >>> elbow.value(1024) / math.pi, elbow.ticks(-math.pi / 2)
    (0.5, 3072.0)
    """

    id: int
    name: str
    model: int
    zero_ticks: float
    ticks_per_unit: float
    low_ticks: int
    high_ticks: int
    leader_id: int | None = None

    @property
    def label(self) -> str:
        """For a sentence."""
        return f"{self.name} (servo {self.id})"

    def value(self, ticks: float) -> float:
        """Radians or opening at `ticks`."""
        return (ticks - self.zero_ticks) / self.ticks_per_unit

    def ticks(self, value: float) -> float:
        """Where it stands at `value`, not rounded."""
        return self.zero_ticks + value * self.ticks_per_unit


@dataclass(frozen=True)
class Layout:
    """The servos of an arm.

    Attributes:
        servos: those of the joints, from the base on, and of the gripper, if there is one.
        shadows: those that have a leader among them.
        baudrate: of the line.
    """

    servos: tuple[Servo, ...]
    shadows: tuple[Servo, ...]
    baudrate: int

    @classmethod
    def of(
        cls, description: RobotDescription, *, model: int | None, shadows: bool = False
    ) -> "Layout":
        """The layout that the options of a description give.

        Args:
            description: of the arm.
            model: number of the servos' model, unless the options say another.
            shadows: whether `shadow_id_<joint>` is an option.

        Raises:
            ValueError: naming the option that is missing, unknown or wrong.
        """
        options = _Options(dict(description.options or {}))
        model = options.number("model", model)
        servos = []
        followers = []
        for place, joint in enumerate(description.joints, 1):
            home_ticks = options.number(f"home_ticks_{joint.name}", TICKS_PER_TURN // 2)
            sign = options.number(f"sign_{joint.name}", 1)
            if sign not in (-1, 1):
                raise ValueError(f"options.sign_{joint.name} must be 1 or -1, got {sign}")
            per_rad = sign * TICKS_PER_RAD
            ends = sorted(home_ticks + per_rad * rad for rad in (joint.low_rad, joint.high_rad))
            servo = Servo(
                id=options.number(f"id_{joint.name}", place),
                name=joint.name,
                model=options.number(f"model_{joint.name}", model),
                zero_ticks=home_ticks,
                ticks_per_unit=per_rad,
                low_ticks=round(ends[0]),
                high_ticks=round(ends[1]),
            )
            if not 0 <= servo.low_ticks < servo.high_ticks < TICKS_PER_TURN:
                raise ValueError(
                    f"{joint.name} would reach from tick {servo.low_ticks} to {servo.high_ticks}, "
                    f"of which there are 0 … {TICKS_PER_TURN - 1}; correct its limits or "
                    f"options.home_ticks_{joint.name}"
                )
            servos.append(servo)
            shadow_id = options.number(f"shadow_id_{joint.name}", -1) if shadows else -1
            if shadow_id >= 0:
                name = f"{joint.name}'s shadow"
                followers.append(replace(servo, id=shadow_id, name=name, leader_id=servo.id))
        if description.gripper is not None:
            servos.append(_gripper(options, model, place=len(servos) + 1))
        baudrate = options.number("baudrate", 1_000_000)
        options.check_used()
        ids = [servo.id for servo in (*servos, *followers)]
        told = listed(str(one) for one in ids)
        if len(set(ids)) < len(ids) or not all(0 <= one <= _LARGEST_ID for one in ids):
            raise ValueError(f"ids of servos must differ and lie in 0 … {_LARGEST_ID}, got {told}")
        return cls(tuple(servos), tuple(followers), baudrate)


class _Options:
    """The options of a description, each asked for once."""

    def __init__(self, options: dict[str, float | int | bool | str]):
        self._options = options
        self._known: list[str] = []

    def number(self, name: str, default: int | None) -> int:
        self._known.append(name)
        value = self._options.get(name, default)
        if value is None:
            raise ValueError(f"options lacks {name}")
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"options.{name} must be a whole number, got {shown(value)}")
        return value

    def check_used(self) -> None:
        if unknown := [name for name in self._options if name not in self._known]:
            raise ValueError(
                f"options does not know {listed(unknown)}; it has {listed(self._known)}"
            )


def _gripper(options: _Options, model: int, *, place: int) -> Servo:
    closed_ticks = options.number("gripper_closed_ticks", None)
    open_ticks = options.number("gripper_open_ticks", None)
    low_ticks, high_ticks = sorted((closed_ticks, open_ticks))
    if not 0 <= low_ticks < high_ticks < TICKS_PER_TURN:
        raise ValueError(
            f"options.gripper_closed_ticks and gripper_open_ticks must differ and lie in "
            f"0 … {TICKS_PER_TURN - 1}, got {closed_ticks} and {open_ticks}"
        )
    slack = round(_GRIPPER_SLACK * (high_ticks - low_ticks))
    return Servo(
        id=options.number("id_gripper", place),
        name=GRIPPER,
        model=options.number("model_gripper", model),
        zero_ticks=closed_ticks,
        ticks_per_unit=open_ticks - closed_ticks,
        low_ticks=max(0, low_ticks - slack),
        high_ticks=min(TICKS_PER_TURN - 1, high_ticks + slack),
    )
