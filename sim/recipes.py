"""Named mixtures of good and bad demonstrations."""

from typing import Literal, TypeAlias

from robot_qsft.sim.environment import EnvironmentConfig
from robot_qsft.sim.robosuite.config import RobosuiteConfig
from robot_qsft.sim.rollouts import Attempt

Quality: TypeAlias = Literal["expert", "noisy", "mixed", "stitch"]


def attempts(
    quality: Quality, environment: EnvironmentConfig, *, episodes: int, seed: int
) -> list[Attempt]:
    """What each of `episodes` demonstrations does.

    - expert: does it right.
    - noisy: does it right, with noise on the actions.
    - mixed: 40% do it right; the others make a mistake, always in the same way: they close the
      gripper too high, or let go beside the goal.
    - stitch (after COG, Singh et al. 2020, arXiv 2010.14500): half are "prior", which only try to
      grasp (54% close too high) and never see a reward; half are "task", which start with the
      object in the gripper and place it (59% beside the goal). None shows the whole task.

    Episode i depends on `seed` and i alone.

    Raises:
        ValueError: when the recipe does not fit the task.
    """
    if isinstance(environment, RobosuiteConfig):
        from robot_qsft.sim.robosuite import recipes as robosuite

        robosuite.check(quality, environment)
        return [
            robosuite.attempt(quality, environment, index=index, seed=seed)
            for index in range(episodes)
        ]
    from robot_qsft.sim.pybullet import recipes as pybullet

    pybullet.check(quality, environment)
    return [
        pybullet.attempt(quality, environment, index=index, seed=seed) for index in range(episodes)
    ]
