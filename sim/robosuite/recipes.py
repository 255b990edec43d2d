"""What the demonstrators of robosuite's tasks do in each recipe."""

from dataclasses import replace

import numpy as np

from robot_qsft.sim.recipes import Quality
from robot_qsft.sim.robosuite.config import CARRIED, RobosuiteConfig, Task
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

_RIGHT: Offset = (0.0, 0.0, 0.0)
_NOISY = 0.38
_MIXED_GOOD = 0.4
_PRIOR_GOOD = 0.46
_TASK_GOOD = 0.41
_PRIOR_STEPS = 75
_TASK_STEPS = 120


def check(quality: Quality, environment: RobosuiteConfig) -> None:
    """Refuse a recipe that does not fit the task.

    Raises:
        ValueError: naming what is needed.
    """
    if quality == "stitch" and environment.task not in CARRIED:
        raise ValueError(f"the stitch recipe needs {' or '.join(CARRIED)}, got {environment.task}")
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
    elif quality == "stitch" and index % 2 == 0:
        offset = _RIGHT if chance < _PRIOR_GOOD else MISSES_M[task]
        script = Script(task, carry=False, grasp_offset_m=offset)
        environment = replace(environment, start="table", max_steps=_PRIOR_STEPS)
        return Attempt(environment, script, episode_seed, "stitch/prior")
    elif quality == "stitch":
        offset = _RIGHT if chance < _TASK_GOOD else RELEASES_BESIDE_M[task]
        script = Script(task, release_offset_m=offset)
        environment = replace(environment, start="gripper", max_steps=_TASK_STEPS)
        return Attempt(environment, script, episode_seed, "stitch/task")
    return Attempt(environment, script, episode_seed, quality)
