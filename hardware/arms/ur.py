"""Universal Robots e-Series and CB3: servoJ targets and states over RTDE, by SDU's ur_rtde.

The library lives in a process of its own, because of what it does to the one that it lives in
(ur_rtde 1.6.5; each seen on the emulator): while it connects, for ever where the controller stays
silent, it holds the interpreter lock; a damaged packet ends the process (an exception that leaves
its receiving thread); and after a broken connection it connects again by itself, uploads its
control program anew and repeats the last command, with no watchdog armed. Here such a process is
given up, and the watchdog, which the controller runs, brings the arm to rest.

Commands go to that process as datagrams, states come back through shared memory; both need Linux.

Shape legend: J = 6 joints.
"""

import contextlib
import os
import select
import socket
import subprocess
import sys
import time
from typing import Any

import numpy as np

from robot_qsft.hardware.arms import ur_process
from robot_qsft.hardware.arms.ur_process import (
    ANSWER_S,
    JOINTS,
    LOST_S,
    OPTIONS,
    PLACES,
    READY,
    STATE,
    STOP,
    fault_of,
    lost,
    option,
)
from robot_qsft.hardware.description import RobotDescription, description_text
from robot_qsft.hardware.robot import Joints, RobotError, RobotState
from robot_qsft.hardware.shared_memory import SharedRecords

_MOST_HZ = 500
"""The e-Series' rate; a CB3 has 125."""


class URRobot:
    """A UR at the address `host`.

    A program that has ended, whatever ended it, stays ended: the fault is told until the arm is
    disconnected and connected again. Options: `lookahead_s` and `gain` of servoJ, `connect_s`.
    """

    def __init__(self, description: RobotDescription):
        """For the described arm.

        Raises:
            ValueError: when the description is none of a UR.
        """
        if len(description.joints) != JOINTS:
            raise ValueError(f"a UR has 6 joints, the description has {len(description.joints)}")
        if description.control_hz > _MOST_HZ:
            raise ValueError(
                f"control_hz of a UR must be at most {_MOST_HZ}, got {description.control_hz:g}"
            )
        if description.watchdog_s is None:
            raise ValueError("a UR has a watchdog: give watchdog_s, such as 0.1")
        if description.gripper is not None:
            raise ValueError("this driver moves no gripper; write 'gripper: null'")
        if not description.address or ":" in description.address:
            raise ValueError(
                "address must be the controller's host or IP address without a port, such as "
                f"192.168.56.101, got {description.address!r}"
            )
        for name, (default, low, high) in OPTIONS.items():
            value = description.option(name, default)
            if isinstance(value, bool | str) or not low <= value <= high:
                raise ValueError(f"options.{name} must lie in [{low:g}, {high:g}], got {value!r}")
        self.description = description
        self._process: _Process | None = None

    def connect(self) -> None:
        """Reach the controller, start the control program there, and arm its watchdog.

        Raises:
            RobotError: when it is not there, is not ready to move, or obeys another client.
        """
        self.disconnect()
        self._process = _Process(self.description)
        try:
            self._process.wait_until_ready()
        except BaseException:
            self._give_up()
            raise

    def read(self) -> RobotState:
        """The newest state; a fault in it tells what to do.

        Raises:
            RobotError: when the connection is lost.
        """
        record = self._newest()
        return RobotState(
            time_s=float(record["time_s"]),
            positions_rad=record["positions_rad"],
            velocities_rad_s=record["velocities_rad_s"],
            gripper_opening=0.0,
            fault=fault_of(record),
        )

    def command(self, positions_rad: Joints, gripper_opening: float) -> None:
        """Where to be one control period from now.

        Raises:
            RobotError: when the connection is lost, or the arm is at fault.
        """
        if positions_rad.shape != (JOINTS,) or not np.isfinite(positions_rad).all():
            raise ValueError(f"expected 6 finite joint positions, got {positions_rad}")
        if fault := fault_of(self._newest()):
            raise RobotError(fault)
        assert self._process is not None
        self._process.send(np.asarray(positions_rad, "<f8").tobytes())

    def stop(self) -> None:
        """Come to rest by servoStop.

        From above 1 m/s or so that takes longer than `watchdog_s` of 0.1, and then the watchdog
        stops the arm, and the program with it.
        """
        if self._process is not None:
            with contextlib.suppress(RobotError):
                self._process.send(STOP)

    def disconnect(self) -> None:
        """Come to rest, end the control program, and let go of the controller."""
        if self._process is not None:
            self._process.dismiss()
            self._process = None

    def _newest(self) -> Any:
        """The newest record of `STATE`."""
        if self._process is None:
            raise RobotError(f"not connected to {self.description.address}: connect first")
        try:
            return self._process.newest()
        except RobotError:
            self._give_up()
            raise

    def _give_up(self) -> None:
        """Let go at once; where the arm still moves, its watchdog brings it to rest."""
        if self._process is not None:
            self._process.kill()
            self._process = None


class _Process:
    """The library's process, seen from the driver."""

    def __init__(self, description: RobotDescription):
        """Start it."""
        self._host, self._connect_s = description.address, option(description, "connect_s")
        self._states = SharedRecords(STATE, PLACES)
        self._socket, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        with there:  # once only the process holds its end, its death closes the connection
            self._process = subprocess.Popen(
                [
                    *(
                        sys.executable,
                        "-P",
                        "-c",
                        f"from {ur_process.__name__} import serve; serve()",
                    ),
                    *(description_text(description), str(there.fileno()), self._states.name),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # what the library prints, RobotError says
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                pass_fds=[there.fileno()],
            )

    def wait_until_ready(self) -> None:
        """Wait for the connection.

        Raises:
            RobotError: when there is none.
        """
        if not select.select([self._socket], [], [], self._connect_s)[0]:
            raise RobotError(
                f"the UR at {self._host} did not finish connecting within {self._connect_s:g} s: "
                "wait until it has booted and try again"
            )
        if (told := self._told()) != READY.decode():
            raise RobotError(told)

    def newest(self) -> Any:
        """The newest record of `STATE`.

        Raises:
            RobotError: when the connection is lost.
        """
        record: Any = self._states.newest()  # ready means that there is one
        if told := self._told():
            raise RobotError(told)
        if time.monotonic() - float(record["time_s"]) > LOST_S:
            raise RobotError(lost(self._host))
        return record

    def send(self, message: bytes) -> None:
        """Hand a message over.

        Raises:
            RobotError: when it is not taken.
        """
        try:
            self._socket.send(message)
        except OSError as error:
            raise RobotError(self._told() or lost(self._host)) from error

    def dismiss(self) -> None:
        """Have it bring the arm to rest and end."""
        self._socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(ANSWER_S)
        self.kill()

    def kill(self) -> None:
        """End it now."""
        self._process.kill()
        self._process.wait()
        self._socket.close()
        self._states.close()

    def _told(self) -> str:
        """What it has sent, or that it is gone; "" otherwise."""
        try:
            told = self._socket.recv(4096)
        except BlockingIOError:
            return ""
        except OSError:
            told = b""
        if told:
            return told.decode()
        return f"{lost(self._host)} (the library's process ended by itself)"
