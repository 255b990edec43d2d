"""The Franka driver on an emulated controller, with the vendor's own client (franky)."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("franky", reason="franky-control is not installed")

from emulators.contract import RobotContract, state_once_it_tells, stream
from emulators.franka import MOVING, FrankaEmulator, speed_limits
from emulators.waiting import wait_until

from robot_qsft.hardware.arms.franka import FrankaRobot
from robot_qsft.hardware.arms.make import make_robot
from robot_qsft.hardware.description import Gripper, RobotDescription, find_description
from robot_qsft.hardware.kinematics import Chain, transform
from robot_qsft.hardware.robot import Robot, RobotError


@pytest.fixture
def emulator() -> Iterator[FrankaEmulator]:
    with FrankaEmulator() as emulator:
        yield emulator
    assert not [thread for thread in threading.enumerate() if thread.name == "franka emulator"]


@pytest.fixture
def description(emulator: FrankaEmulator) -> RobotDescription:
    described = find_description("fr3", emulator.address)
    # A busy machine can hold Python up for longer than the time after which an arm holds still.
    return replace(described, watchdog_s=1.0, options={"realtime_kernel": False})


@pytest.fixture
def robot(description: RobotDescription) -> Iterator[Robot]:
    robot = make_robot(description)
    yield robot
    robot.disconnect()


def rests(emulator: FrankaEmulator) -> bool:
    before_rad, _ = emulator.joints.now()
    end = emulator.cycles + 100
    wait_until(lambda: emulator.cycles > end)
    return bool(np.abs(emulator.joints.now()[0] - before_rad).max() < 0.001)


def go(robot: Robot, target_rad: np.ndarray) -> None:
    """Move evenly to `target_rad` (J,), however long it takes on a busy machine."""
    stream(robot, target_rad, seconds=0.3)

    def is_there() -> bool:
        robot.command(target_rad, 1.0)
        return bool(np.abs(robot.read().positions_rad - target_rad).max() < 0.01)

    wait_until(is_there)


class TestContract(RobotContract):
    """What every driver does."""


class TestReflex:
    def test_it_is_told_by_name_and_the_arm_stands(
        self, emulator: FrankaEmulator, robot: Robot
    ) -> None:
        robot.connect()
        emulator.reflex()
        told = state_once_it_tells(robot)
        assert told == (
            "reflex joint_reflex: it met with resistance, clear its way; then connect again"
        )
        stood_rad, _ = emulator.joints.now()
        for _ in range(50):
            with pytest.raises(RobotError, match="joint_reflex"):
                robot.command(stood_rad + 0.05, 1.0)
            assert robot.read().fault == told
        np.testing.assert_array_equal(emulator.joints.now()[0], stood_rad)
        assert emulator.moves == 1

    def test_connecting_recovers_from_it(self, emulator: FrankaEmulator, robot: Robot) -> None:
        robot.connect()
        emulator.reflex()
        assert state_once_it_tells(robot)
        robot.connect()
        target_rad = robot.read().positions_rad + 0.05
        go(robot, target_rad)
        np.testing.assert_allclose(emulator.joints.now()[0], target_rad, atol=0.02)
        assert emulator.moves == 2

    def test_connecting_recovers_from_an_older_one(
        self, emulator: FrankaEmulator, robot: Robot
    ) -> None:
        emulator.reflex()
        robot.connect()
        assert robot.read().fault == ""

    def test_a_jump_ends_in_one(self, emulator: FrankaEmulator, robot: Robot) -> None:
        robot.connect()
        target_rad = robot.read().positions_rad + np.array([1.5, 0, 0, 0, 0, 0, 0])
        with pytest.raises(RobotError, match="joint_velocity_violation: it was too fast"):
            for _ in range(1000):
                robot.command(target_rad, 1.0)
                time.sleep(0.005)
        assert rests(emulator)


class TestUserStop:
    def test_it_is_told(self, emulator: FrankaEmulator, robot: Robot) -> None:
        robot.connect()
        emulator.emergency_stop()
        assert state_once_it_tells(robot) == (
            "user stop, release it and see that FCI is active in Desk; then connect again"
        )

    def test_a_stopped_arm_is_not_connected(self, emulator: FrankaEmulator, robot: Robot) -> None:
        emulator.emergency_stop()
        with pytest.raises(RobotError, match=rf"{emulator.address} is stopped by the user"):
            robot.connect()
        with pytest.raises(RobotError, match="not connected; connect first"):
            robot.read()
        assert emulator.moves == 0


def test_a_stopped_arm_says_so_and_takes_no_commands(
    emulator: FrankaEmulator, robot: Robot
) -> None:
    robot.connect()
    robot.stop()
    state = robot.read()
    assert state.fault == "stopped; connect again"
    with pytest.raises(RobotError, match="stopped; connect again"):
        robot.command(state.positions_rad, 1.0)
    assert emulator.moves == 1


@pytest.mark.parametrize(
    ("wrong", "amount"),
    [("drop_share", 0.1), ("drop_share", 0.6), ("drop_share", 0.95), ("corrupt_share", 0.3)],
)
def test_whatever_happens_to_packets_is_a_state_or_told(
    emulator: FrankaEmulator, robot: Robot, wrong: str, amount: float
) -> None:
    robot.connect()
    begin_rad = robot.read().positions_rad
    setattr(emulator.link, wrong, amount)
    told = ""
    for step in range(1, 101):
        try:
            told = robot.read().fault
            robot.command(begin_rad + 0.001 * step, 1.0)
        except RobotError as error:
            told = str(error)
        time.sleep(0.005)
    setattr(emulator.link, wrong, 0.0)
    assert "\n" not in told
    if told:
        robot.connect()
    else:
        assert amount < 0.9, "20 lost in a row stop the arm"
        wait_until(lambda: rests(emulator))
    positions_rad = robot.read().positions_rad
    assert (positions_rad > begin_rad - 0.02).all() and (positions_rad < begin_rad + 0.2).all()


def test_late_packets_do_not_stop_it(emulator: FrankaEmulator, robot: Robot) -> None:
    robot.connect()
    emulator.link.delay_s = 0.001
    go(robot, robot.read().positions_rad + 0.05)
    assert robot.read().fault == ""


def test_a_silent_controller_is_told_and_let_go_of(emulator: FrankaEmulator, robot: Robot) -> None:
    robot.connect()
    emulator.link.drop_share = 1.0
    told = state_once_it_tells(robot)
    assert "connect again" in told and "\n" not in told
    with pytest.raises(
        RobotError, match=rf"connection to the Franka at {emulator.address} is lost"
    ):
        wait_until(lambda: robot.read() is None)
    with pytest.raises(RobotError, match="is lost"):
        robot.command(np.zeros(7), 1.0)
    emulator.link.drop_share = 0.0
    robot.connect()
    assert robot.read().fault == ""


def test_a_crashed_controller_is_told_and_let_go_of(emulator: FrankaEmulator, robot: Robot) -> None:
    robot.connect()
    emulator.crash()
    assert state_once_it_tells(robot).startswith("the controller has told nothing for")
    robot.disconnect()
    with pytest.raises(RobotError, match="not connected; connect first"):
        robot.read()


CHILD = """
import ctypes, itertools, math, sys, time
from dataclasses import replace
from robot_qsft.hardware.arms.franka import FrankaRobot
from robot_qsft.hardware.description import find_description

address, hangs = sys.argv[1], sys.argv[2] == "hang"
robot = FrankaRobot(
    replace(find_description("fr3", address), options={"realtime_kernel": False})
)
robot.connect()
home_rad = robot.read().positions_rad
for step in itertools.count():
    robot.command(home_rad + 0.3 * (1 - math.cos(0.01 * step)), 1.0)
    time.sleep(0.005)
    if hangs and step == 150:
        ctypes.PyDLL(None).sleep(1000)  # and keeps Python's lock
"""


@pytest.mark.parametrize("end", ["killed", "frozen", "hang"])
def test_the_arm_rests_when_its_client_is_no_more(emulator: FrankaEmulator, end: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD, emulator.address, end])
    try:
        begin_rad, _ = emulator.joints.now()
        wait_until(lambda: np.abs(emulator.joints.now()[1]).max() > 0.3, seconds=60)
        if end == "killed":
            child.kill()
        elif end == "frozen":
            os.kill(child.pid, signal.SIGSTOP)
        if end == "hang":  # it still has the arm in control, held by the loop in C++
            wait_until(lambda: rests(emulator))
            assert emulator.mode == MOVING
        else:
            wait_until(lambda: emulator.mode != MOVING)
        assert (child.poll() is None) == (end != "killed")
        moved_rad = emulator.joints.now()[0] - begin_rad
        assert (moved_rad > 0).all() and (moved_rad < 0.7).all()
    finally:
        child.kill()
        child.wait()


def test_connecting_leaves_the_thread_its_priority(emulator: FrankaEmulator, robot: Robot) -> None:
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    robot.connect()
    assert (os.sched_getscheduler(0), os.sched_getparam(0)) == before


@pytest.mark.skipif(Path("/sys/kernel/realtime").exists(), reason="this kernel is a real-time one")
def test_without_a_realtime_kernel_it_says_what_to_do(
    emulator: FrankaEmulator, description: RobotDescription
) -> None:
    robot = FrankaRobot(replace(description, options={}))
    with pytest.raises(RobotError, match=r"real-time kernel.*realtime_kernel: false"):
        robot.connect()
    assert emulator.moves == 0


def test_without_its_library_the_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "franky", None)
    monkeypatch.delitem(sys.modules, "robot_qsft.hardware.arms.franka")
    with pytest.raises(ValueError, match=r"pip install 'robot-qsft\[franka\]'"):
        make_robot(find_description("fr3"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"joints": find_description("fr3").joints[:6]}, "has 7 joints, got 6"),
        ({"gripper": Gripper(open_m=0.08, speed_per_s=1.0)}, "say gripper: null"),
        ({"watchdog_s": None}, "say watchdog_s"),
    ],
)
def test_another_description_is_refused(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FrankaRobot(replace(find_description("fr3"), **change))


class TestDescription:
    def test_forward_kinematics_are_those_of_the_published_parameters(self) -> None:
        """Modified Denavit-Hartenberg: a (m), d (m), alpha (rad) of the joints and the flange."""
        half = math.pi / 2
        published = [
            *((0, 0.333, 0), (0, 0, -half), (0, 0.316, half), (0.0825, 0, half)),
            *((-0.0825, 0.384, -half), (0, 0, half), (0.088, 0, half), (0, 0.107, 0)),
        ]
        chain = Chain(find_description("fr3"))
        generator = np.random.default_rng(0)
        for positions_rad in generator.uniform(-3, 3, (100, 7)):
            expected = np.eye(4)
            for (a, d, alpha), theta in zip(published, [*positions_rad, 0.0], strict=True):
                expected = expected @ transform((a, 0, 0), (alpha, 0, 0))
                expected = expected @ transform((0, 0, d), (0, 0, theta))
            np.testing.assert_allclose(chain.tool(positions_rad), expected, atol=1e-6)

    def test_its_limits_keep_clear_of_the_speed_at_which_the_controller_stops_the_arm(self) -> None:
        described = find_description("fr3")
        low_rad, high_rad = described.of_joints("low_rad"), described.of_joints("high_rad")
        fastest_rad_s = described.of_joints("velocity_rad_s")
        braking_rad_s2 = described.of_joints("acceleration_rad_s2")
        for share in np.linspace(0, 1, 1001):
            positions_rad = low_rad + share * (high_rad - low_rad)
            least_rad_s, greatest_rad_s = speed_limits(positions_rad)
            for room_rad, limit_rad_s in (
                (high_rad - positions_rad, greatest_rad_s),
                (positions_rad - low_rad, -least_rad_s),
            ):
                stoppable_rad_s = np.sqrt(2 * braking_rad_s2 * room_rad.clip(0))
                assert (np.minimum(stoppable_rad_s, fastest_rad_s) < limit_rad_s).all()
