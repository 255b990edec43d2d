"""What the demonstrators of robosuite's tasks do in each recipe."""

import numpy as np

from robot_qsft.sim.recipes import Quality
from robot_qsft.sim.robosuite.config import RobosuiteConfig, Task
from robot_qsft.sim.robosuite.demonstrators import Offset, Script
from robot_qsft.sim.rollouts import Attempt

MISSES_M: dict[Task, Offset] = {
    "Lift": (0.0, 0.0, 0.04),
    "Can": (0.0, 0.0, 0.07),
    "Stack": (0.0, 0.0, 0.04),
    "Door": (0.0, 0.05, 0.0),
}
"""Where the gripper closes on nothing: above the object, or in front of the lever."""
RELEASES_BESIDE_M: dict[Task, Offset] = {"Can": (0.0, -0.2, 0.0), "Stack": (0.0, -0.08, 0.0)}
"""Where it opens beside the goal: over the next compartment, or next to the cube below."""

_NOISY = 0.38
_MIXED_GOOD = 0.4


def check(quality: Quality, environment: RobosuiteConfig) -> None:
    """Refuse a recipe that does not fit the task.

    Raises:
        ValueError: naming what is needed.
    """
    if environment.demos:
        raise ValueError("demonstrators know the tasks by name; give --task instead of --demos")
    if environment.task not in MISSES_M:
        raise ValueError(
            f"there is no demonstrator for {environment.task}; choose {', '.join(MISSES_M)}"
        )
    if environment.robot != "Panda" or environment.controller != "osc_pose":
        raise ValueError(
            "the demonstrators move a Panda by osc_pose, got "
            f"{environment.robot} and {environment.controller}"
        )
    if environment.reward != "sparse":
        raise ValueError("demonstrations are rewarded once, at success; leave reward at 'sparse'")


def attempt(quality: Quality, environment: RobosuiteConfig, *, index: int, seed: int) -> Attempt:
    """The demonstration of a number; it depends on number and seed alone."""
    rng = np.random.default_rng([seed, index])
    episode_seed = int(rng.integers(2**31))
    chance = rng.random()
    task = environment.task
    script = Script(task)
    if quality == "noisy":
        script = Script(task, noise=_NOISY)
    elif quality == "mixed" and chance > _MIXED_GOOD:
        misses = task not in RELEASES_BESIDE_M or chance > (1 + _MIXED_GOOD) / 2
        script = (
            Script(task, grasp_offset_m=MISSES_M[task])
            if misses
            else Script(task, release_offset_m=RELEASES_BESIDE_M[task])
        )
    return Attempt(environment, script, episode_seed, quality)
