"""A rosbridge server on loopback, with a joint trajectory controller behind it.

As ros2_control does it: joint states in an order of their own and with fingers among them, a
trajectory of one point followed on a straight line, bare positions followed at once, and rest at
the last target, whoever has left since.
"""

import contextlib
import json
import math
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from emulators.joints import Joints, Link
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import Server, ServerConnection, serve

THREAD = "rosbridge emulator"
STATE_HZ = 100
FINGERS = ("finger_joint1", "finger_joint2")


class RosbridgeEmulator:
    """The joints `names` at `home_rad`; topics are those of a description's options."""

    def __init__(
        self,
        names: tuple[str, ...],
        home_rad: np.ndarray,
        *,
        port: int = 0,
        state_topic: str = "/joint_states",
        command_topic: str = "/panda_arm_controller/joint_trajectory",
        emergency_stop_topic: str = "/emergency_stop",
    ):
        self.joints = Joints(home_rad)
        self.link = Link()
        self.address = ""
        self.commands: list[dict[str, Any]] = []
        self.operations: list[dict[str, Any]] = []
        self.publishing = True
        self.shown: Callable[[dict[str, Any]], str] = json.dumps
        """How a joint state is written; a test may write something else."""
        self._names, self._port = names, port
        self._state_topic, self._command_topic = state_topic, command_topic
        self._stop_topic = emergency_stop_topic
        self._lock = threading.RLock()
        self._stopped: Any = False
        self._follow: tuple[float, float, np.ndarray, np.ndarray] | None = None
        self._hearers: dict[ServerConnection, set[str]] = {}
        self._over = threading.Event()
        self._server: Server
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "RosbridgeEmulator":
        self._server = serve(
            self._serve, "127.0.0.1", self._port, compression=None, ping_interval=None
        )
        host, port = self._server.socket.getsockname()
        self.address = f"{host}:{port}"
        for work in (self._server.serve_forever, self._live):
            thread = threading.Thread(target=work, name=THREAD)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self.vanish()
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()

    def emergency_stop(self, data: Any = True) -> None:
        """As if the red button was pressed; `data` is what the topic says then."""
        with self._lock:
            self._stopped, self._follow = data, None
            self.joints.halt()
            hearers = [each for each, topics in self._hearers.items() if self._stop_topic in topics]
        for connection in hearers:
            self._send(connection, self._stop_topic, json.dumps({"data": data}))

    def release(self) -> None:
        """The button is pulled out."""
        self.emergency_stop(False)

    def vanish(self) -> None:
        """As if the cable was cut: connections die, new ones are refused."""
        self._over.set()
        with self._lock:
            connections = list(self._hearers)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)
        self._server.shutdown()

    def _serve(self, connection: ServerConnection) -> None:
        threading.current_thread().name = THREAD
        with self._lock:
            self._hearers[connection] = set()
            self._threads.append(threading.current_thread())
        with contextlib.suppress(ConnectionClosed):
            for message in connection:
                self._handle(connection, json.loads(message))
        with self._lock:
            del self._hearers[connection]

    def _handle(self, connection: ServerConnection, request: dict[str, Any]) -> None:
        operation, topic = request["op"], request.get("topic")
        self.operations.append(request)
        if operation == "subscribe":
            with self._lock:
                self._hearers[connection].add(str(topic))
            if topic == self._stop_topic:  # which is latched
                self._send(connection, topic, json.dumps({"data": self._stopped}))
        elif operation == "unsubscribe":
            with self._lock:
                self._hearers[connection].discard(str(topic))
        elif operation == "publish" and topic == self._command_topic:
            self._command(request["msg"])
        elif operation == "call_service":
            answer = {"op": "service_response", "service": request["service"], "result": False}
            connection.send(json.dumps({**answer, "id": request.get("id"), "values": {}}))

    def _command(self, message: dict[str, Any]) -> None:
        with self._lock:
            self.commands.append(message)
            if self._stopped:
                return
            if "data" in message:
                self._follow = None
                self.joints.go(np.array(message["data"]))
                return
            (point,) = message["points"]
            of_name = dict(zip(message["joint_names"], point["positions"], strict=True))
            target_rad = np.array([of_name[name] for name in self._names])
            duration = point["time_from_start"]
            seconds = duration["sec"] + duration["nanosec"] / 1e9
            self._follow = (time.monotonic(), seconds, self.joints.now()[0], target_rad)

    def _live(self) -> None:
        """Follow the trajectory and publish joint states."""
        while not self._over.wait(1 / STATE_HZ):
            with self._lock:
                if self._follow is not None:
                    begin_s, seconds, begin_rad, target_rad = self._follow
                    share = min(1.0, (time.monotonic() - begin_s) / seconds)
                    self.joints.go(begin_rad + share * (target_rad - begin_rad))
                hearers = [
                    each for each, topics in self._hearers.items() if self._state_topic in topics
                ]
                publishing = self.publishing
            if publishing:
                text = self.shown(self._joint_state())
                for connection in hearers:
                    self._send(connection, self._state_topic, text)

    def _joint_state(self) -> dict[str, Any]:
        positions_rad, velocities_rad_s = self.joints.now()
        seconds, whole = math.modf(time.time())
        return {
            "header": {"stamp": {"sec": int(whole), "nanosec": int(seconds * 1e9)}, "frame_id": ""},
            "name": [*FINGERS, *reversed(self._names)],
            "position": [0.04, 0.04, *positions_rad[::-1].tolist()],
            "velocity": [0.0, 0.0, *velocities_rad_s[::-1].tolist()],
            "effort": [],
        }

    def _send(self, connection: ServerConnection, topic: str, message: str) -> None:
        text = f'{{"op": "publish", "topic": {json.dumps(topic)}, "msg": {message}}}'
        arriving = self.link.pass_on(text.encode())
        if arriving is not None:
            with contextlib.suppress(ConnectionClosed):
                connection.send(arriving.decode("utf-8", "replace"))
