"""A row of servos on a serial line, which is a pseudo-terminal: what is common to both makes."""

import math
import os
import select
import threading
import time
import tty
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from emulators.joints import Joints, Link

TICKS_PER_TURN = 4096
WIRE_S_PER_BYTE = 10e-6
"""At 1 Mbit/s, ten bits a byte."""
_POLL_S = 0.005
_PING, _READ, _WRITE, _SYNC_READ, _SYNC_WRITE = 0x01, 0x02, 0x03, 0x82, 0x83
BROADCAST = 0xFE


@dataclass
class Servo:
    """A servo as it is built in: which of `joints` it turns, and how its ticks count there."""

    id: int
    model: int
    joints: Joints
    index: int
    home_ticks: int = 2048
    sign: int = 1
    leader_id: int | None = None
    trouble: int = 0
    """Bits of what is wrong with it; it does not follow until it is switched off and on."""
    table: bytearray = field(default_factory=lambda: bytearray(256))

    @property
    def ticks(self) -> int:
        return round(self.home_ticks + self._ticks_per_rad * self.joints.now()[0][self.index])

    @property
    def ticks_per_s(self) -> float:
        return float(self._ticks_per_rad * self.joints.now()[1][self.index])

    def rad(self, ticks: int) -> float:
        return (ticks - self.home_ticks) / self._ticks_per_rad

    @property
    def _ticks_per_rad(self) -> float:
        return self.sign * TICKS_PER_TURN / math.tau

    def get(self, address: int, length: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.table[address : address + length], "little", signed=signed)

    def put(self, address: int, length: int, value: int) -> None:
        data = value.to_bytes(length, "little", signed=value < 0)
        self.table[address : address + length] = data


class ServoBusEmulator:
    """Serves a pseudo-terminal until it is left; the two makes fill in packets and registers.

    A servo without power, torque or health stays where it is: there is no gravity.
    """

    header: bytes
    head_length: int
    torque_register: int
    goal: tuple[int, int]

    def __init__(
        self,
        *,
        models: list[int],
        positions_rad: np.ndarray,
        gripper_rad: float,
        home_ticks: dict[int, int] | None = None,
        signs: dict[int, int] | None = None,
        shadows: dict[int, int] | None = None,
        ids: list[int] | None = None,
        speed_rad_s: float = 10.0,
    ):
        """`models` of the servos of the joints and, last, of the gripper.

        `home_ticks` and `signs` are by id, `shadows` the leader's id by the shadow's.
        """
        self.joints = Joints(positions_rad, speed_rad_s=speed_rad_s)
        self.gripper = Joints(np.array([gripper_rad]))
        self.link = Link()
        self.return_delay_s = 0.0
        self.lock = self.joints.lock
        self.servos: dict[int, Servo] = {}
        for place, (servo_id, model) in enumerate(
            zip(ids or range(1, len(models) + 1), models, strict=True)
        ):
            arm = place < len(positions_rad)
            self.servos[servo_id] = Servo(
                servo_id,
                model,
                self.joints if arm else self.gripper,
                place if arm else 0,
                home_ticks=(home_ticks or {}).get(servo_id, 2048),
                sign=(signs or {}).get(servo_id, 1),
            )
        for shadow_id, leader_id in (shadows or {}).items():
            leader = self.servos[leader_id]
            self.servos[shadow_id] = Servo(
                shadow_id,
                leader.model,
                leader.joints,
                leader.index,
                home_ticks=leader.home_ticks,
                sign=leader.sign,
                leader_id=leader_id,
            )
        for servo in self.servos.values():
            self.wake(servo)
        self.instructions = 0
        """That arrived whole so far."""
        self.heard_s = time.monotonic()
        """When the last of them did."""
        self.history: list[tuple[int, int, int]] = []
        """What was written: id, register, value."""
        self._powered = True
        self._leaving = threading.Event()
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.address = os.ttyname(self._slave)
        self._thread = threading.Thread(target=self._serve, name="servo bus emulator")

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.vanish()

    def emergency_stop(self) -> None:
        """Cuts the power: that is what the button of such an arm does."""
        with self.lock:
            self._powered = False
            self.joints.halt()
            self.gripper.halt()

    def release(self) -> None:
        with self.lock:
            for servo in self.servos.values():
                servo.trouble = 0
                self.wake(servo)
            self._powered = True

    def vanish(self) -> None:
        if not self._leaving.is_set():
            self._leaving.set()
            self._thread.join()
            os.close(self._master)
            os.close(self._slave)

    def break_down(self, servo_id: int, trouble: int) -> None:
        """The servo has trouble, and follows no more."""
        with self.lock:
            self.servos[servo_id].trouble |= trouble
            self.drive()

    def drive(self) -> None:
        """Have all joints go where their servos want them, or stay."""
        with self.lock:
            for joints in (self.joints, self.gripper):
                target_rad, _ = joints.now()
                for servo in self.servos.values():
                    if servo.joints is joints and servo.leader_id is None and self.pulls(servo):
                        goal = servo.get(*self.goal, signed=self.goal[1] == 4)
                        target_rad[servo.index] = servo.rad(goal)
                joints.go(target_rad)

    def pulls(self, servo: Servo) -> bool:
        """Whether the servo moves its joint to its goal."""
        return bool(self._powered and servo.table[self.torque_register] and not servo.trouble)

    def wake(self, servo: Servo) -> None:
        """Registers as after power has come on; the goal is somewhere else on purpose."""
        raise NotImplementedError

    def refresh(self, servo: Servo) -> None:
        """Put what it measures into its registers."""
        raise NotImplementedError

    def length_after(self, head: bytes) -> int:
        """How much follows the first `head_length` bytes of a packet, by what they say."""
        raise NotImplementedError

    def parse(self, packet: bytes) -> tuple[int, int, bytes] | None:
        """Id, instruction and parameters; None for a packet that is damaged."""
        raise NotImplementedError

    def status(self, servo: Servo, data: bytes = b"", *, error: int = 0) -> bytes:
        """The packet by which a servo answers."""
        raise NotImplementedError

    def ping_data(self, servo: Servo) -> bytes:
        """What the answer to a ping holds."""
        raise NotImplementedError

    def address_and_rest(self, parameters: bytes) -> tuple[int, bytes]:
        """The register that parameters begin with."""
        raise NotImplementedError

    def length_and_rest(self, parameters: bytes) -> tuple[int, bytes]:
        """A number of bytes that parameters begin with."""
        raise NotImplementedError

    def refusal(self, servo: Servo, register: int) -> int:
        """The error by which it refuses to have `register` written; 0 when it does not."""
        return 0

    def watch(self) -> None:
        """Called when there is nothing to read."""

    def _serve(self) -> None:
        buffer = bytearray()
        while not self._leaving.is_set():
            ready, _, _ = select.select([self._master], [], [], _POLL_S)
            if not ready:
                self.watch()
                continue
            buffer += os.read(self._master, 4096)
            for packet in self._split(buffer):
                arrived = self.link.pass_on(packet)
                instruction = None if arrived is None else self.parse(arrived)
                if instruction is not None:
                    for reply in self._obey(*instruction):
                        self._send(reply)

    def _split(self, buffer: bytearray) -> list[bytes]:
        """Take from `buffer` what seems to be whole packets."""
        packets = []
        head = self.head_length
        while (start := buffer.find(self.header)) >= 0 and len(buffer) >= start + head:
            end = start + head + self.length_after(buffer[start : start + head])
            if len(buffer) < end:
                break
            packets.append(bytes(buffer[start:end]))
            del buffer[:end]
        return packets

    def _send(self, packet: bytes) -> None:
        time.sleep(self.return_delay_s + len(packet) * WIRE_S_PER_BYTE)
        arriving = self.link.pass_on(packet)
        if arriving is not None:
            with suppress(BlockingIOError):  # nobody listens
                os.write(self._master, arriving)

    def _obey(self, servo_id: int, instruction: int, parameters: bytes) -> list[bytes]:
        with self.lock:
            if not self._powered:
                return []
            self.instructions += 1
            self.heard_s = time.monotonic()
            addressed = self.servos.get(servo_id)
            if instruction == _SYNC_READ and servo_id == BROADCAST:
                register, rest = self.address_and_rest(parameters)
                length, ids = self.length_and_rest(rest)
                asked = [self.servos[one] for one in ids if one in self.servos]
                return [self._read(servo, register, length) for servo in asked]
            if instruction == _SYNC_WRITE and servo_id == BROADCAST:
                register, rest = self.address_and_rest(parameters)
                length, rest = self.length_and_rest(rest)
                for start in range(0, len(rest), 1 + length):
                    self._write(rest[start], register, rest[start + 1 : start + 1 + length])
                return []
            if instruction == _WRITE:
                register, data = self.address_and_rest(parameters)
                error = self._write(servo_id, register, data)
                return [self.status(addressed, error=error)] if addressed else []
            if addressed and instruction == _PING:
                return [self.status(addressed, self.ping_data(addressed))]
            if addressed and instruction == _READ:
                register, rest = self.address_and_rest(parameters)
                length, _ = self.length_and_rest(rest)
                return [self._read(addressed, register, length)]
            return []

    def _read(self, servo: Servo, register: int, length: int) -> bytes:
        self.refresh(servo)
        return self.status(servo, bytes(servo.table[register : register + length]))

    def _write(self, servo_id: int, register: int, data: bytes) -> int:
        """Gives the error of the servo addressed; a shadow does the same without answering."""
        error = 0
        for servo in self.servos.values():
            if servo_id in (servo.id, servo.leader_id):
                refused = self.refusal(servo, register)
                if servo_id == servo.id:
                    error = refused
                    self.history.append((servo_id, register, int.from_bytes(data, "little")))
                if not refused:
                    servo.table[register : register + len(data)] = data
        self.drive()
        return error
