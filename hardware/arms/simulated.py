"""An arm that `robot-qsft simulate` runs: PyBullet in real time, behind a socket as a real one is.

Messages are MessagePack as elsewhere in the bridge, each after its length. The simulator watches
over silence itself: without a command for `watchdog_s` the arm holds where it is.
"""

import socket
import struct
import time
from contextlib import suppress
from typing import Any

import numpy as np

from robot_qsft.hardware.arms.address import host_and_port
from robot_qsft.hardware.description import RobotDescription
from robot_qsft.hardware.protocol import FrameError, Message, pack, unpack
from robot_qsft.hardware.robot import Joints, RobotError, RobotState

PORT = 7700
_LENGTH = struct.Struct(">I")
_ANSWER_S = 2.0


def send(connection: socket.socket, message: Message) -> None:
    """Send a message."""
    frame = pack(message)
    connection.sendall(_LENGTH.pack(len(frame)) + frame)


def receive(connection: socket.socket) -> Message:
    """The next message.

    Raises:
        EOFError: when the connection is closed.
        FrameError: when what comes is no message.
    """
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    return unpack(_exactly(connection, length))


def _exactly(connection: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        part = connection.recv(min(count, 1 << 20))
        if not part:
            raise EOFError("the connection is closed")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


class SimulatorClient:
    """Asks the simulator."""

    def __init__(self, address: str):
        """Connect.

        Raises:
            RobotError: when nothing answers there.
            ValueError: when the address is none.
        """
        place = host_and_port(
            address, port=PORT, whose="simulated arm's", example=f"127.0.0.1:{PORT}"
        )
        try:
            self._connection = socket.create_connection(place, timeout=_ANSWER_S)
        except (OSError, OverflowError) as error:
            raise RobotError(
                f"no simulated arm answers at {address} ({error}); start it by: robot-qsft simulate"
            ) from error
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def tell(self, do: str, **more: Any) -> None:
        """Say something that is not answered.

        Raises:
            RobotError: when the connection is lost.
        """
        try:
            send(self._connection, {"do": do, **more})
        except OSError as error:
            raise _lost(error) from error

    def ask(self, do: str, **more: Any) -> Message:
        """Ask, and wait for the answer.

        Raises:
            RobotError: when the connection is lost, or the simulator refuses.
        """
        self.tell(do, **more)
        try:
            answer = receive(self._connection)
        except (OSError, EOFError, FrameError) as error:
            raise _lost(error) from error
        if "error" in answer:
            raise RobotError(str(answer["error"]))
        return answer

    def close(self) -> None:
        """Hang up."""
        with suppress(OSError):
            self._connection.close()


def _lost(error: Exception) -> RobotError:
    return RobotError(f"the connection to the simulated arm is lost ({error})")


class SimulatedRobot:
    """See `robot_qsft.hardware.robot.Robot`."""

    def __init__(self, description: RobotDescription):
        """The arm at `description.address`, host:port."""
        self.description = description
        self._client: SimulatorClient | None = None

    def connect(self) -> None:
        """Reach the simulator and arm its watchdog."""
        if self._client is None:
            self._client = SimulatorClient(self.description.address)
        answer = self._client.ask("hello", watchdog_s=self.description.watchdog_s)
        joints = answer.get("joints")
        if joints != len(self.description.joints):
            raise RobotError(
                f"the simulated arm has {joints} joints, {self.description.name} is described with "
                f"{len(self.description.joints)}"
            )

    def read(self) -> RobotState:
        """The present state."""
        answer = self._connected().ask("state")
        return RobotState(
            time.monotonic(),
            np.asarray(answer["positions_rad"], np.float64),
            np.asarray(answer["velocities_rad_s"], np.float64),
            float(answer["gripper_opening"]),
            str(answer["fault"]),
        )

    def command(self, positions_rad: Joints, gripper_opening: float) -> None:
        """Set the motors' goals."""
        self._connected().tell(
            "command", positions_rad=positions_rad, gripper_opening=float(gripper_opening)
        )

    def stop(self) -> None:
        """Hold where the arm is."""
        if self._client is not None:
            with suppress(RobotError):
                self._client.tell("stop")

    def disconnect(self) -> None:
        """Hold, and hang up."""
        self.stop()
        if self._client is not None:
            self._client.close()
            self._client = None

    def _connected(self) -> SimulatorClient:
        if self._client is None:
            raise RobotError("the simulated arm is not connected; connect it first")
        return self._client
