"""Universal Robots: the driver with SDU's own client library, on an emulated controller."""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from emulators.client import kill_group, streaming_client
from emulators.contract import RobotContract, state_once_it_tells, stream
from emulators.ur import HOME_RAD, THREAD, UREmulator
from emulators.waiting import wait_until

from robot_qsft.hardware.arms.make import make_robot
from robot_qsft.hardware.arms.ur import URRobot
from robot_qsft.hardware.description import Gripper, RobotDescription, find_description
from robot_qsft.hardware.kinematics import Chain
from robot_qsft.hardware.limits import objection_to_place
from robot_qsft.hardware.robot import RobotError, RobotState

HALF = math.pi / 2
# Universal Robots' Denavit-Hartenberg parameters: turn q about z, move d along z, move a along x,
# turn alpha about x.
DH = {
    # d m, a m, alpha rad
    "ur3e": [
        (0.15185, 0.0, HALF),
        (0.0, -0.24355, 0.0),
        (0.0, -0.2132, 0.0),
        (0.13105, 0.0, HALF),
        (0.08535, 0.0, -HALF),
        (0.0921, 0.0, 0.0),
    ],
    "ur5e": [
        (0.1625, 0.0, HALF),
        (0.0, -0.425, 0.0),
        (0.0, -0.3922, 0.0),
        (0.1333, 0.0, HALF),
        (0.0997, 0.0, -HALF),
        (0.0996, 0.0, 0.0),
    ],
    "ur10e": [
        (0.1807, 0.0, HALF),
        (0.0, -0.6127, 0.0),
        (0.0, -0.57155, 0.0),
        (0.17415, 0.0, HALF),
        (0.11985, 0.0, -HALF),
        (0.11655, 0.0, 0.0),
    ],
}


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    files, children = _open_files(), _children()
    yield
    assert THREAD not in [thread.name for thread in threading.enumerate()]
    # Python's tracker of shared memory starts with the first connection, and stays.
    assert len(_children() - children) <= 1
    assert len(_open_files() - files) <= 1


def _children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def _open_files() -> set[str]:
    return {link.name for link in Path("/proc/self/fd").iterdir()}


@pytest.fixture
def emulator() -> Iterator[UREmulator]:
    with UREmulator() as emulator:
        yield emulator


@pytest.fixture
def description(emulator: UREmulator) -> RobotDescription:
    """A UR5e whose watchdog and rate leave a busy machine time."""
    ur5e = find_description("ur5e", emulator.address)
    return replace(ur5e, control_hz=125, watchdog_s=0.5)


@pytest.fixture
def robot(description: RobotDescription) -> Iterator[URRobot]:
    robot = URRobot(description)
    yield robot
    robot.disconnect()


@pytest.fixture
def connected(robot: URRobot) -> URRobot:
    robot.connect()
    return robot


def comes_to(emulator: UREmulator, target_rad: np.ndarray) -> None:
    wait_until(lambda: np.allclose(emulator.joints.now()[0], target_rad, atol=0.002))


def wait_for_fault(robot: URRobot) -> RobotState:
    """The first state with a fault, which also refuses commands."""
    wait_until(lambda: robot.read().fault != "")
    state = robot.read()
    with pytest.raises(RobotError) as caught:
        robot.command(HOME_RAD, 0.0)
    assert str(caught.value) == state.fault
    assert "\n" not in state.fault
    return state


class TestContract(RobotContract):
    """Everything that is true of all arms."""


def test_at_the_full_rate_of_the_e_series(emulator: UREmulator, description: RobotDescription):
    robot = URRobot(replace(description, control_hz=500))
    robot.connect()
    try:
        target_rad = robot.read().positions_rad + 0.05
        stream(robot, target_rad, seconds=0.5)
        comes_to(emulator, target_rad)
        assert emulator.servo_commands > 10
    finally:
        robot.disconnect()


def test_the_program_is_uploaded_watched_and_ended(emulator: UREmulator, robot: URRobot):
    robot.connect()
    assert (emulator.uploads, emulator.program_runs, emulator.watchdog_s) == (1, True, 0.5)
    robot.disconnect()
    assert (emulator.uploads, emulator.program_runs) == (1, False)


def test_an_arm_at_rest_needs_no_commands(emulator: UREmulator, connected: URRobot):
    """As when the control loop is at fault: it can go on without connecting again."""
    stream(connected, HOME_RAD + 0.02, seconds=0.2)
    connected.stop()
    time.sleep(1.5 * emulator.watchdog_s)
    assert connected.read().fault == ""
    stream(connected, HOME_RAD, seconds=0.2)
    comes_to(emulator, HOME_RAD)


def test_silence_is_told_and_lasts_until_connected_again(emulator: UREmulator, connected: URRobot):
    stream(connected, HOME_RAD + 0.02, seconds=0.2)
    assert "watchdog" in wait_for_fault(connected).fault
    assert not emulator.program_runs
    connected.disconnect()
    connected.connect()
    stream(connected, HOME_RAD, seconds=0.2)
    comes_to(emulator, HOME_RAD)


def test_a_protective_stop_is_told_by_name(emulator: UREmulator, connected: URRobot):
    connected.command(connected.read().positions_rad, 0.0)
    emulator.protective_stop()
    assert wait_for_fault(connected).fault.startswith("protective stop: ")
    commands = emulator.servo_commands
    emulator.release()
    # Released, the arm does not go on by itself, and the driver says what to do.
    wait_until(lambda: "connect again" in connected.read().fault)
    wait_for_fault(connected)
    assert emulator.servo_commands == commands
    connected.disconnect()
    connected.connect()
    assert connected.read().fault == ""


def test_an_emergency_stop_is_told_by_name(emulator: UREmulator, connected: URRobot):
    emulator.emergency_stop()
    assert wait_for_fault(connected).fault.startswith("emergency stop at the arm: ")


def test_the_end_of_the_program_is_told(emulator: UREmulator, connected: URRobot):
    emulator.press_stop()
    assert "the control program has ended" in wait_for_fault(connected).fault


def test_connecting_to_an_arm_that_is_stopped(emulator: UREmulator, robot: URRobot):
    emulator.protective_stop()
    with pytest.raises(RobotError, match="is not ready: protective stop: remove"):
        robot.connect()
    assert emulator.uploads == 0


def test_connecting_needs_remote_control(emulator: UREmulator, robot: URRobot):
    emulator.remote_control = False
    with pytest.raises(RobotError, match="is not in remote control: switch it to Remote"):
        robot.connect()


def test_a_second_client_is_refused(
    emulator: UREmulator, connected: URRobot, description: RobotDescription
):
    other = URRobot(description)
    with pytest.raises(RobotError, match="another client controls the UR at 127"):
        other.connect()
    assert connected.read().fault == ""
    connected.command(connected.read().positions_rad, 0.0)
    connected.disconnect()
    other.connect()
    other.disconnect()


def test_a_controller_that_does_not_answer(emulator: UREmulator, description: RobotDescription):
    emulator.link.drop_share = 1.0
    robot = URRobot(replace(description, options={"connect_s": 0.8}))
    with pytest.raises(RobotError, match=r"did not finish connecting within 0\.8 s"):
        robot.connect()


def test_the_library_does_not_connect_by_itself(emulator: UREmulator, connected: URRobot):
    """It would upload its program anew and repeat the last command, without a watchdog."""
    connected.command(connected.read().positions_rad + 0.01, 0.0)
    emulator.hang_up()
    assert "is lost" in state_once_it_tells(connected)
    time.sleep(0.5)  # on the emulator the library was back after 0.15 s
    assert emulator.uploads == 1
    end_s = time.monotonic() + 5
    while emulator.program_runs and time.monotonic() < end_s:  # until the watchdog has ended it
        time.sleep(0.05)
    assert not emulator.program_runs
    with pytest.raises(RobotError, match="not connected"):
        connected.read()
    connected.connect()
    assert connected.read().fault == ""


def test_a_silent_line_is_told(emulator: UREmulator, connected: URRobot):
    emulator.link.drop_share = 1.0
    assert "is lost" in state_once_it_tells(connected)


def test_some_lost_and_late_packets_matter_to_nobody(emulator: UREmulator, connected: URRobot):
    emulator.link.drop_share, emulator.link.delay_s = 0.3, 0.003
    target_rad = connected.read().positions_rad + 0.05
    stream(connected, target_rad, seconds=0.5)
    assert connected.read().fault == ""
    wait_until(lambda: np.allclose(connected.read().positions_rad, target_rad, atol=0.002))


@pytest.mark.parametrize("seed", range(2))
def test_corrupt_packets(emulator: UREmulator, connected: URRobot, seed: int):
    """They end in a state, a fault or a RobotError, and the arm rests."""
    emulator.link.rng.seed(seed)
    emulator.link.corrupt_share = 0.2
    told = ""
    end_s = time.monotonic() + 5.0
    while not told and time.monotonic() < end_s:
        try:
            told = connected.read().fault
            connected.command(HOME_RAD, 0.0)
        except RobotError as error:
            told = str(error)
        time.sleep(connected.description.period_s)
    assert told
    assert "\n" not in told
    emulator.link.corrupt_share = 0.0
    wait_until(lambda: not emulator.program_runs)
    connected.disconnect()
    connected.connect()
    assert connected.read().fault == ""


def test_connecting_through_corrupt_packets(emulator: UREmulator, description: RobotDescription):
    emulator.link.corrupt_share = 0.3
    robot = URRobot(replace(description, options={"connect_s": 1.0}))
    for _ in range(2):
        try:
            robot.connect()
        except RobotError as error:
            assert "\n" not in str(error)
        robot.disconnect()


def test_the_watchdog_stops_the_arm_of_a_dead_client(
    emulator: UREmulator, description: RobotDescription
):
    with streaming_client(description, step_rad=0.001) as client:
        wait_until(lambda: abs(emulator.joints.now()[0][0]) > 0.02)
        kill_group(client)  # the process of the library with it
    wait_until(lambda: not emulator.program_runs)
    resting_rad, _ = emulator.joints.now()
    time.sleep(0.2)
    np.testing.assert_array_equal(emulator.joints.now()[0], resting_rad)


def test_a_dead_parent_takes_the_librarys_process_along(
    emulator: UREmulator, description: RobotDescription
):
    with streaming_client(description, step_rad=0.001) as client:
        client.kill()
        client.wait()
        wait_until(lambda: not _lives(client.pid))
        assert not emulator.program_runs


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_librarys_process_may_die(emulator: UREmulator, connected: URRobot):
    connected.command(connected.read().positions_rad, 0.0)
    assert connected._process is not None
    os.kill(connected._process._process.pid, signal.SIGKILL)
    assert "is lost" in state_once_it_tells(connected)
    wait_until(lambda: not emulator.program_runs)
    connected.stop()
    connected.disconnect()


def test_positions_that_are_no_numbers(emulator: UREmulator, connected: URRobot):
    for wrong_rad in (np.full(6, math.nan), np.zeros(7)):
        with pytest.raises(ValueError, match="expected 6 finite joint positions"):
            connected.command(wrong_rad, 0.0)
    emulator.joints.go(np.full(6, math.nan))
    assert "no numbers" in wait_for_fault(connected).fault


@pytest.mark.parametrize("name", DH)
def test_the_descriptions_kinematics_are_the_makers(name: str):
    description = find_description(name)
    chain = Chain(description)
    generator = np.random.default_rng(0)
    for positions_rad in generator.uniform(-math.pi, math.pi, (50, 6)):
        expected = np.eye(4)
        for q, (d, a, alpha) in zip(positions_rad, DH[name], strict=True):
            turned, tilted = np.exp(1j * q), np.exp(1j * alpha)
            c, s, ca, sa = turned.real, turned.imag, tilted.real, tilted.imag
            expected = expected @ [
                [c, -s * ca, s * sa, a * c],
                [s, c * ca, -c * sa, a * s],
                [0, sa, ca, d],
                [0, 0, 0, 1],
            ]
        np.testing.assert_allclose(chain.tool(positions_rad), expected, atol=1e-6)
    home_m = chain.tool(np.array(description.home_rad))[:3, 3]
    assert objection_to_place(home_m, description.workspace) == ""
    assert isinstance(make_robot(description), URRobot)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"joints": ()}, "a UR has 6 joints, the description has 0"),
        ({"control_hz": 1000.0}, "control_hz of a UR must be at most 500, got 1000"),
        ({"watchdog_s": None}, "a UR has a watchdog"),
        ({"gripper": Gripper(open_m=0.08, speed_per_s=1.0)}, "moves no gripper"),
        ({"address": ""}, "address must be the controller's"),
        ({"address": "10.0.0.2:30004"}, "without a port"),
        ({"options": {"gain": 50}}, r"options\.gain must lie in \[100, 2000\], got 50"),
        ({"options": {"lookahead_s": "0.1"}}, "got '0.1'"),
    ],
)
def test_descriptions_of_something_else(changes: dict[str, object], told: str):
    with pytest.raises(ValueError, match=told):
        make_robot(replace(find_description("ur5e"), **changes))


def test_without_the_library(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "rtde_control", None)
    for module in ("ur", "ur_process"):
        monkeypatch.delitem(sys.modules, f"robot_qsft.hardware.arms.{module}")
    with pytest.raises(ValueError, match=r"pip install 'robot-qsft\[ur\]'"):
        make_robot(find_description("ur5e"))
