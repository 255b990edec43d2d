"""A PyBullet task in real time behind a socket, driven by its joints as a real arm is."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from robot_qsft.hardware.arms.simulated import receive, send
from robot_qsft.hardware.protocol import FrameError, Message
from robot_qsft.sim.pybullet.config import CAMERAS, PyBulletConfig
from robot_qsft.sim.pybullet.scene import FINGER_OPEN_M, PHYSICS_HZ
from robot_qsft.sim.pybullet.tasks import TabletopEnvironment

_PERIOD_S = 1 / PHYSICS_HZ
_JOINTS = 7


class SimulatedArm:
    """The simulated world, its clock, and who talks to it.

    What can be said: `hello`, `state`, `command` (not answered), `stop` (not answered), `image`,
    `truth`, `reset`, `emergency_stop`, `release`.
    """

    def __init__(self, config: PyBulletConfig, *, host: str, port: int):
        """Load the world and listen.

        Raises:
            ValueError: when the port is in use.
        """
        try:
            self._listener = socket.create_server((host, port))
        except OSError as error:
            raise ValueError(
                f"{host}:{port} cannot be listened on ({error}); choose another --port"
            ) from error
        self.address = "{}:{}".format(*self._listener.getsockname()[:2])
        self._environment = TabletopEnvironment(config)
        self._lock = threading.Lock()
        self._connections: list[socket.socket] = []
        self._ended = threading.Event()
        self._finger_m = FINGER_OPEN_M
        self._commanded_s = time.monotonic()
        self._watchdog_s = float("inf")
        self._fault = ""
        self._reset(0)
        self._clock = threading.Thread(target=self._run_clock, name="physics", daemon=True)
        self._clock.start()

    def serve(self) -> None:
        """Talk to clients until `close`."""
        while not self._ended.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections = [one for one in self._connections if one.fileno() >= 0]
            self._connections.append(connection)
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def close(self) -> None:
        """End the world."""
        self._ended.set()
        for open_socket in (self._listener, *self._connections):
            with suppress(OSError):  # it is closed already
                open_socket.shutdown(socket.SHUT_RDWR)
            open_socket.close()
        self._clock.join()
        with self._lock:
            self._environment.close()

    def _run_clock(self) -> None:
        """Physics keeps up with the clock; after a pause it does not hurry to catch up."""
        next_s = time.monotonic()
        while not self._ended.is_set():
            next_s += _PERIOD_S
            delay_s = next_s - time.monotonic()
            if delay_s > 0:
                time.sleep(delay_s)
            elif delay_s < -10 * _PERIOD_S:
                next_s = time.monotonic()
            with self._lock:
                if time.monotonic() - self._commanded_s > self._watchdog_s:
                    self._hold()
                self._environment.scene.advance()

    def _talk(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, EOFError, FrameError):
            while not self._ended.is_set():
                message = receive(connection)
                answer = self._answer(message)
                if answer is not None:
                    send(connection, answer)

    def _answer(self, message: Message) -> Message | None:
        heard: dict[Any, Callable[[Message], Message | None]] = {
            "hello": self._hello,
            "state": self._state,
            "command": self._command,
            "stop": self._stop,
            "image": self._image,
            "truth": self._truth,
            "reset": lambda said: self._reset(int(said["seed"])),
            "emergency_stop": self._emergency_stop,
            "release": self._release,
        }
        do = message.get("do")
        if do not in heard:
            return {"error": f"the simulated arm does not know {do!r}"}
        with self._lock:
            try:
                return heard[do](message)
            except (KeyError, TypeError, ValueError) as error:
                return {"error": f"{do} does not fit: {error!r}"}

    def _hello(self, message: Message) -> Message:
        self._watchdog_s = float(message.get("watchdog_s") or "inf")
        self._fault = ""
        self._hold()
        self._commanded_s = time.monotonic()
        return {"joints": _JOINTS}

    def _state(self, message: Message) -> Message:
        positions_rad, velocities_rad_s = self._environment.scene.joint_state()
        return {
            "positions_rad": positions_rad,
            "velocities_rad_s": velocities_rad_s,
            "gripper_opening": self._environment.scene.gripper_opening_m() / (2 * FINGER_OPEN_M),
            "fault": self._fault,
        }

    def _command(self, message: Message) -> None:
        goal_rad = np.asarray(message["positions_rad"], np.float64)
        if goal_rad.shape != (_JOINTS,) or not np.isfinite(goal_rad).all() or self._fault:
            return
        self._finger_m = float(np.clip(message["gripper_opening"], 0, 1)) * FINGER_OPEN_M
        self._commanded_s = time.monotonic()
        self._environment.scene.drive(goal_rad.tolist(), self._finger_m)

    def _stop(self, message: Message) -> None:
        self._hold()

    def _image(self, message: Message) -> Message:
        camera = message["camera"]
        if camera not in CAMERAS:
            raise ValueError(f"no camera {camera!r}")
        size = self._environment.config.image_size
        return {"image": self._environment.scene.render(camera, size)}

    def _truth(self, message: Message) -> Message:
        truth, success = self._environment.truth()
        return {"environment_state": truth, "success": success}

    def _reset(self, seed: int) -> Message:
        observation, _ = self._environment.reset(seed=seed)
        self._finger_m = FINGER_OPEN_M
        self._hold()
        return {"instruction": observation["instruction"]}

    def _emergency_stop(self, message: Message) -> Message:
        self._fault = "emergency stop: release the button and reset"
        self._hold()
        return {}

    def _release(self, message: Message) -> Message:
        self._fault = ""
        return {}

    def _hold(self) -> None:
        """Stay where the joints are."""
        scene = self._environment.scene
        scene.drive(scene.joint_state()[0].tolist(), self._finger_m)
        self._commanded_s = float("inf")  # nothing to watch over until the next command
