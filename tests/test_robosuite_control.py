import importlib.util

import numpy as np
import pytest

from robot_qsft.sim.environment import make_environment, observation_of
from robot_qsft.sim.robosuite.config import TASKS, RobosuiteConfig
from robot_qsft.sim.robosuite.control import ControlLoop
from robot_qsft.sim.robosuite.demonstrators import Script
from robot_qsft.sim.robosuite.engine import import_robosuite
from robot_qsft.sim.robosuite.env_args import EnvArgs, env_args_of
from robot_qsft.sim.robosuite.variation import CUBE_HALF_HIGH_M, CUBE_HALF_LOW_M, resize_cube

if importlib.util.find_spec("robosuite") is None:
    pytest.skip("robosuite is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def blind():
    """Environments without cameras, by task; compiling them takes the time."""
    made = {task: make_environment(RobosuiteConfig(task, cameras=())) for task in TASKS}
    yield made
    for environment in made.values():
        environment.close()


def twins(config):
    """Two of robosuite's own environments, at the same start."""
    robosuite = import_robosuite(log=False)
    pair = [env_args_of(config).make(robosuite) for _ in range(2)]
    for one in pair:
        one.reset()
    return pair


def everything(robosuite_environment):
    """All that MuJoCo computes the future from, warm start and commands included."""
    import mujoco

    model, data = robosuite_environment.sim.model._model, robosuite_environment.sim.data._data
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    numbers = np.empty(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, numbers, kind)
    return numbers


def smooth_actions(count, size, *, seed):
    """Pushes that last some steps, so that the arm gets somewhere, and a hand that closes."""
    rng = np.random.default_rng(seed)
    pushes = np.repeat(rng.uniform(-1, 1, (-(-count // 6), size)), 6, axis=0)[:count]
    return np.clip(pushes + rng.normal(0, 0.2, pushes.shape), -1, 1)


@pytest.mark.parametrize(
    ("task", "robot", "controller", "fast"),
    [
        ("Lift", "Panda", "osc_pose", True),
        ("Can", "Sawyer", "osc_pose", True),
        ("Door", "UR5e", "osc_pose", True),
        ("Lift", "Panda", "joint_position", False),
        ("Stack", "UR5e", "joint_position", False),
    ],
)
def test_control_loop_does_bit_for_bit_what_robosuite_does(task, robot, controller, fast):
    config = RobosuiteConfig(task, robot=robot, controller=controller, reward="shaped")
    ours, theirs = twins(config)
    np.testing.assert_array_equal(everything(ours), everything(theirs))
    loop = ControlLoop(ours)
    assert (loop._osc is not None) == fast
    start = everything(ours)
    for action in smooth_actions(60, ours.action_dim, seed=1):
        reward, success = loop.step(action)
        _, expected, _, _ = theirs.step(action)
        np.testing.assert_array_equal(everything(ours), everything(theirs))
        assert reward == expected
        assert success == bool(theirs._check_success())
        assert (ours.timestep, ours.cur_time) == (theirs.timestep, theirs.cur_time)
    assert np.abs(everything(ours) - start).max() > 0.1
    for one in (ours, theirs):
        one.close()


def test_control_loop_does_what_robosuite_does_while_a_cube_is_grasped_and_lifted(blind):
    """Contacts of the fingers too, which make the smallest difference large."""
    ours = blind["Lift"]
    theirs = make_environment(ours.config)
    policy = Script("Lift")()
    policy.reset(seed=2)
    observation, _ = ours.reset(seed=2)
    theirs.reset(seed=2)
    success = False
    while not success:
        action = policy.act(observation_of(observation)).actions[0].astype(np.float64)
        observation, reward, success, truncated, _ = ours.step(action)
        _, expected, _, _ = theirs.robosuite.step(action)
        np.testing.assert_array_equal(everything(ours.robosuite), everything(theirs.robosuite))
        assert reward == float(theirs.robosuite._check_success())
        assert reward == expected
        assert not truncated
    theirs.close()


def test_both_arms_of_a_task_for_two_are_moved():
    robosuite = import_robosuite(log=False)
    args = EnvArgs("TwoArmLift", {"robots": ["Panda", "Panda"], "control_freq": 20}, False)
    ours, theirs = (args.make(robosuite) for _ in range(2))
    for one in (ours, theirs):
        one.reset()
    loop = ControlLoop(ours)
    start = [np.array(robot._hand_pos["right"]) for robot in ours.robots]
    for action in smooth_actions(20, ours.action_dim, seed=2):
        loop.step(action)
        theirs.step(action)
        np.testing.assert_array_equal(everything(ours), everything(theirs))
    for before, robot in zip(start, ours.robots, strict=True):
        assert np.abs(robot._hand_pos["right"] - before).max() > 0.02
    for one in (ours, theirs):
        one.close()


def test_other_rates_go_through_the_control_loop_too():
    robosuite = import_robosuite(log=False)
    args = env_args_of(RobosuiteConfig("Lift"))
    kwargs = {**args.env_kwargs, "control_freq": 40, "lite_physics": False}
    pair = [type(args)(args.env_name, kwargs, False).make(robosuite) for _ in range(2)]
    for one in pair:
        one.reset()
    ours, theirs = pair
    loop = ControlLoop(ours)
    assert loop._osc is None
    for action in smooth_actions(10, 7, seed=0):
        loop.step(action)
        theirs.step(action)
        np.testing.assert_array_equal(everything(ours), everything(theirs))
    # 12 physics steps of 2 ms make up a fortieth of a second, as robosuite rounds it.
    assert ours.sim.data.time == pytest.approx(10 * 12 * 0.002)
    for one in pair:
        one.close()


def arrays_of(model):
    parts = {name: getattr(model, name) for name in dir(model) if not name.startswith("_")}
    return {name: part for name, part in parts.items() if isinstance(part, np.ndarray)}


def compiled_anew(environment):
    import mujoco

    xml = environment.robosuite.edit_model_xml(environment.model_xml())
    return mujoco.MjModel.from_xml_string(xml)


def test_resized_cube_is_what_compiling_it_gives(blind):
    environment = blind["Lift"]
    model = environment.robosuite.sim.model._model
    rng = np.random.default_rng(0)
    for seed in range(6):
        environment.reset(seed=seed)
        if seed >= 3:  # not only what an episode draws, and never the size before
            resize_cube(model, rng.uniform(CUBE_HALF_LOW_M, CUBE_HALF_HIGH_M, 3))
        anew = compiled_anew(environment)
        resized, compiled = arrays_of(model), arrays_of(anew)
        assert len(resized) > 400
        # What is shown of sites is a setting of robosuite's, made once the model is compiled.
        for name in resized.keys() - {"site_rgba"}:
            np.testing.assert_allclose(resized[name], compiled[name], rtol=0, atol=0, err_msg=name)
        for name in ("meaninertia", "meanmass", "meansize", "extent", "center"):
            ours, theirs = getattr(model.stat, name), getattr(anew.stat, name)
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=0, err_msg=name)


def test_resizing_there_and_back_leaves_the_model_as_it_was(blind):
    environment = blind["Lift"]
    environment.reset(seed=0)
    model = environment.robosuite.sim.model._model
    before = {name: part.copy() for name, part in arrays_of(model).items()}
    half_m = model.geom("cube_g0").size.copy()
    resize_cube(model, np.array([0.03, 0.01, 0.02]))
    changed = {
        name for name, part in arrays_of(model).items() if not np.array_equal(part, before[name])
    }
    assert {"geom_size", "geom_aabb", "geom_rbound", "body_mass", "body_inertia"} <= changed
    assert {"body_invweight0", "dof_M0", "body_subtreemass", "bvh_aabb"} <= changed
    resize_cube(model, half_m)
    for name, part in arrays_of(model).items():
        np.testing.assert_array_equal(part, before[name], err_msg=name)


@pytest.mark.parametrize("task", TASKS)
def test_model_xml_compiles_to_the_present_model(blind, task):
    environment = blind[task]
    model = environment.robosuite.sim.model._model
    poses = set()
    for seed in range(4):
        environment.reset(seed=seed)
        compiled = compiled_anew(environment)
        for name in ("body_pos", "body_mass", "geom_size", "geom_pos", "geom_quat"):
            np.testing.assert_array_equal(
                getattr(model, name), getattr(compiled, name), err_msg=name
            )
        np.testing.assert_allclose(model.body_quat, compiled.body_quat, rtol=0, atol=1e-15)
        poses.add(model.body_pos.tobytes() + model.body_quat.tobytes())
    # Of these tasks only Door has a body whose pose is drawn and stands in the model.
    assert len(poses) == (4 if task == "Door" else 1)


def test_can_stands_in_the_model_as_robosuites_reset_puts_it(blind):
    """Bins and pictures of objects are moved after compiling, in each episode alike."""
    environment = blind["Can"]
    environment.reset(seed=0)
    model = environment.robosuite.sim.model._model
    for name in ("bin1", "bin2"):
        position_m = getattr(environment.robosuite, f"{name}_pos")
        np.testing.assert_array_equal(model.body(name).pos, position_m)
        np.testing.assert_array_equal(compiled_anew(environment).body(name).pos, position_m)


@pytest.mark.parametrize("task", ["Lift", "Can", "Door"])
def test_robosuite_plays_an_episode_back_from_its_model_and_first_state(blind, task):
    """Done as robosuite's own playback and robomimic do."""
    environment = blind[task]
    environment.reset(seed=6)
    actions = smooth_actions(20, 7, seed=3)
    own = environment.env_args.make(import_robosuite(log=False))
    own.reset()
    own.reset_from_xml_string(own.edit_model_xml(environment.model_xml()))
    own.sim.reset()
    own.sim.set_state_from_flattened(environment.simulator_state())
    own.sim.forward()
    for action in actions:
        environment.step(action)
        own.step(action)
        np.testing.assert_allclose(
            own.sim.get_state().flatten(), environment.simulator_state(), rtol=0, atol=1e-9
        )
    own.close()
