"""A Universal Robots controller of the e-Series on loopback: dashboard, RTDE and script port.

The client library chooses the ports, so every emulator gets a loopback address of its own. URScript
is not interpreted: an upload that ends starts "the program", whose register state machine (of
ur_rtde's control script) is played here.
"""

import contextlib
import errno
import itertools
import os
import re
import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from emulators.joints import Joints, Link

THREAD = "UR emulator"
DASHBOARD_PORT, SCRIPT_PORT, RTDE_PORT = 29999, 30003, 30004
VERSION = (5, 12, 2, 1101534)
HOME_RAD = np.array([0.0, -1.57, 1.57, -1.57, -1.57, 0.0])
FULL_SPEED_RAD_S = 3.14
TICK_S = 0.002

# Of packets.
PROTOCOL, CONTROLLER, OUTPUTS, INPUTS, START, PAUSE, DATA = b"VvOISPU"
# Of runtime_state, robot_mode and safety_status_bits.
STOPPED, PLAYING, PAUSED = 1, 2, 4
POWER_OFF, RUNNING = 3, 7
NORMAL, PROTECTIVE_STOP, ROBOT_STOP, EMERGENCY_STOP = 1 << 0, 1 << 2, 1 << 6, 1 << 7
# Of the control script: commands, and what it says in output_int_register_0.
SERVOJ, SERVO_STOP, STOPJ, SET_WATCHDOG, STOP_SCRIPT = 11, 16, 34, 35, 255
READY, DONE = 1, 2

COMMAND = "input_int_register_0"
FORMATS = {"INT32": "i", "UINT32": "I", "DOUBLE": "d", "VECTOR6D": "6d"}
TYPES = {
    **dict.fromkeys(["actual_q", "actual_qd", "external_force_torque"], "VECTOR6D"),
    **dict.fromkeys(["runtime_state", "robot_status_bits", "safety_status_bits"], "UINT32"),
    "robot_mode": "INT32",
    "timestamp": "DOUBLE",
}
ANSWERS = {
    "PolyscopeVersion": f"URSoftware {'.'.join(map(str, VERSION))} (Sep 05 2022)",
    "get serial number": "20225500001",
}

_numbers = itertools.count(2)


@dataclass
class Connection:
    """A client at one of the ports."""

    socket: socket.socket
    port: int
    received: bytes = b""
    outputs: list[str] = field(default_factory=list)
    every: int = 1
    recipes: list[list[str]] = field(default_factory=list)
    started: bool = False


class UREmulator:
    """A UR, switched on, its brakes released, in remote control; one thread does everything.

    Its clock stands still while this process does, so that the watchdog of a busy machine does not
    bite before its client could have spoken.
    """

    def __init__(self) -> None:
        self.joints = Joints(HOME_RAD, speed_rad_s=FULL_SPEED_RAD_S)
        self.link = Link()
        self.address = ""
        self.remote_control = True
        self.servo_commands = 0
        self.uploads = 0
        self.watchdog_s: float | None = None
        self._program, self._mode, self._safety = STOPPED, RUNNING, NORMAL
        self._answer = 0
        self._executing = False
        self._silent_s = 0.0
        self._registers: dict[str, float] = {}
        self._writers: dict[str, Connection] = {}
        self._listening: list[socket.socket] = []
        self._connections: list[Connection] = []
        self._selector = selectors.DefaultSelector()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=THREAD)

    def __enter__(self) -> "UREmulator":
        self._listening = _listen()
        self.address = self._listening[0].getsockname()[0]
        for each in self._listening:
            self._selector.register(each, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.vanish()
        self._selector.close()

    @property
    def program_runs(self) -> bool:
        return self._program == PLAYING

    def protective_stop(self) -> None:
        """As if the arm had hit something; the program is paused."""
        with self.joints.lock:
            self._safety = PROTECTIVE_STOP
            if self._program == PLAYING:
                self._program = PAUSED
            self.joints.halt()

    def emergency_stop(self) -> None:
        """As if the red button was pressed: the program ends, the power goes."""
        with self.joints.lock:
            self._safety = ROBOT_STOP | EMERGENCY_STOP
            self._mode = POWER_OFF
            self._end_program()

    def release(self) -> None:
        """Nothing stops the arm, it is switched on; the program stays as it is."""
        with self.joints.lock:
            self._safety, self._mode = NORMAL, RUNNING

    def press_stop(self) -> None:
        """As if an operator ended the program at the pendant."""
        with self.joints.lock:
            self._end_program()

    def vanish(self) -> None:
        """As if the cable was cut: connections die, new ones are refused."""
        self._over.set()
        self._thread.join(5)
        assert not self._thread.is_alive()

    def hang_up(self) -> None:
        """Connections die, new ones are welcome."""
        with self.joints.lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.socket.shutdown(socket.SHUT_RDWR)

    # The thread.

    def _run(self) -> None:
        next_s = time.monotonic()
        for tick in itertools.count():
            while (rest_s := next_s - time.monotonic()) > 0 and not self._over.is_set():
                for key, _ in self._selector.select(rest_s):
                    self._attend(key)
            if self._over.is_set():
                break
            # What was missed is left out, as the controller drops what a client is too slow for.
            next_s = max(next_s + TICK_S, time.monotonic() - TICK_S)
            for key, _ in self._selector.select(0):
                self._attend(key)
            self._pass_time()
            self._tell(tick)
        for each in self._listening:
            each.close()
        for connection in tuple(self._connections):
            self._drop(connection)

    def _attend(self, key: selectors.SelectorKey) -> None:
        if key.data is None:
            assert isinstance(key.fileobj, socket.socket)
            self._welcome(key.fileobj)
            return
        connection: Connection = key.data
        try:
            received = connection.socket.recv(1 << 16)
        except OSError:
            received = b""
        if not received:
            self._drop(connection)
            return
        connection.received += received
        {
            DASHBOARD_PORT: self._talk,
            SCRIPT_PORT: self._take_script,
            RTDE_PORT: self._exchange,
        }[connection.port](connection)

    def _welcome(self, listening: socket.socket) -> None:
        accepted, _ = listening.accept()
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(accepted, listening.getsockname()[1])
        self._connections.append(connection)
        self._selector.register(accepted, selectors.EVENT_READ, connection)
        if connection.port == DASHBOARD_PORT:
            self._send(connection, b"Connected: Universal Robots Dashboard Server\n")

    def _send(self, connection: Connection, packet: bytes) -> None:
        passed = self.link.pass_on(packet)
        if passed is None:
            return
        try:
            whole = connection.socket.send(passed) == len(passed)
        except BlockingIOError:
            return
        except OSError:
            whole = False
        if not whole:
            self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        if connection in self._connections:
            self._connections.remove(connection)
            self._selector.unregister(connection.socket)
            connection.socket.close()
            self._writers = {
                name: writer for name, writer in self._writers.items() if writer is not connection
            }

    # Dashboard and script port.

    def _talk(self, connection: Connection) -> None:
        while b"\n" in connection.received:
            line, _, connection.received = connection.received.partition(b"\n")
            command = line.decode(errors="replace").strip()
            answer = ANSWERS.get(command, f"could not understand: {command!r}")
            if command == "is in remote control":
                answer = str(self.remote_control).lower()
            elif command == "stop":
                self.press_stop()
                answer = "Stopped"
            self._send(connection, answer.encode() + b"\n")

    def _take_script(self, connection: Connection) -> None:
        if not connection.received.endswith(b"\nend\n"):
            return
        connection.received = b""
        with self.joints.lock:
            if self.remote_control and self._mode == RUNNING and self._safety == NORMAL:
                self.uploads += 1
                self.watchdog_s = None
                self._answer, self._executing, self._program = READY, False, PLAYING

    # RTDE.

    def _exchange(self, connection: Connection) -> None:
        for kind, payload in _packets(connection):
            if kind == DATA:
                self._take(connection, payload)
            else:
                reply = self._reply(connection, kind, payload)
                self._send(connection, struct.pack(">HB", 3 + len(reply), kind) + reply)

    def _reply(self, connection: Connection, kind: int, payload: bytes) -> bytes:
        if kind == CONTROLLER:
            return struct.pack(">4I", *VERSION)
        if kind == OUTPUTS:
            (hz,) = struct.unpack_from(">d", payload)
            connection.every = max(1, round(1 / (hz * TICK_S)))
            connection.outputs = _names(payload[8:])
            return b"\1" + ",".join(_type(name) for name in connection.outputs).encode()
        if kind == INPUTS:
            names = _names(payload)
            types = [
                _type(name) if self._writers.get(name, connection) is connection else "IN_USE"
                for name in names
            ]
            if {"IN_USE", "NOT_FOUND"} & set(types):
                return b"\0" + ",".join(types).encode()
            self._writers.update(dict.fromkeys(names, connection))
            connection.recipes.append(names)
            return bytes([len(connection.recipes)]) + ",".join(types).encode()
        if kind in (START, PAUSE):
            connection.started = kind == START
        return b"\1"

    def _take(self, connection: Connection, payload: bytes) -> None:
        names = connection.recipes[payload[0] - 1]
        values = iter(struct.unpack(_format(names), payload[1:]))
        for name in names:
            taken = tuple(itertools.islice(values, 6 if _type(name) == "VECTOR6D" else 1))
            self._registers[name] = taken[0]
        with self.joints.lock:
            if COMMAND in names:
                self._silent_s = 0.0
            if self._program == PLAYING:
                self._obey(int(self._registers[COMMAND]))

    def _obey(self, command: int) -> None:
        """One round of the control script."""
        if command == SERVOJ:
            self.servo_commands += 1
            self.joints.go(np.array([self._double(index) for index in range(6)]))
            self._answer = READY
        elif command == 0:
            self._executing, self._answer = False, READY
        elif command == STOP_SCRIPT:
            self._end_program()
        elif not self._executing:
            if command in (SERVO_STOP, STOPJ):
                self.joints.halt()
            elif command == SET_WATCHDOG:
                self.watchdog_s = 1 / self._double(0)
            self._executing, self._answer = True, DONE

    def _double(self, index: int) -> float:
        return self._registers[f"input_double_register_{index}"]

    def _pass_time(self) -> None:
        with self.joints.lock:
            self._silent_s += TICK_S
            if self.watchdog_s is not None and self._silent_s > self.watchdog_s:
                self._end_program()

    def _end_program(self) -> None:
        self._program, self.watchdog_s = STOPPED, None
        self.joints.halt()

    def _tell(self, tick: int) -> None:
        with self.joints.lock:
            positions_rad, velocities_rad_s = self.joints.now()
            values = {
                "timestamp": [time.monotonic()],
                "actual_q": positions_rad,
                "actual_qd": velocities_rad_s,
                "runtime_state": [self._program],
                "robot_mode": [self._mode],
                "robot_status_bits": [1 | (self._program == PLAYING) << 1],
                "safety_status_bits": [self._safety],
                "output_int_register_0": [self._answer],
            }
        for connection in tuple(self._connections):
            if connection.started and tick % connection.every == 0:
                told = [value for name in connection.outputs for value in values.get(name, [0])]
                body = struct.pack(_format(connection.outputs), *told)
                self._send(connection, struct.pack(">HBB", 4 + len(body), DATA, 1) + body)


def _listen() -> list[socket.socket]:
    """All ports of an address that nobody else on this machine has."""
    while True:
        number = next(_numbers)
        host = f"127.{os.getpid() >> 8 & 255}.{os.getpid() & 255}.{number}"
        listening: list[socket.socket] = []
        try:
            for port in (DASHBOARD_PORT, SCRIPT_PORT, RTDE_PORT):
                listening.append(socket.create_server((host, port)))
        except OSError as error:
            for each in listening:
                each.close()
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return listening


def _packets(connection: Connection) -> Iterator[tuple[int, bytes]]:
    while len(connection.received) >= 3:
        size, kind = struct.unpack_from(">HB", connection.received)
        if len(connection.received) < size:
            return
        packet, connection.received = connection.received[:size], connection.received[size:]
        yield kind, packet[3:]


def _names(text: bytes) -> list[str]:
    return [name for name in text.decode().split(",") if name]  # ur_rtde ends it with a comma


def _type(name: str) -> str:
    if register := re.fullmatch(r"(?:in|out)put_(int|double)_register_\d+", name):
        return {"int": "INT32", "double": "DOUBLE"}[register[1]]
    return TYPES.get(name, "NOT_FOUND")


def _format(names: list[str]) -> str:
    return ">" + "".join(FORMATS[_type(name)] for name in names)
