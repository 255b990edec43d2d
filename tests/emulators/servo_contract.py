"""What every driver of a servo bus does beyond what all drivers do."""

import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from emulators.contract import RobotContract, state_once_it_tells, stream
from emulators.joints import Link
from emulators.servo_bus import ServoBusEmulator
from emulators.waiting import wait_until

from robot_qsft.hardware.arms.make import make_robot
from robot_qsft.hardware.description import RobotDescription, find_description
from robot_qsft.hardware.kinematics import Chain
from robot_qsft.hardware.limits import objection_to_place
from robot_qsft.hardware.robot import Robot, RobotError

TICK_RAD = 2 * np.pi / 4096


def calibrated(name: str, address: str, **options: int) -> RobotDescription:
    """A description as of an arm with `options`, at a rate that a busy machine keeps up with."""
    description = find_description(name, address)
    watchdog_s = description.watchdog_s
    return replace(
        description,
        control_hz=20,
        watchdog_s=None if watchdog_s is None else 1.0,
        options={**(description.options or {}), **options},
    )


@dataclass
class NoisyLink(Link):
    """Flips bits of every other packet, as a loose contact does; counts the packets."""

    most_bits: int = 1
    flipped: int = 0

    def pass_on(self, packet: bytes) -> bytes | None:
        if self.rng.random() < 0.5:
            return packet
        self.flipped += 1
        noisy = bytearray(packet)
        for _ in range(self.rng.randint(1, self.most_bits)):
            noisy[self.rng.randrange(len(noisy))] ^= 1 << self.rng.randrange(8)
        return bytes(noisy)


def refused(robot: Robot) -> str:
    """The sentence by which it is not connected."""
    with pytest.raises(RobotError) as caught:
        robot.connect()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def furthest_rad(robot: Robot, truth_rad: np.ndarray, *, reads: int) -> tuple[float, int]:
    """How far from the truth any position is that was read, and how many reads were errors."""
    far_rad, errors = 0.0, 0
    for _ in range(reads):
        try:
            far_rad = max(far_rad, np.abs(robot.read().positions_rad - truth_rad).max())
        except RobotError:
            errors += 1
    return far_rad, errors


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class ServoRobotContract(RobotContract):
    """Subclass it with what `RobotContract` needs, and a fixture `description` for `robot`.

    `third` is the label of the servo of the joint with index 2; up to `most_bits` that are wrong in
    a packet are always found by its checksum, or as good as always.
    """

    third: str
    most_bits: int

    @pytest.fixture(autouse=True)
    def _nothing_stays(self):
        files, threads = _open_files(), set(threading.enumerate())
        yield
        assert _open_files() <= files
        assert set(threading.enumerate()) <= threads

    @pytest.fixture
    def robot(self, description: RobotDescription):
        robot = make_robot(description)
        yield robot
        robot.disconnect()

    def third_id(self, emulator: ServoBusEmulator) -> int:
        return next(
            servo.id
            for servo in emulator.servos.values()
            if servo.joints is emulator.joints and servo.index == 2
        )

    def test_goals_are_set_to_where_it_stands_before_torque(self, emulator, robot):
        stands = {servo.id: servo.ticks for servo in emulator.servos.values()}
        robot.connect()
        for servo in emulator.servos.values():
            if servo.leader_id is None:
                written = [
                    (register, value)
                    for servo_id, register, value in emulator.history
                    if servo_id == servo.id
                    and register in (emulator.goal[0], emulator.torque_register)
                ]
                assert written[:2] == [
                    (emulator.goal[0], stands[servo.id]),
                    (emulator.torque_register, 1),
                ]

    def test_velocities(self, emulator, connected, monkeypatch):
        monkeypatch.setattr(emulator.joints, "_speed_rad_s", 0.3)
        directions = np.where(np.arange(len(connected.description.joints)) % 2, -1.0, 1.0)
        connected.command(connected.read().positions_rad + 0.7 * directions, 0.5)
        measured_rad_s = []
        for _ in range(11):
            time.sleep(0.05)
            measured_rad_s.append(connected.read().velocities_rad_s)
        typical_rad_s = np.median(measured_rad_s, axis=0)
        np.testing.assert_allclose(typical_rad_s, 0.3 * directions, atol=0.1)

    def test_gripper(self, emulator, connected):
        rest_rad = connected.read().positions_rad
        for opening in (0.0, 1.0, 0.25):
            connected.command(rest_rad, opening)
            wait_until(lambda at=opening: abs(connected.read().gripper_opening - at) < 0.002)

    def test_lost_packets_are_asked_for_again(self, emulator, connected):
        truth_rad = emulator.joints.now()[0]
        emulator.link.drop_share = 0.05
        far_rad, errors = furthest_rad(connected, truth_rad, reads=60)
        assert far_rad <= TICK_RAD
        assert errors == 0

    def test_a_burst_of_losses_is_an_error_and_passes(self, emulator, connected):
        emulator.link.drop_share = 1.0
        told = state_once_it_tells(connected)
        assert "no answer" in told
        assert self.third in told
        emulator.link.drop_share = 0.0
        assert connected.read().fault == ""

    def test_a_corrupt_packet_is_never_a_position(self, emulator, description):
        robot = make_robot(replace(description, control_hz=100))
        robot.connect()
        truth_rad = emulator.joints.now()[0]
        emulator.link = noise = NoisyLink(most_bits=self.most_bits)
        far_rad, errors, reads = 0.0, 0, 0
        while noise.flipped < 1000:
            more_rad, more = furthest_rad(robot, truth_rad, reads=10)
            far_rad, errors, reads = max(far_rad, more_rad), errors + more, reads + 10
        emulator.link = Link()
        robot.disconnect()
        assert far_rad <= TICK_RAD
        assert errors < reads, "some answers came whole"

    def test_late_answers_are_not_those_to_other_questions(self, emulator, connected):
        start_rad = connected.read().positions_rad
        emulator.link.delay_s = 0.03
        for step in range(6):
            connected.command(start_rad + 0.02 * step, 0.5)
            state_once_it_tells(connected, seconds=0.1)
        emulator.link.delay_s = 0.0
        time.sleep(0.5)
        connected.stop()
        time.sleep(0.2)
        state = connected.read()
        np.testing.assert_allclose(state.positions_rad, emulator.joints.now()[0], atol=TICK_RAD)

    def test_a_state_of_long_ago_does_not_stand_in(self, emulator, connected):
        connected.read()
        time.sleep(0.4)
        emulator.link.drop_share = 1.0
        with pytest.raises(RobotError, match="no answer that can be trusted from"):
            connected.read()

    def test_trouble_is_told_by_joint(self, emulator, connected):
        emulator.overload(2)
        told = state_once_it_tells(connected)
        assert told.startswith(f"{self.third} is in overload; take the load off")
        connected.stop()
        connected.disconnect()
        assert refused(connected).startswith(f"{self.third} is in overload")
        emulator.release()
        connected.connect()
        assert connected.read().fault == ""

    def test_heat_and_voltage_are_told(self, emulator, connected):
        emulator.break_down(self.third_id(emulator), 0x05)
        assert "supply voltage" in state_once_it_tells(connected)
        emulator.servos[self.third_id(emulator)].trouble = 0x04
        assert "too hot" in state_once_it_tells(connected)

    def test_power_that_was_off_for_a_moment_is_told(self, emulator, connected):
        emulator.emergency_stop()
        emulator.release()
        assert "connect again" in state_once_it_tells(connected)

    def test_a_missing_servo_is_named(self, emulator, robot):
        del emulator.servos[self.third_id(emulator)]
        told = refused(robot)
        assert told.startswith(f"{self.third} does not answer at {emulator.address}")

    def test_another_model_is_refused(self, emulator, robot):
        servo = emulator.servos[self.third_id(emulator)]
        servo.model += 1
        emulator.wake(servo)
        assert f"{self.third} is of model {servo.model}, expected" in refused(robot)
        assert not any(servo.table[emulator.torque_register] for servo in emulator.servos.values())

    def test_outside_its_range_it_does_not_start(self, emulator, robot):
        servo = emulator.servos[self.third_id(emulator)]
        servo.home_ticks += 2300
        told = refused(robot)
        assert told.startswith(f"{self.third} stands at tick {servo.ticks}, outside its range of")
        assert "calibrate options.home_ticks_" in told
        assert not any(servo.table[emulator.torque_register] for servo in emulator.servos.values())

    def test_a_gripper_far_outside_its_range_does_not_start(self, emulator, robot):
        gripper = next(s for s in emulator.servos.values() if s.joints is emulator.gripper)
        gripper.home_ticks -= 1500
        assert "calibrate options.gripper_closed_ticks" in refused(robot)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, 3.5, -3.5])
    def test_goals_outside_the_range_are_refused(self, emulator, connected, bad):
        target_rad = connected.read().positions_rad
        target_rad[2] = bad
        before = len(emulator.history)
        with pytest.raises(RobotError, match=r"cannot be sent to .*, outside its range"):
            connected.command(target_rad, 0.5)
        connected.read()
        assert len(emulator.history) == before

    def test_one_program_at_a_time(self, emulator, connected, description):
        assert emulator.address in refused(make_robot(description))

    def test_not_connected(self, robot):
        with pytest.raises(RobotError, match="connect it first"):
            robot.read()
        with pytest.raises(RobotError, match="connect it first"):
            robot.command(np.zeros(len(robot.description.joints)), 0.0)
        robot.stop()

    def test_a_dead_client_leaves_it_at_its_last_goal(self, emulator, connected):
        target_rad = connected.read().positions_rad + 0.1
        connected.command(target_rad, 0.5)
        time.sleep(0.3)
        np.testing.assert_allclose(emulator.joints.now()[0], target_rad, atol=TICK_RAD)

    @pytest.mark.parametrize("ending", ["stop", "disconnect"])
    def test_it_is_stopped_on_its_way(self, emulator, connected, monkeypatch, ending):
        monkeypatch.setattr(emulator.joints, "_speed_rad_s", 0.1)
        start_rad = connected.read().positions_rad
        connected.command(start_rad + 0.7, 0.5)
        wait_until(lambda: (connected.read().positions_rad > start_rad + 0.01).all())
        getattr(connected, ending)()
        time.sleep(0.2)
        rests_rad, _ = emulator.joints.now()
        time.sleep(0.2)
        np.testing.assert_allclose(emulator.joints.now()[0], rests_rad, atol=TICK_RAD)
        assert (rests_rad < start_rad + 0.6).all()

    def test_after_disconnecting_it_still_holds(self, emulator, robot):
        robot.connect()
        stream(robot, robot.read().positions_rad + 0.05, seconds=0.2)
        robot.disconnect()
        time.sleep(0.2)
        leaders = [one for one in emulator.servos.values() if one.leader_id is None]
        assert all(servo.table[emulator.torque_register] for servo in leaders)
        held = [servo.get(*emulator.goal) - servo.ticks for servo in leaders]
        assert np.abs(held).max() <= 1

    @pytest.mark.parametrize(
        ("option", "told"),
        [
            ({"home_tick_3": 5}, "options does not know home_tick_3; it has model,"),
            ({"gripper_open_ticks": 4096}, "gripper_open_ticks must differ and lie in 0 … 4095"),
            ({"id_gripper": 1}, "ids of servos must differ"),
            ({"baudrate": "fast"}, "options.baudrate must be a whole number, got 'fast'"),
            ({"model": True}, "options.model must be a whole number, got True"),
        ],
    )
    def test_options_that_do_not_fit(self, description, option, told):
        with pytest.raises(ValueError, match=told):
            make_robot(replace(description, options={**description.options, **option}))

    def test_options_of_a_joint_that_do_not_fit(self, description):
        name = description.joints[2].name
        for option, told in (
            ({f"sign_{name}": 0}, f"options.sign_{name} must be 1 or -1, got 0"),
            ({f"home_ticks_{name}": 4000}, f"correct its limits or options.home_ticks_{name}"),
        ):
            with pytest.raises(ValueError, match=told):
                make_robot(replace(description, options={**description.options, **option}))

    def test_a_baud_rate_that_the_library_does_not_know(self, description):
        robot = make_robot(
            replace(description, options={**description.options, "baudrate": 123456})
        )
        assert "cannot be had at 123456 baud" in refused(robot)


def home_is_in_the_workspace(description: RobotDescription) -> bool:
    tool_m = Chain(description).tool(np.array(description.home_rad))[:3, 3]
    return objection_to_place(tool_m, description.workspace) == ""
