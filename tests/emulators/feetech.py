"""STS3215 servos of Feetech, as its library sees them."""

from emulators.servo_bus import Servo, ServoBusEmulator

STS3215 = 777
MODEL, MODE, TORQUE, GOAL, LOCK, POSITION, SPEED = 3, 33, 40, 42, 55, 56, 58
VOLTAGE, TEMPERATURE, STATUS = 62, 63, 65
UNDERVOLTAGE, OVERHEATED, OVERLOADED = 0x01, 0x04, 0x20
_ELSEWHERE_TICKS = 100


class FeetechEmulator(ServoBusEmulator):
    header, head_length = b"\xff\xff", 4
    torque_register = TORQUE
    goal = (GOAL, 2)

    def overload(self, joint: int) -> None:
        self.break_down(list(self.servos)[joint], OVERLOADED)

    def wake(self, servo: Servo) -> None:
        servo.table[:] = bytes(len(servo.table))
        servo.put(MODEL, 2, servo.model)
        servo.put(GOAL, 2, _ELSEWHERE_TICKS)
        servo.put(VOLTAGE, 1, 120)
        servo.put(TEMPERATURE, 1, 30)

    def refresh(self, servo: Servo) -> None:
        servo.put(POSITION, 2, _sign_and_magnitude(servo.ticks))
        servo.put(SPEED, 2, _sign_and_magnitude(round(servo.ticks_per_s)))
        servo.put(STATUS, 1, servo.trouble)

    def length_after(self, head: bytes) -> int:
        return head[3]

    def parse(self, packet: bytes) -> tuple[int, int, bytes] | None:
        if not (
            len(packet) >= 6
            and packet[:2] == b"\xff\xff"
            and packet[3] == len(packet) - 4
            and packet[-1] == _checksum(packet[2:-1])
        ):
            return None
        return packet[2], packet[4], packet[5:-1]

    def status(self, servo: Servo, data: bytes = b"", *, error: int = 0) -> bytes:
        body = bytes([servo.id, len(data) + 2, servo.trouble, *data])
        return b"\xff\xff" + body + bytes([_checksum(body)])

    def ping_data(self, servo: Servo) -> bytes:
        return b""

    def address_and_rest(self, parameters: bytes) -> tuple[int, bytes]:
        return parameters[0], parameters[1:]

    length_and_rest = address_and_rest


def _checksum(body: bytes) -> int:
    return ~sum(body) & 0xFF


def _sign_and_magnitude(value: int) -> int:
    return value if value >= 0 else 1 << 15 | -value
