"""Action chunks in time: what is due when, whatever order chunks come in.

A chunk says where the joints shall be at the end of consecutive policy steps. Step k of a stream
lasts one period from `begin_s + k * period_s` on, by the robot's own monotonic clock, so neither
the server's clock nor an estimate of the latency has a say: a slot is used when its time has come.
The schedule is the union of all chunks, of which the newest speaks for a step, so it comes out the
same when chunks are lost, come twice or in another order.

Shape legend: C chunk length, J joints; X = J + 1, the last entry being the gripper's opening.
"""

import math
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Overlap: TypeAlias = Literal["replace", "ensemble"]
Pace: TypeAlias = Literal["even", "at once"]


@dataclass(frozen=True, eq=False)
class JointChunk:
    """Targets that a policy chose by one observation.

    Attributes:
        stream: of one run of an episode; chunks of an earlier one are not for now.
        seq: number of the observation, growing within the stream.
        first_step: of the policy, at which it was made.
        observed_s: when, by the robot's monotonic clock.
        targets_CX: joint positions in radians and the gripper's opening, float64.
        value: that the policy predicts, NaN where it has none.
    """

    stream: int
    seq: int
    first_step: int
    observed_s: float
    targets_CX: NDArray[np.float64]
    value: float = math.nan


@dataclass(frozen=True, eq=False)
class Due:
    """What the schedule asks for at one moment.

    Attributes:
        target_X: where to be, float64.
        speed_X: how fast to move there, per second.
        step: of the policy.
        seq: of the chunk that speaks.
        age_s: of its observation.
        value: that it came with.
    """

    target_X: NDArray[np.float64]
    speed_X: NDArray[np.float64]
    step: int
    seq: int
    age_s: float
    value: float


@dataclass(frozen=True, eq=False)
class _Slot:
    target_X: NDArray[np.float64]
    observed_s: float
    value: float


@dataclass
class Schedule:
    """The chunks of a stream, by the step and the observation that they are of.

    Attributes:
        begin_s: when step 0 begins.
        period_s: of the policy.
        overlap: who speaks for a step that several chunks have: the newest ("replace"), or all of
            them, the n-th oldest weighing exp(-decay n) ("ensemble"; Zhao et al. 2023, arXiv
            2304.13705).
        pace: within a step the target moves "even"-ly from the end of the step before to that of
            this one, or is there "at once", as where demonstrations were recorded by giving a servo
            its goal.
        decay: of an ensemble's weights.
    """

    begin_s: float
    period_s: float
    overlap: Overlap = "replace"
    pace: Pace = "even"
    decay: float = 0.01
    slots: dict[int, dict[int, _Slot]] = field(default_factory=dict)

    def step_at(self, now_s: float) -> int:
        """The policy step that lasts at `now_s`."""
        return math.floor((now_s - self.begin_s) / self.period_s)

    def add(self, chunk: JointChunk) -> None:
        """Take in a chunk; one that is there already changes nothing."""
        for index, target_X in enumerate(chunk.targets_CX):
            slot = _Slot(target_X, chunk.observed_s, chunk.value)
            self.slots.setdefault(chunk.first_step + index, {})[chunk.seq] = slot

    def forget(self, now_s: float) -> None:
        """Let go of what can no longer be asked for: steps before the last one that is past."""
        past = [step for step in self.slots if step < self.step_at(now_s)]
        for step in sorted(past)[:-1]:
            del self.slots[step]

    def due(self, now_s: float) -> Due | None:
        """What to do at `now_s`; None before the first step and when nothing is known.

        After the last step the target stays where it is.
        """
        step = self.step_at(now_s)
        known = max((one for one in self.slots if one <= step), default=None)
        if known is None:
            return None
        target_X, newest = self._speaks(known)
        speed_X = np.zeros_like(target_X)
        if self.pace == "even" and known == step and step - 1 in self.slots:
            before_X = self._speaks(step - 1)[0]
            share = (now_s - self.begin_s) / self.period_s - step
            whole_X = target_X - before_X
            if step + 1 in self.slots:  # or it would arrive there at full speed
                speed_X = whole_X / self.period_s
            target_X = before_X + share * whole_X
        slot = self.slots[known][newest]
        return Due(target_X, speed_X, known, newest, now_s - slot.observed_s, slot.value)

    def _speaks(self, step: int) -> tuple[NDArray[np.float64], int]:
        """The target of a step, and the newest chunk behind it."""
        slots = self.slots[step]
        newest = max(slots)
        if self.overlap == "replace":
            return slots[newest].target_X, newest
        weights = np.exp(-self.decay * np.arange(len(slots)))
        targets = np.array([slots[seq].target_X for seq in sorted(slots)])
        mean_X: NDArray[np.float64] = weights @ targets / weights.sum()
        return mean_X, newest
