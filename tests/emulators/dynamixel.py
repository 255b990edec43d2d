"""X servos of Dynamixel, as its library sees them: protocol 2.0."""

import time

from emulators.servo_bus import Servo, ServoBusEmulator

XM430, XL430 = 1020, 1060
MODEL, FIRMWARE, MODE, SECONDARY_ID, TORQUE, TROUBLE = 0, 6, 11, 12, 64, 70
WATCHDOG, GOAL_PWM, GOAL_VELOCITY, GOAL, VELOCITY, POSITION = 98, 100, 104, 116, 128, 132
LOAD = 124
"""PWM and current, two bytes each."""
OVERHEATED, OVERLOADED = 0x04, 0x20
ALERT, DATA_RANGE, ACCESS = 0x80, 4, 7
TRIPPED = 255
_EEPROM_END = 64
_TICKS_PER_S = 0.229 / 60 * 4096
_ELSEWHERE_TICKS = 100
_HEADER = b"\xff\xff\xfd"


class DynamixelEmulator(ServoBusEmulator):
    header, head_length = _HEADER, 7
    torque_register = TORQUE
    goal = (GOAL, 4)

    def overload(self, joint: int) -> None:
        """Its servo switches itself off."""
        servo = list(self.servos.values())[joint]
        servo.table[TORQUE] = 0
        self.break_down(servo.id, OVERLOADED)

    def pulls(self, servo: Servo) -> bool:
        return super().pulls(servo) and servo.table[WATCHDOG] != TRIPPED

    def wake(self, servo: Servo) -> None:
        servo.table[:] = bytes(len(servo.table))
        servo.put(MODEL, 2, servo.model)
        servo.put(FIRMWARE, 1, 45)
        servo.put(MODE, 1, 3)
        servo.put(SECONDARY_ID, 1, 255 if servo.leader_id is None else servo.leader_id)
        servo.put(GOAL, 4, _ELSEWHERE_TICKS)

    def refresh(self, servo: Servo) -> None:
        servo.put(VELOCITY, 4, round(servo.ticks_per_s / _TICKS_PER_S))
        servo.put(POSITION, 4, servo.ticks)
        servo.put(TROUBLE, 1, servo.trouble)

    def watch(self) -> None:
        """The watchdogs, which a torque wakes."""
        with self.lock:
            silent_s = time.monotonic() - self.heard_s
            for servo in self.servos.values():
                watchdog = servo.table[WATCHDOG]
                if servo.table[TORQUE] and 0 < watchdog < TRIPPED and silent_s > watchdog * 0.02:
                    servo.table[WATCHDOG] = TRIPPED
                    self.drive()

    def refusal(self, servo: Servo, register: int) -> int:
        if register < _EEPROM_END and servo.table[TORQUE]:
            return ACCESS
        stopped = servo.table[WATCHDOG] == TRIPPED
        return DATA_RANGE if stopped and register in (GOAL_PWM, GOAL_VELOCITY, GOAL) else 0

    def length_after(self, head: bytes) -> int:
        return int.from_bytes(head[5:7], "little")

    def parse(self, packet: bytes) -> tuple[int, int, bytes] | None:
        if not (
            len(packet) >= 10
            and packet[:4] == _HEADER + b"\0"
            and int.from_bytes(packet[5:7], "little") == len(packet) - 7
            and packet[-2:] == _crc(packet[:-2])
        ):
            return None
        body = packet[7:-2].replace(_HEADER + b"\xfd", _HEADER)
        return packet[4], body[0], body[1:]

    def status(self, servo: Servo, data: bytes = b"", *, error: int = 0) -> bytes:
        alert = ALERT if servo.trouble else 0
        body = bytes([0x55, error | alert, *data]).replace(_HEADER, _HEADER + b"\xfd")
        packet = _HEADER + bytes([0, servo.id]) + (len(body) + 2).to_bytes(2, "little") + body
        return packet + _crc(packet)

    def ping_data(self, servo: Servo) -> bytes:
        return bytes([*servo.table[MODEL : MODEL + 2], servo.table[FIRMWARE]])

    def address_and_rest(self, parameters: bytes) -> tuple[int, bytes]:
        return int.from_bytes(parameters[:2], "little"), parameters[2:]

    length_and_rest = address_and_rest


def _shifted(byte: int) -> int:
    """What a byte in front leaves in the remainder, of the polynomial 0x8005."""
    crc = byte << 8
    for _ in range(8):
        crc = crc << 1 ^ (0x18005 if crc & 0x8000 else 0)
    return crc


_CRC = [_shifted(byte) for byte in range(256)]


def _crc(packet: bytes) -> bytes:
    crc = 0
    for byte in packet:
        crc = (crc << 8 & 0xFFFF) ^ _CRC[crc >> 8 ^ byte]
    return crc.to_bytes(2, "little")
