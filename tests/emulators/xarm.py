"""A UFACTORY control box on loopback: commands on one port, the real-time report on 30003.

The report's port is fixed in the client library, so every emulator gets a loopback address of its
own; commands are taken on a port above 1024, which needs no privileges.
"""

import contextlib
import itertools
import math
import os
import socket
import struct
import threading
from collections.abc import Callable

import numpy as np
from emulators.joints import Joints, Link

THREAD = "xArm emulator"
COMMAND_PORT = 10502
REPORT_PORT = 30003
REPORT_HZ = 100
FULL_SPEED_RAD_S = math.pi
FURTHEST_STEP_RAD = 0.5
WIRE_JOINTS = 7
NOT_READY, WARNING, ERROR, INVALID = 0x10, 0x20, 0x40, 0x08
MOVES, RESTS, SUSPENDED, STOPPED, RESET = 1, 2, 3, 4, 5
SERVO_MODE = 1
EMERGENCY_STOP, JOINT_LIMIT, TOO_FAST = 1, 23, 24
HEADER = struct.Struct(">HHH")
HEARTBEAT = bytes([0, 0, 0, 1, 0, 2, 0, 0])

_numbers = itertools.count()


class XArmEmulator:
    """An xArm with as many joints as `home_rad`, switched on and not yet enabled.

    Targets are driven to at full joint speed and rested at: it notices neither silence nor dead
    clients, as the real one.
    """

    def __init__(self, home_rad: np.ndarray, *, version: str = ""):
        self.joints = Joints(home_rad, speed_rad_s=FULL_SPEED_RAD_S)
        self.link = Link()
        self.address = ""
        self.servo_commands = 0
        count = len(home_rad)
        self._version = version or f"{count},{count},XI1300A00001,AC1300A00001,v2.4.0"
        self._lock = threading.RLock()
        self._state, self._mode, self._enabled = STOPPED, 0, False
        self._error = self._warning = 0
        self._pressed = False
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._listening: list[socket.socket] = []
        self._connections: set[socket.socket] = set()
        self._calls: dict[int, Callable[[bytes], bytes]] = {
            1: lambda _: self._version.encode().ljust(40, b"\0"),
            11: self._enable,
            12: self._set_state,
            13: lambda _: bytes([self._shown_state()]),
            14: lambda _: bytes(2),
            15: lambda _: bytes([self._error, self._warning]),
            16: self._clean_error,
            17: self._clean_warning,
            19: self._set_mode,
            29: self._servo,
            42: lambda _: self._positions(),
        }

    def __enter__(self) -> "XArmEmulator":
        self._listening = _listen()
        host = self._listening[0].getsockname()[0]
        self.address = f"{host}:{COMMAND_PORT}"
        self._run(self._accept, self._listening[0], self._answer)
        self._run(self._accept, self._listening[1], self._report)
        return self

    def __exit__(self, *_: object) -> None:
        self.vanish()
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()

    def emergency_stop(self) -> None:
        """As if the red button was pressed."""
        with self._lock:
            self._pressed = True
        self.fail(EMERGENCY_STOP)

    def release(self) -> None:
        """The button is pulled out; the error stays until it is cleaned."""
        with self._lock:
            self._pressed = False

    def fail(self, error: int) -> None:
        """Be in error, which stops the arm and takes its enabling."""
        with self._lock:
            self._error, self._state, self._enabled = error, STOPPED, False
            self.joints.halt()

    def warn(self, warning: int) -> None:
        """Warn of something."""
        with self._lock:
            self._warning = warning

    def obey(self, *, state: int | None = None, mode: int | None = None) -> None:
        """As if UFACTORY Studio had asked for a state or a mode."""
        with self._lock:
            if mode is not None:
                self._set_mode(bytes([mode]))
            if state is not None:
                self._set_state(bytes([state]))

    def vanish(self) -> None:
        """As if the cable was cut: connections die, new ones are refused."""
        self._over.set()
        for each in (*self._listening, *tuple(self._connections)):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for listening in self._listening:
            listening.close()

    def _run(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, name=THREAD)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listening: socket.socket, serve: Callable[[socket.socket], None]) -> None:
        while not self._over.is_set():
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            self._connections.add(connection)
            if self._over.is_set():
                connection.close()
            else:
                self._run(self._serve, serve, connection)

    def _serve(self, serve: Callable[[socket.socket], None], connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(None)  # the client library sets a default for the process
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            serve(connection)
        self._connections.discard(connection)

    def _answer(self, connection: socket.socket) -> None:
        stream = connection.makefile("rb")
        with stream:
            while len(header := stream.read(HEADER.size)) == HEADER.size:
                transaction, protocol, length = HEADER.unpack(header)
                function, *data = stream.read(length)
                if header + bytes([function, *data]) == HEARTBEAT:
                    continue
                with self._lock:
                    call = self._calls.get(function)
                    answer = call(bytes(data)) if call else b""
                    flags = self._flags() | (0 if call else INVALID)
                body = bytes([function, flags]) + answer
                packet = HEADER.pack(transaction, protocol, len(body)) + body
                if (arriving := self.link.pass_on(packet)) is not None:
                    connection.sendall(arriving)

    def _report(self, connection: socket.socket) -> None:
        while not self._over.wait(1 / REPORT_HZ):
            with self._lock:
                flags = self._shown_state() | self._mode << 4
                report = struct.pack(">BH", flags, 0) + self._positions()
            report += struct.pack("<13f", *[0.0] * 13)  # pose and torques
            packet = struct.pack(">I", len(report) + 4) + report
            if (arriving := self.link.pass_on(packet)) is not None:
                connection.sendall(arriving)

    def _flags(self) -> int:
        return (
            (NOT_READY if self._state in (STOPPED, RESET) or not self._enabled else 0)
            | (WARNING if self._warning else 0)
            | (ERROR if self._error else 0)
        )

    def _shown_state(self) -> int:
        moving = bool(self.joints.now()[1].any())
        return MOVES if self._state == RESTS and moving else self._state

    def _positions(self) -> bytes:
        positions_rad = self.joints.now()[0]
        return struct.pack("<7f", *positions_rad, *[0.0] * (WIRE_JOINTS - len(positions_rad)))

    def _enable(self, data: bytes) -> bytes:
        self.joints.halt()
        self._enabled = bool(data[1]) and not self._error
        self._state = RESET
        return b""

    def _set_state(self, data: bytes) -> bytes:
        if data[0] != 0:
            self.joints.halt()
            self._state = data[0]
        elif self._enabled and not self._error:
            self._state = RESTS
        return b""

    def _set_mode(self, data: bytes) -> bytes:
        self.joints.halt()
        self._mode = data[0]
        self._state = RESET
        return b""

    def _clean_error(self, _: bytes) -> bytes:
        self.joints.halt()
        self._error = EMERGENCY_STOP if self._pressed else 0
        self._state = RESET
        return b""

    def _clean_warning(self, _: bytes) -> bytes:
        self._warning = 0
        return b""

    def _servo(self, data: bytes) -> bytes:
        target_rad = np.array(struct.unpack("<7f", data[:28]))[: len(self.joints.now()[0])]
        if self._error or not self._enabled or self._state != RESTS or self._mode != SERVO_MODE:
            return bytes(2)
        if not (np.abs(target_rad) <= 2 * math.pi).all():
            self.fail(JOINT_LIMIT)
        elif (np.abs(target_rad - self.joints.now()[0]) > FURTHEST_STEP_RAD).any():
            self.fail(TOO_FAST)
        else:
            self.joints.go(target_rad)
            self.servo_commands += 1
        return bytes(2)


def _listen() -> list[socket.socket]:
    """Both ports of a loopback address that nobody else has, 127.1.0.1 … 127.254.254.254."""
    while True:
        number = (os.getpid() * 64 + next(_numbers)) % (254 * 254 * 254)
        a, b, c = number // (254 * 254), number // 254 % 254, number % 254
        host = f"127.{a + 1}.{b + 1}.{c + 1}"
        opened: list[socket.socket] = []
        try:
            opened.extend(
                socket.create_server((host, port)) for port in (COMMAND_PORT, REPORT_PORT)
            )
        except OSError:
            for listening in opened:
                listening.close()
        else:
            return opened
