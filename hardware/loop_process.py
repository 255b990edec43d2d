"""Starts the control loop's process, and ends it."""

import json
import subprocess
import sys
import time
from dataclasses import asdict
from types import TracebackType

from robot_qsft.hardware.config import ControlConfig
from robot_qsft.hardware.controller import Request
from robot_qsft.hardware.description import RobotDescription, description_text
from robot_qsft.hardware.loop_ports import LoopPorts, Period
from robot_qsft.hardware.robot import RobotError

_BEGIN_S, _END_S = 10.0, 10.0


class LoopProcess:
    """The control loop, running. Use it in a `with`, which ends it and lets go of the arm."""

    def __init__(self, description: RobotDescription, config: ControlConfig, *, realtime: bool):
        """Start the loop and connect to the arm.

        Args:
            description: of the arm.
            config: how chunks become motion.
            realtime: whether to ask the system for real-time priority.

        Raises:
            RobotError: when the arm cannot be reached or is not ready.
        """
        self.ports = LoopPorts(len(description.joints))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "robot_qsft.hardware.control_loop"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C is for the runtime, which ends the loop in order
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        told = {
            "description": description_text(description),
            "config": asdict(config),
            "ports": self.ports.names,
            "realtime": realtime,
        }
        try:
            self._process.stdin.write(json.dumps(told) + "\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline() or "{}")
        except (OSError, ValueError) as error:
            answer = {"error": f"the control loop did not start ({error})"}
        if "refused" not in answer:
            self.close()
            raise RobotError(answer.get("error", "the control loop did not start"))
        self.refused: list[str] = answer["refused"]
        """What the system refused of being real-time, in sentences."""
        end_s = time.monotonic() + _BEGIN_S
        while self.ports.newest() is None:
            if not self.running or time.monotonic() > end_s:
                self.close()
                raise RobotError("the control loop did not begin; see what it says above")
            time.sleep(description.period_s)

    def __enter__(self) -> "LoopProcess":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process.poll() is None

    def newest(self) -> Period:
        """What the loop did last."""
        period = self.ports.newest()
        assert period is not None, "it has begun"
        return period

    def request(self, request: Request, reason: str = "") -> None:
        """See `LoopPorts.request`."""
        self.ports.request(request, reason)

    def close(self) -> None:
        """Have the arm come to rest and be let go of; a second time changes nothing."""
        assert self._process.stdin is not None and self._process.stdout is not None
        if self._process.stdin.closed:
            return
        self._process.stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()  # the arm's own watchdog has stopped it by now
            self._process.wait()
        self._process.stdout.close()
        self.ports.close()
