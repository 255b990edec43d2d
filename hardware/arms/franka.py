"""The Franka Research 3, as a spring that is pulled along by the targets.

Franka's controller wants a command every millisecond, which no Python loop can promise. So franky's
joint impedance motion runs that loop in C++ and turns the newest target into torques,
`stiffness (q_target - q) + damping (dq_target - dq) + coriolis`, the rate of which it limits; a
target is handed over without waiting. The other way that franky has, a joint motion replaced by the
next one at every target, was not taken: each begins from velocities and accelerations that the
controller reported a cycle or two ago, and such a step is a discontinuity for which the controller
stops the arm; so is a late packet. Torques merely stay as they are when a packet is late, the
velocity of the targets leaves no lag behind them, and what the arm meets is pushed with bounded
force.

Three things bring the arm to rest when targets stop coming. When this process dies or its network
does, the controller misses its commands and stops the arm within 20 of them. When the process lives
but does not call `command` (it waits, hangs, or keeps Python's lock for ever), the C++ loop sees to
it: a motion is replaced by a fresh one several times within the watchdog's time, and one that has
grown old turns, by a reaction that needs no Python, into one that holds the arm where it is. And
even without that, a spring whose end is not moved any more comes to rest.

Shape legend: J joints.
"""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import franky
import numpy as np

from robot_qsft.hardware.description import RobotDescription
from robot_qsft.hardware.robot import Joints, RobotError, RobotState

_STIFFNESS_NM_RAD = np.array([600.0, 600.0, 600.0, 600.0, 250.0, 150.0, 50.0])
"""Of libfranka's example of joint impedance control."""
_DAMPING_NM_S_RAD = np.array([50.0, 50.0, 50.0, 50.0, 30.0, 15.0, 5.0])
"""The same; of joints 6 and 7 deoxys's, whose stiffness there is equal: with more they creep."""
_START_S = 2.0
"""For the controller to begin with torque control."""
_STOP_S = 2.0
"""For the C++ loop to end; its own time-outs are of a second."""
_SILENCE_S = 0.5
"""Without a state, of which there are a thousand in a second, nothing is known of the arm."""
_VENDOR_ERRORS = (franky.Exception, RuntimeError)  # the second also of what libfranka stands on

_ADVICE = {
    "joint_reflex": "it met with resistance, clear its way",
    "cartesian_reflex": "it met with resistance, clear its way",
    "joint_velocity_violation": "it was too fast, lower the limits in its description",
    "joint_position_limits_violation": "it is past a joint's limit, guide it back by hand",
    "communication_constraints_violation": (
        "commands came late, use a real-time kernel and a cable straight to the controller"
    ),
}


class FrankaRobot:
    """An arm at its control interface (FCI); the address is the controller's.

    From a reflex the arm is recovered when it is connected, never while it is. A gripper is not
    driven. The description's option `realtime_kernel: false` does without a real-time kernel, for
    trials: commands will come late now and then, and too many in a row stop the arm.
    """

    def __init__(self, description: RobotDescription):
        """Not connected.

        Raises:
            ValueError: when the description is not that of such an arm.
        """
        if len(description.joints) != 7:
            raise ValueError(f"a Franka has 7 joints, got {len(description.joints)}; mend joints")
        if description.gripper is not None:
            raise ValueError("this driver moves no gripper; say gripper: null")
        if description.watchdog_s is None:
            raise ValueError("a Franka has a watchdog; say watchdog_s")
        self.description = description
        self._fastest_rad_s = description.of_joints("velocity_rad_s")
        # An old motion turns into a hold after half the time; the other half is for braking.
        self._oldest_s = description.watchdog_s / 2
        # Never bound to a local name: the frame of an error that somebody keeps would keep it alive
        # and connected, and the controller takes one client only.
        self._robot: Any = None
        self._motion: Any = None
        self._renewed_s = 0.0
        self._target_rad: Joints = np.zeros(7)
        self._state_number, self._state_s = 0, 0.0
        self._lost = "not connected; connect first"
        self._fault = ""

    def connect(self) -> None:
        """Reach the arm, recover it from errors, and hold it where it is.

        Raises:
            RobotError: when it cannot be reached, is of another kind, or is not ready to move.
        """
        self.disconnect()
        realtime = self.description.option("realtime_kernel", True)
        config = franky.RealtimeConfig.Enforce if realtime else franky.RealtimeConfig.Ignore
        try:
            with _priority_kept():
                self._robot = franky.Robot(self.description.address, realtime_config=config)
                self._make_ready()
                # Its loop inherits the priority that libfranka has given to this thread.
                self._hold()
            self._wait_for_control()
        except _VENDOR_ERRORS as error:
            self.disconnect()
            raise RobotError(
                f"no control of the Franka at {self.description.address}: {_words(error)}; "
                f"{_advice_on_connecting(error)}"
            ) from error
        except RobotError:
            self.disconnect()
            raise

    def read(self) -> RobotState:
        """The newest state.

        Raises:
            RobotError: when the connection is lost.
        """
        fault = self._why_it_stands()
        try:
            state = self._robot.state
        except _VENDOR_ERRORS as error:
            raise self._loss(error) from error
        number, now_s = state.time.to_msec(), time.monotonic()
        if number != self._state_number:
            self._state_number, self._state_s = number, now_s
        elif now_s > self._state_s + _SILENCE_S and not fault:
            fault = (
                f"the controller has told nothing for {now_s - self._state_s:.1f} s; "
                "check its cable, then connect again"
            )
        return RobotState(self._state_s, np.array(state.q), np.array(state.dq), 0.0, fault)

    def command(self, positions_rad: Joints, gripper_opening: float) -> None:
        """Where to be one control period from now.

        Raises:
            RobotError: when the arm stands.
        """
        if fault := self._why_it_stands():
            raise RobotError(fault)
        velocities_rad_s = (positions_rad - self._target_rad) * self.description.control_hz
        velocities_rad_s = velocities_rad_s.clip(-self._fastest_rad_s, self._fastest_rad_s)
        self._target_rad = positions_rad.copy()
        reference = franky.JointReference(q=positions_rad, dq=velocities_rad_s)
        if time.monotonic() < self._renewed_s + self._oldest_s / 3:
            self._motion.set_reference(reference)
            return
        try:
            self._start(reference)
        except _VENDOR_ERRORS as error:  # of a loop that ended just now; it was not begun anew
            self._fault = self._told(error)
            raise RobotError(self._fault) from error

    def stop(self) -> None:
        """Have the controller brake the arm; it follows again once it is connected again."""
        if self._robot is None:
            return
        self._fault = self._fault or "stopped; connect again"
        with suppress(*_VENDOR_ERRORS):
            if self._robot.is_in_control:
                self._robot.stop()
        with suppress(*_VENDOR_ERRORS):
            self._robot.join_motion(_STOP_S)

    def disconnect(self) -> None:
        """Come to rest and let go of the arm."""
        self.stop()
        self._robot = self._motion = None
        self._lost, self._fault = "not connected; connect first", ""

    def _make_ready(self) -> None:
        """Recover from errors, and see that the arm can move now."""
        if self._robot.has_errors or self._robot.state.robot_mode == franky.RobotMode.Reflex:
            self._robot.recover_from_errors()
        mode = self._robot.state.robot_mode
        if mode != franky.RobotMode.Idle:
            raise RobotError(f"the Franka at {self.description.address} {_why_not_ready(mode)}")

    def _hold(self) -> None:
        """Take the arm into control where it is."""
        state = self._robot.state
        self._state_number, self._state_s = state.time.to_msec(), time.monotonic()
        self._target_rad = np.array(state.q)
        self._start(franky.JointReference(q=self._target_rad))

    def _wait_for_control(self) -> None:
        """Until the controller takes torques.

        Raises:
            RobotError: when it does not.
        """
        end_s = time.monotonic() + _START_S
        while self._robot.state.robot_mode != franky.RobotMode.Move:
            if fault := self._why_it_stands():
                raise RobotError(fault)
            if time.monotonic() > end_s:
                raise RobotError(
                    f"the Franka at {self.description.address} does not begin with torque control; "
                    "start it anew, then connect again"
                )
            time.sleep(0.001)

    def _start(self, reference: Any) -> None:
        """Begin with a motion, or replace the one that runs, in which nothing is felt."""
        motion = _spring()
        motion.set_reference(reference)
        # Without a reference it takes the measured position for one, when it begins.
        hold = _spring()
        motion.add_reaction(franky.TorqueReaction(self._oldest_s < franky.Measure.REL_TIME, hold))
        self._robot.move(motion, asynchronous=True)
        self._motion, self._renewed_s = motion, time.monotonic()

    def _why_it_stands(self) -> str:
        """Why the arm follows no more; "" while it does.

        Raises:
            RobotError: when there is no connection.
        """
        if self._robot is None:
            raise RobotError(self._lost)
        if self._fault or self._robot.is_in_control:
            return self._fault
        self._fault = "torque control has ended; connect again"
        try:
            self._robot.join_motion()
        except _VENDOR_ERRORS as error:
            self._fault = self._told(error)
        return self._fault

    def _told(self, error: Exception) -> str:
        """Why control ended, in words.

        Raises:
            RobotError: when the connection is lost.
        """
        if not isinstance(error, franky.ControlException | franky.CommandException):
            raise self._loss(error) from error
        try:
            state = self._robot.state
        except _VENDOR_ERRORS as lost:
            raise self._loss(lost) from lost
        if state.robot_mode == franky.RobotMode.UserStopped:
            cause = "user stop, release it and see that FCI is active in Desk"
        elif names := re.findall(r'"(\w+_\w+)"', str(error)):
            advice = [_ADVICE[name] for name in names if name in _ADVICE]
            cause = f"reflex {', '.join(names)}: {', '.join(advice or ['clear its cause'])}"
        else:
            cause = _words(error)
        return f"{cause}; then connect again"

    def _loss(self, error: Exception) -> RobotError:
        """Let go of an arm that cannot be reached; gives what to raise."""
        self.disconnect()
        self._lost = (
            f"the connection to the Franka at {self.description.address} is lost "
            f"({_words(error)}); check its power and its cable, then connect again"
        )
        return RobotError(self._lost)


def _spring() -> Any:
    return franky.JointImpedanceTrackingMotion(
        stiffness=_STIFFNESS_NM_RAD, damping=_DAMPING_NM_S_RAD
    )


@contextmanager
def _priority_kept() -> Iterator[None]:
    """Undo what libfranka does to the thread that connects: it runs before all others, for good."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def _words(error: Exception) -> str:
    """What libfranka says, on one line."""
    return " ".join(str(error).split()).removeprefix("libfranka: ").rstrip(".") or repr(error)


def _why_not_ready(mode: Any) -> str:
    reasons = {
        franky.RobotMode.UserStopped: (
            "is stopped by the user; release the stop and activate FCI in Desk"
        ),
        franky.RobotMode.Guiding: "is being guided by hand; let go of it",
        franky.RobotMode.Other: "has its joints locked; unlock them and activate FCI in Desk",
    }
    return reasons.get(mode, f"is in mode {mode.name}; see what Desk says of it")


def _advice_on_connecting(error: Exception) -> str:
    if isinstance(error, franky.RealtimeException):
        return (
            "boot a real-time kernel and allow 'rtprio 99' in /etc/security/limits.conf, or say "
            "options: {realtime_kernel: false} in its description for a trial"
        )
    if isinstance(error, franky.IncompatibleVersionException):
        return "it must be an FR3 with the system version that this franky-control is made for"
    if isinstance(error, franky.NetworkException):
        return "switch it on, activate FCI in Desk, and check the cable and the address"
    return "see what Desk says of it"
