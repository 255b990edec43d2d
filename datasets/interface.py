"""What passes between everything that acts and everything that is acted on.

Shape legend: A action dimensions, C chunk length, E environment-state dimensions,
H height, S state dimensions, W width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Image: TypeAlias = NDArray[np.uint8]
Vector: TypeAlias = NDArray[np.float32]


def _no_images() -> Mapping[str, Image]:
    return {}


def _empty_vector() -> Vector:
    return np.zeros(0, np.float32)


@dataclass(frozen=True, eq=False)
class Observation:
    """What a policy may know at one control step.

    Attributes:
        state: proprioception, float32 (S,); what each entry is stands in the data set's features.
        instruction: what the robot is asked to do, in words.
        images: camera name to RGB image, uint8 (H, W, 3), top row first.
        environment_state: ground truth of a simulator (object poses), float32 (E,); empty on a
            real robot. Scripted demonstrators and low-dimensional policies read it.
    """

    state: Vector
    instruction: str
    images: Mapping[str, Image] = field(default_factory=_no_images)
    environment_state: Vector = field(default_factory=_empty_vector)


@dataclass(frozen=True, eq=False)
class ActionChunk:
    """One or more consecutive actions and what the policy thinks of them.

    Attributes:
        actions: float32 (C, A), in the units of the data set, first to be executed first.
        value: predicted return of the first action, in [0, 1]; None where the policy has none.
        behaviour_log_probability: log pi(first action | observation), in nats; None likewise.
    """

    actions: Vector
    value: float | None = None
    behaviour_log_probability: float | None = None


class Policy(Protocol):
    """Anything that acts: trained policy, scripted demonstrator, remote server."""

    def reset(self, *, seed: int) -> None:
        """Begin an episode; everything random in it follows from `seed`."""

    def act(self, observation: Observation) -> ActionChunk:
        """Choose the next actions.

        Raises:
            ValueError: when the observation does not fit the policy.
        """


@runtime_checkable
class PrefixPolicy(Policy, Protocol):
    """A policy that can be told what will have been done before its answer counts."""

    def act_after(self, observation: Observation, committed: Vector) -> ActionChunk:
        """Choose a chunk that begins with `committed`, float32 (C, A), and goes on from there.

        Raises:
            ValueError: when the observation or the actions do not fit the policy.
        """
