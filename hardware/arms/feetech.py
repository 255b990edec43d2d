"""Arms of Feetech's STS servos, such as SO-100 and SO-101.

These servos have no watchdog, and need none to come to rest: a goal is a position, to which they go
and where they stay. A dead client or a cut cable so leaves the arm at rest where the last command
wanted it, one control period away, and holding itself up.

Their checksum is a byte-wise sum. It finds each single bit that is wrong; of packets in which
several are, some pass, and those whose position cannot be are asked for again.
"""

import scservo_sdk as sdk

from robot_qsft.hardware.arms.servo_bus import ServoBus
from robot_qsft.hardware.arms.servo_layout import Layout, Servo
from robot_qsft.hardware.arms.servo_robot import Reading, ServoRobot
from robot_qsft.hardware.description import RobotDescription
from robot_qsft.hardware.robot import RobotError

if not hasattr(sdk, "PacketHandler"):
    raise ImportError(
        "the scservo_sdk that is installed is that of ftservo-python-sdk, whose calls differ; "
        "uninstall that and feetech-servo-sdk"
    )

_STS3215 = 777
_LITTLE_ENDIAN = 0
"""What the library calls a protocol; Feetech's older SCS servos have the other order."""

_MODEL, _MODE, _TORQUE, _ACCELERATION, _GOAL, _LOCK = 3, 33, 40, 41, 42, 55
_POSITION, _STATUS = 56, 65
_BLOCK_LENGTH = _STATUS + 1 - _TORQUE
_FASTEST_ACCELERATION = 254
"""39 rad/s², in their unit of 100 ticks/s²: beyond what is commanded, so that none lags behind."""
_SIGN = 1 << 15
_POWER = "switch the arm's power off and on"
_TROUBLES = {
    0x01: f"has a supply voltage out of its range; check the power supply, then {_POWER}",
    0x02: f"reports a fault of its position sensor; {_POWER}",
    0x04: f"is too hot; let it cool, then {_POWER}",
    0x08: f"draws too much current; see what is in its way, then {_POWER}",
    0x20: f"is in overload; take the load off, then {_POWER}",
}
"""By bit of the status."""


class FeetechRobot(ServoRobot):
    """An arm of STS servos at a serial device."""

    def __init__(self, description: RobotDescription):
        """For the described arm.

        Raises:
            ValueError: when the description is none of such an arm.
        """
        if description.watchdog_s is not None:
            raise ValueError(
                f"watchdog_s must be null, since Feetech's servos have no watchdog, "
                f"got {description.watchdog_s:g}"
            )
        layout = Layout.of(description, model=_STS3215)
        super().__init__(
            description,
            layout,
            ServoBus(
                sdk,
                protocol=_LITTLE_ENDIAN,
                address=description.address,
                baudrate=layout.baudrate,
                refusals=0,
            ),
            model_register=_MODEL,
            block=(_TORQUE, _BLOCK_LENGTH),
            goal=(_GOAL, 2),
        )
        self._marks: dict[int, tuple[Reading, float]] = {}

    def _prepare(self, servo: Servo) -> None:
        mode = self._bus.read(servo, _MODE, 1)
        if mode != 0:
            raise RobotError(
                f"{servo.label} is in operating mode {mode}, not in position control; set its "
                f"register {_MODE} to 0 with Feetech's debugging software"
            )
        self._bus.write(servo, _LOCK, 1, 1)  # nothing that goes wrong now outlasts the power
        self._bus.write(servo, _ACCELERATION, 1, _FASTEST_ACCELERATION)

    def _engage(self) -> None:
        self._marks.clear()
        for servo in self._servos:
            self._bus.write(servo, _TORQUE, 1, 1)

    def _ticks(self, block: bytes) -> int:
        word = int.from_bytes(block[_POSITION - _TORQUE :][:2], "little")
        return -(word - _SIGN) if word & _SIGN else word

    def _ticks_per_s(self, servo: Servo, reading: Reading) -> float:
        """Over the last period: the unit of the register for it depends on how a servo is set."""
        mark, ticks_per_s = self._marks.get(servo.id, (reading, 0.0))
        elapsed_s = reading.time_s - mark.time_s
        if elapsed_s >= self.description.period_s / 2:
            ticks_per_s = (reading.ticks - mark.ticks) / elapsed_s
            mark = reading
        self._marks[servo.id] = (mark, ticks_per_s)
        return ticks_per_s

    def _trouble(self, servo: Servo, reading: Reading) -> str:
        status = reading.answer.error | reading.answer.data[_STATUS - _TORQUE]
        for bit, trouble in _TROUBLES.items():
            if status & bit:
                return f"{servo.label} {trouble}"
        return ""

    def _lapse(self, servo: Servo, reading: Reading) -> str:
        if reading.answer.data[0] == 0:
            return f"{servo.label} has lost its torque, as when its power was off; connect again"
        return ""
