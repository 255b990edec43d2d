"""Scripted demonstrators, good and bad, for the tabletop tasks.

What makes demonstrations hard to learn from is not noise, which averages out, but mistakes that
are made again and again in the same way. So a demonstrator follows a `Script` whose offsets say
where it closes the gripper and where it opens it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.interface import ActionChunk, Observation
from robot_qsft.sim.motion import motion_to, near
from robot_qsft.sim.pybullet.scene import CUBE_HALF_M
from robot_qsft.sim.pybullet.tasks import HAND_HIGH_M, HAND_LOW_M, STEP_M

_APPROACH_M = 0.09
"""Height above the cube at which the descent begins."""
_CLOSED_M = _OPENED_M = 0.06
"""The hand moves on once its fingers have passed these openings: waiting a fixed time instead would
make the demonstrations depend on what no observation shows."""
_CARRY_M = 0.15
"""Height at which the cube is carried."""
_TOLERANCE_M = 0.01
"""How close the hand comes before the fingers close or open."""
_CLEAR_M = 0.08
"""Height above which the hand moves sideways."""


@dataclass(frozen=True)
class Script:
    """How one attempt goes.

    Attributes:
        carry: whether the cube is taken to the goal; otherwise it is lifted and moved about.
        grasp_offset_m: where the gripper closes, from the centre of the cube.
        release_offset_m: where it opens, from the goal (z: from where it should).
        noise: standard deviation of the noise on each motion action, in [-1, 1].
    """

    carry: bool = True
    grasp_offset_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    release_offset_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    noise: float = 0.1

    def __call__(self) -> "ScriptedDemonstrator":
        """A demonstrator that follows this script."""
        return ScriptedDemonstrator(self)


class ScriptedDemonstrator:
    """A `Policy` that reads the simulator's truth and walks through the phases of a script."""

    def __init__(self, script: Script):
        """Follow `script`."""
        self._script = script
        self.reset(seed=0)

    def reset(self, *, seed: int) -> None:
        """Begin at the first phase, with habits (speed, heights) drawn from `seed`."""
        self._rng = np.random.default_rng(seed)
        self._speed = self._rng.uniform(0.6, 0.95)
        self._phase = "start"
        self._grasp_m = self._release_m = np.zeros(3)

    def act(self, observation: Observation) -> ActionChunk:
        """The next action of the script, one at a time."""
        hand_m = observation.state[:3].astype(np.float64)
        cube_m = observation.environment_state[:3].astype(np.float64)
        goal_m = observation.environment_state[7:10].astype(np.float64)
        if self._phase == "start":
            self._begin(hand_m, cube_m, goal_m)
        opening_m = float(observation.state[7])
        target_m, gripper_open = self._target(hand_m, opening_m)
        motion = motion_to(
            target_m,
            hand_m,
            step_m=STEP_M,
            speed=self._speed,
            noise=self._script.noise,
            rng=self._rng,
        )
        action = [*motion, 1.0 if gripper_open else -1.0]
        return ActionChunk(np.array([action], np.float32))

    def _begin(
        self, hand_m: NDArray[np.float64], cube_m: NDArray[np.float64], goal_m: NDArray[np.float64]
    ) -> None:
        in_hand = np.abs(cube_m - hand_m).max() < CUBE_HALF_M and cube_m[2] > 2 * CUBE_HALF_M
        self._phase = "carry" if in_hand else "approach"
        self._grasp_m = cube_m + self._script.grasp_offset_m
        above_table = np.array([goal_m[0], goal_m[1], CUBE_HALF_M + 0.006])
        self._release_m = above_table + self._script.release_offset_m
        self._hold_m = self._rng.uniform(HAND_LOW_M, HAND_HIGH_M)

    def _target(
        self, hand_m: NDArray[np.float64], opening_m: float
    ) -> tuple[NDArray[np.float64], bool]:
        """Where to go and whether the gripper is open; moves on to the next phase when due."""
        grasp_m, release_m = self._grasp_m, self._release_m
        if self._phase == "approach":
            target_m = np.array([grasp_m[0], grasp_m[1], max(_APPROACH_M, grasp_m[2] + 0.04)])
            if not near(hand_m, target_m, 0.02):
                return target_m, True
            self._phase = "descend"
        if self._phase == "descend":
            if not near(hand_m, grasp_m, _TOLERANCE_M):
                return grasp_m, True
            self._phase = "close"
        if self._phase == "close":
            if opening_m > _CLOSED_M:
                return grasp_m, False
            self._phase = "carry" if self._script.carry else "hold"
        if self._phase == "hold":
            if hand_m[2] < _CLEAR_M:
                return np.array([hand_m[0], hand_m[1], _CARRY_M]), False
            if near(hand_m, self._hold_m, 0.02):
                self._hold_m = self._rng.uniform(HAND_LOW_M, HAND_HIGH_M)
            return self._hold_m, False
        if self._phase == "carry":
            target_m = np.array([release_m[0], release_m[1], max(_CARRY_M, release_m[2])])
            if hand_m[2] < _CLEAR_M:
                return np.array([hand_m[0], hand_m[1], _CARRY_M]), False
            if not near(hand_m[:2], target_m[:2], _TOLERANCE_M):
                return target_m, False
            self._phase = "lower"
        if self._phase == "lower":
            if not near(hand_m, release_m, _TOLERANCE_M):
                return release_m, False
            self._phase = "open"
        if self._phase == "open" and opening_m < _OPENED_M:
            return release_m, True
        self._phase = "retreat"
        return np.array([release_m[0], release_m[1], _CARRY_M]), True
