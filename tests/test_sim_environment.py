import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from robot_qsft.sim.environment import (
    make_environment,
    observation_of,
    register_environments,
)
from robot_qsft.sim.pybullet.config import TASKS, PyBulletConfig
from robot_qsft.sim.pybullet.demonstrators import Script
from robot_qsft.sim.pybullet.tasks import (
    STEP_M,
    WORKSPACE_HIGH_M,
    WORKSPACE_LOW_M,
    TabletopEnvironment,
)

BLIND = PyBulletConfig("Stitch", cameras=())
CUBE_ON_TABLE_M = 0.021
UP = np.array([0, 0, 1, -1], np.float32)


def flat(observation):
    parts = [observation["state"], observation["environment_state"]]
    parts += [image.ravel() for image in observation.get("images", {}).values()]
    return np.concatenate([part.astype(np.float64) for part in parts])


def replay(environment, actions):
    trace = []
    for action in actions:
        observation, reward, terminated, truncated, _ = environment.step(action)
        trace.append(np.append(flat(observation), reward))
        if terminated or truncated:
            break
    return np.array(trace)


def demonstrate(environment, *, seed, script=None):
    """Actions of one scripted episode, and what was seen after each."""
    policy = (script or Script(noise=0.2))()
    policy.reset(seed=seed)
    observation, _ = environment.reset(seed=seed)
    actions, trace, over = [], [], False
    while not over:
        actions.append(policy.act(observation_of(observation)).actions[0])
        observation, reward, terminated, truncated, _ = environment.step(actions[-1])
        trace.append(np.append(flat(observation), reward))
        over = terminated or truncated
    return actions, np.array(trace)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.filterwarnings("ignore:.*Box observation space m.*imum value is.*infinity")
def test_registered_environments_pass_gymnasiums_check(task):
    register_environments()
    register_environments()
    environment = gymnasium.make(
        f"robot_qsft/{task}-v0",
        render_mode="rgb_array",
        cameras=("front", "wrist"),
        yaw_action=task == "Lift",
    )
    check_env(environment.unwrapped, skip_close_check=True)
    environment.reset(seed=0)
    assert environment.render().shape == (64, 64, 3)
    environment.close()


def test_names_fit_the_spaces():
    for yaw_action in (False, True):
        environment = TabletopEnvironment(PyBulletConfig(cameras=(), yaw_action=yaw_action))
        assert environment.action_space.shape == (len(environment.action_names),)
        assert environment.observation_space["state"].shape == (len(environment.state_names),)
        truth = environment.observation_space["environment_state"]
        assert truth.shape == (len(environment.environment_state_names),)


@pytest.mark.parametrize("start", ["table", "gripper"])
def test_same_seed_gives_same_trajectory_whatever_ran_before(start):
    config = PyBulletConfig("Stitch", start=start, image_size=32)
    fresh, used = make_environment(config), make_environment(config)
    actions, expected = demonstrate(fresh, seed=3)
    for other in (8, 9):
        demonstrate(used, seed=other)
    used.reset(seed=3)
    np.testing.assert_array_equal(replay(used, actions), expected)


def test_other_seeds_give_other_starts():
    environment = make_environment(BLIND)
    starts = [flat(environment.reset(seed=seed)[0]) for seed in range(4)]
    assert len({start.tobytes() for start in starts}) == 4
    assert not np.array_equal(flat(environment.reset()[0]), starts[-1])


@pytest.mark.parametrize("start", ["table", "gripper"])
def test_going_on_from_a_snapshot_is_exact(start):
    config = PyBulletConfig("Stitch", cameras=(), start=start)
    environment = make_environment(config)
    actions, expected = demonstrate(environment, seed=4)
    environment.reset(seed=4)
    snapshots = []
    for index, action in enumerate(actions):
        snapshots.append((index, environment.snapshot()))
        environment.step(action)
    np.random.default_rng(0).shuffle(snapshots)
    for index, snapshot in snapshots:
        seen = flat(environment.restore(snapshot))
        if index:
            np.testing.assert_array_equal(seen, expected[index - 1, :-1])
        np.testing.assert_array_equal(replay(environment, actions[index:]), expected[index:])


def test_snapshot_holds_the_goal_the_picture_and_the_next_start():
    environment = make_environment(PyBulletConfig("Stitch", image_size=32))
    first, _ = environment.reset(seed=0)
    snapshot = environment.snapshot()
    following, _ = environment.reset()
    np.testing.assert_array_equal(flat(environment.restore(snapshot)), flat(first))
    np.testing.assert_array_equal(flat(environment.reset()[0]), flat(following))


@pytest.mark.parametrize(
    "action", [[0, np.nan, 0, 1], [np.inf, 0, 0, 1], [0, 0, 1], [0, 0, 0, 0, 1], 0.0]
)
def test_bad_action_is_refused(action):
    environment = make_environment(BLIND)
    environment.reset(seed=0)
    with pytest.raises(ValueError, match=r"4 finite numbers \(x, y, z, gripper_open\), got"):
        environment.step(np.array(action, np.float32))


def test_action_beyond_the_bounds_is_clipped():
    ends = []
    for size in (1.0, 7.0):
        environment = make_environment(BLIND)
        environment.reset(seed=0)
        ends.append(flat(environment.step(np.array([size, -size, -size, size]))[0]))
    np.testing.assert_array_equal(*ends)


def test_action_moves_the_hand_by_its_size_and_opens_and_closes():
    environment = make_environment(BLIND)
    start = environment.reset(seed=0)[0]["state"]
    state = environment.step(np.array([0.5, 0.0, 0.2, -1.0]))[0]["state"]
    np.testing.assert_allclose(
        state[:3] - start[:3], [0.5 * STEP_M, 0, 0.2 * STEP_M], atol=0.25 * STEP_M
    )
    for _ in range(4):
        state = environment.step(np.array([0, 0, 0, -1.0]))[0]["state"]
    assert state[7] < 0.005
    for _ in range(4):
        state = environment.step(np.array([0, 0, 0, 1.0]))[0]["state"]
    assert state[7] > 0.075
    np.testing.assert_allclose(np.abs(state[3:7]), [1, 0, 0, 0], atol=0.02)


def test_hand_stays_in_the_workspace():
    environment = make_environment(PyBulletConfig("Lift", cameras=()))
    for direction in ([1, 1, 1, 1], [-1, -1, -1, 1]):
        environment.reset(seed=0)
        for _ in range(25):
            hand_m = environment.step(np.array(direction, np.float32))[0]["state"][:3]
        assert (hand_m < WORKSPACE_HIGH_M + 0.01).all()
        assert (hand_m > WORKSPACE_LOW_M - 0.01).all()


def test_yaw_action_turns_the_hand():
    environment = make_environment(PyBulletConfig("Lift", cameras=(), yaw_action=True))
    environment.reset(seed=0)
    for turn in (0.5, 0.5, 0.5, 0.5, 0.0):
        state = environment.step(np.array([0, 0, 0, turn, 1]))[0]["state"]
    # Four half steps of 0.3 rad; the quaternion (cos, sin, 0, 0) of a hand pointing down.
    assert 2 * abs(np.arctan2(state[4], state[3])) == pytest.approx(0.6, abs=0.03)


def test_success_pays_once_and_terminates():
    environment = make_environment(BLIND)
    _, trace = demonstrate(environment, seed=1, script=Script())
    assert trace[:-1, -1].sum() == 0
    assert trace[-1, -1] == 1
    with pytest.raises(ValueError, match="call reset first"):
        environment.step(UP)


def test_time_out_truncates():
    environment = make_environment(PyBulletConfig("Stitch", cameras=(), max_steps=3))
    environment.reset(seed=0)
    ends = [environment.step(UP)[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]


def test_cube_over_the_goal_but_still_held_is_no_success():
    environment = make_environment(PyBulletConfig("Stitch", cameras=(), start="gripper"))
    observation, _ = environment.reset(seed=0)
    for _ in range(30):
        state, truth = observation["state"], observation["environment_state"]
        target_m = truth[7:10] + np.array([0, 0, CUBE_ON_TABLE_M])
        motion = np.clip((target_m - state[:3]) / STEP_M, -0.5, 0.5)
        observation, _, terminated, _, info = environment.step(np.append(motion, -1.0))
        assert not terminated
        assert info == {"is_success": False}
    assert np.abs(truth[:2] - truth[7:9]).max() < 0.01
    *_, terminated, _, info = environment.step(np.array([0, 0, 0, 1.0]))
    assert terminated
    assert info["is_success"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task", "Stack"),
        ("start", "floor"),
        ("renderer", "vulkan"),
        ("cameras", ("back",)),
        ("image_size", 4),
        ("max_steps", 0),
    ],
)
def test_configuration_names_the_field_that_is_wrong(field, value):
    with pytest.raises(ValueError, match=field):
        PyBulletConfig(**{field: value})


def test_lift_cannot_begin_lifted():
    with pytest.raises(ValueError, match="Lift begins with the cube on the table"):
        PyBulletConfig("Lift", start="gripper")
