"""What the demonstrators of the tabletop tasks do in each recipe."""

from robot_qsft.sim.pybullet.config import PyBulletConfig
from robot_qsft.sim.pybullet.demonstrators import Script
from robot_qsft.sim.recipes import NOISY, Mistakes, Plan, Quality
from robot_qsft.sim.rollouts import Attempt

CLOSES_TOO_HIGH_M = (0.0, 0.0, 0.04)
RELEASES_BESIDE_M = (0.0, -0.09, 0.0)
_MISTAKES = Mistakes(CLOSES_TOO_HIGH_M, RELEASES_BESIDE_M, prior_steps=18, task_steps=24)


def attempts(
    quality: Quality, environment: PyBulletConfig, *, episodes: int, seed: int
) -> list[Attempt]:
    """See `robot_qsft.sim.recipes.attempts`."""
    if quality == "stitch" and environment.task != "Stitch":
        raise ValueError(f"the stitch recipe needs the Stitch task, got {environment.task}")
    if environment.yaw_action:
        raise ValueError("the demonstrators keep the hand's yaw; leave yaw_action off")
    carries = environment.task != "Lift"
    script = Script(carry=carries, noise=NOISY) if quality == "noisy" else Script(carry=carries)
    plans = (Plan.of(quality, index, seed=seed, carries=carries) for index in range(episodes))
    return [plan.attempt(script, environment, _MISTAKES) for plan in plans]
