"""xArm: its driver with UFACTORY's own client library, on an emulated control box."""

import math
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from emulators.client import kill_group, streaming_client
from emulators.contract import RobotContract, state_once_it_tells, stream
from emulators.waiting import wait_until
from emulators.xarm import THREAD, XArmEmulator
from xarm.core.config.x_config import XCONF
from xarm.wrapper import XArmAPI

from robot_qsft.hardware.arms import xarm as driver
from robot_qsft.hardware.arms.make import make_robot
from robot_qsft.hardware.arms.xarm import XArmRobot
from robot_qsft.hardware.description import Gripper, RobotDescription, find_description
from robot_qsft.hardware.kinematics import Chain
from robot_qsft.hardware.robot import RobotError

# UFACTORY's standard Denavit-Hartenberg parameters: turn theta + offset about z, move d along z,
# move a along x, turn alpha about x.
_SHOULDER_RAD = math.atan(284.5 / 53.5)
DH = {
    "xarm6": [
        # d m, a m, alpha rad, offset rad
        (0.267, 0.0, -math.pi / 2, 0.0),
        (0.0, math.hypot(0.2845, 0.0535), 0.0, -_SHOULDER_RAD),
        (0.0, 0.0775, -math.pi / 2, _SHOULDER_RAD),
        (0.3425, 0.0, math.pi / 2, 0.0),
        (0.0, 0.076, -math.pi / 2, 0.0),
        (0.097, 0.0, 0.0, 0.0),
    ],
    "xarm7": [
        (0.267, 0.0, -math.pi / 2, 0.0),
        (0.0, 0.0, math.pi / 2, 0.0),
        (0.293, 0.0525, math.pi / 2, 0.0),
        (0.0, 0.0775, math.pi / 2, 0.0),
        (0.3425, 0.0, math.pi / 2, 0.0),
        (0.0, 0.076, -math.pi / 2, 0.0),
        (0.097, 0.0, 0.0, 0.0),
    ],
}


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    before, timeout_s = set(threading.enumerate()), socket.getdefaulttimeout()
    yield
    assert set(threading.enumerate()) <= before
    assert socket.getdefaulttimeout() == timeout_s


@pytest.fixture
def emulator() -> Iterator[XArmEmulator]:
    with XArmEmulator(np.array(find_description("xarm7").home_rad)) as emulator:
        yield emulator


@pytest.fixture
def robot(emulator: XArmEmulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[XArmRobot]:
    monkeypatch.setattr(driver, "_STALE_S", 1.5)  # a busy machine may hold everything up
    robot = XArmRobot(find_description("xarm7", emulator.address))
    yield robot
    robot.disconnect()


def threads() -> set[threading.Thread]:
    """Those of this process, without the emulators'."""
    return {thread for thread in threading.enumerate() if thread.name != THREAD}


class TestXArm7(RobotContract):
    """All of it."""


def test_a_host_that_is_not_there_is_told() -> None:
    robot = XArmRobot(find_description("xarm7", "host.invalid"))
    with pytest.raises(RobotError, match=r"host\.invalid: nobody answers at ports 502 and 30003"):
        robot.connect()


def test_xarm6_follows() -> None:
    home_rad = np.array(find_description("xarm6").home_rad)
    with XArmEmulator(home_rad) as emulator:
        robot = XArmRobot(find_description("xarm6", emulator.address))
        robot.connect()
        target_rad = home_rad + 0.1 * np.array([1, -1, 1, -1, 1, -1])
        stream(robot, target_rad, seconds=0.5)
        np.testing.assert_allclose(emulator.joints.now()[0], target_rad, atol=0.02)
        robot.disconnect()


def test_another_model_is_refused(emulator: XArmEmulator) -> None:
    robot = XArmRobot(find_description("xarm6", emulator.address))
    with pytest.raises(RobotError, match="has 7 joints, and 'xarm6' 6; choose the desc"):
        robot.connect()


def test_something_else_at_the_address_is_refused() -> None:
    with XArmEmulator(np.zeros(7), version="PLC") as emulator:
        robot = XArmRobot(find_description("xarm7", emulator.address))
        with pytest.raises(RobotError, match="what answers is no xArm: it calls itself 'PLC'"):
            robot.connect()


def test_whoever_never_answers_is_told(
    emulator: XArmEmulator, robot: XArmRobot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "_ANSWER_S", 0.2)
    emulator.link.drop_share = 1.0
    with pytest.raises(RobotError, match=r"no answer to get_version within 0\.2 s"):
        robot.connect()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (1, r"error 1: .*Emergency Stop.*release the Emergency Stop Button.*, then disconnect and"),
        (13, r"error 13: Servo motor 3 error\. Disconnect and connect$"),
        (22, r"error 22: Self-Collision Error\. "),
        (24, r"error 24: Speed Exceeds Limit\. "),
        (31, r"error 31: Collision Caused Abnormal Current\. "),
        (199, r"error 199: Other Errors\. "),
    ],
)
def test_errors_are_told_by_name(
    emulator: XArmEmulator, robot: XArmRobot, error: int, words: str
) -> None:
    robot.connect()
    here_rad = robot.read().positions_rad
    emulator.fail(error)
    told = state_once_it_tells(robot)
    assert re.search(words, told), told
    assert "\n" not in told
    with pytest.raises(RobotError, match=words):
        robot.command(here_rad, 0.0)
    # Only connecting cleans errors.
    assert re.search(words, robot.read().fault)
    robot.connect()
    assert robot.read().fault == ""


def test_a_warning_is_told_by_name(emulator: XArmEmulator, robot: XArmRobot) -> None:
    robot.connect()
    emulator.warn(14)
    assert "warning 14: User instructions and parameters have no sol" in state_once_it_tells(robot)
    robot.connect()
    assert robot.read().fault == ""


def test_it_does_not_connect_while_the_button_is_pressed(
    emulator: XArmEmulator, robot: XArmRobot
) -> None:
    emulator.emergency_stop()
    with pytest.raises(RobotError, match="release the Emergency Stop Button"):
        robot.connect()
    emulator.release()
    robot.connect()
    assert robot.read().fault == ""


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"mode": 0, "state": 0}, "somebody has put the arm into mode 0"),
        ({"state": 3}, "somebody has suspended the arm"),
        ({"state": 4}, "somebody has stopped the arm"),
    ],
)
def test_what_somebody_else_does_is_told(
    emulator: XArmEmulator, robot: XArmRobot, wanted: dict[str, int], words: str
) -> None:
    robot.connect()
    emulator.obey(**wanted)
    assert words in state_once_it_tells(robot)
    if wanted.get("state") == 4:
        with pytest.raises(RobotError, match="it is not ready to move; disconnect and connect"):
            robot.command(robot.read().positions_rad, 0.0)


def test_the_next_command_ends_a_stop(emulator: XArmEmulator, robot: XArmRobot) -> None:
    robot.connect()
    robot.stop()
    time.sleep(0.1)
    assert robot.read().fault == ""
    target_rad = robot.read().positions_rad + 0.05
    stream(robot, target_rad, seconds=0.5)
    np.testing.assert_allclose(emulator.joints.now()[0], target_rad, atol=0.02)
    assert robot.read().fault == ""


def test_velocities_are_those_of_the_motion(emulator: XArmEmulator, robot: XArmRobot) -> None:
    robot.connect()
    np.testing.assert_array_equal(robot.read().velocities_rad_s, 0)
    begin_rad, begin_s = robot.read().positions_rad, time.monotonic()

    def moves() -> bool:
        moved_rad = 0.1 * (time.monotonic() - begin_s) * np.array([1, -1, 0, 0, 0, 0, 1])
        robot.command(begin_rad + moved_rad, 0.0)
        first, second, third, *_ = robot.read().velocities_rad_s
        return 0.07 < first < 0.13 and -0.13 < second < -0.07 and third == 0

    wait_until(moves)


@pytest.mark.parametrize("offset", [0.3, -0.3, math.nan])
def test_a_far_target_is_refused(emulator: XArmEmulator, robot: XArmRobot, offset: float) -> None:
    robot.connect()
    target_rad = robot.read().positions_rad
    target_rad[4] += offset
    with pytest.raises(RobotError, match=r"joint 5 is .* rad from its target"):
        robot.command(target_rad, 0.0)
    assert emulator.servo_commands == 0


def test_a_driver_that_is_not_connected_says_so(robot: XArmRobot) -> None:
    with pytest.raises(RobotError, match="not connected; connect first"):
        robot.read()
    with pytest.raises(RobotError, match="not connected; connect first"):
        robot.command(np.zeros(7), 0.0)
    robot.stop()


def drive(robot: XArmRobot, *, steps: int) -> list[str]:
    """Command and read until nothing works any more; gives all that was told."""
    told: list[str] = []
    target_rad = np.array(robot.description.home_rad)
    for step in range(steps):
        try:
            target_rad[0] += 0.002 * (-1) ** (step // 20)
            robot.command(target_rad, 0.0)
            state = robot.read()
            assert np.isfinite(state.positions_rad).all()
            assert np.isfinite(state.velocities_rad_s).all()
            told.append(state.fault)
        except RobotError as error:
            told.append(str(error))
        if all(told[-5:]) and len(told) >= 5:
            break
        time.sleep(0.005)
    return told


@pytest.mark.parametrize("what", ["drop_share", "corrupt_share"])
def test_a_bad_link_ends_in_a_sentence_at_worst(
    emulator: XArmEmulator, robot: XArmRobot, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(driver, "_ANSWER_S", 0.2)
    robot.connect()
    setattr(emulator.link, what, 0.05)
    told = drive(robot, steps=80)
    try:
        robot.connect()
    except RobotError as error:
        told.append(str(error))
    told += drive(robot, steps=20)
    assert any(told)
    assert not any("\n" in sentence for sentence in told)
    setattr(emulator.link, what, 0.0)
    monkeypatch.setattr(driver, "_ANSWER_S", 2.0)
    robot.connect()
    assert robot.read().fault == ""


def test_a_slow_link_is_no_fault(emulator: XArmEmulator, robot: XArmRobot) -> None:
    emulator.link.delay_s = 0.02
    robot.connect()
    assert not any(drive(robot, steps=20))


def test_reports_that_cannot_be_are_not_taken(emulator: XArmEmulator, robot: XArmRobot) -> None:
    robot.connect()
    before_rad = robot.read().positions_rad
    emulator.joints.go(np.full(7, math.nan))
    told = state_once_it_tells(robot)
    assert "it reports joint positions that cannot be" in told
    assert np.isfinite(before_rad).all()


def test_the_arm_rests_when_its_client_is_killed(emulator: XArmEmulator) -> None:
    with streaming_client(find_description("xarm7", emulator.address), step_rad=0.005) as client:
        kill_group(client)
    time.sleep(find_description("xarm7").watchdog_s or 0)
    resting_rad, _ = emulator.joints.now()
    commands = emulator.servo_commands
    assert commands >= 20
    time.sleep(0.2)
    np.testing.assert_array_equal(emulator.joints.now()[0], resting_rad)
    assert emulator.servo_commands == commands


def test_ufactorys_own_interface_drives_the_emulator(
    emulator: XArmEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, port = emulator.address.split(":")
    monkeypatch.setattr(XCONF.SocketConf, "TCP_CONTROL_PORT", int(port))
    before, timeout_s = threads(), socket.getdefaulttimeout()
    arm = XArmAPI(host, is_radian=True, report_type="real", forbid_uds=True, timed_comm=False)
    try:
        assert arm.axis == 7
        assert [arm.motion_enable(True), arm.set_mode(1), arm.set_state(0)] == [0, 0, 0]
        wait_until(lambda: arm.mode == 1)
        target_rad = emulator.joints.now()[0] + 0.05
        assert arm.set_servo_angle_j(target_rad.tolist()) == 0
        wait_until(lambda: np.allclose(arm.angles, target_rad, atol=1e-3))
        assert arm.get_servo_angle()[0] == 0
        emulator.fail(31)
        assert arm.get_err_warn_code() == (0, [31, 0])
        assert arm.set_servo_angle_j(target_rad.tolist()) == 1
    finally:
        arm.disconnect()
        # It tries to connect again before it ends, and sets the default time-out each time.
        wait_until(lambda: threads() <= before)
        socket.setdefaulttimeout(timeout_s)


@pytest.mark.parametrize("name", ["xarm6", "xarm7"])
def test_kinematics_are_ufactorys(name: str) -> None:
    chain = Chain(find_description(name))
    random = np.random.default_rng(0)
    for _ in range(20):
        positions_rad = random.uniform(-3, 3, len(DH[name]))
        frame_44 = np.eye(4)
        for (d_m, a_m, alpha_rad, offset_rad), position_rad in zip(
            DH[name], positions_rad, strict=True
        ):
            frame_44 = frame_44 @ standard_dh(position_rad + offset_rad, d_m, a_m, alpha_rad)
        np.testing.assert_allclose(chain.tool(positions_rad), frame_44, atol=1e-6)


def standard_dh(theta_rad: float, d_m: float, a_m: float, alpha_rad: float) -> np.ndarray:
    st, ct, sa, ca = *sin_cos(theta_rad), *sin_cos(alpha_rad)
    return np.array(
        [
            [ct, -st * ca, st * sa, a_m * ct],
            [st, ct * ca, -ct * sa, a_m * st],
            [0, sa, ca, d_m],
            [0, 0, 0, 1],
        ]
    )


def sin_cos(angle_rad: float) -> tuple[float, float]:
    return math.sin(angle_rad), math.cos(angle_rad)


@pytest.mark.parametrize(
    ("name", "flange_mm"), [("xarm6", (207, 0, 112)), ("xarm7", (206, 0, 120.5))]
)
def test_the_zero_position_is_ufactorys(name: str, flange_mm: tuple[float, ...]) -> None:
    """As UFACTORY Studio shows it with all joints at 0: the flange looks down."""
    description = find_description(name)
    frame_44 = Chain(description).tool(np.zeros(len(description.joints)))
    np.testing.assert_allclose(frame_44[:3, 3] * 1000, flange_mm, atol=1e-6)
    np.testing.assert_allclose(frame_44[:3, 2], [0, 0, -1], atol=1e-9)


@pytest.mark.parametrize("name", ["xarm6", "xarm7"])
def test_home_lies_in_the_workspace(name: str) -> None:
    description = find_description(name)
    home_m = Chain(description).tool(np.array(description.home_rad))[:3, 3]
    inside = description.workspace.inside
    assert (home_m > inside.low_m).all()
    assert (home_m < inside.high_m).all()


@pytest.mark.parametrize("name", ["xarm6", "xarm7"])
def test_limits_are_no_wider_than_the_library_knows(name: str) -> None:
    description = find_description(name)
    joints = len(description.joints)
    known = XCONF.Robot.JOINT_LIMITS[joints]
    types = XCONF.Robot.Type
    models = (
        (types.XARM6_X4, types.XARM6_X4_1305)
        if joints == 6
        else (types.XARM7_X4, types.XARM7_X4_1305)
    )
    for model in models:
        for joint, (low_rad, high_rad) in zip(description.joints, known[model], strict=True):
            assert low_rad <= joint.low_rad < joint.high_rad <= high_rad


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"control_hz": 500.0}, "control_hz of an xArm must be at most 250, got 500"),
        ({"gripper": Gripper(open_m=0.08, speed_per_s=1.0)}, "moves no gripper"),
        ({"address": ""}, "address must be the control box's, such as"),
        ({"address": "arm:port"}, "address must be the control box's, such as .*got 'arm:port'"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(
    changes: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        XArmRobot(replace(find_description("xarm7"), **changes))  # type: ignore[arg-type]


def test_a_description_with_too_few_joints_is_refused() -> None:
    description = find_description("xarm7")
    with pytest.raises(ValueError, match="5, 6 or 7 joints, the description has 4"):
        XArmRobot(replace(description, joints=description.joints[:4]))


def test_make_robot_makes_it() -> None:
    assert isinstance(make_robot(find_description("xarm7")), XArmRobot)


def test_a_missing_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    description: RobotDescription = find_description("xarm7")
    for name in list(sys.modules):
        if name.split(".")[0] == "xarm":
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, driver.__name__)
    with pytest.raises(ValueError, match=r"pip install 'robot-qsft\[xarm\]'"):
        make_robot(description)
