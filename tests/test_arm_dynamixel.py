"""Arms of Dynamixel servos: the vendor's library on a pseudo-terminal."""

import signal
import subprocess
import sys
import time
from dataclasses import replace

import dynamixel_sdk as sdk
import numpy as np
import pytest
from emulators.contract import state_once_it_tells, stream
from emulators.dynamixel import (
    GOAL,
    GOAL_VELOCITY,
    LOAD,
    MODE,
    SECONDARY_ID,
    TORQUE,
    TRIPPED,
    WATCHDOG,
    XL430,
    XM430,
    DynamixelEmulator,
)
from emulators.servo_contract import (
    TICK_RAD,
    ServoRobotContract,
    calibrated,
    home_is_in_the_workspace,
    refused,
)
from emulators.waiting import wait_until

from robot_qsft.hardware.arms.dynamixel import DynamixelRobot
from robot_qsft.hardware.arms.make import make_robot
from robot_qsft.hardware.description import find_description
from robot_qsft.hardware.kinematics import Chain

START_RAD = np.array([0.2, -0.6, 0.7, -0.1, 0.5, 0.3])
PATIENCE = 50
"""The watchdog's register, at 1 s."""

STREAMS = """
import sys
import time
from dataclasses import replace

from robot_qsft.hardware.arms.make import make_robot
from robot_qsft.hardware.description import find_description

robot = make_robot(replace(find_description("wx250s", sys.argv[1]), watchdog_s=0.6))
robot.connect()
target_rad = robot.read().positions_rad + 1.0
while True:
    robot.command(target_rad, 0.5)
    print("commanded", flush=True)
    time.sleep(0.02)
"""


def wx250s(**options):
    return DynamixelEmulator(
        models=[XM430] * 5 + [XL430] * 2,
        ids=[1, 2, 4, 6, 7, 8, 9],
        shadows={3: 2, 5: 4},
        positions_rad=START_RAD,
        gripper_rad=0.5,
        home_ticks={2: 2100, 3: 2100, 7: 2000},
        signs={1: -1, 4: -1, 5: -1},
        **options,
    )


@pytest.fixture
def emulator():
    with wx250s() as emulator:
        yield emulator


@pytest.fixture
def description(emulator):
    return calibrated(
        "wx250s",
        emulator.address,
        home_ticks_shoulder=2100,
        home_ticks_wrist_angle=2000,
        sign_waist=-1,
        sign_elbow=-1,
    )


class TestDynamixel(ServoRobotContract):
    third = "elbow (servo 4)"
    most_bits = 8


def test_the_vendors_own_client_agrees_on_packets(emulator):
    port, packets = sdk.PortHandler(emulator.address), sdk.PacketHandler(2.0)
    assert port.openPort()
    try:
        assert packets.ping(port, 9) == (XL430, sdk.COMM_SUCCESS, 0)
        assert packets.ping(port, 10)[1] == sdk.COMM_RX_TIMEOUT
        # FF FF FD would begin a packet, and is stuffed both ways.
        value = int.from_bytes(b"\xff\xff\xfd\xff", "little")
        assert packets.write4ByteTxRx(port, 1, GOAL_VELOCITY, value) == (sdk.COMM_SUCCESS, 0)
        assert packets.read4ByteTxRx(port, 1, GOAL_VELOCITY) == (value, sdk.COMM_SUCCESS, 0)
    finally:
        port.closePort()
    assert emulator.servos[1].get(GOAL_VELOCITY, 4) == value


def test_positions_are_right_in_stuffed_packets(emulator, description):
    robot = make_robot(description)
    robot.connect()
    for servo in emulator.servos.values():
        servo.table[LOAD : LOAD + 4] = b"\xff\xff\xfd\xff"
    state = robot.read()
    robot.disconnect()
    np.testing.assert_allclose(state.positions_rad, START_RAD, atol=TICK_RAD)


def test_the_watchdog_is_cleared_first_and_armed_last(emulator, description):
    emulator.servos[4].table[WATCHDOG] = TRIPPED
    robot = make_robot(description)
    robot.connect()
    robot.disconnect()
    of_interest = (WATCHDOG, GOAL, TORQUE)
    written = [register for one, register, _ in emulator.history if one == 4]
    assert [one for one in written if one in of_interest][:4] == [WATCHDOG, GOAL, TORQUE, WATCHDOG]
    assert {servo.table[WATCHDOG] for servo in emulator.servos.values()} == {PATIENCE}


def test_a_killed_client_leaves_a_resting_arm(tmp_path):
    script = tmp_path / "streams.py"
    script.write_text(STREAMS)
    with wx250s(speed_rad_s=0.05) as emulator:
        # That the arm is not calibrated does not matter here; it must be inside the range.
        client = subprocess.Popen(
            [sys.executable, str(script), emulator.address], stdout=subprocess.PIPE
        )
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == b"commanded\n"
            wait_until(lambda: (emulator.joints.now()[1] != 0).all())
        finally:
            client.send_signal(signal.SIGKILL)
            client.communicate()
        wait_until(lambda: watchdogs(emulator) == {TRIPPED})
        rests_rad, _ = emulator.joints.now()
        time.sleep(0.3)
        np.testing.assert_array_equal(emulator.joints.now()[0], rests_rad)
        assert (np.abs(rests_rad - START_RAD) < 0.9).all(), "it was still on its way"


def test_a_watchdog_that_stopped_the_arm_is_told_and_ends_with_a_stop(emulator, description):
    robot = make_robot(description)
    robot.connect()
    wait_until(lambda: watchdogs(emulator) == {TRIPPED})
    told = robot.read().fault
    assert "waist (servo 1) was stopped by its watchdog, since nothing was sent for 1 s" in told
    start_rad = robot.read().positions_rad
    robot.command(start_rad + 0.1, 0.5)
    time.sleep(0.1)
    np.testing.assert_allclose(emulator.joints.now()[0], START_RAD, atol=TICK_RAD)
    robot.stop()
    assert robot.read().fault == ""
    assert watchdogs(emulator) == {PATIENCE}
    stream(robot, start_rad + 0.1, seconds=0.3)
    robot.disconnect()
    np.testing.assert_allclose(emulator.joints.now()[0], start_rad + 0.1, atol=0.02)


def test_reading_alone_feeds_the_watchdog(emulator, description):
    robot = make_robot(description)
    robot.connect()
    end_s = time.monotonic() + 1.5
    while time.monotonic() < end_s:
        assert robot.read().fault == ""
        time.sleep(0.02)
    robot.disconnect()


def test_trouble_that_is_not_known_is_told(emulator, description):
    emulator.break_down(1, 0x40)
    told = refused(make_robot(description))
    assert told.startswith("waist (servo 1) reports hardware error 64; switch the arm's power off")


def test_a_shadow_is_looked_after(emulator, description):
    robot = make_robot(description)
    robot.connect()
    assert emulator.servos[5].table[TORQUE] == 1, "by what its leader was sent"
    emulator.servos[5].table[TORQUE] = 0
    emulator.break_down(5, 0x20)
    told = state_once_it_tells(robot)
    robot.disconnect()
    assert told.startswith("elbow's shadow (servo 5) is in overload")


def test_a_shadow_that_obeys_nobody_is_refused(emulator, description):
    emulator.servos[5].table[SECONDARY_ID] = 255
    told = refused(make_robot(description))
    assert told.startswith("elbow's shadow (servo 5) obeys 255 and not 4, the other servo")


def test_a_gripper_as_it_comes_from_the_maker_is_refused(emulator, description):
    emulator.servos[9].table[MODE] = 16
    told = refused(make_robot(description))
    assert told.startswith("gripper (servo 9) is in operating mode 16, not in position control")


def test_what_a_servo_refuses_is_told(emulator, description, monkeypatch):
    monkeypatch.setattr(emulator, "refusal", lambda servo, register: 7 * (register == TORQUE))
    told = refused(make_robot(description))
    assert told.startswith(f"waist (servo 1) refuses register {TORQUE} (error 7); switch the arm's")


@pytest.mark.parametrize("watchdog_s", [None, 3.0])
def test_it_has_a_watchdog(description, watchdog_s):
    with pytest.raises(
        ValueError, match=r"watchdog_s of Dynamixel's servos must lie in \(0, 2.54\]"
    ):
        make_robot(replace(description, watchdog_s=watchdog_s))


def test_the_model_must_be_given(description):
    options = {name: value for name, value in description.options.items() if name != "model"}
    with pytest.raises(ValueError, match="options lacks model"):
        make_robot(replace(description, options=options))


def test_missing_library(description, monkeypatch):
    monkeypatch.delitem(sys.modules, "robot_qsft.hardware.arms.dynamixel")
    monkeypatch.setitem(sys.modules, "dynamixel_sdk", None)
    sentence = r"needs its library.*pip install 'robot-qsft\[dynamixel\]'"
    with pytest.raises(ValueError, match=sentence):
        make_robot(description)


def test_description():
    description = find_description("wx250s")
    assert isinstance(make_robot(description), DynamixelRobot)
    assert home_is_in_the_workspace(description)
    # At 0 the upper arm is upright and the forearm level along x; worked by hand from the URDF.
    tool_m = Chain(description).tool(np.zeros(6))[:3, 3]
    reach_m = 0.04975 + 0.175 + 0.075 + 0.065 + 0.043 + 0.023 + 0.027575
    np.testing.assert_allclose(tool_m, [reach_m, 0.0, 0.072 + 0.03865 + 0.25], atol=1e-9)


def watchdogs(emulator):
    return {servo.table[WATCHDOG] for servo in emulator.servos.values()}
