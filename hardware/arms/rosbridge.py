"""Any arm behind ROS 2: joint states and commands as JSON, through a rosbridge server.

A command is a trajectory of one point, one control period ahead, for a joint_trajectory_controller,
or bare positions, for a forward_command_controller. Both rest at the last target, so silence, a
crash or a cut cable leave the arm at rest one period away; there is no watchdog to arm, and
`watchdog_s` in a description says how long settling takes. JSON over a websocket is good for 10 to
50 commands in a second, not for servo loops.

Options of a description:
    state_topic: of `sensor_msgs/JointState`; joints are told apart by name, whatever their order,
        and others than the described ones do not matter.
    command_topic: where commands go.
    command_type: `trajectory_msgs/JointTrajectory`, or `std_msgs/Float64MultiArray` with the
        positions in the description's order.
    stale_s: joint states that came longer ago than this are an error.
    emergency_stop_topic: of `std_msgs/Bool`, true while the arm is stopped; none unless given.

The library runs one Twisted reactor for a process, which cannot be started twice. It is left
running; a connection is what ends, for good: the library would bring it back on its own, with
commands that have waited since.

Shape legend: J joints.
"""

import contextlib
import logging
import math
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import roslibpy

from robot_qsft.datasets.plain_yaml import is_number, is_text, shown
from robot_qsft.datasets.wording import listed
from robot_qsft.hardware.arms.address import host_and_port
from robot_qsft.hardware.description import RobotDescription
from robot_qsft.hardware.robot import Joints, RobotError, RobotState

_PORT = 9090
_MOST_HZ = 50
_CONNECT_S = 3.0
_FIRST_STATE_S = 3.0
_CLOSE_S = 2.0
_SPAN_S = 0.02
"""Positions closer in time say nothing of velocities."""

_STATE = "sensor_msgs/JointState"
_STOP = "std_msgs/Bool"
_TRAJECTORY = "trajectory_msgs/JointTrajectory"
_POSITIONS = "std_msgs/Float64MultiArray"

_starting = threading.Lock()
"""Two robots must not start the reactor at once."""


@dataclass(frozen=True)
class _Options:
    """Of a description; see the module."""

    state_topic: str = "/joint_states"
    command_topic: str = "/joint_trajectory_controller/joint_trajectory"
    command_type: str = _TRAJECTORY
    stale_s: float = 0.5
    emergency_stop_topic: str = ""

    @classmethod
    def of(cls, description: RobotDescription) -> "_Options":
        """Those of an arm.

        Raises:
            ValueError: when one is unknown, or not of its kind.
        """
        given = dict(description.options or {})
        known = cls.__dataclass_fields__
        if unknown := [name for name in given if name not in known]:
            raise ValueError(f"options does not know {listed(unknown)}; it has {listed(known)}")
        options = cls(**given)  # type: ignore[arg-type]  # checked below
        for name in known:
            value = getattr(options, name)
            if name != "stale_s" and not is_text(value):
                raise ValueError(f"options.{name} must be text, got {shown(value)}")
        if not is_number(options.stale_s) or not 0 < options.stale_s < math.inf:
            raise ValueError(f"options.stale_s must be above 0, got {shown(options.stale_s)}")
        if options.command_type not in (_TRAJECTORY, _POSITIONS):
            raise ValueError(
                f"options.command_type must be {_TRAJECTORY} or {_POSITIONS}, "
                f"got {options.command_type!r}"
            )
        return options


@dataclass(frozen=True, eq=False)
class _Heard:
    """A joint state.

    Attributes:
        time_s: when it came, by `time.monotonic`.
        positions_rad: float64 (J,).
        velocities_rad_s: float64 (J,).
    """

    time_s: float
    positions_rad: Joints
    velocities_rad_s: Joints


class _Ears:
    """What the topics last said; the library's reactor thread fills it."""

    def __init__(self, names: tuple[str, ...]):
        self._names = names
        self._recent: deque[tuple[float, Joints]] = deque(maxlen=8)
        self.state: _Heard | None = None
        self.objection = ""
        """To the last joint state that could not be taken."""
        self.stop = ""
        """Why the arm is stopped."""
        self.lost = threading.Event()

    def hear_state(self, message: Any) -> None:
        """Take in a joint state, or object to it."""
        time_s = time.monotonic()
        try:
            positions_rad = _by_name(message, "position", self._names)
            self._recent.append((time_s, positions_rad))
            velocities_rad_s = (
                _by_name(message, "velocity", self._names)
                if _item(message, "velocity")
                else self._differences_rad_s()
            )
        except ValueError as error:
            self.objection = str(error)
            return
        self.state = _Heard(time_s, positions_rad, velocities_rad_s)

    def _differences_rad_s(self) -> Joints:
        """Velocities over the last few messages, which may come in bursts."""
        (begin_s, begin_rad), (end_s, end_rad) = self._recent[0], self._recent[-1]
        span_s = end_s - begin_s
        return (end_rad - begin_rad) / span_s if span_s > _SPAN_S else np.zeros(len(self._names))

    def hear_stop(self, message: Any) -> None:
        """Take in whether the arm is stopped; what cannot be read stops."""
        pressed = message.get("data") if isinstance(message, Mapping) else None
        if pressed is False:
            self.stop = ""
        elif pressed is True:
            self.stop = "emergency stop; release it"
        else:
            self.stop = f"emergency stop unknown: its topic says {shown(message)}, not a {_STOP}"


class RosbridgeRobot:
    """The arm whose rosbridge server is at the address `host` or `host:port`."""

    def __init__(self, description: RobotDescription):
        """For the described arm.

        Raises:
            ValueError: when the description cannot be driven this way.
        """
        if description.control_hz > _MOST_HZ:
            raise ValueError(
                f"control_hz over rosbridge must be at most {_MOST_HZ}, "
                f"got {description.control_hz:g}"
            )
        if description.gripper is not None:
            raise ValueError("this driver moves no gripper; write 'gripper: null'")
        self._host, self._port = host_and_port(
            description.address,
            port=_PORT,
            whose="rosbridge server's",
            example=f"192.168.1.10:{_PORT}",
        )
        self.description = description
        self._options = _Options.of(description)
        self._ros: Any = None
        self._ears = _Ears(description.joint_names)
        self._topics: list[Any] = []
        self._commands: Any = None

    def connect(self) -> None:
        """Reach the server and hear of the joints. Publishes nothing.

        Raises:
            RobotError: when there is no server, no joint state, or the arm is stopped.
        """
        self.disconnect()
        logging.getLogger("roslibpy").setLevel(logging.CRITICAL)  # what it logs, RobotError says
        self._ears = ears = _Ears(self.description.joint_names)
        self._ros = self._reach()
        try:
            self._ros.on("close", lambda _: ears.lost.set())
            options = self._options
            if options.emergency_stop_topic:  # first, so that it is known when joints are
                self._topic(options.emergency_stop_topic, _STOP).subscribe(ears.hear_stop)
            # Joint states may come 1000 times in a second, of which this many can be used.
            period_ms = int(500 * self.description.period_s)
            self._topic(options.state_topic, _STATE, period_ms).subscribe(ears.hear_state)
            self._commands = self._topic(options.command_topic, options.command_type)
            self._commands.advertise()
            end_s = time.monotonic() + _FIRST_STATE_S
            while ears.state is None and not ears.lost.is_set() and time.monotonic() < end_s:
                time.sleep(0.01)
            self._fresh()
            if ears.stop:
                raise self._error(ears.stop)
        except RobotError:
            self._close()
            raise

    def read(self) -> RobotState:
        """The newest joint state, and whether the arm is stopped.

        Raises:
            RobotError: when the connection is lost, or no joint state came of late.
        """
        state = self._fresh()
        return RobotState(
            time_s=state.time_s,
            positions_rad=state.positions_rad.copy(),
            velocities_rad_s=state.velocities_rad_s.copy(),
            gripper_opening=0.0,
            fault=self._ears.stop,
        )

    def command(self, positions_rad: Joints, gripper_opening: float) -> None:
        """Publish where to be one period from now, float64 (J,); does not wait.

        Raises:
            RobotError: when the connection is lost, or the arm does not tell where it is.
        """
        self._fresh()  # else commands would pile up on a dead connection
        self._publish(positions_rad)

    def stop(self) -> None:
        """Publish the present position; without one, the arm rests at the last target."""
        with contextlib.suppress(RobotError):
            self._publish(self._fresh().positions_rad)

    def disconnect(self) -> None:
        """Rest, and close the connection."""
        self.stop()
        self._close()

    def _reach(self) -> Any:
        """A connection to the server.

        Raises:
            RobotError: when there is none.
        """
        try:
            # The library does not say why it cannot connect, and looks names up in threads that
            # keep the process from ending.
            address = socket.gethostbyname(self._host)
            socket.create_connection((address, self._port), timeout=_CONNECT_S).close()
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise self._error(
                f"nobody answers ({why}); is the address right, and does "
                "'ros2 launch rosbridge_server rosbridge_websocket_launch.xml' run there?"
            ) from error
        try:
            with _starting:
                ros = roslibpy.Ros(address, self._port, transport="twisted")
                ros.factory.maxRetries = 0
                ros.run(_CONNECT_S)
        except TimeoutError as error:
            _abort(ros)
            raise self._error(
                "what answers is no rosbridge server; is the address right?"
            ) from error
        except RuntimeError as error:  # this process uses the library otherwise
            raise self._error(
                f"the library cannot run here ({' '.join(str(error).split())}); "
                "drive the arm from a process of its own"
            ) from error
        return ros

    def _topic(self, name: str, kind: str, period_ms: int = 0) -> Any:
        """A topic, of which the server keeps the newest message for us, and sends so often."""
        topic = roslibpy.Topic(
            self._ros, name, kind, throttle_rate=period_ms, queue_length=1, reconnect_on_close=False
        )
        self._topics.append(topic)
        return topic

    def _fresh(self) -> _Heard:
        """The newest joint state.

        Raises:
            RobotError: when there is none to go by.
        """
        if self._ros is None:
            raise self._error("it is not connected; connect first")
        if self._ears.lost.is_set() or not self._ros.is_connected:
            raise self._error("the connection is lost; see to network and server, then connect")
        state, stale_s = self._ears.state, self._options.stale_s
        if state is None or time.monotonic() - state.time_s > stale_s:
            why = f" (the last one: {self._ears.objection})" if self._ears.objection else ""
            raise self._error(
                f"no usable joint state came on {self._options.state_topic} for {stale_s:g} s"
                f"{why}; does the joint_state_broadcaster run, and are the joints called "
                f"{listed(self.description.joint_names)}?"
            )
        return state

    def _publish(self, positions_rad: Joints) -> None:
        positions = positions_rad.tolist()
        if self._options.command_type == _POSITIONS:
            message = {"layout": {"dim": [], "data_offset": 0}, "data": positions}
        else:
            seconds, nanoseconds = divmod(round(self.description.period_s * 1e9), 10**9)
            message = {
                # A stamp of zero means at once.
                "header": {"stamp": {"sec": 0, "nanosec": 0}, "frame_id": ""},
                "joint_names": list(self.description.joint_names),
                "points": [
                    {
                        "positions": positions,
                        "velocities": [],
                        "accelerations": [],
                        "effort": [],
                        "time_from_start": {"sec": seconds, "nanosec": nanoseconds},
                    }
                ],
            }
        self._commands.publish(message)

    def _close(self) -> None:
        ros, topics, self._ros, self._topics = self._ros, self._topics, None, []
        if ros is None:
            return
        for topic in topics:
            topic.unsubscribe()
            topic.unadvertise()
        with contextlib.suppress(TimeoutError):
            ros.close(_CLOSE_S)
        if not self._ears.lost.wait(_CLOSE_S):
            _abort(ros)

    def _error(self, sentence: str) -> RobotError:
        return RobotError(f"arm behind rosbridge at {self._host}:{self._port}: {sentence}")


def _abort(ros: Any) -> None:
    """End a connection, whatever its state; connecting as well."""

    def abort() -> None:
        connector = ros.factory.connector
        if connector.state == "connected":
            connector.transport.abortConnection()  # without what waits to be sent
        else:
            connector.disconnect()

    ros.call_later(0, abort)


def _item(message: Any, field: str) -> Any:
    if not isinstance(message, Mapping):
        raise ValueError(f"it is {shown(message)}, not a {_STATE}")
    return message.get(field)


def _by_name(message: Any, field: str, names: tuple[str, ...]) -> Joints:
    """Numbers of the named joints in a joint state, float64 (J,).

    Raises:
        ValueError: when they are not there.
    """
    heard, values = _item(message, "name"), _item(message, field)
    if not isinstance(heard, list) or not all(is_text(name) for name in heard):
        raise ValueError(f"its names are {shown(heard)}")
    if not isinstance(values, list) or len(values) != len(heard):
        raise ValueError(f"its field {field} is {shown(values)} for {len(heard)} names")
    of_name = dict(zip(heard, values, strict=True))
    if missing := [name for name in names if name not in of_name]:
        raise ValueError(f"it lacks {listed(missing)}")
    for name in names:
        if not is_number(of_name[name]) or not math.isfinite(of_name[name]):
            raise ValueError(f"its {field} of {name} is {shown(of_name[name])}")
    return np.array([of_name[name] for name in names], np.float64)
