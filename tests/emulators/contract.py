"""What every driver does, tried on an emulator with the vendor's own client library."""

import time

import numpy as np
import pytest
from emulators.joints import Emulator

from robot_qsft.hardware.robot import Robot, RobotError

_CLOSE_RAD = 0.02


def stream(robot: Robot, target_rad: np.ndarray, *, seconds: float) -> None:
    """Move evenly from where the robot is to `target_rad` (J,) at its control rate, and rest."""
    begin_rad = robot.read().positions_rad
    steps = int(seconds * robot.description.control_hz)
    next_s = time.monotonic()
    for step in range(1, steps + steps // 4):
        share = min(1.0, step / steps)
        robot.command(begin_rad + share * (target_rad - begin_rad), 1.0)
        next_s += robot.description.period_s
        time.sleep(max(0.0, next_s - time.monotonic()))


def arrive(robot: Robot, emulator: Emulator, target_rad: np.ndarray) -> None:
    """Go on commanding `target_rad` (J,) until the arm is there; a busy machine is a slow one."""
    end_s = time.monotonic() + 5.0
    while time.monotonic() < end_s:
        robot.command(target_rad, 1.0)
        time.sleep(robot.description.period_s)
        places = (emulator.joints.now()[0], robot.read().positions_rad)
        if all(np.abs(place - target_rad).max() < _CLOSE_RAD for place in places):
            break
    for place in (emulator.joints.now()[0], robot.read().positions_rad):
        np.testing.assert_allclose(place, target_rad, atol=_CLOSE_RAD)


def state_once_it_tells(robot: Robot, *, seconds: float = 3.0):
    """The first state that tells of a fault, or the error that reading raises."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        try:
            state = robot.read()
        except RobotError as error:
            return str(error)
        if state.fault:
            return state.fault
        time.sleep(0.01)
    return ""


class RobotContract:
    """Subclass it with fixtures `emulator` (running) and `robot` (its driver, not connected)."""

    @pytest.fixture
    def connected(self, robot: Robot):
        robot.connect()
        yield robot
        robot.disconnect()

    def test_connecting_moves_nothing(self, emulator: Emulator, connected: Robot):
        before_rad, _ = emulator.joints.now()
        time.sleep(0.2)
        np.testing.assert_allclose(emulator.joints.now()[0], before_rad, atol=0.005)

    def test_reads_what_is(self, emulator: Emulator, connected: Robot):
        state = connected.read()
        joints = len(connected.description.joints)
        assert state.positions_rad.shape == state.velocities_rad_s.shape == (joints,)
        assert state.positions_rad.dtype == state.velocities_rad_s.dtype == np.float64
        np.testing.assert_allclose(state.positions_rad, emulator.joints.now()[0], atol=0.005)
        assert state.fault == ""
        assert abs(time.monotonic() - state.time_s) < 0.5

    def test_follows(self, emulator: Emulator, connected: Robot):
        target_rad = connected.read().positions_rad + np.linspace(
            -0.1, 0.1, len(connected.description.joints)
        )
        stream(connected, target_rad, seconds=1.0)
        arrive(connected, emulator, target_rad)

    def test_stop_comes_to_rest(self, emulator: Emulator, connected: Robot):
        start_rad = connected.read().positions_rad
        stream(connected, start_rad + 0.05, seconds=0.3)
        connected.stop()
        time.sleep(0.3)
        stopped_rad, _ = emulator.joints.now()
        time.sleep(0.2)
        np.testing.assert_allclose(emulator.joints.now()[0], stopped_rad, atol=0.002)

    def test_silence_ends_in_rest(self, emulator: Emulator, connected: Robot):
        watchdog_s = connected.description.watchdog_s
        if watchdog_s is None:
            pytest.skip("this arm has no watchdog, and its description says so")
        start_rad = connected.read().positions_rad
        stream(connected, start_rad + 0.05, seconds=0.3)
        time.sleep(watchdog_s + 0.5)
        resting_rad, _ = emulator.joints.now()
        time.sleep(0.2)
        np.testing.assert_allclose(emulator.joints.now()[0], resting_rad, atol=0.002)

    def test_an_emergency_stop_is_told(self, emulator: Emulator, connected: Robot):
        emulator.emergency_stop()
        assert state_once_it_tells(connected)

    def test_it_can_be_connected_again_after_an_emergency_stop(
        self, emulator: Emulator, robot: Robot
    ):
        robot.connect()
        emulator.emergency_stop()
        assert state_once_it_tells(robot)
        robot.disconnect()
        emulator.release()
        robot.connect()
        try:
            target_rad = robot.read().positions_rad + 0.05
            stream(robot, target_rad, seconds=0.5)
            arrive(robot, emulator, target_rad)
        finally:
            robot.disconnect()

    def test_a_cut_cable_is_told_in_a_sentence(self, emulator: Emulator, connected: Robot):
        emulator.vanish()
        told = ""
        end_s = time.monotonic() + 5.0
        while not told and time.monotonic() < end_s:
            try:
                state = connected.read()
                told = state.fault
                connected.command(state.positions_rad, 1.0)
            except RobotError as error:
                told = str(error)
            time.sleep(connected.description.period_s)
        assert told
        assert "\n" not in told
        connected.stop()

    def test_nobody_there(self, emulator: Emulator, robot: Robot):
        emulator.vanish()
        with pytest.raises(RobotError) as caught:
            robot.connect()
        assert emulator.address.split(":")[0] in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_disconnecting_twice_and_coming_back(self, emulator: Emulator, robot: Robot):
        robot.disconnect()
        robot.connect()
        robot.disconnect()
        robot.disconnect()
        robot.connect()
        assert robot.read().fault == ""
        robot.disconnect()
