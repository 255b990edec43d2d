"""What a policy is told of an arm and what its actions mean: as in the simulator it learnt in."""

from dataclasses import replace

import numpy as np
import pybullet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_qsft.hardware.description import find_description
from robot_qsft.hardware.kinematics import Chain, transform
from robot_qsft.hardware.limits import Bounds
from robot_qsft.hardware.policy_io import (
    PolicyIO,
    PolicyIOConfig,
    inverse_kinematics,
    quaternion,
)
from robot_qsft.hardware.robot import RobotState
from robot_qsft.sim.pybullet.config import PyBulletConfig
from robot_qsft.sim.pybullet.tasks import STEP_M, TabletopEnvironment

PANDA = find_description("panda")
TOOL = PolicyIOConfig(state="tool", actions="tool_delta", step_m=STEP_M, gripper="sign")


def measured_in(environment: TabletopEnvironment) -> RobotState:
    positions_rad, velocities_rad_s = environment.scene.joint_state()
    opening = environment.scene.gripper_opening_m() / 0.08
    return RobotState(0.0, positions_rad, velocities_rad_s, opening)


@pytest.fixture
def environment():
    made = TabletopEnvironment(PyBulletConfig("Stitch", cameras=()))
    yield made
    made.close()


def test_the_simulators_state_is_told(environment: TabletopEnvironment) -> None:
    io = PolicyIO(PANDA, TOOL)
    assert len(io.state_names) == 8
    for seed in range(5):
        seen, _ = environment.reset(seed=seed)
        for _ in range(5):
            np.testing.assert_allclose(io.state(measured_in(environment)), seen["state"], atol=1e-5)
            seen, *_ = environment.step(environment.action_space.sample())


def test_the_simulators_actions_are_meant(environment: TabletopEnvironment) -> None:
    io = PolicyIO(PANDA, TOOL)
    rng = np.random.default_rng(0)
    for seed in range(5):
        environment.reset(seed=seed)
        measured = measured_in(environment)
        io.begin(measured)
        hand_m = environment.scene.hand_pose()[0]
        actions = rng.uniform(-0.5, 0.5, (3, 4)).astype(np.float32)
        targets = io.targets(measured, actions)
        assert targets.shape == (3, 8)
        chain = Chain(PANDA)
        for target, move in zip(targets, actions[:, :3].cumsum(axis=0), strict=True):
            tool = chain.tool(target[:7])
            np.testing.assert_allclose(tool[:3, 3], hand_m + STEP_M * move, atol=1e-3)
            begun = chain.tool(measured.positions_rad)
            np.testing.assert_allclose(tool[:3, :3], begun[:3, :3], atol=1e-2)
        np.testing.assert_array_equal(targets[:, 7], actions[:, 3] > 0)


def test_joint_actions_by_hand() -> None:
    state = RobotState(0.0, np.array(PANDA.home_rad), np.zeros(7), 0.25)
    actions = np.tile(np.append(np.arange(7) / 10, 2.0), (2, 1)).astype(np.float32)
    absolute = PolicyIO(PANDA, PolicyIOConfig()).targets(state, actions)
    np.testing.assert_allclose(absolute[0], [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0], atol=1e-7)
    io = PolicyIO(PANDA, PolicyIOConfig(actions="joint_delta", step_rad=0.5))
    relative = io.targets(state, actions)
    np.testing.assert_allclose(relative[0, :7], state.positions_rad + actions[0, :7] / 2)
    np.testing.assert_allclose(relative[1, :7], state.positions_rad + actions[0, :7])
    assert io.state(state).tolist() == [*np.float32(PANDA.home_rad), 0.25]


def test_an_arm_without_a_gripper() -> None:
    io = PolicyIO(replace(PANDA, gripper=None), PolicyIOConfig())
    state = RobotState(0.0, np.array(PANDA.home_rad), np.zeros(7), 0.0)
    assert io.state_names == io.action_names == PANDA.joint_names
    assert io.targets(state, np.zeros((4, 7), np.float32)).shape == (4, 8)
    with pytest.raises(ValueError, match=r"shape \(4, 8\), but joint_position on panda takes 7"):
        io.targets(state, np.zeros((4, 8), np.float32))


def test_the_tool_is_not_sent_out_of_the_workspace() -> None:
    io = PolicyIO(PANDA, TOOL)
    state = RobotState(0.0, np.array(PANDA.home_rad), np.zeros(7), 1.0)
    io.begin(state)
    target = io.targets(state, np.array([[0, 0, -20, 1]], np.float32))[0]
    assert Chain(PANDA).tool(target[:7])[2, 3] >= PANDA.workspace.inside.low_m[2]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_inverse_kinematics_find_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    chain, bounds = Chain(PANDA), Bounds.of(PANDA)
    begin_rad = np.array(PANDA.home_rad)
    there_rad = begin_rad + rng.uniform(-0.15, 0.15, 7)
    goal = chain.tool(there_rad)
    found = chain.tool(inverse_kinematics(chain, goal, begin_rad, bounds))
    np.testing.assert_allclose(found[:3, 3], goal[:3, 3], atol=1e-3)
    np.testing.assert_allclose(found[:3, :3], goal[:3, :3], atol=5e-3)


@settings(max_examples=100, deadline=None)
@given(st.tuples(*[st.floats(-3.1, 3.1)] * 3))
def test_quaternions(rpy_rad: tuple[float, float, float]) -> None:
    turned = quaternion(transform((0.0, 0.0, 0.0), rpy_rad))
    expected = np.array(pybullet.getQuaternionFromEuler(rpy_rad))
    assert turned[0] >= 0
    assert min(np.abs(turned - expected).max(), np.abs(turned + expected).max()) < 1e-6


@pytest.mark.parametrize("name", ["step_m", "step_rad"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_steps_of_nothing_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be finite and above 0"):
        PolicyIOConfig(**{name: value})
