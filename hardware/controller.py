"""The control loop's decisions, one period at a time, without clock, arm or network.

Every setpoint that leaves here can be braked from within all limits: a motion is taken only when
the braking that would follow it stays inside the joints' limits and ends inside the workspace, so
the braking that was checked one period ago is always there to fall back on.

Shape legend: J joints; X = J + 1, the last entry being the gripper's opening.
"""

from dataclasses import dataclass, replace
from enum import IntFlag

import numpy as np

from robot_qsft.hardware.chunks import Due, JointChunk, Schedule
from robot_qsft.hardware.config import ControlConfig
from robot_qsft.hardware.description import RobotDescription
from robot_qsft.hardware.kinematics import Chain
from robot_qsft.hardware.limits import (
    Bounds,
    objection_to_chunk,
    objection_to_joints,
    objection_to_jump,
    objection_to_place,
    objection_to_tracking,
    within_margins,
)
from robot_qsft.hardware.motion import Motion, MotionError, Setpoint
from robot_qsft.hardware.robot import RobotState
from robot_qsft.hardware.states import Event, State, after


class Request(IntFlag):
    """What an operator asks for; several may come in one period, of which STOP weighs most."""

    NONE = 0
    STOP = 1
    ARM = 2
    DISARM = 4
    RUN = 8
    RESET = 16


@dataclass(frozen=True, eq=False)
class Decision:
    """What one control period decided.

    Attributes:
        state: after it.
        reason: why the arm holds or is at fault, or what it waits for; "" otherwise.
        setpoint: to command; None where nothing is to be commanded.
        gripper_opening: to command along with it.
        due: what the policy asked for; None where it had no say.
    """

    state: State
    reason: str
    setpoint: Setpoint | None
    gripper_opening: float
    due: Due | None


class Controller:
    """Turns measured states, requests and chunks into setpoints."""

    def __init__(self, description: RobotDescription, config: ControlConfig):
        """For an arm that is not connected yet."""
        self._description = description
        self._config = config
        self._motion = Motion(description)
        self._chain = Chain(description)
        self._bounds = Bounds.of(description)
        self._schedule: Schedule | None = None
        self._stream = -1
        self._state = State.DISCONNECTED
        self._reason = ""
        self._setpoint: Setpoint | None = None
        self._opening = 0.0

    @property
    def state(self) -> State:
        """What it is doing."""
        return self._state

    @property
    def reason(self) -> str:
        """Why it holds, is at fault, or waits; "" otherwise."""
        return self._reason

    @property
    def resting(self) -> bool:
        """Whether nothing is commanded to move."""
        return self._setpoint is None or self._setpoint.resting

    @property
    def stream(self) -> int:
        """The stream whose chunks are for now; -1 before the first."""
        return self._stream

    def connected(self, measured: RobotState) -> None:
        """The arm answers: stand still where it is."""
        self._stand(measured)
        self._change(Event.CONNECTED)
        self._reason = ""

    def disconnected(self) -> None:
        """The arm is let go of."""
        self._change(Event.DISCONNECTED)
        self._setpoint = None

    def fail(self, reason: str) -> None:
        """Something outside went wrong, such as the driver: stop, and wait for a reset."""
        before = self._state
        self._change(Event.FAULT)
        if self._state is not before:
            self._reason = reason

    def hold(self, reason: str) -> None:
        """Come to rest along the path, and wait for the operator."""
        before = self._state
        self._change(Event.HOLD)
        if self._state is not before:  # the first reason is the one that counts
            self._reason = reason

    def begin_stream(self, stream: int, *, begin_s: float, period_s: float) -> None:
        """Chunks of `stream` are for now; what was known of an earlier one is not."""
        self._stream = stream
        self._schedule = Schedule(begin_s, period_s, self._config.overlap, self._config.pace)

    def take(self, chunk: JointChunk, now_s: float) -> str:
        """Take in a chunk; gives the objection to it, "" where there is none."""
        objection = objection_to_chunk(
            chunk,
            joints=len(self._description.joints),
            stream=self._stream,
            now_s=now_s,
            stale_s=self._config.stale_s,
        )
        if not objection and self._schedule is not None:
            self._schedule.add(chunk)
        return objection

    def step(
        self, now_s: float, measured: RobotState, requests: Request = Request.NONE
    ) -> Decision:
        """Decide on the period that begins at `now_s`."""
        self._watch(measured)
        self._obey(requests, measured, now_s)
        if self._state in (State.DISCONNECTED, State.FAULT) or self._setpoint is None:
            return Decision(self._state, self._reason, None, self._opening, None)
        if self._schedule is not None:
            self._schedule.forget(now_s)
        due = None
        if self._state is State.RUNNING:
            due, objection = self._wanted(now_s)
            if objection:
                self.hold(objection)
        try:
            self._setpoint = self._next(self._setpoint, due)
        except MotionError as error:
            self.fail(f"no motion within the limits: {error}")
            return Decision(self._state, self._reason, None, self._opening, due)
        if due is not None and self._state is State.RUNNING:
            self._open_toward(float(due.target_X[-1]))
        return Decision(self._state, self._reason, self._setpoint, self._opening, due)

    def _watch(self, measured: RobotState) -> None:
        """Stage 8 and what the arm says of itself."""
        if self._state in (State.DISCONNECTED, State.FAULT) or self._setpoint is None:
            return
        objection = measured.fault or objection_to_tracking(
            measured.positions_rad,
            self._setpoint.positions_rad,
            tracking_error_rad=self._description.tracking_error_rad,
        )
        if objection:
            self.fail(objection)

    def _obey(self, requests: Request, measured: RobotState, now_s: float) -> None:
        if requests & Request.STOP:
            self.hold("stopped by the operator")
            return
        if requests & Request.RESET and self._state is State.FAULT and not measured.fault:
            self._stand(measured)
            self._change(Event.RESET)
            self._reason = ""
        if requests & Request.DISARM and self._state is not State.RUNNING:
            self._change(Event.DISARM)
        if requests & Request.ARM:
            self._change(Event.ARM)
        if requests & Request.RUN and self._state in (State.ARMED, State.HOLD):
            _, self._reason = self._wanted(now_s)
            if not self._reason:
                self._change(Event.RUN)

    def _wanted(self, now_s: float) -> tuple[Due | None, str]:
        """What the policy asks for a period from now, or why nothing can be asked for."""
        setpoint, stale_s = self._setpoint, self._config.stale_s
        due = None if self._schedule is None else self._schedule.due(now_s + self._period_s)
        if due is None or setpoint is None:
            return None, "no action of the policy is known for now"
        if due.age_s > stale_s:
            return None, f"no action by an observation of the last {stale_s:g} s"
        jump_rad = self._description.jump_rad
        positions_rad = setpoint.positions_rad
        objection = objection_to_jump(due.target_X[:-1], positions_rad, jump_rad=jump_rad)
        return (None, objection) if objection else (due, "")

    def _next(self, setpoint: Setpoint, due: Due | None) -> Setpoint:
        """One period on: toward what is due where that is safe, braking otherwise."""
        if due is not None:
            target_rad, target_rad_s = within_margins(
                due.target_X[:-1], due.speed_X[:-1], self._bounds
            )
            try:
                candidate = self._motion.follow(
                    setpoint, target_rad, target_rad_s, speed=self._config.speed
                )
                objection = self._objection_to(candidate)
            except MotionError as error:
                objection = str(error)
            if not objection:
                return candidate
            self.hold(objection)
        return setpoint if setpoint.resting else _settled(self._motion.brake(setpoint))

    def _objection_to(self, setpoint: Setpoint) -> str:
        """Why braking from `setpoint` would leave the limits, or ""."""
        way_NJ = self._motion.way_to_rest(setpoint)
        if objection := objection_to_joints(way_NJ.min(0), way_NJ.max(0), self._bounds):
            return objection
        workspace = self._description.workspace
        for positions_rad in (setpoint.positions_rad, way_NJ[len(way_NJ) // 2], way_NJ[-1]):
            tool_m = self._chain.tool(positions_rad)[:3, 3]
            if objection := objection_to_place(tool_m, workspace):
                return objection
        return ""

    def _open_toward(self, opening: float) -> None:
        gripper = self._description.gripper
        if gripper is not None:
            most = gripper.speed_per_s * self._period_s
            wanted = min(max(opening, 0.0), 1.0)
            self._opening += min(max(wanted - self._opening, -most), most)

    def _stand(self, measured: RobotState) -> None:
        self._setpoint = Setpoint.at_rest(measured.positions_rad)
        self._opening = measured.gripper_opening

    def _change(self, event: Event) -> None:
        self._state = after(self._state, event)

    @property
    def _period_s(self) -> float:
        return self._description.period_s


_AT_REST = 1e-9


def _settled(setpoint: Setpoint) -> Setpoint:
    """At rest where only rounding errors still move."""
    moving = np.abs(setpoint.velocities_rad_s).max() + np.abs(setpoint.accelerations_rad_s2).max()
    if moving > _AT_REST:
        return setpoint
    zero = np.zeros_like(setpoint.velocities_rad_s)
    return replace(setpoint, velocities_rad_s=zero, accelerations_rad_s2=zero)
