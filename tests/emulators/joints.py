"""What all emulators have in common: joints that move, and a connection that misbehaves.

Shape legend: J joints.
"""

import random
import threading
import time
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


class Joints:
    """Joints that go to where they are told at up to a speed, by the clock; one lock for all."""

    def __init__(self, positions_rad: np.ndarray, *, speed_rad_s: float = 10.0):
        self.lock = threading.RLock()
        self._speed_rad_s = speed_rad_s
        self._positions_rad = np.array(positions_rad, np.float64)
        self._velocities_rad_s = np.zeros_like(self._positions_rad)
        self._target_rad = self._positions_rad.copy()
        self._at_s = time.monotonic()

    def go(self, target_rad: np.ndarray) -> None:
        """Be on the way to `target_rad` (J,) from now on."""
        with self.lock:
            self._advance()
            self._target_rad = np.array(target_rad, np.float64)

    def halt(self) -> None:
        """Stay where they are."""
        with self.lock:
            self._advance()
            self._target_rad = self._positions_rad.copy()
            self._velocities_rad_s[:] = 0

    def now(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions in radians and velocities in radians per second, (J,) each."""
        with self.lock:
            self._advance()
            return self._positions_rad.copy(), self._velocities_rad_s.copy()

    def _advance(self) -> None:
        now_s = time.monotonic()
        step_s, self._at_s = now_s - self._at_s, now_s
        if step_s <= 0:
            return
        most = self._speed_rad_s * step_s
        move = (self._target_rad - self._positions_rad).clip(-most, most)
        self._positions_rad += move
        self._velocities_rad_s = move / step_s


@dataclass
class Link:
    """What goes wrong on the way; an emulator asks it before it sends anything.

    Attributes:
        delay_s: before each packet.
        drop_share: of packets that are lost.
        corrupt_share: of packets in which a bit is flipped.
    """

    delay_s: float = 0.0
    drop_share: float = 0.0
    corrupt_share: float = 0.0
    rng: random.Random = field(default_factory=lambda: random.Random(0))

    def pass_on(self, packet: bytes) -> bytes | None:
        """The packet as it arrives; None where it is lost."""
        if self.delay_s:
            time.sleep(self.delay_s)
        if self.rng.random() < self.drop_share:
            return None
        if packet and self.rng.random() < self.corrupt_share:
            flipped = bytearray(packet)
            flipped[self.rng.randrange(len(flipped))] ^= 1 << self.rng.randrange(8)
            return bytes(flipped)
        return packet


class Emulator(Protocol):
    """A robot's controller as its vendor's client sees it, on this machine.

    It is a context manager: entering starts it, leaving ends its threads and frees its ports.
    """

    address: str
    """For the driver."""
    joints: Joints
    link: Link

    def emergency_stop(self) -> None:
        """As if the red button was pressed."""

    def release(self) -> None:
        """The button is pulled out and the controller made ready again."""

    def vanish(self) -> None:
        """As if the cable was cut: connections die, new ones are refused."""
