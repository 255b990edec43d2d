"""Named mixtures of good and bad demonstrations."""

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from robot_qsft.sim.environment import EnvironmentConfig
from robot_qsft.sim.robosuite.config import RobosuiteConfig
from robot_qsft.sim.rollouts import Attempt

Quality: TypeAlias = Literal["expert", "noisy", "mixed", "stitch"]

NOISY = 0.38
"""Standard deviation of the noise on the actions of the noisy recipe."""
_MIXED_GOOD = 0.4
_PRIOR_GOOD = 0.46
_TASK_GOOD = 0.41


@dataclass(frozen=True)
class Mistakes:
    """How demonstrators of a task go wrong.

    Attributes:
        misses_m: where the gripper closes on nothing, from where it should close.
        releases_beside_m: where it lets go, from where it should; of no use where nothing is
            carried.
        prior_steps: time-out of demonstrations that only grasp.
        task_steps: of those that begin with the object in the gripper.
    """

    misses_m: tuple[float, float, float]
    releases_beside_m: tuple[float, float, float]
    prior_steps: int
    task_steps: int


@dataclass(frozen=True)
class Plan:
    """What one demonstration of a recipe does, whatever the simulator.

    Attributes:
        seed: of its start state and its noise.
        demonstrator: name to record.
        part: the whole task, only the grasp ("prior"), or from the gripper on ("task").
        misses: whether the gripper closes on nothing.
        releases_beside: whether it lets go beside the goal.
    """

    seed: int
    demonstrator: str
    part: Literal["whole", "prior", "task"] = "whole"
    misses: bool = False
    releases_beside: bool = False

    @classmethod
    def of(cls, quality: Quality, index: int, *, seed: int, carries: bool) -> "Plan":
        """The plan of demonstration `index`, which depends on it and the seed alone.

        Args:
            quality: the recipe.
            index: of the demonstration.
            seed: of the whole collection.
            carries: whether the task has a goal that an object is taken to.
        """
        rng = np.random.default_rng([seed, index])
        episode_seed = int(rng.integers(2**31))
        chance = rng.random()
        if quality == "stitch" and index % 2 == 0:
            return cls(episode_seed, "stitch/prior", "prior", misses=chance >= _PRIOR_GOOD)
        if quality == "stitch":
            return cls(episode_seed, "stitch/task", "task", releases_beside=chance >= _TASK_GOOD)
        errs = quality == "mixed" and chance > _MIXED_GOOD
        misses = errs and (not carries or chance > (1 + _MIXED_GOOD) / 2)
        return cls(episode_seed, quality, misses=misses, releases_beside=errs and not misses)

    def attempt(self, script: Any, environment: EnvironmentConfig, mistakes: Mistakes) -> Attempt:
        """The plan carried out.

        Args:
            script: of a demonstrator that does the whole task right; an engine's dataclass.
            environment: where.
            mistakes: where this task's demonstrators err, and how long their parts of it take.
        """
        if self.misses:
            script = replace(script, grasp_offset_m=mistakes.misses_m)
        if self.releases_beside:
            script = replace(script, release_offset_m=mistakes.releases_beside_m)
        if self.part == "prior":
            script = replace(script, carry=False)
            environment = replace(environment, start="table", max_steps=mistakes.prior_steps)
        if self.part == "task":
            environment = replace(environment, start="gripper", max_steps=mistakes.task_steps)
        return Attempt(environment, script, self.seed, self.demonstrator)


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

        return robosuite.attempts(quality, environment, episodes=episodes, seed=seed)
    from robot_qsft.sim.pybullet import recipes as pybullet

    return pybullet.attempts(quality, environment, episodes=episodes, seed=seed)
