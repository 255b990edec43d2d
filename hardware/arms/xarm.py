"""UFACTORY xArm 5, 6 and 7: joint targets in servo mode, states from the real-time report.

What ends motion when nobody commands: each servo_j command is one target, to which the control box
drives at full joint speed and where it rests; it neither queues nor extrapolates (UFACTORY, "Servo
mode usage guide"). A dead client or a cut cable so leaves the arm at rest where the last command
wanted it, one command period away. There is no watchdog to arm: `watchdog_s` in a description says
how long settling takes. Full joint speed is also why a target far from the arm is refused here.

Of the library this uses the two classes beneath its `XArmAPI`, which asks a silent peer for minutes
who it is, connects again on its own, takes the last number for a NaN, and leaves threads behind.

Shape legend: J joints.
"""

import contextlib
import math
import re
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from xarm.core.comm import SocketPort
from xarm.core.config.x_code import ControllerError, ControllerWarn
from xarm.core.config.x_config import XCONF
from xarm.core.utils.log import logger
from xarm.core.wrapper import UxbusCmdTcp

from robot_qsft.hardware.arms.address import host_and_port
from robot_qsft.hardware.description import RobotDescription
from robot_qsft.hardware.robot import Joints, RobotError, RobotState

_COMMAND_PORT, _REPORT_PORT = 502, 30003
_MOST_HZ = 250
"""The control box drops what comes faster."""
_REPORT_HZ = 100
_WIRE_JOINTS = 7
"""On the wire all models have as many joints as the largest."""
_ANSWER_S = 1.0
"""An answer takes 1 to 3 ms, and 0.2 s when the network has lost a packet."""
_READY_S = 3.0
_STALE_S = 0.5
_POLL_S = 1.0
"""Error codes are asked for at least this often, which also keeps the connection in use."""
_TROUBLE_POLL_S = 0.1

_SERVO_MODE = 1
_SET_READY, _SET_STOP = 0, 4
_ALL_JOINTS = 8
_FOLLOWS = (0, 1, 2)
_STATES = {3: "suspended", 4: "stopped", 5: "reset", 6: "stopped"}

_OK, _ERROR, _WARNING = 0, XCONF.UxbusState.ERR_CODE, XCONF.UxbusState.WAR_CODE
_NO_ANSWER, _NOT_SENT = XCONF.UxbusState.ERR_TOUT, XCONF.UxbusState.ERR_NOTTCP

_REPORT = struct.Struct(">IBH")
"""Size of the report, state and mode, number of commands; then 7 joints, little-endian."""
_REPORT_JOINTS = struct.Struct("<7f")
_FURTHEST_RAD = 2.05 * math.pi
"""No joint turns further."""

_NOT_USED = (math.radians(20), math.radians(500), 0)
"""Speed, acceleration and time, which servo commands carry and the control box does not use."""


@dataclass(frozen=True, eq=False)
class _Report:
    """What the control box tells of itself, 100 times in a second.

    Attributes:
        time_s: when it came, by `time.monotonic`.
        state: 1 moves, 2 rests, others in `_STATES`.
        mode: 1 is servo mode.
        positions_rad: float64 (J,).
    """

    time_s: float
    state: int
    mode: int
    positions_rad: Joints

    @property
    def follows(self) -> bool:
        """Whether servo commands move the arm."""
        return self.mode == _SERVO_MODE and self.state in _FOLLOWS


class _Reports:
    """The newest reports; the library's receiving thread puts them here."""

    def __init__(self, joints: int):
        self._joints = joints
        self._lock = threading.Lock()
        self._recent: deque[_Report] = deque(maxlen=8)
        self.objection = ""

    def put(self, data: bytes, _is_report: bool) -> None:
        """Take in a report, as the library's `RxParse` does."""
        time_s = time.monotonic()
        if len(data) < _REPORT.size + _REPORT_JOINTS.size:
            self.objection = f"a report of {len(data)} bytes came"
            return
        _, flags, _ = _REPORT.unpack_from(data)
        positions_rad = np.array(
            _REPORT_JOINTS.unpack_from(data, _REPORT.size)[: self._joints], np.float64
        )
        if not (np.abs(positions_rad) < _FURTHEST_RAD).all():  # nor NaN
            self.objection = "it reports joint positions that cannot be"
            return
        with self._lock:
            self._recent.append(_Report(time_s, flags & 0x0F, flags >> 4, positions_rad))

    def newest(self) -> _Report | None:
        """None before the first one."""
        with self._lock:
            return self._recent[-1] if self._recent else None

    def velocities_rad_s(self) -> Joints:
        """Over the last few reports, which carry none; float64 (J,)."""
        with self._lock:
            first, last, steps = self._recent[0], self._recent[-1], len(self._recent) - 1
        # After a stall of the network several come at once, and were still sent in turn.
        span_s = max(last.time_s - first.time_s, max(steps, 1) / _REPORT_HZ)
        return (last.positions_rad - first.positions_rad) / span_s


class _CommandPort(SocketPort):  # type: ignore[misc]  # the library has no types
    """The connection that takes commands, at whatever port."""

    def start(self) -> None:
        self.port_type = "main-socket"  # which the library takes port 502 only for
        super().start()


class _ReportPort(SocketPort):  # type: ignore[misc]  # the library has no types
    """The connection on which reports come."""

    def __init__(self, host: str, reports: _Reports):
        self._reports = reports
        super().__init__(host, _REPORT_PORT, forbid_uds=True)

    def start(self) -> None:
        self.rx_parse = self._reports
        super().start()


class _Session:
    """Both connections to a control box."""

    def __init__(self, host: str, port: int, joints: int):
        self.reports = _Reports(joints)
        timeout_s = socket.getdefaulttimeout()
        try:
            # A socket in the temporary directory, which anybody could put there, is not asked.
            self.command_port = _CommandPort(host, port, forbid_uds=True)
            self.report_port = _ReportPort(host, self.reports)
        finally:
            socket.setdefaulttimeout(timeout_s)  # the library sets it for the whole process
        self.commands = UxbusCmdTcp(self.command_port)
        self.commands.set_timeout(_ANSWER_S)
        self.codes = (0, 0)
        self.asked_s = -math.inf
        self.trouble = False
        self.halted = False

    def close(self) -> None:
        for port in (self.command_port, self.report_port):
            port.close()
        for port in (self.command_port, self.report_port):
            if port.is_alive():
                port.join(2.0)


class XArmRobot:
    """An xArm, or whatever speaks its protocol at the address `host` or `host:port`."""

    def __init__(self, description: RobotDescription):
        """For the described arm.

        Raises:
            ValueError: when the description is none of an xArm.
        """
        joints = len(description.joints)
        if not 5 <= joints <= _WIRE_JOINTS:
            raise ValueError(f"an xArm has 5, 6 or 7 joints, the description has {joints}")
        if description.control_hz > _MOST_HZ:
            raise ValueError(
                f"control_hz of an xArm must be at most {_MOST_HZ}, got {description.control_hz:g}"
            )
        if description.gripper is not None:
            raise ValueError("this driver moves no gripper; write 'gripper: null'")
        self._host, self._port = host_and_port(
            description.address,
            port=_COMMAND_PORT,
            whose="control box's",
            example="192.168.1.200",
        )
        self.description = description
        self._session: _Session | None = None

    def connect(self) -> None:
        """Reach the control box, clear its errors, and enter servo mode. Moves nothing.

        Raises:
            RobotError: when it is not there, is another model, or is not ready to move.
        """
        self.disconnect()
        logger.setLevel(logger.CRITICAL)  # what it prints, RobotError says
        self._session = session = _Session(self._host, self._port, len(self.description.joints))
        try:
            if not (session.command_port.connected and session.report_port.connected):
                raise self._error(
                    f"nobody answers at ports {self._port} and {_REPORT_PORT}; is the control box "
                    "on, the cable in, and the address right?"
                )
            self._check_model(session)
            # Clearing is left to here: connecting is what somebody does who has seen to the arm.
            self._ask(session, session.commands.clean_err)
            self._ask(session, session.commands.clean_war)
            self._ask(session, session.commands.motion_en, _ALL_JOINTS, 1)
            self._enter_servo_mode(session)
        except RobotError:
            self._session = None
            session.close()
            raise

    def read(self) -> RobotState:
        """The newest report, and why the arm would not follow.

        Raises:
            RobotError: when the connection is lost.
        """
        session = self._connected()
        report = self._fresh(session)
        return RobotState(
            time_s=report.time_s,
            positions_rad=report.positions_rad.copy(),
            velocities_rad_s=session.reports.velocities_rad_s(),
            gripper_opening=0.0,
            fault=self._fault(session, report),
        )

    def command(self, positions_rad: Joints, gripper_opening: float) -> None:
        """Drive to `positions_rad`, float64 (J,); waits for the answer, 1 to 3 ms.

        Waiting keeps one command under way, so that after a stall of the network the arm is not
        thrown through all that piled up.

        Raises:
            RobotError: when the arm does not take it, or the target is too far away.
        """
        session = self._connected()
        far_rad = np.abs(positions_rad - self._fresh(session).positions_rad)
        if not (far_rad <= self.description.jump_rad).all():
            raise self._error(
                f"joint {int(far_rad.argmax()) + 1} is {far_rad.max():.3f} rad from its target, "
                f"more than jump_rad = {self.description.jump_rad:g}, and would be thrown there; "
                "start from where the arm is"
            )
        if session.halted:
            self._enter_servo_mode(session)
        target_rad = [*positions_rad.tolist(), *[0.0] * (_WIRE_JOINTS - len(positions_rad))]
        answer = self._ask(session, session.commands.move_servoj, target_rad, *_NOT_USED)
        if answer[0] == _ERROR or not session.commands.state_is_ready:
            self._ask_codes(session)
            raise self._error(
                _told(session.codes) or "it is not ready to move; disconnect and connect"
            )

    def stop(self) -> None:
        """Decelerate and rest; the next command ends the rest."""
        if self._session is not None:
            self._session.halted = True
            with contextlib.suppress(RobotError):
                self._ask(self._session, self._session.commands.set_state, _SET_STOP)

    def disconnect(self) -> None:
        """Rest, and close the connections."""
        self.stop()
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _check_model(self, session: _Session) -> None:
        """Whether an xArm answers, with as many joints as described.

        Raises:
            RobotError: when not.
        """
        _, *characters = self._ask(session, session.commands.get_version)
        version = bytes(characters).split(b"\0")[0].decode("ascii", "replace")
        # Number of joints, model, serial numbers, version: "7,7,XI1303…,AC1303…,v2.4.0".
        if not re.search(r"\d+\.\d+\.\d+", version):
            raise self._error(
                f"what answers is no xArm: it calls itself {version!r}; is the address right?"
            )
        model = re.match(r"(\d),\d+,", version)
        joints = len(self.description.joints)
        if model is not None and int(model[1]) != joints:
            raise self._error(
                f"it has {model[1]} joints, and {self.description.name!r} {joints}; "
                f"choose the description of an xArm {model[1]}"
            )

    def _enter_servo_mode(self, session: _Session) -> None:
        """Be ready for servo commands, as the reports tell.

        Raises:
            RobotError: when the control box does not get there.
        """
        self._ask(session, session.commands.set_mode, _SERVO_MODE, 0)
        self._ask(session, session.commands.set_state, _SET_READY)
        asked_s = time.monotonic()
        while time.monotonic() < asked_s + _READY_S:
            self._ask_codes(session)
            if told := _told(session.codes):
                raise self._error(told)
            report = session.reports.newest()
            if report is not None and report.time_s > asked_s and report.follows:
                session.halted = False
                return
            time.sleep(0.01)
        self._fresh(session)
        raise self._error("it does not enter servo mode; does UFACTORY Studio hold it?")

    def _fault(self, session: _Session, report: _Report) -> str:
        """Why the arm does not follow commands, or ""."""
        trouble = report.state not in _FOLLOWS or session.commands.has_err_warn
        every_s = _TROUBLE_POLL_S if trouble else _POLL_S
        if (trouble and not session.trouble) or time.monotonic() - session.asked_s > every_s:
            self._ask_codes(session)
        session.trouble = trouble
        if told := _told(session.codes):
            return told
        if session.halted:
            return ""
        if report.mode != _SERVO_MODE:
            return f"somebody has put the arm into mode {report.mode}; disconnect and connect"
        if report.state not in _FOLLOWS:
            state = _STATES.get(report.state, f"changed (state {report.state})")
            return f"somebody has {state} the arm; disconnect and connect"
        return ""

    def _ask_codes(self, session: _Session) -> None:
        """Learn the error and warning codes.

        Raises:
            RobotError: when there is no answer.
        """
        session.asked_s = time.monotonic()
        answer = self._ask(session, session.commands.get_err_code)
        if len(answer) != 3:
            raise self._error("its error code cannot be read; disconnect and connect")
        session.codes = (answer[1], answer[2])

    def _ask(self, session: _Session, call: Callable[..., list[Any]], *arguments: Any) -> list[Any]:
        """What the control box answers to a call of the library's: a code, and what comes with it.

        Raises:
            RobotError: when it does not answer, or not in a way that can be read.
        """
        try:
            answer = list(call(*arguments))
            code = int(answer[0])
        except Exception as error:  # the library unpacks whatever comes
            raise self._error(
                f"the answer to {call.__name__} cannot be read; disconnect and connect"
            ) from error
        if code in (_OK, _ERROR, _WARNING):
            return answer
        if code == _NOT_SENT or not session.command_port.connected:
            raise self._error("the connection is lost; see to cable and power, then connect")
        told = f"within {_ANSWER_S:g} s" if code == _NO_ANSWER else f"that fits (code {code})"
        raise self._error(
            f"no answer to {call.__name__} {told}; see to the network, then disconnect and connect"
        )

    def _connected(self) -> _Session:
        if self._session is None:
            raise self._error("it is not connected; connect first")
        return self._session

    def _fresh(self, session: _Session) -> _Report:
        """The newest report, unless it is too old to go by.

        Raises:
            RobotError: when it is.
        """
        report = session.reports.newest()
        if report is None or time.monotonic() - report.time_s > _STALE_S:
            why = f" ({session.reports.objection})" if session.reports.objection else ""
            raise self._error(
                f"no state was reported for {_STALE_S:g} s{why}; see to cable and power, "
                "then disconnect and connect"
            )
        return report

    def _error(self, sentence: str) -> RobotError:
        return RobotError(f"xArm at {self._host}: {sentence}")


def _told(codes: tuple[int, int]) -> str:
    """Error and warning code in words, or ""."""
    error, warning = codes
    if error:
        return _in_words(f"controller error {error}", ControllerError(error))
    if warning:
        return _in_words(f"controller warning {warning}", ControllerWarn(warning))
    return ""


def _in_words(what: str, code: Any) -> str:
    title, mend = code.title["en"].strip(" ."), code.description["en"].strip(" .")
    words = f"{what}: {title}. {mend + ', then d' if mend else 'D'}isconnect and connect"
    return " ".join(words.split())
