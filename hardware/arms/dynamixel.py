"""Arms of Dynamixel's X servos (protocol 2.0), such as Interbotix's WidowX and ViperX.

`watchdog_s` is that of the servos themselves (register 98): once no packet has come for so long,
they stop and take no more goals. Any packet feeds it, a question for positions as well; since a
goal is a position, the arm rests then too. Motors of the 330 sizes were seen to turn on in spite of
it (ROBOTIS forum, of other modes than position control): keep their firmware up to date.

A joint may have a second servo that obeys the first one's packets by its Secondary ID; given as
`shadow_id_<joint>` in the options, it is looked after like all others.
"""

from collections.abc import Sequence

import dynamixel_sdk as sdk

from robot_qsft.hardware.arms.servo_bus import ServoBus
from robot_qsft.hardware.arms.servo_layout import TICKS_PER_TURN, Layout, Servo
from robot_qsft.hardware.arms.servo_robot import Reading, ServoRobot
from robot_qsft.hardware.description import RobotDescription
from robot_qsft.hardware.robot import RobotError

_PROTOCOL = 2.0
_MODEL, _MODE, _SECONDARY_ID, _TORQUE, _TROUBLE = 0, 11, 12, 64, 70
_WATCHDOG, _PROFILE_ACCELERATION, _PROFILE_VELOCITY, _GOAL = 98, 108, 112, 116
_VELOCITY, _POSITION = 128, 132
_BLOCK_LENGTH = _POSITION + 4 - _WATCHDOG
_POSITION_MODES = (3, 4, 5)
"""Position control, over several turns, limited by current."""
_TICKS_PER_S = 0.229 / 60 * TICKS_PER_TURN
"""What the speed register counts: 0.229 turns a minute."""
_WATCHDOG_TICK_S = 0.02
_LONGEST_WATCHDOG = 127
_TRIPPED = 255
_ALERT = 0x80
_POWER = "switch the arm's power off and on"
_TROUBLES = {
    0x01: f"has a supply voltage out of its range; check the power supply, then {_POWER}",
    0x04: f"is too hot; let it cool, then {_POWER}",
    0x08: f"reports a fault of its motor or its encoder; {_POWER}",
    0x10: f"reports an electrical shock, or too little power for its motor; {_POWER}",
    0x20: f"is in overload; take the load off, then {_POWER}",
}
"""By bit of the hardware error status."""


class DynamixelRobot(ServoRobot):
    """An arm of X servos at a serial device."""

    def __init__(self, description: RobotDescription):
        """For the described arm.

        Raises:
            ValueError: when the description is none of such an arm.
        """
        most_s = _LONGEST_WATCHDOG * _WATCHDOG_TICK_S
        if description.watchdog_s is None or not 0 < description.watchdog_s <= most_s:
            raise ValueError(
                f"watchdog_s of Dynamixel's servos must lie in (0, {most_s:g}], "
                f"got {description.watchdog_s}"
            )
        layout = Layout.of(description, model=None, shadows=True)
        super().__init__(
            description,
            layout,
            ServoBus(
                sdk,
                protocol=_PROTOCOL,
                address=description.address,
                baudrate=layout.baudrate,
                refusals=0xFF & ~_ALERT,
            ),
            model_register=_MODEL,
            block=(_WATCHDOG, _BLOCK_LENGTH),
            goal=(_GOAL, 4),
        )
        self._patience = max(1, round(description.watchdog_s / _WATCHDOG_TICK_S))

    def _prepare(self, servo: Servo) -> None:
        mode = self._bus.read(servo, _MODE, 1)
        if mode not in _POSITION_MODES:
            raise RobotError(
                f"{servo.label} is in operating mode {mode}, not in position control; set its "
                f"register {_MODE} to {_POSITION_MODES[0]} with Dynamixel Wizard"
            )
        if servo.leader_id is not None:
            obeyed = self._bus.read(servo, _SECONDARY_ID, 1)
            if obeyed != servo.leader_id:
                raise RobotError(
                    f"{servo.label} obeys {obeyed} and not {servo.leader_id}, the other servo of "
                    f"its joint; set its register {_SECONDARY_ID} to that with Dynamixel Wizard"
                )
        self._bus.write(servo, _WATCHDOG, 1, 0)  # which also clears that it has stopped
        # No ramps of its own, by which it would lag behind.
        self._bus.write(servo, _PROFILE_ACCELERATION, 4, 0)
        self._bus.write(servo, _PROFILE_VELOCITY, 4, 0)

    def _engage(self) -> None:
        for servo in self._servos:
            self._bus.write(servo, _TORQUE, 1, 1)
        for servo in self._everyone:
            if self._bus.read(servo, _TORQUE, 1) != 1:
                raise RobotError(f"{servo.label} takes no torque; {_POWER}")
        for servo in self._everyone:
            self._bus.write(servo, _WATCHDOG, 1, self._patience)

    def _hold(self, servos: Sequence[Servo]) -> None:
        """Hold, and watch again where the watchdog has stopped a servo."""
        stopped = [servo for servo in servos if self._watchdog(self._latest[servo.id]) == _TRIPPED]
        for servo in stopped:
            self._bus.write(servo, _WATCHDOG, 1, 0)
        super()._hold(servos)
        for servo in stopped:
            self._bus.write(servo, _WATCHDOG, 1, self._patience)

    def _ticks(self, block: bytes) -> int:
        return _signed(block, _POSITION)

    def _ticks_per_s(self, servo: Servo, reading: Reading) -> float:
        return _signed(reading.answer.data, _VELOCITY) * _TICKS_PER_S

    def _trouble(self, servo: Servo, reading: Reading) -> str:
        if not reading.answer.error & _ALERT:
            return ""
        status = self._bus.read(servo, _TROUBLE, 1)
        for bit, trouble in _TROUBLES.items():
            if status & bit:
                return f"{servo.label} {trouble}"
        return f"{servo.label} reports hardware error {status}; {_POWER}"

    def _lapse(self, servo: Servo, reading: Reading) -> str:
        watchdog = self._watchdog(reading)
        if watchdog == _TRIPPED:
            return (
                f"{servo.label} was stopped by its watchdog, since nothing was sent for "
                f"{self._patience * _WATCHDOG_TICK_S:g} s"
            )
        if watchdog != self._patience:
            return (
                f"{servo.label} has forgotten its watchdog, as when its power was off; "
                "connect again"
            )
        return ""

    def _watchdog(self, reading: Reading) -> int:
        return reading.answer.data[0]


def _signed(block: bytes, register: int) -> int:
    """Of four bytes in the block."""
    return int.from_bytes(block[register - _WATCHDOG :][:4], "little", signed=True)
