"""The process that commands the arm: one period after the other, whatever the network does.

It is started by the runtime as `python -m robot_qsft.hardware.control_loop`, told what to do by a
line of JSON, and ends when its standard input does: if the runtime dies, the arm comes to rest and
is let go of. Neither PyTorch nor any network code is in it.
"""

import json
import select
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from robot_qsft.hardware.arms.make import make_robot
from robot_qsft.hardware.config import ControlConfig
from robot_qsft.hardware.controller import Controller, Decision, Request
from robot_qsft.hardware.description import read_description
from robot_qsft.hardware.loop_ports import LoopPorts
from robot_qsft.hardware.realtime import Ticker, become_realtime
from robot_qsft.hardware.robot import Robot, RobotError, RobotState
from robot_qsft.hardware.states import State

_LET_GO_S = 2.0
"""Longest that coming to rest may take when the loop ends."""


class ControlLoop:
    """Reads the arm, asks the controller, commands the arm."""

    def __init__(self, robot: Robot, config: ControlConfig, ports: LoopPorts):
        """For an arm that is not connected yet."""
        self._robot = robot
        self._config = config
        self._ports = ports
        self._controller = Controller(robot.description, config)
        self._measured: RobotState | None = None
        self._objection = ""

    def connect(self) -> None:
        """Reach the arm and hold it still.

        Raises:
            RobotError: when it cannot be reached or is not ready.
        """
        self._robot.connect()
        self._measured = self._robot.read()
        self._controller.connected(self._measured)

    def run(self, keep_going: Callable[[], bool]) -> None:
        """Periods until `keep_going` says no; then come to rest and let go of the arm."""
        ticker = Ticker(self._robot.description.period_s)
        try:
            while keep_going():
                self.period(ticker.wait())
            self._controller.hold("the runtime has ended")
            end_s = time.monotonic() + _LET_GO_S
            while self._moving() and time.monotonic() < end_s:
                self.period(ticker.wait())
        finally:
            self._robot.stop()
            self._robot.disconnect()
            self._controller.disconnected()
            if self._measured is not None:
                decision = self._controller.step(time.monotonic(), self._measured)
                self._tell(decision, self._measured, now_s=time.monotonic(), late_s=0.0)

    def period(self, late_s: float) -> None:
        """One period that begins now, `late_s` after it should have."""
        now_s = time.monotonic()
        requests, reason = self._ports.requests()
        self._take_chunks(now_s)
        controller, before = self._controller, self._controller.state
        if requests & Request.STOP and reason:
            controller.hold(reason)
        if late_s > self._config.late_s:
            controller.hold(f"the control loop was {late_s:.3f} s late")
        try:
            if requests & Request.RESET and before is State.FAULT:
                self._robot.disconnect()
                self._robot.connect()
            self._measured = self._robot.read()
        except RobotError as error:
            controller.fail(str(error))
            requests &= ~Request.RESET
        measured = self._measured
        assert measured is not None, "connect first"
        decision = controller.step(now_s, measured, requests)
        if decision.setpoint is not None:
            try:
                self._robot.command(decision.setpoint.positions_rad, decision.gripper_opening)
            except RobotError as error:
                controller.fail(str(error))
        if controller.state is State.FAULT and before is not State.FAULT:
            self._robot.stop()
        # A command that was not taken has made another state of it.
        decision = replace(decision, state=controller.state, reason=controller.reason)
        self._tell(decision, measured, now_s=now_s, late_s=late_s)

    def _tell(
        self, decision: Decision, measured: RobotState, *, now_s: float, late_s: float
    ) -> None:
        self._ports.tell(decision, measured, now_s=now_s, late_s=late_s, objection=self._objection)

    def _take_chunks(self, now_s: float) -> None:
        for chunk, begin_s, period_s in self._ports.chunks():
            if chunk.stream > self._controller.stream and period_s > 0:
                self._controller.begin_stream(chunk.stream, begin_s=begin_s, period_s=period_s)
            self._objection = self._controller.take(chunk, now_s)

    def _moving(self) -> bool:
        return self._controller.state is State.HOLD and not self._controller.resting


def main() -> int:
    """Run the loop that the first line of standard input tells of."""
    told: dict[str, Any] = json.loads(sys.stdin.readline())
    try:
        description = read_description(told["description"])
        robot = make_robot(description)
        ports = LoopPorts(len(description.joints), names=tuple(told["ports"]))
        loop = ControlLoop(robot, ControlConfig(**told["config"]), ports)
        # Before connecting: threads and processes of a vendor's library inherit the priority.
        refused = become_realtime() if told["realtime"] else ["real-time was not asked for"]
        loop.connect()
    except (RobotError, ValueError) as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 1
    print(json.dumps({"refused": refused}), flush=True)

    def keep_going() -> bool:
        readable, _, _ = select.select([sys.stdin], [], [], 0)
        return not readable  # readable means ended: nothing more is ever written to it

    try:
        loop.run(keep_going)
    finally:
        ports.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
