"""What the demonstrators of robosuite's tasks do in each recipe."""

from robot_qsft.sim.recipes import NOISY, Mistakes, Plan, Quality
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

_PRIOR_STEPS = 75
_TASK_STEPS = 120


def attempts(
    quality: Quality, environment: RobosuiteConfig, *, episodes: int, seed: int
) -> list[Attempt]:
    """See `robot_qsft.sim.recipes.attempts`."""
    _check(quality, environment)
    task = environment.task
    script = Script(task, noise=NOISY) if quality == "noisy" else Script(task)
    plans = (
        Plan.of(quality, index, seed=seed, carries=task in CARRIED) for index in range(episodes)
    )
    mistakes = Mistakes(
        MISSES_M[task],
        RELEASES_BESIDE_M.get(task, (0.0, 0.0, 0.0)),
        prior_steps=_PRIOR_STEPS,
        task_steps=_TASK_STEPS,
    )
    return [plan.attempt(script, environment, mistakes) for plan in plans]


def _check(quality: Quality, environment: RobosuiteConfig) -> None:
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
