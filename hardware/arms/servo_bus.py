"""A serial line with servos on it, through the packet handlers of a vendor's library.

Feetech's library was made from Dynamixel's; all that is used here is alike in both.
"""

import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from robot_qsft.hardware.arms.servo_layout import Servo
from robot_qsft.hardware.robot import RobotError

REPLY_S = 0.1
"""A single servo has this long to answer while the arm is not moving yet."""
_TRIES = 5
_SETTLE_S = 0.02
_WAKE_S = 0.001
"""Reading waits in pieces of this; the vendors' libraries would spin."""
_WRITE_S = 0.1


@dataclass(frozen=True)
class Answer:
    """What a servo sent: the error byte, and what it was asked for."""

    error: int
    data: bytes


class ServoBus:
    """The line, through a vendor's packet handlers; all that goes wrong on it is RobotError."""

    def __init__(self, sdk: Any, *, protocol: float, address: str, baudrate: int, refusals: int):
        """Not open yet.

        Args:
            sdk: the vendor's library; both are made alike.
            protocol: that its `PacketHandler` is to speak.
            address: the serial device.
            baudrate: of the line.
            refusals: bits of an answer's error byte by which a servo refuses what was asked.
        """
        self._sdk = sdk
        self._packets = sdk.PacketHandler(protocol)
        self._address = address
        self._baudrate = baudrate
        self._refusals = refusals
        self._reply_s = REPLY_S
        self._port: Any = None

    @property
    def is_open(self) -> bool:
        """Whether `open` was called last, and not `close`."""
        return self._port is not None

    def open(self) -> None:
        """Open the serial device, for this process alone.

        Raises:
            RobotError: when it is not there or somebody else's.
        """
        port = self._sdk.PortHandler(self._address)
        port.baudrate = self._baudrate
        try:
            if not port.openPort():
                raise RobotError(
                    f"{self._address} cannot be had at {self._baudrate} baud; correct "
                    "options.baudrate"
                )
            self._tune(port)
        except (OSError, ValueError, termios.error) as error:
            if port.ser is not None:
                port.closePort()
            raise RobotError(
                f"there is no servo bus at {self._address} ({error}); plug it in, correct the "
                "address, and end other programs that use it"
            ) from error
        self._port = port

    def close(self) -> None:
        """Let go of the device; a second time changes nothing."""
        port, self._port = self._port, None
        if port is not None:
            with suppress(OSError):
                port.closePort()

    def read(self, servo: Servo, address: int, length: int) -> int:
        """A register.

        Raises:
            RobotError: when the servo does not answer or refuses.
        """
        asked = max(2, length)  # Feetech's library takes a late acknowledgement for one byte

        def ask(port: Any) -> Answer | None:
            data, result, error = self._packets.readTxRx(port, servo.id, address, asked)
            return Answer(error, bytes(data)) if self._is_good(result, data, asked) else None

        return int.from_bytes(self._ask(servo, address, ask).data[:length], "little")

    def write(self, servo: Servo, address: int, length: int, value: int) -> None:
        """Write a register; the servo acknowledges it.

        Raises:
            RobotError: when the servo does not answer or refuses.
        """
        data = list(value.to_bytes(length, "little"))

        def ask(port: Any) -> Answer | None:
            result, error = self._packets.writeTxRx(port, servo.id, address, length, data)
            return Answer(error, b"") if self._is_good(result, b"", 0) else None

        self._ask(servo, address, ask)

    def read_all(
        self, servos: Sequence[Servo], address: int, length: int, *, reply_s: float
    ) -> dict[int, Answer]:
        """The same registers of many servos, by id, of those whose answer came whole.

        The library's plain sync read is used rather than its fast one, which gives no error bytes
        and loses the answers of all servos with one byte.

        Raises:
            RobotError: when the device is gone.
        """
        answers = {}
        with self._line(reply_s) as port:
            group = self._sdk.GroupSyncRead(port, self._packets, address, length)
            for servo in servos:
                group.addParam(servo.id)
            result = group.txPacket()
            for servo in servos if result == self._sdk.COMM_SUCCESS else ():
                data, result, error = self._packets.readRx(port, servo.id, length)
                if self._is_good(result, data, length):
                    answers[servo.id] = Answer(error, bytes(data))
                elif result == self._sdk.COMM_RX_TIMEOUT:
                    break
        return answers

    def write_all(self, values: Mapping[int, int], address: int, length: int) -> None:
        """Write a register of many servos at once, by id; nobody acknowledges it.

        Raises:
            RobotError: when the device is gone.
        """
        with self._line(REPLY_S) as port:
            group = self._sdk.GroupSyncWrite(port, self._packets, address, length)
            for servo_id, value in values.items():
                group.addParam(servo_id, list(value.to_bytes(length, "little")))
            if group.txPacket() != self._sdk.COMM_SUCCESS:
                raise RobotError(f"the servo bus at {self._address} does not take commands")

    def _ask(self, servo: Servo, address: int, ask: Callable[[Any], Answer | None]) -> Answer:
        """Ask one servo until it answers."""
        for _ in range(_TRIES):
            with self._line(REPLY_S) as port:
                answer = ask(port)
                if answer is None:
                    # What still comes late must not be taken for the answer to the next question.
                    time.sleep(_SETTLE_S)
                    continue
            if answer.error & self._refusals:
                raise RobotError(
                    f"{servo.label} refuses register {address} (error {answer.error}); switch the "
                    "arm's power off and on"
                )
            return answer
        raise RobotError(
            f"{servo.label} does not answer at {self._address}; check its id, its cable, the "
            f"arm's power and the baud rate of {self._baudrate}"
        )

    def _is_good(self, result: int, data: Any, length: int) -> bool:
        return bool(result == self._sdk.COMM_SUCCESS) and len(data) == length

    @contextmanager
    def _line(self, reply_s: float) -> Iterator[Any]:
        """The port, ready for a question that is to be answered within `reply_s`."""
        if self._port is None:
            raise RobotError("the arm is not connected; connect it first")
        self._port.is_using = False  # stays set where an earlier question broke off
        self._reply_s = reply_s
        try:
            yield self._port
        except (OSError, termios.error) as error:
            raise RobotError(
                f"the servo bus at {self._address} is gone ({error}); plug it in and connect again"
            ) from error

    def _tune(self, port: Any) -> None:
        """Mend what the libraries do at a port, which is alike in both."""
        line = port.ser
        line.exclusive = True
        line.timeout = _WAKE_S
        line.write_timeout = _WRITE_S
        with suppress(ValueError, NotImplementedError):  # FTDI's chips alone can
            # They keep short answers back for 16 ms otherwise.
            line.set_low_latency_mode(True)
        # Feetech's waits here until all is sent, and leaves late answers to be taken for new ones.
        port.clearPort = lambda: line.read(line.in_waiting)
        # They measure by the clock on the wall, and wait 34 ms, which is longer than a period.
        port.getCurrentTime = lambda: 1000 * time.monotonic()
        port.setPacketTimeout = lambda length: port.setPacketTimeoutMillis(1000 * self._reply_s)
