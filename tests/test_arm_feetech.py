"""Arms of Feetech servos: the vendor's library on a pseudo-terminal."""

import sys
import types
from dataclasses import dataclass, replace

import numpy as np
import pytest
import scservo_sdk as sdk
from emulators.feetech import LOCK, MODE, POSITION, STS3215, TORQUE, FeetechEmulator
from emulators.joints import Link
from emulators.servo_contract import (
    TICK_RAD,
    ServoRobotContract,
    calibrated,
    furthest_rad,
    home_is_in_the_workspace,
    refused,
)

from robot_qsft.hardware.arms.feetech import FeetechRobot
from robot_qsft.hardware.arms.make import make_robot
from robot_qsft.hardware.description import find_description
from robot_qsft.hardware.kinematics import Chain

START_RAD = np.array([0.1, -0.8, 0.9, 0.7, -0.3])


@pytest.fixture
def emulator():
    with FeetechEmulator(
        models=[STS3215] * 6,
        positions_rad=START_RAD,
        gripper_rad=0.5,
        home_ticks={1: 2047, 2: 2150, 3: 1960, 4: 2047, 5: 2100, 6: 2048},
        signs={4: -1},
    ) as emulator:
        yield emulator


@pytest.fixture
def description(emulator):
    return calibrated(
        "so101",
        emulator.address,
        home_ticks_shoulder_lift=2150,
        home_ticks_elbow_flex=1960,
        home_ticks_wrist_roll=2100,
        sign_wrist_flex=-1,
    )


@dataclass
class ForgingLink(Link):
    """Makes the elbow 90° further in each third of its answers, with a sum that is right."""

    answers: int = 0
    forged: int = 0

    def pass_on(self, packet: bytes) -> bytes | None:
        if packet[2] != 3:
            return packet
        self.answers += 1
        if self.answers % 3:
            return packet
        self.forged += 1
        forged = bytearray(packet)
        forged[5 + POSITION - TORQUE + 1] += 4
        forged[-1] = (forged[-1] - 4) & 0xFF
        return bytes(forged)


class TestFeetech(ServoRobotContract):
    third = "elbow_flex (servo 3)"
    most_bits = 1

    def test_wrong_bits_that_the_checksum_misses_are_no_position(self, emulator, description):
        robot = make_robot(replace(description, control_hz=100))
        robot.connect()
        truth_rad = emulator.joints.now()[0]
        emulator.link = forger = ForgingLink()
        far_rad, _ = furthest_rad(robot, truth_rad, reads=60)
        emulator.link = Link()
        robot.disconnect()
        assert forger.forged >= 10
        assert far_rad <= TICK_RAD


def test_the_vendors_own_ping_finds_the_servos(emulator):
    port, packets = sdk.PortHandler(emulator.address), sdk.PacketHandler(0)
    assert port.openPort()
    try:
        found = {one: packets.ping(port, one) for one in (1, 6, 7)}
    finally:
        port.closePort()
    assert found[1] == found[6] == (STS3215, sdk.COMM_SUCCESS, 0)
    assert found[7][1] == sdk.COMM_RX_TIMEOUT


def test_connecting_locks_the_memory_that_outlasts_the_power(emulator, description):
    robot = make_robot(description)
    robot.connect()
    robot.disconnect()
    assert all(servo.table[LOCK] == 1 for servo in emulator.servos.values())


def test_a_servo_in_wheel_mode_is_refused(emulator, description):
    emulator.servos[3].table[MODE] = 1
    told = refused(make_robot(description))
    assert told.startswith("elbow_flex (servo 3) is in operating mode 1, not in position control")


def test_positions_over_several_turns_are_refused(emulator, description):
    emulator.servos[5].home_ticks -= 4096  # as firmware that counts turns tells it
    told = refused(make_robot(description))
    assert told.startswith("wrist_roll (servo 5) stands at tick -2192, outside its range")


def test_it_has_no_watchdog(description):
    with pytest.raises(ValueError, match="watchdog_s must be null"):
        make_robot(replace(description, watchdog_s=0.1))


@pytest.fixture
def _imported_anew(monkeypatch):
    monkeypatch.delitem(sys.modules, "robot_qsft.hardware.arms.feetech")


@pytest.mark.usefixtures("_imported_anew")
def test_missing_library(description, monkeypatch):
    monkeypatch.setitem(sys.modules, "scservo_sdk", None)
    with pytest.raises(ValueError, match=r"needs its library.*pip install 'robot-qsft\[feetech\]'"):
        make_robot(description)


@pytest.mark.usefixtures("_imported_anew")
def test_the_other_library_of_the_same_name(description, monkeypatch):
    other = types.ModuleType("scservo_sdk")
    other.sms_sts = object()
    monkeypatch.setitem(sys.modules, "scservo_sdk", other)
    with pytest.raises(ValueError, match=r"that of ftservo-python-sdk, whose calls differ"):
        make_robot(description)


@pytest.mark.parametrize("name", ["so100", "so101"])
def test_descriptions(name):
    description = find_description(name)
    assert isinstance(make_robot(description), FeetechRobot)
    assert home_is_in_the_workspace(description)


def test_so101_reaches_where_its_links_add_up_to():
    # At 0 the upper arm is upright and all else points along -y; worked by hand from the URDF:
    # shoulder 0.0949 + 0.0542 high, upper arm 0.1126, forearm 0.0052 up, jaw 0.0079 down.
    tool_44 = Chain(find_description("so101")).tool(np.zeros(5))
    height_m = 0.0948817 + 0.0542 + 0.11257 + 0.0052 - 0.0079
    reach_m = 0.0230745 + 0.0303992 + 0.028 + 0.1349 + 0.0611 + 0.0981274
    np.testing.assert_allclose(tool_44[1:3, 3], [-reach_m, height_m], atol=1e-5)
    np.testing.assert_allclose(tool_44[:3, :3], np.eye(3), atol=1e-5)


def test_so100_and_so101_are_the_same_arm_but_for_their_frames():
    chains = Chain(find_description("so100")), Chain(find_description("so101"))
    generator = np.random.default_rng(0)
    for positions_rad in generator.uniform(-1.5, 1.5, (50, 5)):
        one, other = (chain.tool(positions_rad) for chain in chains)
        np.testing.assert_allclose(one[:3, :3], other[:3, :3], atol=1e-5)
        np.testing.assert_allclose(other[:3, 3] - one[:3, 3], [0.0206, 0.022, 0.0301], atol=0.0015)
