"""The control loop's decisions: limits hold whatever is asked, and nothing moves by itself."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_qsft.hardware.chunks import JointChunk, Schedule
from robot_qsft.hardware.config import ControlConfig
from robot_qsft.hardware.controller import Controller, Decision, Request
from robot_qsft.hardware.description import Box, RobotDescription, Workspace, find_description
from robot_qsft.hardware.kinematics import Chain
from robot_qsft.hardware.motion import Motion, Setpoint
from robot_qsft.hardware.robot import RobotState
from robot_qsft.hardware.states import Event, State, after

PANDA = find_description("panda")
HOME_RAD = np.array(PANDA.home_rad)
CHAIN = Chain(PANDA)
DT_S = 0.1
"""Of the policy."""


def measured(positions_rad, now_s=0.0, fault="", opening=1.0) -> RobotState:
    return RobotState(now_s, np.array(positions_rad), np.zeros(7), opening, fault)


class World:
    """A controller with an arm that is where it is told, and a clock."""

    def __init__(self, description: RobotDescription = PANDA, config: ControlConfig | None = None):
        self.description = description
        self.controller = Controller(description, config or ControlConfig())
        self.now_s = 100.0
        self.positions_rad = np.array(description.home_rad)
        self.fault = ""
        self.decisions: list[Decision] = []
        self.controller.connected(self.measured())
        self.controller.begin_stream(1, begin_s=self.now_s, period_s=DT_S)
        self.seq = 0

    def measured(self) -> RobotState:
        return measured(self.positions_rad, self.now_s, self.fault)

    def chunk(self, targets_CX, *, observed_s=None, first_step=None, stream=1, seq=None) -> str:
        self.seq += 1
        step = math.floor((self.now_s - 100.0) / DT_S + 1e-6)
        return self.controller.take(
            JointChunk(
                stream=stream,
                seq=self.seq if seq is None else seq,
                first_step=step if first_step is None else first_step,
                observed_s=self.now_s if observed_s is None else observed_s,
                targets_CX=np.asarray(targets_CX, np.float64),
            ),
            self.now_s,
        )

    def stay(self, steps=10):
        """Targets of staying."""
        return np.tile(np.append(self.positions_rad, 1.0), (steps, 1))

    def run(self, seconds=None, *, request=Request.NONE) -> Decision:
        """Some periods, or one; the request comes in the first."""
        periods = 1 if seconds is None else round(seconds * self.description.control_hz)
        for _ in range(periods):
            decision = self.controller.step(self.now_s, self.measured(), request)
            request = Request.NONE
            self.decisions.append(decision)
            if decision.setpoint is not None:
                self.positions_rad = decision.setpoint.positions_rad
            self.now_s += self.description.period_s
        return decision

    def start(self) -> None:
        """Until it follows the policy, standing still."""
        self.chunk(self.stay())
        self.run(request=Request.ARM)
        assert self.run(request=Request.RUN).state is State.RUNNING

    def check_limits(self, description: RobotDescription | None = None) -> None:
        """Every setpoint ever commanded is within all limits, and follows from the one before."""
        robot = description or self.description
        setpoints = [one.setpoint for one in self.decisions if one.setpoint is not None]
        position = np.array([one.positions_rad for one in setpoints])
        velocity = np.array([one.velocities_rad_s for one in setpoints])
        acceleration = np.array([one.accelerations_rad_s2 for one in setpoints])
        period_s = robot.period_s
        assert (position >= robot.of_joints("low_rad") - 1e-9).all()
        assert (position <= robot.of_joints("high_rad") + 1e-9).all()
        assert (np.abs(velocity) <= robot.of_joints("velocity_rad_s") + 1e-6).all()
        assert (np.abs(acceleration) <= robot.of_joints("acceleration_rad_s2") + 1e-6).all()
        jerk = np.diff(acceleration, axis=0) / period_s
        assert (np.abs(jerk) <= robot.of_joints("jerk_rad_s3") * (1 + 1e-6) + 1e-6).all()
        # What is told of speed is what positions do.
        moved = np.diff(position, axis=0) / period_s
        bound = robot.of_joints("velocity_rad_s") + 1e-6
        assert (np.abs(moved) <= bound).all()
        for one in setpoints[:: max(1, len(setpoints) // 50)]:
            inside = robot.workspace.inside
            tool_m = Chain(robot).tool(one.positions_rad)[:3, 3]
            assert (tool_m >= np.array(inside.low_m) - 2e-3).all()
            assert (tool_m <= np.array(inside.high_m) + 2e-3).all()


def test_nothing_moves_before_it_is_armed_and_run() -> None:
    world = World()
    world.chunk(world.stay() + 0.1)
    assert world.run(0.3).state is State.READY
    np.testing.assert_array_equal(world.positions_rad, HOME_RAD)
    world.run(request=Request.RUN)
    assert world.controller.state is State.READY
    world.run(request=Request.ARM)
    assert world.run(0.3).state is State.ARMED
    np.testing.assert_array_equal(world.positions_rad, HOME_RAD)


def test_it_follows_a_moving_target_at_its_speed() -> None:
    world = World()
    world.start()
    targets = world.stay(20)
    targets[:, 0] += np.linspace(0.02, 0.4, 20)
    begin_s = world.now_s
    world.chunk(targets)
    world.run(0.45)
    assert world.controller.state is State.RUNNING
    setpoint = world.decisions[-1].setpoint
    assert setpoint.velocities_rad_s[0] == pytest.approx(0.2, abs=0.01)
    expected = HOME_RAD[0] + 0.2 * (world.now_s - begin_s)
    assert setpoint.positions_rad[0] == pytest.approx(expected, abs=0.02)
    world.check_limits()


def test_run_waits_for_the_policy() -> None:
    world = World()
    world.run(request=Request.ARM)
    decision = world.run(request=Request.RUN)
    assert (decision.state, decision.reason) == (
        State.ARMED,
        "no action of the policy is known for now",
    )


def test_stop_decelerates_from_the_next_setpoint_on_and_stays() -> None:
    world = World()
    world.start()
    targets = world.stay(20)
    targets[:, 0] += np.linspace(0.02, 0.4, 20)
    world.chunk(targets)
    world.run(0.4)
    before = world.decisions[-1].setpoint.velocities_rad_s[0]
    assert before > 0.15
    decision = world.run(request=Request.STOP)
    assert (decision.state, decision.reason) == (State.HOLD, "stopped by the operator")
    assert decision.setpoint.accelerations_rad_s2[0] < 0
    assert decision.setpoint.velocities_rad_s[0] < before
    world.run(0.5)
    resting_rad = world.positions_rad
    world.chunk(targets)
    assert world.run(0.5).state is State.HOLD
    np.testing.assert_array_equal(world.positions_rad, resting_rad)
    world.check_limits()


def test_stop_weighs_more_than_run() -> None:
    world = World()
    world.start()
    assert world.run(request=Request.STOP | Request.RUN | Request.ARM).state is State.HOLD


def test_silence_ends_in_hold_after_the_stale_limit_and_not_later() -> None:
    world = World(config=ControlConfig(stale_s=0.3))
    world.start()
    targets = world.stay(30)
    targets[:, 0] += np.linspace(0.02, 0.6, 30)
    world.chunk(targets)
    silent_since_s = world.now_s
    while world.run().state is State.RUNNING:
        assert world.now_s - silent_since_s < 1
    after_s = world.now_s - PANDA.period_s - silent_since_s
    assert 0.3 - 2 * PANDA.period_s <= after_s <= 0.3 + PANDA.period_s
    assert world.decisions[-1].reason == "no action by an observation of the last 0.3 s"
    assert world.decisions[-1].setpoint.accelerations_rad_s2[0] < 0
    world.run(0.5)
    world.chunk(world.stay())
    assert world.run(0.2).state is State.HOLD, "a policy that comes back moves nothing by itself"
    assert world.run(request=Request.RUN).state is State.RUNNING
    world.check_limits()


@pytest.mark.parametrize(
    ("change", "objection"),
    [
        (lambda t: t[:, :-1], r"a chunk of shape \(10, 7\) came"),
        (lambda t: t[:0], r"a chunk of shape \(0, 8\)"),
        (lambda t: t * np.nan, "a chunk holds NaN or infinity"),
        (lambda t: t + np.inf, "a chunk holds NaN or infinity"),
        (lambda t: np.tile(t, (200, 1)), "a chunk of shape"),
    ],
)
def test_chunks_that_are_none(change, objection) -> None:
    world = World()
    world.start()
    assert re.search(objection, world.chunk(change(world.stay())))
    assert world.run(0.1).state is State.RUNNING


@pytest.mark.parametrize(
    ("told", "objection"),
    [
        ({"stream": 2}, "a chunk of stream 2 came while 1 runs"),
        ({"observed_s": 100.0 - 1.0}, "a chunk's observation is"),
        ({"observed_s": 100.0 + 60.0}, "s ahead"),
        ({"observed_s": math.nan}, "a chunk's observation lies nan s ahead"),
    ],
)
def test_chunks_of_another_time(told, objection) -> None:
    world = World()
    world.start()
    assert objection in world.chunk(world.stay(), **told)


def test_a_jump_holds() -> None:
    world = World()
    world.start()
    targets = world.stay()
    targets[:, 3] += 0.7
    world.chunk(targets)
    decision = world.run(0.2)
    assert decision.state is State.HOLD
    assert decision.reason == "joint 4 was asked to jump by 0.700 rad, more than 0.6"
    np.testing.assert_allclose(world.positions_rad, HOME_RAD, atol=1e-9)


def test_a_fault_of_the_arm_is_latched_until_reset() -> None:
    world = World()
    world.start()
    world.fault = "protective stop"
    decision = world.run()
    assert (decision.state, decision.reason) == (State.FAULT, "protective stop")
    assert decision.setpoint is None
    world.run(request=Request.RESET)
    assert world.controller.state is State.FAULT, "the fault is still there"
    world.fault = ""
    world.run(request=Request.RUN | Request.ARM)
    assert world.controller.state is State.FAULT
    world.run(request=Request.RESET)
    assert world.controller.state is State.READY


def test_an_arm_that_does_not_follow_is_a_fault() -> None:
    world = World()
    world.start()
    world.positions_rad = HOME_RAD + np.array([0, 0, 0.51, 0, 0, 0, 0])
    decision = world.run()
    assert decision.state is State.FAULT
    assert "joint 3 is 0.510 rad from where it was commanded" in decision.reason


def test_an_arm_that_measures_nan_is_a_fault() -> None:
    world = World()
    world.start()
    world.positions_rad = HOME_RAD * np.nan
    assert world.run().state is State.FAULT


def test_reset_stands_where_the_arm_is() -> None:
    world = World()
    world.start()
    world.controller.fail("the driver died")
    world.positions_rad = HOME_RAD + 0.2
    world.run(request=Request.RESET)
    decision = world.run()
    np.testing.assert_array_equal(decision.setpoint.positions_rad, HOME_RAD + 0.2)


def test_the_tool_stays_in_its_workspace() -> None:
    low_m = CHAIN.tool(HOME_RAD)[:3, 3] - [0.3, 0.02, 0.3]
    high_m = low_m + 0.6
    boxed = replace(PANDA, workspace=Workspace(Box(tuple(low_m), tuple(high_m))))
    world = World(boxed)
    world.start()
    targets = world.stay(20)
    targets[:, 0] -= np.linspace(0.02, 0.5, 20)  # turns to its right
    world.chunk(targets)
    decision = world.run(0.5)
    assert decision.state is State.HOLD
    assert decision.reason.startswith("the tool would leave the workspace")
    world.run(0.5)
    assert (CHAIN.tool(world.positions_rad)[:3, 3] >= low_m - 1e-3).all()
    world.check_limits()


def test_keep_out_boxes_are_kept_out_of() -> None:
    tool_m = CHAIN.tool(HOME_RAD)[:3, 3]
    x, y, z = tool_m
    box = Box((x - 0.1, y + 0.03, z - 0.1), (x + 0.1, y + 0.2, z + 0.1))
    kept = replace(PANDA, workspace=Workspace(PANDA.workspace.inside, (box,)))
    world = World(kept)
    world.start()
    targets = world.stay(20)
    targets[:, 0] += np.linspace(0.02, 0.4, 20)
    world.chunk(targets)
    decision = world.run(0.5)
    assert "the tool would enter keep-out box 1" in decision.reason
    world.run(0.5)
    assert CHAIN.tool(world.positions_rad)[1, 3] < tool_m[1] + 0.031


def test_the_gripper_opens_at_its_speed() -> None:
    slow = replace(PANDA, gripper=replace(PANDA.gripper, speed_per_s=2.0))
    world = World(slow)
    world.start()
    targets = world.stay()
    targets[:, -1] = -5.0
    world.chunk(targets)
    world.run(0.25)
    assert world.decisions[-1].gripper_opening == pytest.approx(0.5, abs=0.03)
    world.run(0.2)
    openings = [one.gripper_opening for one in world.decisions]
    assert min(np.diff(openings)) >= -2.0 * PANDA.period_s - 1e-9
    assert min(openings) >= 0


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_limit_is_ever_exceeded(data: st.DataObject) -> None:
    """Wild targets, requests at any time, chunks late, twice, old, and in any order."""
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    bold = replace(PANDA, jump_rad=10.0, workspace=Workspace(Box((-1, -1, -0.3), (1, 1, 1.4))))
    world = World(bold, ControlConfig(stale_s=1.0, speed=float(rng.uniform(0.1, 1))))
    world.start()
    kept = []
    for _ in range(25):
        wild = rng.random() < 0.5
        targets = np.append(world.positions_rad, 1.0) + rng.normal(
            scale=2.0 if wild else 0.2, size=(int(rng.integers(1, 15)), 8)
        ).cumsum(axis=0) * (1 if rng.random() < 0.5 else 0.1)
        step = math.floor((world.now_s - 100.0) / DT_S) + int(rng.integers(-3, 4))
        told = (targets, world.now_s - rng.uniform(0, 0.5), step, world.seq + 1)
        kept.append(told)
        for one in (told, kept[rng.integers(len(kept))]) if rng.random() < 0.3 else (told,):
            world.chunk(one[0], observed_s=one[1], first_step=one[2], seq=one[3])
        requests = [Request.NONE, Request.RUN, Request.STOP, Request.ARM | Request.RUN]
        world.run(
            rng.uniform(0.01, 0.25) + 0.01,
            request=requests[rng.choice(4, p=[0.5, 0.3, 0.1, 0.1])],
        )
    assert any(one.state is State.RUNNING for one in world.decisions)
    world.check_limits()


def chunk(seq: int, first_step: int, steps: int) -> JointChunk:
    return JointChunk(1, seq, first_step, 0.1 * first_step, np.full((steps, 2), float(seq)))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(1, 5)), min_size=1, max_size=8
    ),
    st.randoms(),
    st.sampled_from(["replace", "ensemble"]),
    st.sampled_from(["even", "at once"]),
)
def test_order_duplicates_and_loss_do_not_matter(chunks, random, overlap, pace) -> None:
    made = [chunk(seq, first, steps) for seq, (_, first, steps) in enumerate(chunks)]
    shuffled = made + random.sample(made, len(made) // 2)
    random.shuffle(shuffled)
    one, other = (Schedule(0.0, 0.1, overlap, pace) for _ in range(2))
    for each in made:
        one.add(each)
    for each in shuffled:
        other.add(each)
    for now_s in np.arange(0.0, 1.5, 0.03):
        first, second = one.due(now_s), other.due(now_s)
        assert (first is None) == (second is None)
        if first is not None and second is not None:
            np.testing.assert_array_equal(first.target_X, second.target_X)
            np.testing.assert_array_equal(first.speed_X, second.speed_X)
            assert (first.step, first.seq) == (second.step, second.seq)


def test_what_is_due_by_hand() -> None:
    schedule = Schedule(10.0, 0.1)
    assert schedule.due(10.05) is None
    schedule.add(JointChunk(1, 3, 0, 10.0, np.array([[1.0, 0], [2.0, 0], [4.0, 0]])))
    # No step before the first: straight to its target. Then evenly from end to end.
    for now_s, target, speed in (
        (10.05, 1.0, 0.0),
        (10.15, 1.5, 10.0),
        (10.25, 3.0, 0.0),  # the last step arrives at rest
        (10.95, 4.0, 0.0),
    ):
        due = schedule.due(now_s)
        assert due is not None
        assert due.target_X[0] == pytest.approx(target)
        assert due.speed_X[0] == pytest.approx(speed)
        assert due.age_s == pytest.approx(now_s - 10.0)
    assert schedule.due(9.99) is None
    schedule.add(JointChunk(1, 4, 1, 10.1, np.array([[3.0, 0]])))
    assert schedule.due(10.19999).target_X[0] == pytest.approx(3.0, abs=1e-3)
    schedule.add(JointChunk(1, 2, 1, 10.1, np.array([[9.0, 0]])))
    assert schedule.due(10.19999).seq == 4, "an older chunk that comes late has no say"
    schedule.forget(10.25)
    assert sorted(schedule.slots) == [1, 2]


def test_at_once_is_where_a_servo_was_told_to_go() -> None:
    schedule = Schedule(10.0, 0.1, pace="at once")
    schedule.add(JointChunk(1, 3, 0, 10.0, np.array([[1.0, 0], [2.0, 0], [4.0, 0]])))
    for now_s, target in ((10.0001, 1.0), (10.11, 2.0), (10.19, 2.0), (10.21, 4.0)):
        due = schedule.due(now_s)
        assert due is not None
        assert (due.target_X[0], due.speed_X[0]) == (target, 0)


def test_ensemble_by_hand() -> None:
    schedule = Schedule(0.0, 0.1, "ensemble", decay=0.5)
    for seq, value in ((1, 1.0), (2, 2.0), (5, 4.0)):
        schedule.add(JointChunk(1, seq, 0, 0.0, np.array([[value, 0.0]])))
    weights = np.exp([0, -0.5, -1.0])
    expected = (weights @ [1, 2, 4]) / weights.sum()
    assert schedule.due(0.05).target_X[0] == pytest.approx(expected)


def test_the_only_ways_into_motion() -> None:
    into = {(state, event) for state in State for event in Event} - {
        (state, event)
        for state in State
        for event in Event
        if after(state, event) is not State.RUNNING or state is State.RUNNING
    }
    assert into == {(State.ARMED, Event.RUN), (State.HOLD, Event.RUN)}


def test_faults_are_left_by_reset_alone() -> None:
    ways = {event for event in Event if after(State.FAULT, event) is not State.FAULT}
    assert ways == {Event.RESET, Event.DISCONNECTED}
    assert after(State.FAULT, Event.RESET) is State.READY


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_braking_comes_to_rest_within_the_limits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    motion = Motion(PANDA)
    limits = [PANDA.of_joints(f"{name}") for name in ("velocity_rad_s", "acceleration_rad_s2")]
    setpoint = Setpoint(HOME_RAD, *(rng.uniform(-0.6, 0.6, 7) * limit for limit in limits))
    way = motion.way_to_rest(setpoint)
    taken = [setpoint.positions_rad]
    for _ in range(1000):
        following = motion.brake(setpoint)
        jerk = (following.accelerations_rad_s2 - setpoint.accelerations_rad_s2) / PANDA.period_s
        assert (np.abs(jerk) <= PANDA.of_joints("jerk_rad_s3") * (1 + 1e-6) + 1e-6).all()
        setpoint = following
        taken.append(setpoint.positions_rad)
        if np.abs(setpoint.velocities_rad_s).max() < 1e-9:
            break
    assert np.abs(setpoint.velocities_rad_s).max() < 1e-9
    np.testing.assert_allclose(taken[-1], way[-1], atol=1e-6)
    low, high = np.minimum(way.min(0), HOME_RAD), np.maximum(way.max(0), HOME_RAD)
    assert (np.array(taken) >= low - 0.001).all()
    assert (np.array(taken) <= high + 0.001).all()
