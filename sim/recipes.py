"""Named mixtures of good and bad demonstrations."""

from dataclasses import replace
from typing import Literal, TypeAlias

import numpy as np

from robot_qsft.sim.environment import EnvironmentConfig
from robot_qsft.sim.pybullet.demonstrators import Script
from robot_qsft.sim.rollouts import Attempt

Quality: TypeAlias = Literal["expert", "noisy", "mixed", "stitch"]

CLOSES_TOO_HIGH_M = (0.0, 0.0, 0.04)
RELEASES_BESIDE_M = (0.0, -0.09, 0.0)

_NOISY = 0.38
_MIXED_GOOD = 0.4
_PRIOR_GOOD = 0.46
_TASK_GOOD = 0.41
_PRIOR_STEPS = 18
_TASK_STEPS = 24


def attempts(
    quality: Quality, environment: EnvironmentConfig, *, episodes: int, seed: int
) -> list[Attempt]:
    """What each of `episodes` demonstrations does.

    - expert: does it right.
    - noisy: does it right, with noise on the actions.
    - mixed: 40% do it right; the others close the gripper 4 cm too high or release the cube 9 cm
      beside the goal.
    - stitch (after COG, Singh et al. 2020, arXiv 2010.14500): half are "prior", which only try to
      grasp (54% close too high) and never see a reward; half are "task", which start with the cube
      in the gripper and place it (59% beside the goal). None shows the whole task.

    Episode i depends on `seed` and i alone.

    Raises:
        ValueError: when the recipe does not fit the task.
    """
    if quality == "stitch" and environment.task != "Stitch":
        raise ValueError(f"the stitch recipe needs the Stitch task, got {environment.task}")
    if environment.yaw_action:
        raise ValueError("the demonstrators keep the hand's yaw; leave yaw_action off")
    return [_attempt(quality, environment, index, seed) for index in range(episodes)]


def _attempt(quality: Quality, environment: EnvironmentConfig, index: int, seed: int) -> Attempt:
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
