"""How the hand of a scripted demonstrator moves."""

import numpy as np
from numpy.typing import NDArray

Position = NDArray[np.float64]


def motion_to(
    target_m: Position,
    hand_m: Position,
    *,
    step_m: float,
    speed: float,
    noise: float,
    rng: np.random.Generator,
) -> Position:
    """The first three numbers of an action, in [-1, 1], that moves the hand straight to a target.

    Args:
        target_m: (3,).
        hand_m: (3,).
        step_m: displacement that an action of 1 asks for.
        speed: the most that is asked for, in [0, 1].
        noise: standard deviation of what is added, in units of the action.
        rng: of the noise.
    """
    motion = (target_m - hand_m) / step_m
    fastest = np.abs(motion).max()
    if fastest > speed:  # keep the direction
        motion *= speed / fastest
    motion += rng.normal(0.0, noise, 3)
    return motion.clip(-1, 1)


def near(hand_m: Position, target_m: Position, tolerance_m: float) -> bool:
    """Whether the hand is at a target, along every axis."""
    return bool(np.abs(hand_m - target_m).max() < tolerance_m)
