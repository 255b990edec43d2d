"""What the demonstrators of the tabletop tasks do in each recipe."""

from dataclasses import replace

import numpy as np

from robot_qsft.sim.pybullet.config import PyBulletConfig
from robot_qsft.sim.pybullet.demonstrators import Script
from robot_qsft.sim.recipes import Quality
from robot_qsft.sim.rollouts import Attempt

CLOSES_TOO_HIGH_M = (0.0, 0.0, 0.04)
RELEASES_BESIDE_M = (0.0, -0.09, 0.0)

_NOISY = 0.38
_MIXED_GOOD = 0.4
_PRIOR_GOOD = 0.46
_TASK_GOOD = 0.41
_PRIOR_STEPS = 18
_TASK_STEPS = 24


def check(quality: Quality, environment: PyBulletConfig) -> None:
    """Refuse a recipe that does not fit the task.

    Raises:
        ValueError: naming what is needed.
    """
    if quality == "stitch" and environment.task != "Stitch":
        raise ValueError(f"the stitch recipe needs the Stitch task, got {environment.task}")
    if environment.yaw_action:
        raise ValueError("the demonstrators keep the hand's yaw; leave yaw_action off")


def attempt(quality: Quality, environment: PyBulletConfig, *, index: int, seed: int) -> Attempt:
    """The demonstration of a number; it depends on number and seed alone."""
    rng = np.random.default_rng([seed, index])
    episode_seed = int(rng.integers(2**31))
    chance = rng.random()
    carry = environment.task != "Lift"
    script, kind = Script(carry=carry), quality
    if quality == "noisy":
        script = Script(carry=carry, noise=_NOISY)
    elif quality == "mixed" and chance > _MIXED_GOOD:
        grasps_badly = not carry or chance > (1 + _MIXED_GOOD) / 2
        script = (
            Script(carry=carry, grasp_offset_m=CLOSES_TOO_HIGH_M)
            if grasps_badly
            else Script(carry=carry, release_offset_m=RELEASES_BESIDE_M)
        )
    elif quality == "stitch" and index % 2 == 0:
        offset = (0.0, 0.0, 0.0) if chance < _PRIOR_GOOD else CLOSES_TOO_HIGH_M
        script = Script(carry=False, grasp_offset_m=offset)
        environment = replace(environment, start="table", max_steps=_PRIOR_STEPS)
        return Attempt(environment, script, episode_seed, "stitch/prior")
    elif quality == "stitch":
        offset = (0.0, 0.0, 0.0) if chance < _TASK_GOOD else RELEASES_BESIDE_M
        script = Script(release_offset_m=offset)
        environment = replace(environment, start="gripper", max_steps=_TASK_STEPS)
        return Attempt(environment, script, episode_seed, "stitch/task")
    return Attempt(environment, script, episode_seed, kind)
