"""`robot-qsft run`: a policy moves an arm, under limits and an operator's eyes."""

import getpass
import os
import select
import signal
import sys
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from robot_qsft.console import console
from robot_qsft.hardware.config import ControlConfig, LinkConfig, RuntimeConfig
from robot_qsft.hardware.description import RobotDescription, find_description
from robot_qsft.hardware.policy_io import PolicyIO, PolicyIOConfig

if TYPE_CHECKING:
    from robot_qsft.hardware.cameras import Camera, Cameras
    from robot_qsft.hardware.deployment import Deployment
    from robot_qsft.hardware.recorder import Ending
    from robot_qsft.hardware.runtime import Runtime

_CAMERA_S = 10.0
_SAY_EVERY_S = 0.2
_KEYS = {
    "n": "begin",
    "a": "arm",
    "r": "run",
    "": "stop",
    "d": "disarm",
    "e": "reset",
}
_ENDINGS: "dict[str, Ending]" = {"s": "success", "f": "failure", "u": "unclear"}
_HELP = (
    "n new episode, a arm, r run, Enter STOP, d disarm, e reset a fault; s it succeeded, f it "
    "failed, u cannot be told; q quit. Each followed by Enter. STOP is no safety function."
)


@dataclass(frozen=True)
class Run:
    """Run a policy on an arm: limits, watchdog and recording are on.

    Attributes:
        robot: name of a description that comes with the package, or a description file (YAML).
        address: where the arm is found, unless its description says so.
        cameras: NAME=DEVICE each; the device is a camera's number or file, or "simulated".
        realtime: ask the system for real-time priority.
        record: folder of the data set that episodes go to.
        page: serve the operator's page instead of reading keys from the terminal.
        page_port: where.
        io: what the policy's states and actions are.
        link: to the policy server.
        config: how the policy is asked.
        control: how its actions become motion.
    """

    robot: str
    address: str = ""
    cameras: tuple[str, ...] = ()
    realtime: bool = True
    record: Path | None = None
    page: bool = False
    page_port: int = 8080
    io: PolicyIOConfig = field(default_factory=PolicyIOConfig)
    link: Annotated[LinkConfig, tyro.conf.arg(name="")] = field(default_factory=LinkConfig)
    config: Annotated[RuntimeConfig, tyro.conf.arg(name="")] = field(default_factory=RuntimeConfig)
    control: Annotated[ControlConfig, tyro.conf.arg(name="")] = field(default_factory=ControlConfig)

    def run(self) -> int:
        """Run until interrupted."""
        description = find_description(self.robot, self.address)
        io = PolicyIO(description, self.io)
        try:
            from robot_qsft.hardware.loop_process import LoopProcess
            from robot_qsft.hardware.runtime import Runtime
        except ImportError as error:
            raise ValueError(
                f"running an arm needs more packages ({error}); pip install 'robot-qsft[bridge]'"
            ) from error
        from robot_qsft.hardware.cameras import Cameras
        from robot_qsft.hardware.deployment import Deployment, recorder_of
        from robot_qsft.hardware.robot import RobotError

        try:
            with ExitStack() as running:
                cameras = Cameras(
                    dict(_camera(told, description) for told in self.cameras),
                    hz=2 * self.config.policy_hz,
                )
                running.callback(cameras.close)
                loop = running.enter_context(
                    LoopProcess(description, self.control, realtime=self.realtime)
                )
                for sentence in loop.refused:
                    console.print(f"note: {sentence}", soft_wrap=True)
                if description.watchdog_s is None:
                    console.print("note: this arm has no watchdog of its own", soft_wrap=True)
                _wait_for_pictures(cameras)
                recorder = None
                if self.record is not None:
                    fps = round(self.config.policy_hz)
                    recorder = recorder_of(self.record, description, io, cameras, fps=fps)
                runtime = Runtime(loop, io, cameras, link=self.link, config=self.config)
                running.callback(runtime.close)
                deployment = Deployment(
                    runtime, self.config, recorder=recorder, by=getpass.getuser()
                )
                if self.page:
                    self._serve_page(running, runtime, deployment, cameras, description)
                else:
                    with suppress(KeyboardInterrupt):  # what was executed is kept
                        _obey_keys(runtime, deployment)
                if deployment.going_on:
                    deployment.end("unclear")
        except RobotError as error:
            raise ValueError(str(error)) from error
        return 0

    def _serve_page(
        self,
        running: ExitStack,
        runtime: "Runtime",
        deployment: "Deployment",
        cameras: "Cameras",
        description: RobotDescription,
    ) -> None:
        try:
            from robot_qsft.hardware.page import Page
        except ImportError as error:
            raise ValueError(
                f"the page needs more packages ({error}); pip install 'robot-qsft[page]'"
            ) from error
        page = Page(runtime, deployment, cameras, description, port=self.page_port)
        running.callback(page.close)
        console.print(f"the operator's page is at {page.address}", soft_wrap=True)
        ended = threading.Event()
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signal_number, lambda number, frame: ended.set())
        ended.wait()


def _camera(told: str, description: RobotDescription) -> "tuple[str, Camera]":
    from robot_qsft.hardware.cameras import OpenCVCamera, SimulatedCamera

    name, equals, device = told.partition("=")
    if not equals or not name or not device:
        raise ValueError(f"a camera is told as NAME=DEVICE, such as front=0, got {told!r}")
    if device == "simulated":
        return name, SimulatedCamera(description.address, name)
    return name, OpenCVCamera(device)


def _wait_for_pictures(cameras: "Cameras") -> None:
    """Until every camera has given one.

    Raises:
        ValueError: when one gives none.
    """
    end_s = time.monotonic() + _CAMERA_S
    while objection := cameras.objection(time.monotonic(), stale_s=_CAMERA_S):
        if time.monotonic() > end_s:
            raise ValueError(objection)
        time.sleep(0.05)


def _obey_keys(runtime: "Runtime", deployment: "Deployment") -> None:
    """Read keys from the terminal until "q" or its end, telling what changes."""
    console.print(_HELP, soft_wrap=True)
    before, typed = "", b""
    while True:
        period = runtime.newest()
        told = [period.state.name, period.reason, deployment.said, runtime.trouble]
        now = "; ".join(dict.fromkeys(line for line in told if line))
        if now != before:
            console.print(now, soft_wrap=True)
            before = now
        if not select.select([sys.stdin], [], [], _SAY_EVERY_S)[0]:
            continue
        # Not by readline, which would keep what was typed after the first line for itself.
        more = os.read(sys.stdin.fileno(), 1024)
        *lines, typed = (typed + more).split(b"\n")
        for line in lines:
            key = line.decode(errors="replace").strip()
            if key == "q":
                return
            if key in _ENDINGS:
                deployment.end(_ENDINGS[key])
            else:  # whatever else is typed stops
                getattr(deployment, _KEYS.get(key, "stop"))()
        if not more:
            return
