"""An arm of servos in a row: what Feetech's and Dynamixel's have in common.

Shape legend: J joints.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from robot_qsft.datasets.wording import listed
from robot_qsft.hardware.arms.servo_bus import REPLY_S, Answer, ServoBus
from robot_qsft.hardware.arms.servo_layout import (
    GRIPPER,
    TICKS_PER_RAD,
    TICKS_PER_TURN,
    Layout,
    Servo,
)
from robot_qsft.hardware.description import RobotDescription
from robot_qsft.hardware.robot import Joints, RobotError, RobotState

_CONNECT_S = 1.0
_MOST_SILENT_READS = 5
_FASTEST_TICKS_S = 12.0 * TICKS_PER_RAD
"""No servo of either make turns faster, unloaded."""
_REACH_TICKS = 0.1 * TICKS_PER_RAD


@dataclass(frozen=True)
class Reading:
    """What a servo told of itself, `time_s` by `time.monotonic`."""

    time_s: float
    ticks: int
    answer: Answer


class ServoRobot(ABC):
    """An arm of servos that keep to where they were last told to be.

    A position counts when two readings agree within what a servo can turn in the time between
    them: Feetech's checksum, a sum of bytes, lets one in 256 of badly mutilated packets pass.
    Servos that stay away for a period leave the last state standing, as its time tells; when they
    do so `_MOST_SILENT_READS` times in a row, or it is older than as many periods, it is an error.

    Neither `stop` nor `disconnect` takes the torque off, which would let the arm drop: it holds
    where it is until its power is switched off.
    """

    def __init__(
        self,
        description: RobotDescription,
        layout: Layout,
        bus: ServoBus,
        *,
        model_register: int,
        block: tuple[int, int],
        goal: tuple[int, int],
    ):
        """Not connected yet.

        Args:
            description: of the arm.
            layout: its servos.
            bus: where they are.
            model_register: where a servo has the number of its model, in two bytes.
            block: first register and number of bytes that are read in each period.
            goal: register and number of bytes of the goal position.
        """
        self.description = description
        self._bus = bus
        self._servos = layout.servos
        self._everyone = (*layout.servos, *layout.shadows)
        self._model_register = model_register
        self._block = block
        self._goal = goal
        self._latest: dict[int, Reading] = {}
        self._state: RobotState | None = None
        self._silent_reads = 0

    @abstractmethod
    def _prepare(self, servo: Servo) -> None:
        """Check and set what it does not move by; RobotError when it is not fit."""

    @abstractmethod
    def _engage(self) -> None:
        """Torque on, which must not change where the servos are told to be; arm the watchdog."""

    @abstractmethod
    def _ticks(self, block: bytes) -> int:
        """The present position in a block of registers."""

    @abstractmethod
    def _ticks_per_s(self, servo: Servo, reading: Reading) -> float:
        """The present speed; asked for once per reading."""

    @abstractmethod
    def _trouble(self, servo: Servo, reading: Reading) -> str:
        """What its status reports, in a sentence that begins with its label, or ""."""

    @abstractmethod
    def _lapse(self, servo: Servo, reading: Reading) -> str:
        """Why it does not follow although nothing is wrong with it, or ""."""

    def connect(self) -> None:
        """Find all servos, set their goals to where they stand, and switch their torque on.

        Raises:
            RobotError: when one is missing, of another model, at fault, or outside its range.
        """
        self.disconnect()
        self._bus.open()
        try:
            for servo in self._everyone:
                model = self._bus.read(servo, self._model_register, 2)
                if model != servo.model:
                    raise RobotError(
                        f"{servo.label} is of model {model}, expected {servo.model}; choose the "
                        f"arm's description, or correct options.model_{servo.name}"
                    )
            for servo in self._everyone:
                self._prepare(servo)
            self._latest.clear()
            self._read_or_raise()
            if troubles := self._each(self._trouble):
                raise RobotError(troubles)
            for servo in self._servos:
                self._check_range(servo, self._latest[servo.id].ticks)
            for servo in self._servos:
                self._bus.write(servo, *self._goal, self._latest[servo.id].ticks)
            self._engage()
            self._read_or_raise()
            if fault := self._each(self._trouble) or self._each(self._lapse):
                raise RobotError(fault)
            self._state = self._told("")
        except RobotError:
            self._bus.close()
            raise

    def read(self) -> RobotState:
        """Ask all servos, again those that do not answer, for one control period.

        Raises:
            RobotError: when the line is gone, or servos have kept silent for too long.
        """
        period_s = self.description.period_s
        missing = self._collect(period_s, reply_s=period_s / 2)
        patience_s = _MOST_SILENT_READS * period_s
        too_old = self._state is None or time.monotonic() > self._state.time_s + patience_s
        if missing and too_old and self._silent_reads == 0:
            # Nobody has asked for long: there is no recent state that could stand in.
            missing = self._collect(patience_s, reply_s=period_s / 2)
        if missing:
            self._silent_reads += 1
            if self._state is None or too_old or self._silent_reads >= _MOST_SILENT_READS:
                raise self._silence(missing)
            return self._state
        self._silent_reads = 0
        self._state = self._told(self._each(self._trouble) or self._each(self._lapse))
        return self._state

    def command(self, positions_rad: Joints, gripper_opening: float) -> None:
        """Set the goals of all servos, in one packet, which none of them acknowledges.

        Raises:
            RobotError: when one lies outside the described range, or the line is gone.
        """
        assert positions_rad.shape == (len(self.description.joints),)
        wanted = [*positions_rad.tolist(), min(max(gripper_opening, 0.0), 1.0)]
        goals = {}
        for servo, value in zip(self._servos, wanted, strict=False):
            ticks = servo.ticks(value)
            if not servo.low_ticks - 1 <= ticks <= servo.high_ticks + 1:  # nor NaN
                raise RobotError(
                    f"{servo.label} cannot be sent to {value:.3f}, outside its range of "
                    f"{self._range_of(servo)}"
                )
            goals[servo.id] = min(max(round(ticks), 0), TICKS_PER_TURN - 1)
        self._bus.write_all(goals, *self._goal)

    def stop(self) -> None:
        """Make where the servos are their goals; what cannot be read rests at its last goal."""
        if self._bus.is_open:
            with suppress(RobotError):
                period_s = self.description.period_s
                missing = self._collect(period_s, reply_s=period_s / 2)
                self._hold([servo for servo in self._everyone if servo not in missing])

    def disconnect(self) -> None:
        """Hold where the arm is, and close the line."""
        self.stop()
        self._bus.close()
        self._state = None

    def _hold(self, servos: Sequence[Servo]) -> None:
        """Make where `servos` were just read to be their goals; shadows have none."""
        goals = {
            servo.id: self._latest[servo.id].ticks
            for servo in servos
            if servo.leader_id is None and 0 <= self._latest[servo.id].ticks < TICKS_PER_TURN
        }
        if goals:
            self._bus.write_all(goals, *self._goal)

    def _collect(self, within_s: float, *, reply_s: float) -> list[Servo]:
        """Read the block of all servos; gives those of which no whole and credible one came."""
        end_s = time.monotonic() + within_s
        missing = {servo.id: servo for servo in self._everyone}
        doubtful: dict[int, Reading] = {}
        while missing and (now_s := time.monotonic()) < end_s:
            answers = self._bus.read_all(
                list(missing.values()), *self._block, reply_s=min(reply_s, end_s - now_s)
            )
            for servo_id, answer in answers.items():
                reading = Reading(now_s, self._ticks(answer.data), answer)
                if any(
                    _within_reach(before, reading)
                    for before in (self._latest.get(servo_id), doubtful.get(servo_id))
                ):
                    self._latest[servo_id] = reading
                    del missing[servo_id]
                else:
                    doubtful[servo_id] = reading
        return list(missing.values())

    def _read_or_raise(self) -> None:
        if missing := self._collect(_CONNECT_S, reply_s=REPLY_S):
            raise self._silence(missing)
        self._silent_reads = 0

    def _silence(self, missing: list[Servo]) -> RobotError:
        return RobotError(
            f"no answer that can be trusted from {listed(servo.label for servo in missing)}; "
            "check the arm's power, the emergency stop and the cables, then connect again"
        )

    def _each(self, asked: Callable[[Servo, Reading], str]) -> str:
        """What is to be told of the servos, one after the other."""
        told = (asked(servo, self._latest[servo.id]) for servo in self._everyone)
        return "; ".join(sentence for sentence in told if sentence)

    def _told(self, fault: str) -> RobotState:
        readings = [self._latest[servo.id] for servo in self._servos]
        joints = len(self.description.joints)
        values = [s.value(r.ticks) for s, r in zip(self._servos, readings, strict=True)]
        speeds = [
            self._ticks_per_s(servo, reading) / servo.ticks_per_unit
            for servo, reading in zip(self._servos[:joints], readings[:joints], strict=True)
        ]
        return RobotState(
            time_s=min(reading.time_s for reading in readings),
            positions_rad=np.array(values[:joints], np.float64),
            velocities_rad_s=np.array(speeds, np.float64),
            gripper_opening=min(max(values[joints], 0.0), 1.0) if len(values) > joints else 0.0,
            fault=fault,
        )

    def _check_range(self, servo: Servo, ticks: int) -> None:
        if not servo.low_ticks <= ticks <= servo.high_ticks:
            option = (
                "gripper_closed_ticks and options.gripper_open_ticks"
                if servo.name == GRIPPER
                else f"home_ticks_{servo.name} and options.sign_{servo.name}"
            )
            raise RobotError(
                f"{servo.label} stands at tick {ticks}, outside its range of "
                f"{self._range_of(servo)}; switch its power off and move it there by hand, or "
                f"calibrate options.{option}"
            )

    def _range_of(self, servo: Servo) -> str:
        return f"ticks {servo.low_ticks} … {servo.high_ticks}"


def _within_reach(before: Reading | None, after: Reading) -> bool:
    """Whether a servo can have turned that far meanwhile."""
    if before is None:
        return False
    reach_ticks = _REACH_TICKS + _FASTEST_TICKS_S * (after.time_s - before.time_s)
    return abs(after.ticks - before.ticks) <= reach_ticks
