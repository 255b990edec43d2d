import functools
import importlib.util
from dataclasses import replace

import numpy as np
import pytest

from robot_qsft.datasets.episode import Episode
from robot_qsft.sim.environment import make_environment
from robot_qsft.sim.recipes import attempts
from robot_qsft.sim.robosuite import demonstrators, engine
from robot_qsft.sim.robosuite.config import RobosuiteConfig
from robot_qsft.sim.robosuite.demonstrators import HANDLING, Script
from robot_qsft.sim.robosuite.recipes import MISSES_M, RELEASES_BESIDE_M
from robot_qsft.sim.rollouts import Attempt, rollouts

if importlib.util.find_spec("robosuite") is None:
    pytest.skip("robosuite is not installed", allow_module_level=True)

DEMONSTRATED = ("Lift", "Can", "Stack", "Door")
NOWHERE = (0.0, 0.0, 0.0)
PATIENCE = {"Lift": 200, "Can": 250, "Stack": 200, "Door": 200}
ENOUGH = {"Lift": 70, "Can": 200, "Stack": 110, "Door": 110}
"""Steps in which an expert is done; what failed by then is not watched any longer."""


def blind(task, **options):
    return RobosuiteConfig(task, cameras=(), **options)


@functools.cache
def collected(quality, task, episodes, max_steps):
    """Rollouts that the tests of this file share."""
    todo = attempts(quality, blind(task, max_steps=max_steps), episodes=episodes, seed=7)
    return list(rollouts(todo, workers=1))


def is_mistake(attempt):
    return (attempt.policy.grasp_offset_m, attempt.policy.release_offset_m) != (NOWHERE, NOWHERE)


@functools.cache
def names_of(task):
    environment = make_environment(blind(task))
    names = environment.state_names, environment.environment_state_names
    environment.close()
    return names


def object_positions(task, episode):
    return episode.environment_states[:, HANDLING[task].object_m]


@pytest.mark.parametrize("task", DEMONSTRATED)
def test_expert_succeeds(task):
    episodes = [rollout.episode for rollout in collected("expert", task, 10, PATIENCE[task])]
    assert sum(episode.success for episode in episodes) >= 9
    for episode in episodes:
        assert episode.success == episode.terminated == (not episode.truncated)
        assert episode.success or len(episode) == PATIENCE[task]


@pytest.mark.parametrize("task", DEMONSTRATED)
def test_mixed_does_it_right_or_makes_its_mistake_and_fails(task):
    done = collected("mixed", task, 8, ENOUGH[task])
    mistakes = [is_mistake(rollout.attempt) for rollout in done]
    assert 2 <= sum(mistakes) <= 6
    assert [rollout.episode.success for rollout in done] == [not one for one in mistakes]


def test_a_missed_grasp_never_lifts_the_cube():
    todo = attempts("mixed", blind("Lift"), episodes=8, seed=70)
    failed = [rollout.episode for rollout in rollouts([*filter(is_mistake, todo)][:4], workers=1)]
    assert len(failed) == 4
    for episode in failed:
        assert episode.truncated
        assert len(episode) == 200
        assert episode.rewards.sum() == 0
        # The gripper closed 4 cm above where it saw the cube, which stayed there.
        moved_m = np.ptp(object_positions("Lift", episode)[5:], axis=0)
        assert moved_m.max() < 0.005
        closing = np.flatnonzero(episode.actions[:, -1] > 0)[0]
        above_m = episode.states[closing, 2] - object_positions("Lift", episode)[0, 2]
        assert above_m == pytest.approx(MISSES_M["Lift"][2], abs=0.01)


@pytest.mark.parametrize("task", ["Can", "Stack"])
def test_what_is_released_beside_lies_beside(task):
    todo = attempts("mixed", blind(task, max_steps=ENOUGH[task]), episodes=40, seed=3)
    beside = [one for one in todo if one.policy.release_offset_m != NOWHERE][:2]
    for rollout in rollouts(beside, workers=1):
        episode = rollout.episode
        positions_m = object_positions(task, episode)
        assert positions_m[:, 2].max() > positions_m[5, 2] + 0.1
        handling = HANDLING[task]
        goal_m = handling.goal_m
        if handling.object_goal is not None:
            goal_m = episode.environment_states[-1, handling.object_goal]
        assert positions_m[-1, 2] < positions_m[5, 2] + 0.02  # it was let go, and lies
        off_m = positions_m[-1, :2] - goal_m[:2]
        np.testing.assert_allclose(off_m, RELEASES_BESIDE_M[task][:2], atol=0.06)
        assert not episode.success


@pytest.mark.parametrize("task", ["Can", "Stack"])
def test_stitch_never_shows_the_whole_task(task):
    todo = attempts("stitch", blind(task), episodes=2000, seed=0)
    prior, placing = todo[::2], todo[1::2]
    assert {one.demonstrator for one in prior} == {"stitch/prior"}
    assert {one.demonstrator for one in placing} == {"stitch/task"}
    assert {one.environment.start for one in prior} == {"table"}
    assert {one.environment.start for one in placing} == {"gripper"}
    assert {one.policy.carry for one in prior} == {False}
    # 54% of the grasps miss and 59% of the releases are beside, up to 3 standard deviations.
    assert abs(sum(is_mistake(one) for one in prior) - 540) < 3 * np.sqrt(1000 * 0.54 * 0.46)
    assert abs(sum(is_mistake(one) for one in placing) - 590) < 3 * np.sqrt(1000 * 0.59 * 0.41)

    few = []
    for kind in (prior, placing):
        few += [one for one in kind if is_mistake(one)][:2]
        few += [one for one in kind if not is_mistake(one)][:2]
    for rollout in rollouts(few, workers=1):
        episode, wrong = rollout.episode, is_mistake(rollout.attempt)
        positions_m = object_positions(task, episode)
        if rollout.attempt.demonstrator == "stitch/prior":
            assert episode.truncated
            assert not episode.success
            assert (positions_m[-1, 2] > positions_m[5, 2] + 0.08) == (not wrong)
        else:
            assert np.abs(positions_m[0] - episode.states[0, :3]).max() < 0.04
            assert episode.success == (not wrong)


def test_noise_makes_experts_slower():
    lengths = {
        quality: [len(rollout.episode) for rollout in collected(quality, "Lift", 10, 200)]
        for quality in ("expert", "noisy")
    }
    assert np.mean(lengths["noisy"]) > np.mean(lengths["expert"])


def test_without_carrying_the_can_is_lifted_and_held():
    script = Script("Can", carry=False)
    (rollout,) = rollouts([Attempt(blind("Can", max_steps=90), script, seed=0)], workers=1)
    heights_m = object_positions("Can", rollout.episode)[:, 2]
    assert rollout.episode.truncated
    assert (heights_m[-10:] > heights_m[5] + 0.08).all()
    assert (rollout.episode.actions[-10:, -1] > 0).all()


@pytest.mark.parametrize("task", DEMONSTRATED)
def test_mixture_is_as_announced(task):
    """40% right; the others in equal parts each mistake that the task knows."""
    todo = attempts("mixed", blind(task), episodes=2000, seed=0)
    mistakes = [one.policy for one in todo if is_mistake(one)]
    # Three standard deviations of a binomial are 3 sqrt(2000 0.4 0.6) = 66.
    assert abs(len(todo) - len(mistakes) - 800) < 66
    kinds = {(one.grasp_offset_m, one.release_offset_m) for one in mistakes}
    expected = {(MISSES_M[task], NOWHERE)}
    if task in RELEASES_BESIDE_M:
        expected.add((NOWHERE, RELEASES_BESIDE_M[task]))
        missed = sum(one.grasp_offset_m != NOWHERE for one in mistakes)
        assert abs(missed - 600) < 3 * np.sqrt(2000 * 0.3 * 0.7)
    assert kinds == expected
    assert {one.demonstrator for one in todo} == {"mixed"}
    assert {one.policy.noise for one in todo} == {Script(task).noise}
    assert len({one.seed for one in todo}) == 2000


def test_episode_depends_on_seed_and_place_alone():
    few = attempts("mixed", blind("Can"), episodes=3, seed=5)
    assert attempts("mixed", blind("Can"), episodes=9, seed=5)[:3] == few
    assert attempts("mixed", blind("Can"), episodes=3, seed=6) != few


def test_episode_does_not_depend_on_workers_nor_on_what_ran_before(parts):
    cameras = ("agentview",) if engine._choose_renderer() else ()
    config = RobosuiteConfig("Lift", cameras=cameras, image_size=24, max_steps=15)
    todo = attempts("noisy", config, episodes=3, seed=2)
    alone = list(rollouts(todo, workers=1))
    backwards = list(rollouts(todo[::-1], workers=1))[::-1]
    together = list(rollouts(todo, workers=2))
    for others in (backwards, together):
        for one, other in zip(alone, others, strict=True):
            assert one.attempt == other.attempt
            assert set(parts(one)) == set(parts(other))
            for name, part in parts(one).items():
                np.testing.assert_array_equal(part, parts(other)[name], err_msg=name)
    starts = {rollout.episode.environment_states[0].tobytes() for rollout in alone}
    assert len(starts) == 3
    assert all(set(rollout.episode.images) == set(cameras) for rollout in alone)


@pytest.mark.parametrize("task", DEMONSTRATED)
def test_recorded_episodes_are_what_the_names_say(task):
    state_names, truth_names = names_of(task)
    for rollout in collected("mixed", task, 8, ENOUGH[task]):
        episode = rollout.episode
        assert isinstance(episode, Episode)
        steps = len(episode)
        assert episode.states.shape == (steps, len(state_names))
        assert episode.environment_states.shape == (steps, len(truth_names))
        assert episode.actions.shape == (steps, 7)
        for part in (episode.states, episode.environment_states, episode.actions, episode.rewards):
            assert part.dtype == np.float32
        assert episode.terminated == episode.success == (not episode.truncated)
        assert episode.rewards.sum() == episode.success
        assert episode.rewards[-1] == episode.success == episode.successes[-1]
        assert episode.demonstrator == "mixed"
        assert episode.images == {}


@pytest.mark.parametrize("task", DEMONSTRATED)
def test_actions_keep_off_the_bounds_so_that_bins_have_room(task):
    done = [*collected("mixed", task, 8, ENOUGH[task])]
    actions = np.concatenate([rollout.episode.actions for rollout in done])
    assert np.abs(actions).max() <= 1
    assert (np.abs(actions[:, :3]) > 0.98).mean() < 0.05
    assert set(np.unique(actions[:, 6])) == {-1.0, 1.0}
    if task != "Door":  # else the hand keeps its turn
        assert (actions[:, 3:6] == 0).all()


@pytest.mark.parametrize(
    ("task", "where", "name"),
    [
        ("Lift", HANDLING["Lift"].object_m, "cube_pos"),
        ("Can", HANDLING["Can"].object_m, "Can_pos"),
        ("Stack", HANDLING["Stack"].object_m, "cubeA_pos"),
        ("Stack", HANDLING["Stack"].object_goal, "cubeB_pos"),
        ("Door", demonstrators._DOOR_HANDLE_M, "handle_pos"),
    ],
)
def test_demonstrators_find_positions_where_the_environment_has_them(task, where, name):
    state_names, truth_names = names_of(task)
    assert truth_names[where] == tuple(f"{name}_{index}" for index in range(3))
    assert state_names[:3] == tuple(f"robot0_eef_pos_{index}" for index in range(3))
    assert state_names[3:7] == tuple(f"robot0_eef_quat_{index}" for index in range(4))
    assert state_names[7:] == ("robot0_gripper_qpos_0", "robot0_gripper_qpos_1")


def test_demonstrators_know_the_door_the_bin_the_table_and_the_hand():
    assert names_of("Door")[1][demonstrators._DOOR_LATCH_RAD] == "handle_qpos"
    environment = make_environment(blind("Can"))
    robosuite = environment.robosuite
    bin_m = robosuite.target_bin_placements[robosuite.object_to_id["can"]]
    np.testing.assert_allclose(bin_m, demonstrators._CAN_BIN_M, atol=1e-6)
    controller = robosuite.robots[0].composite_controller.part_controllers["right"]
    expected = [demonstrators.STEP_M] * 3 + [demonstrators.STEP_RAD] * 3
    np.testing.assert_allclose(controller.output_max, expected)
    environment.close()
    environment = make_environment(blind("Lift"))
    assert environment.robosuite.table_offset[2] == demonstrators._TABLE_M
    environment.close()


@pytest.mark.parametrize(
    ("quality", "changes", "sentence"),
    [
        ("expert", {"task": "Square"}, r"for Square; choose Lift, Can, Stack, Door"),
        ("expert", {"robot": "Sawyer"}, r"move a Panda by osc_pose, got Sawyer and osc_pose"),
        (
            "expert",
            {"controller": "joint_position"},
            r"move a Panda by osc_pose, got Panda and joint_position",
        ),
        ("mixed", {"reward": "shaped"}, r"leave reward at 'sparse'"),
        ("expert", {"demos": "lift.hdf5"}, r"give --task instead of --demos"),
        ("stitch", {"task": "Lift"}, r"the stitch recipe needs Can or Stack, got Lift"),
        ("stitch", {"task": "Door"}, r"the stitch recipe needs Can or Stack, got Door"),
        ("stitch", {"task": "Square"}, r"the stitch recipe needs Can or Stack, got Square"),
    ],
)
def test_combinations_that_do_not_work_are_refused(quality, changes, sentence):
    config = replace(blind("Lift"), **changes)
    with pytest.raises(ValueError, match=sentence) as refused:
        attempts(quality, config, episodes=1, seed=0)
    assert "\n" not in str(refused.value)
