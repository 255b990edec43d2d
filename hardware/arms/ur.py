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
import math
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import numpy as np
from rtde_control import RTDEControlInterface
from rtde_receive import RTDEReceiveInterface

from robot_qsft.hardware.description import RobotDescription, description_text, read_description
from robot_qsft.hardware.robot import Joints, RobotError, RobotState
from robot_qsft.hardware.shared_memory import SharedRecords

_JOINTS = 6
_MOST_HZ = 500
"""The e-Series' rate; a CB3 has 125."""
_PORTS = {30004: "RTDE", 29999: "Dashboard Server", 30003: "Real-Time Client"}
"""Fixed in the library, with the names that PolyScope has for them."""
_ANSWER_S = 2.0
_LOST_S = 0.5
"""No state for this long is no connection; the controller sends one in every period."""
_OPTIONS = {"lookahead_s": (0.1, 0.03, 0.2), "gain": (300, 100, 2000), "connect_s": (10, 0.1, 60)}
"""Default, least and greatest value; those of servoJ are UR's."""
_STOP_M_S2 = 10.0
"""Deceleration of the tool in servoStop, as the library has it."""

_VARIABLES = [
    *("timestamp", "actual_q", "actual_qd"),
    *("safety_status_bits", "robot_mode", "runtime_state"),
]
_STATE = np.dtype(
    [
        ("time_s", "<f8"),
        ("positions_rad", "<f8", _JOINTS),
        ("velocities_rad_s", "<f8", _JOINTS),
        ("safety_bits", "<u4"),
        ("mode", "<i4"),
        ("program", "<u4"),
        ("ended", "?"),
    ]
)
_PLACES = 2
"""One would be half written for ever where the process is killed as it writes."""
_READY, _STOP = b"ready", b"stop"
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
        if len(description.joints) != _JOINTS:
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
        for name, (default, low, high) in _OPTIONS.items():
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
            fault=_fault(record),
        )

    def command(self, positions_rad: Joints, gripper_opening: float) -> None:
        """Where to be one control period from now.

        Raises:
            RobotError: when the connection is lost, or the arm is at fault.
        """
        if positions_rad.shape != (_JOINTS,) or not np.isfinite(positions_rad).all():
            raise ValueError(f"expected 6 finite joint positions, got {positions_rad}")
        if fault := _fault(self._newest()):
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
                self._process.send(_STOP)

    def disconnect(self) -> None:
        """Come to rest, end the control program, and let go of the controller."""
        if self._process is not None:
            self._process.dismiss()
            self._process = None

    def _newest(self) -> Any:
        """The newest record of `_STATE`."""
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


def _fault(record: Any) -> str:
    """Why the arm does not follow commands, by a record of `_STATE`; "" where it does."""
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


class _Process:
    """The library's process, seen from the driver."""

    def __init__(self, description: RobotDescription):
        """Start it."""
        self._host, self._connect_s = description.address, _option(description, "connect_s")
        self._states = SharedRecords(_STATE, _PLACES)
        self._socket, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        with there:  # once only the process holds its end, its death closes the connection
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-c", f"from {__name__} import serve; serve()"),
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
        if (told := self._told()) != _READY.decode():
            raise RobotError(told)

    def newest(self) -> Any:
        """The newest record of `_STATE`.

        Raises:
            RobotError: when the connection is lost.
        """
        record: Any = self._states.newest()  # ready means that there is one
        if told := self._told():
            raise RobotError(told)
        if time.monotonic() - float(record["time_s"]) > _LOST_S:
            raise RobotError(_lost(self._host))
        return record

    def send(self, message: bytes) -> None:
        """Hand a message over.

        Raises:
            RobotError: when it is not taken.
        """
        try:
            self._socket.send(message)
        except OSError as error:
            raise RobotError(self._told() or _lost(self._host)) from error

    def dismiss(self) -> None:
        """Have it bring the arm to rest and end."""
        self._socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_ANSWER_S)
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
        return f"{_lost(self._host)} (the library's process ended by itself)"


def _lost(host: str) -> str:
    return f"the connection to the UR at {host} is lost: check cable and power, then connect again"


def _option(description: RobotDescription, name: str) -> float:
    return float(description.option(name, _OPTIONS[name][0]))


def serve() -> None:
    """Be the library's process to its end; arguments are a description, a socket, and a memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is left to the parent
    description = read_description(sys.argv[1])
    # Should the parent die meanwhile: the library may wait for ever, and lets no Python code run.
    signal.setitimer(signal.ITIMER_REAL, _option(description, "connect_s") + _ANSWER_S)
    parent = socket.socket(fileno=int(sys.argv[2]))
    try:
        _serve(description, parent, SharedRecords(_STATE, _PLACES, name=sys.argv[3]))
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
    parent.send(_READY)
    poll = select.poll()
    poll.register(parent, select.POLLIN)
    while True:
        messages = []
        if poll.poll(max(1, int(1e3 * description.period_s))):
            while message := _received(parent):
                messages.append(message)
            if message == b"":
                signal.setitimer(signal.ITIMER_REAL, _ANSWER_S)  # the library may wait minutes
                client.dismiss()
                _end(parent, "")
        if _STOP in messages:
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
            socket.create_connection((host, port), timeout=_ANSWER_S).close()
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
    return f"{_lost(host)} ({' '.join(told.split())[:200]})"


class _Client:
    """The connected library, and what became of its control program."""

    def __init__(self, description: RobotDescription, states: SharedRecords):
        assert description.watchdog_s is not None
        self._host, self._period_s = description.address, description.period_s
        self._servo = (_option(description, "lookahead_s"), _option(description, "gain"))
        self._states = states
        self._record = np.zeros((), _STATE)
        self._stamp_s = math.nan
        self._servoing = False
        self._receive = RTDEReceiveInterface(self._host, description.control_hz, _VARIABLES)
        self._observe()
        if fault := _fault(self._record):
            raise RobotError(f"the UR at {self._host} is not ready: {fault}")
        self._control = RTDEControlInterface(self._host, description.control_hz)
        # The library's own way back, see above, is barred: it needs a socket, which now it does not
        # get. One descriptor remains allowed, for poll() to wait for one.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1, most))
        if not self._control.setWatchdog(1 / description.watchdog_s):
            raise RobotError(f"the UR at {self._host} did not arm its watchdog: connect again")
        # By then the program runs, but only on the library's other connection is that known.
        until_s = time.monotonic() + _LOST_S
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
            raise RobotError(_lost(self._host))
        # Once commanded, the arm is the parent's to keep alive.
        if not self._servoing and not self._record["ended"]:
            self._mind(self._control.kickWatchdog())
        self._observe()
        if int(self._record["program"]) != _PLAYING or _fault(self._record):
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
        if now_s - float(record["time_s"]) > _LOST_S:
            raise RobotError(_lost(self._host))
