"""Scripted demonstrators, good and bad, for robosuite's tasks.

As in PyBullet, what makes demonstrations hard to learn from is not noise but mistakes that are made
again and again in the same way: a `Script` says where the gripper closes and where it opens.
"""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.interface import ActionChunk, Observation
from robot_qsft.sim.motion import Position, motion_to, near
from robot_qsft.sim.robosuite.config import CARRIED, Task

Offset: TypeAlias = tuple[float, float, float]

STEP_M = 0.05
"""Hand displacement that an action of 1 asks for; the arm follows at about a third of it."""
STEP_RAD = 0.5
_NOWHERE: Offset = (0.0, 0.0, 0.0)
_APPROACH_M = 0.08
"""Height above the object at which the descent begins."""
_TOLERANCE_M = 0.008
_IN_HAND_M = 0.025
"""How far an object that is held may have slipped from where the hand should hold it."""
_STOPPED = 0.1
"""The fingers are closed, or open, once they move this much of their fastest step."""
_FIRST_STEPS = 3
"""Steps that fingers may need to begin to move."""
_CAN_BIN_M = (0.1975, 0.4025, 0.8)
"""Centre of the compartment that robosuite wants the can in."""
_TABLE_M = 0.8
_DOOR_HANDLE_M, _DOOR_LATCH_RAD = slice(3, 6), 13
"""Where the environment state of Door holds the lever's end and its turn."""
_FACE_DOOR_RAD = (-np.pi / 2, 0.0, 0.0)
_LATCH_TURNED_RAD = 1.3
_TURN_M, _PULL_M = 0.045, np.array([0.0, 0.045, 0.0])
"""How far the hand is drawn along the lever's circle at a step, and where to open the door."""


@dataclass(frozen=True)
class Handling:
    """How an object is picked up and where it goes.

    Attributes:
        object_m: where the environment state holds the object's position.
        grasp_m: where the hand closes, from the object's centre.
        carry_m: height of the hand on the way.
        release_m: where the hand lets go, from the goal.
        object_goal: where the environment state holds the goal; None where it is always `goal_m`.
        goal_m: that place; None where the object is only lifted.
    """

    object_m: slice
    grasp_m: Offset
    carry_m: float
    release_m: Offset = _NOWHERE
    object_goal: slice | None = None
    goal_m: Offset | None = None


HANDLING: dict[Task, Handling] = {
    "Lift": Handling(slice(0, 3), _NOWHERE, carry_m=_TABLE_M + 0.2),
    "Can": Handling(
        slice(7, 10),
        (0.0, 0.0, 0.015),
        carry_m=_TABLE_M + 0.2,
        release_m=(0.0, 0.0, 0.13),
        goal_m=_CAN_BIN_M,
    ),
    "Stack": Handling(
        slice(0, 3),
        (0.0, 0.0, 0.005),
        carry_m=_TABLE_M + 0.17,
        release_m=(0.0, 0.0, 0.053),
        object_goal=slice(7, 10),
    ),
}


@dataclass(frozen=True)
class Script:
    """How one attempt goes.

    Attributes:
        task: what is attempted.
        carry: whether the object is taken to the goal; otherwise it is lifted and held.
        grasp_offset_m: where the gripper closes, from where it should.
        release_offset_m: where it opens, from where it should.
        noise: standard deviation of the noise on each motion action, in [-1, 1].
    """

    task: Task
    carry: bool = True
    grasp_offset_m: Offset = _NOWHERE
    release_offset_m: Offset = _NOWHERE
    noise: float = 0.1

    def __call__(self) -> "PickDemonstrator | DoorDemonstrator":
        """A demonstrator that follows this script."""
        return DoorDemonstrator(self) if self.task == "Door" else PickDemonstrator(self)


class _Hand:
    """What all demonstrators do alike: move straight at a habitual speed, watch the fingers."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.reset(seed=0)

    def reset(self, *, seed: int) -> None:
        """Begin at the first phase, with a speed drawn from `seed`."""
        self._rng = np.random.default_rng(seed)
        self._speed = self._rng.uniform(0.6, 0.95)
        self._closing = False
        self._fingers: NDArray[np.float64] | None = None
        self._fastest = 0.0
        self._waited = 0

    def _act(
        self,
        hand_m: Position,
        target_m: Position,
        *,
        close: bool,
        turn_rad: NDArray[np.float64] | None = None,
    ) -> ActionChunk:
        motion = motion_to(
            target_m,
            hand_m,
            step_m=STEP_M,
            speed=self._speed,
            noise=self._script.noise,
            rng=self._rng,
        )
        if close != self._closing:
            self._closing, self._fastest, self._waited = close, 0.0, 0
        turn = np.zeros(3) if turn_rad is None else (turn_rad / STEP_RAD).clip(-1, 1)
        action = [*motion, *turn, 1.0 if close else -1.0]
        return ActionChunk(np.array([action], np.float32))

    def _fingers_rest(self, fingers: NDArray[np.float64]) -> bool:
        """Whether the fingers have done what they were last told to."""
        moved = 0.0 if self._fingers is None else float(np.abs(fingers - self._fingers).max())
        self._fingers = fingers
        self._fastest = max(self._fastest, moved)
        self._waited += 1
        return self._waited > _FIRST_STEPS and moved <= _STOPPED * self._fastest


class PickDemonstrator(_Hand):
    """A `Policy` for Lift, Can and Stack that reads the simulator's truth."""

    def reset(self, *, seed: int) -> None:
        """Begin at the first phase, with habits drawn from `seed`."""
        super().reset(seed=seed)
        self._phase: Literal[
            "start", "approach", "descend", "close", "lift", "carry", "lower", "open", "retreat"
        ] = "start"
        self._grasp_m = self._release_m = np.zeros(3)

    @property
    def carries(self) -> bool:
        """Whether it has picked up the object and has not put it down."""
        return self._phase in ("carry", "lower")

    def act(self, observation: Observation) -> ActionChunk:
        """The next action of the script, one at a time."""
        state = observation.state.astype(np.float64)
        truth = observation.environment_state.astype(np.float64)
        hand_m, rests = state[:3], self._fingers_rest(state[7:])
        if self._phase == "start":
            self._begin(hand_m, truth)
        target_m, close = self._target(hand_m, rests)
        return self._act(hand_m, target_m, close=close)

    def _begin(self, hand_m: Position, truth: Position) -> None:
        handling, script = HANDLING[self._script.task], self._script
        object_m = truth[handling.object_m]
        in_hand = np.abs(object_m + handling.grasp_m - hand_m).max() < _IN_HAND_M
        self._phase = "carry" if in_hand else "approach"
        self._grasp_m = object_m + handling.grasp_m + script.grasp_offset_m
        goal_m = truth[handling.object_goal] if handling.object_goal else handling.goal_m
        if goal_m is not None:
            self._release_m = np.add(goal_m, handling.release_m) + script.release_offset_m

    def _target(self, hand_m: Position, fingers_rest: bool) -> tuple[Position, bool]:
        """Where to go and whether to close; moves on to the next phase when due."""
        grasp_m, release_m = self._grasp_m, self._release_m
        handling = HANDLING[self._script.task]
        carries = self._script.carry and self._script.task in CARRIED
        if self._phase == "approach":
            target_m = np.add(grasp_m, (0.0, 0.0, _APPROACH_M))
            if not near(hand_m, target_m, 0.015):
                return target_m, False
            self._phase = "descend"
        if self._phase == "descend":
            if not near(hand_m, grasp_m, _TOLERANCE_M):
                return grasp_m, False
            self._phase = "close"
            return grasp_m, True
        if self._phase == "close":
            if not fingers_rest:
                return grasp_m, True
            self._phase = "lift"
        if self._phase == "lift":
            target_m = np.array([grasp_m[0], grasp_m[1], handling.carry_m])
            if not carries or hand_m[2] < handling.carry_m - 0.03:
                return target_m, True
            self._phase = "carry"
        if self._phase == "carry":
            target_m = np.array([release_m[0], release_m[1], max(handling.carry_m, release_m[2])])
            if not near(hand_m[:2], target_m[:2], _TOLERANCE_M):
                return target_m, True
            self._phase = "lower"
        if self._phase == "lower":
            if not near(hand_m, release_m, _TOLERANCE_M):
                return release_m, True
            self._phase = "open"
            return release_m, False
        if self._phase == "open" and not fingers_rest:
            return release_m, False
        self._phase = "retreat"
        return np.array([release_m[0], release_m[1], handling.carry_m]), False


class DoorDemonstrator(_Hand):
    """A `Policy` for Door: grasps the lever from the front, turns it, then draws the door open."""

    def reset(self, *, seed: int) -> None:
        """Begin at the first phase, with habits drawn from `seed`."""
        super().reset(seed=seed)
        self._phase: Literal["face", "reach", "close", "turn", "pull"] = "face"
        self._facing: Any = None

    def act(self, observation: Observation) -> ActionChunk:
        """The next action of the script, one at a time."""
        from scipy.spatial.transform import Rotation

        state = observation.state.astype(np.float64)
        truth = observation.environment_state.astype(np.float64)
        hand_m, rests = state[:3], self._fingers_rest(state[7:])
        facing = Rotation.from_quat(state[3:7])
        if self._facing is None:  # fingers that pointed down are to point at the door
            self._facing = Rotation.from_rotvec(_FACE_DOOR_RAD) * facing
        turn_rad = (self._facing * facing.inv()).as_rotvec()
        handle_m, latch_rad = truth[_DOOR_HANDLE_M], float(truth[_DOOR_LATCH_RAD])
        target_m, close = self._target(hand_m, turn_rad, handle_m, latch_rad, rests)
        turns = self._phase in ("face", "reach", "close")
        return self._act(hand_m, target_m, close=close, turn_rad=turn_rad if turns else None)

    def _target(
        self,
        hand_m: Position,
        turn_rad: NDArray[np.float64],
        handle_m: Position,
        latch_rad: float,
        fingers_rest: bool,
    ) -> tuple[Position, bool]:
        """Where to go and whether to close; moves on to the next phase when due."""
        grasp_m = handle_m + self._script.grasp_offset_m
        if self._phase == "face":
            target_m = np.add(grasp_m, (0.0, _APPROACH_M, 0.0))
            if not near(hand_m, target_m, 0.015) or np.abs(turn_rad).max() > 0.1:
                return target_m, False
            self._phase = "reach"
        if self._phase == "reach":
            if not near(hand_m, grasp_m, 0.012):
                return grasp_m, False
            self._phase = "close"
            return grasp_m, True
        if self._phase == "close":
            if not fingers_rest:
                return hand_m, True
            self._phase = "turn"
        if self._phase == "turn":
            if latch_rad < _LATCH_TURNED_RAD:
                along = np.array([np.sin(latch_rad), 0.0, -np.cos(latch_rad)])
                return hand_m + _TURN_M * along, True
            self._phase = "pull"
        return hand_m + _PULL_M, True
