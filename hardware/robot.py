"""What passes between the control loop and an arm, real or simulated.

Shape legend: J joints.
"""

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from robot_qsft.hardware.description import RobotDescription

Joints: TypeAlias = NDArray[np.float64]


class RobotError(RuntimeError):
    """The arm cannot be reached, refuses, or reports a fault; the sentence says what to do."""


@dataclass(frozen=True, eq=False)
class RobotState:
    """What an arm measures.

    Attributes:
        time_s: when it was measured (or received), by `time.monotonic`.
        positions_rad: of the joints, float64 (J,).
        velocities_rad_s: float64 (J,).
        gripper_opening: 0 closed … 1 open; 0 where there is no gripper.
        fault: why the arm does not follow commands now, such as "protective stop"; "" when it does.
    """

    time_s: float
    positions_rad: Joints
    velocities_rad_s: Joints
    gripper_opening: float
    fault: str = ""


class Robot(Protocol):
    """An arm that follows joint positions; one object is used by one thread.

    Between `connect` and `disconnect` the arm's own watchdog is armed wherever it has one: without
    a command for `description.watchdog_s` it comes to rest by itself.
    """

    description: RobotDescription

    def connect(self) -> None:
        """Reach the arm, arm its watchdog, and hold still. Connecting moves nothing.

        Raises:
            RobotError: when it cannot be reached, is of another kind, or is not ready to move.
        """

    def read(self) -> RobotState:
        """The newest state; a recent older one may stand in, which `time_s` tells.

        Does not wait longer than a control period while it is called every period.

        Raises:
            RobotError: when the connection is lost.
        """

    def command(self, positions_rad: Joints, gripper_opening: float) -> None:
        """Where to be one control period from now; also feeds the watchdog. Does not wait.

        Args:
            positions_rad: float64 (J,), already within all limits.
            gripper_opening: 0 closed … 1 open; of no effect where there is no gripper.

        Raises:
            RobotError: when the arm does not take it.
        """

    def stop(self) -> None:
        """Come to rest by the vendor's own means, now; never raises for an arm that is gone."""

    def disconnect(self) -> None:
        """Come to rest and leave the arm to itself; a second time changes nothing.

        An arm that its motors hold up keeps being held.
        """
