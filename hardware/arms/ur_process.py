"""The process that ur_rtde lives in, see `ur.py`: connects, passes commands and states on.

Shape legend: J = 6 joints.
"""

import contextlib
import math
import os
import resource
import select
import signal
import socket
import sys
import time
from typing import Any

import numpy as np
from rtde_control import RTDEControlInterface
from rtde_receive import RTDEReceiveInterface

from robot_qsft.hardware.description import RobotDescription, read_description
from robot_qsft.hardware.robot import RobotError
from robot_qsft.hardware.shared_memory import SharedRecords

JOINTS = 6
_PORTS = {30004: "RTDE", 29999: "Dashboard Server", 30003: "Real-Time Client"}
"""Fixed in the library, with the names that PolyScope has for them."""
ANSWER_S = 2.0
LOST_S = 0.5
"""No state for this long is no connection; the controller sends one in every period."""
OPTIONS = {"lookahead_s": (0.1, 0.03, 0.2), "gain": (300, 100, 2000), "connect_s": (10, 0.1, 60)}
"""Default, least and greatest value; those of servoJ are UR's."""
_STOP_M_S2 = 10.0
"""Deceleration of the tool in servoStop, as the library has it."""

_VARIABLES = [
    *("timestamp", "actual_q", "actual_qd"),
    *("safety_status_bits", "robot_mode", "runtime_state"),
]
STATE = np.dtype(
    [
        ("time_s", "<f8"),
        ("positions_rad", "<f8", JOINTS),
        ("velocities_rad_s", "<f8", JOINTS),
        ("safety_bits", "<u4"),
        ("mode", "<i4"),
        ("program", "<u4"),
        ("ended", "?"),
    ]
)
PLACES = 2
"""One would be half written for ever where the process is killed as it writes."""
READY, STOP = b"ready", b"stop"
"""Datagrams; others to the process are J targets, and others from it say why it ends."""

_SAFETY = {
    6: "emergency stop at the arm: pull the button out and switch the arm on at the pendant",
    5: "emergency stop of the cell: release it and switch the arm on at the pendant",
    7: "emergency stop: release it and switch the arm on at the pendant",
    9: "safety fault: see the pendant, then restart safety there",
    8: "safety violation: see the pendant, then restart safety there",
    2: "protective stop: remove what the arm met, then unlock it at the pendant",
    4: "safeguard stop: leave the guarded area and reset the safeguard",
    3: "recovery mode: bring the joints back into their safety limits at the pendant",
    10: "stopped for safety: see the pendant",
}
"""Bits of safety_status_bits, the gravest first."""
_MODES = {
    **{-1: "without a controller", 0: "disconnected", 1: "waiting for its safety to be confirmed"},
    **{2: "booting", 3: "switched off", 4: "switched on, but idle", 5: "idle, its brakes on"},
    **{6: "being moved by hand", 8: "updating its firmware"},
}
"""Of robot_mode, all but running."""
_RUNNING, _PLAYING = 7, 2
"""Of robot_mode and runtime_state."""


def fault_of(record: Any) -> str:
    """Why the arm does not follow commands, by a record of `STATE`; "" where it does."""
    if not np.isfinite(record["positions_rad"]).all():
        return "the arm reports positions that are no numbers: check the network, connect again"
    bits, mode = int(record["safety_bits"]), int(record["mode"])
    for bit, words in _SAFETY.items():
        if bits >> bit & 1:
            return words
    if mode != _RUNNING:
        words = _MODES.get(mode, f"in mode {mode}")
        return f"the arm is {words}: make it ready at the pendant, then connect again"
    if record["ended"]:
        return (
            "the control program has ended, by its watchdog (no command came in time), at the "
            "pendant, or by a stop that is over: connect again"
        )
    return ""


def lost(host: str) -> str:
    """What is said of a lost connection."""
    return f"the connection to the UR at {host} is lost: check cable and power, then connect again"


def option(description: RobotDescription, name: str) -> float:
    """An option of the driver, as described or by default."""
    return float(description.option(name, OPTIONS[name][0]))


def serve() -> None:
    """Be the library's process to its end; arguments are a description, a socket, and a memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is left to the parent
    description = read_description(sys.argv[1])
    # Should the parent die meanwhile: the library may wait for ever, and lets no Python code run.
    signal.setitimer(signal.ITIMER_REAL, option(description, "connect_s") + ANSWER_S)
    parent = socket.socket(fileno=int(sys.argv[2]))
    try:
        _serve(description, parent, SharedRecords(STATE, PLACES, name=sys.argv[3]))
    except Exception as error:
        _end(parent, _explained(error, description.address))


def _end(parent: socket.socket, told: str) -> None:
    """End this process with the library as it is, since taking it down takes a second."""
    with contextlib.suppress(OSError):
        parent.send(told.encode())
    os._exit(0)


def _serve(description: RobotDescription, parent: socket.socket, states: SharedRecords) -> None:
    """Connect, and pass commands and states on until dismissed."""
    _try_ports(description.address)
    client = _Client(description, states)
    signal.setitimer(signal.ITIMER_REAL, 0)
    client.publish()
    parent.send(READY)
    poll = select.poll()
    poll.register(parent, select.POLLIN)
    while True:
        messages = []
        if poll.poll(max(1, int(1e3 * description.period_s))):
            while message := _received(parent):
                messages.append(message)
            if message == b"":
                signal.setitimer(signal.ITIMER_REAL, ANSWER_S)  # the library may wait minutes
                client.dismiss()
                _end(parent, "")
        if STOP in messages:
            client.stop()
        elif messages:
            client.servo(np.frombuffer(messages[-1], "<f8").tolist())
        client.publish()


def _received(parent: socket.socket) -> bytes | None:
    """The next message; b"" when the parent is gone, None where there is none now."""
    try:
        return parent.recv(4096, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _try_ports(host: str) -> None:
    """See that somebody listens, since the library waits minutes for nobody."""
    for port, service in _PORTS.items():
        try:
            socket.create_connection((host, port), timeout=ANSWER_S).close()
        except OSError as error:
            raise RobotError(
                f"{host} does not answer at port {port} ({error}): check cable, power and address, "
                f"and that PolyScope's Settings, Security, Services enable the {service}"
            ) from error


def _explained(error: Exception, host: str) -> str:
    """One line with what to do, of what this module or the library raised."""
    told = str(error)
    if isinstance(error, RobotError):
        return told
    if "remote control" in told:
        return f"the UR at {host} is not in remote control: switch it to Remote at the pendant"
    if "already in use" in told:
        return (
            f"another client controls the UR at {host}: end it, or disable EtherNet/IP, PROFINET "
            "and MODBUS in the arm's installation"
        )
    if "start control script" in told:
        return (
            f"the UR at {host} did not start the control program: see the pendant's log, and that "
            "it is in remote control"
        )
    return f"{lost(host)} ({' '.join(told.split())[:200]})"


class _Client:
    """The connected library, and what became of its control program."""

    def __init__(self, description: RobotDescription, states: SharedRecords):
        assert description.watchdog_s is not None
        self._host, self._period_s = description.address, description.period_s
        self._servo = (option(description, "lookahead_s"), option(description, "gain"))
        self._states = states
        self._record = np.zeros((), STATE)
        self._stamp_s = math.nan
        self._servoing = False
        self._receive = RTDEReceiveInterface(self._host, description.control_hz, _VARIABLES)
        self._observe()
        if fault := fault_of(self._record):
            raise RobotError(f"the UR at {self._host} is not ready: {fault}")
        self._control = RTDEControlInterface(self._host, description.control_hz)
        # The library's own way back, see above, is barred: it needs a socket, which now it does not
        # get. One descriptor remains allowed, for poll() to wait for one.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1, most))
        if not self._control.setWatchdog(1 / description.watchdog_s):
            raise RobotError(f"the UR at {self._host} did not arm its watchdog: connect again")
        # By then the program runs, but only on the library's other connection is that known.
        until_s = time.monotonic() + LOST_S
        while self._receive.getRuntimeState() != _PLAYING and time.monotonic() < until_s:
            time.sleep(self._period_s)

    def servo(self, positions_rad: list[float]) -> None:
        """Pass a command on, unless the program has ended."""
        if self._record["ended"]:
            return
        self._servoing = True
        # The control program uses neither speed nor acceleration; limits are kept before this.
        self._mind(self._control.servoJ(positions_rad, 0.0, 0.0, self._period_s, *self._servo))

    def stop(self) -> None:
        """Come to rest."""
        if self._servoing and not self._record["ended"]:
            self._mind(self._control.servoStop(_STOP_M_S2))
        self._servoing = False

    def dismiss(self) -> None:
        """Come to rest and end the program."""
        self.stop()
        if not self._record["ended"]:
            self._control.stopScript()

    def publish(self) -> None:
        """Share the newest state; feed the watchdog of an arm that rests.

        Raises:
            RobotError: when the connection is lost.
        """
        if not (self._receive.isConnected() and self._control.isConnected()):
            raise RobotError(lost(self._host))
        # Once commanded, the arm is the parent's to keep alive.
        if not self._servoing and not self._record["ended"]:
            self._mind(self._control.kickWatchdog())
        self._observe()
        if int(self._record["program"]) != _PLAYING or fault_of(self._record):
            self._record["ended"] = True
        self._states.write(self._record)

    def _mind(self, taken: bool) -> None:
        """A command that is not taken is the last one."""
        if not taken:
            time.sleep(2 * self._period_s)  # by then a state that tells why has come
            self._record["ended"] = True

    def _observe(self) -> None:
        """Take in the newest state, all of it from one packet."""
        receive, record, now_s = self._receive, self._record, time.monotonic()
        while (stamp_s := receive.getTimestamp()) != self._stamp_s:
            self._stamp_s = stamp_s
            record["time_s"] = now_s
            record["positions_rad"] = receive.getActualQ()
            record["velocities_rad_s"] = receive.getActualQd()
            record["safety_bits"] = receive.getSafetyStatusBits()
            record["mode"] = receive.getRobotMode()
            record["program"] = receive.getRuntimeState()
        if now_s - float(record["time_s"]) > LOST_S:
            raise RobotError(lost(self._host))
