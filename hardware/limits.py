"""The stages that every target passes on its way to the arm, each a pure function.

Those that can mend a target do so; the others say what is wrong in a sentence, or "".
Shape legend: C chunk length, J joints; X = J + 1, the last entry being the gripper's opening.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robot_qsft.hardware.chunks import JointChunk
from robot_qsft.hardware.description import Box, RobotDescription, Workspace
from robot_qsft.hardware.robot import Joints

CLOCK_TOLERANCE_S = 0.01
"""An observation may seem this much younger than it can be."""
MAX_CHUNK = 1000
"""Steps; a longer chunk is a mistake."""


@dataclass(frozen=True, eq=False)
class Bounds:
    """What a description says of its joints, as arrays, float64 (J,) each.

    Attributes:
        low_rad: hard limit.
        high_rad: hard limit.
        soft_low_rad: the hard limit and its margin.
        soft_high_rad: the same above.
        acceleration_rad_s2: greatest.
    """

    low_rad: Joints
    high_rad: Joints
    soft_low_rad: Joints
    soft_high_rad: Joints
    acceleration_rad_s2: Joints

    @classmethod
    def of(cls, description: RobotDescription) -> "Bounds":
        """Those of an arm."""
        low_rad, high_rad = description.of_joints("low_rad"), description.of_joints("high_rad")
        return cls(
            low_rad,
            high_rad,
            low_rad + description.margin_rad,
            high_rad - description.margin_rad,
            description.of_joints("acceleration_rad_s2"),
        )


def objection_to_chunk(
    chunk: JointChunk, *, joints: int, stream: int, now_s: float, stale_s: float
) -> str:
    """Stages 1 and 2: shape, finite numbers, stream, age.

    Args:
        chunk: as it came.
        joints: J.
        stream: that is being run.
        now_s: by the robot's monotonic clock.
        stale_s: greatest age of the observation.
    """
    shape = chunk.targets_CX.shape
    if len(shape) != 2 or shape[1] != joints + 1 or not 0 < shape[0] <= MAX_CHUNK:
        return f"a chunk of shape {shape} came, (1 … {MAX_CHUNK}, {joints + 1}) was expected"
    if not np.isfinite(chunk.targets_CX).all():
        return "a chunk holds NaN or infinity"
    if chunk.stream != stream:
        return f"a chunk of stream {chunk.stream} came while {stream} runs"
    age_s = now_s - chunk.observed_s
    if not age_s >= -CLOCK_TOLERANCE_S:  # also where it is NaN
        return f"a chunk's observation lies {-age_s:.3f} s ahead"
    if age_s > stale_s:
        return f"a chunk's observation is {age_s:.3f} s old, more than {stale_s:g}"
    return ""


def objection_to_jump(target_rad: Joints, commanded_rad: Joints, *, jump_rad: float) -> str:
    """Stage 6: a target must be near where the arm is commanded to be."""
    furthest = int(np.abs(target_rad - commanded_rad).argmax())
    jump = abs(float(target_rad[furthest] - commanded_rad[furthest]))
    if jump <= jump_rad:
        return ""
    return f"joint {furthest + 1} was asked to jump by {jump:.3f} rad, more than {jump_rad:g}"


def within_margins(
    target_rad: Joints, target_rad_s: Joints, bounds: Bounds
) -> tuple[Joints, Joints]:
    """Stage 5: positions clipped to the soft margins, speed to what can still be stopped there.

    From a distance d with an acceleration a, no more than sqrt(2 a d) can be stopped.
    """
    inside_rad = target_rad.clip(bounds.soft_low_rad, bounds.soft_high_rad)
    twice = 2 * bounds.acceleration_rad_s2
    fastest_up = np.sqrt(twice * (bounds.soft_high_rad - inside_rad))
    fastest_down = np.sqrt(twice * (inside_rad - bounds.soft_low_rad))
    return inside_rad, target_rad_s.clip(-fastest_down, fastest_up)


def objection_to_joints(least_rad: Joints, greatest_rad: Joints, bounds: Bounds) -> str:
    """The joints' hard limits, for the least and greatest positions of a motion, (J,) each."""
    beyond = np.maximum(bounds.low_rad - least_rad, greatest_rad - bounds.high_rad)
    furthest = int(beyond.argmax())
    if beyond[furthest] <= 0:
        return ""
    return f"joint {furthest + 1} would turn {beyond[furthest]:.3f} rad beyond its limit"


def objection_to_place(tool_m: NDArray[np.float64], workspace: Workspace) -> str:
    """Stage 4: where the tool may be; `tool_m` is float64 (3,) in the base's frame."""
    if not _inside(tool_m, workspace.inside):
        return f"the tool would leave the workspace at {_shown(tool_m)} m"
    for index, box in enumerate(workspace.keep_out):
        if _inside(tool_m, box):
            return f"the tool would enter keep-out box {index + 1} at {_shown(tool_m)} m"
    return ""


def objection_to_tracking(
    measured_rad: Joints, commanded_rad: Joints, *, tracking_error_rad: float
) -> str:
    """Stage 8: the arm must be near where it was commanded to be."""
    furthest = int(np.abs(measured_rad - commanded_rad).argmax())
    error = abs(float(measured_rad[furthest] - commanded_rad[furthest]))
    if error <= tracking_error_rad:  # not where it is NaN
        return ""
    return (
        f"joint {furthest + 1} is {error:.3f} rad from where it was commanded, "
        f"more than {tracking_error_rad:g}"
    )


def _inside(tool_m: NDArray[np.float64], box: Box) -> bool:
    return bool((tool_m >= box.low_m).all() and (tool_m <= box.high_m).all())


def _shown(tool_m: NDArray[np.float64]) -> str:
    return ", ".join(f"{value:.3f}" for value in tool_m)
