"""Jerk-limited motion of the joints, from one control period to the next.

Every function is a pure one of the setpoint before. Trajectories are Ruckig's (Berscheid and Kröger
2021, arXiv 2105.04830). Shape legend: J joints.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ruckig import (
    ControlInterface,
    InputParameter,
    OutputParameter,
    Result,
    Ruckig,
    RuckigError,
    Synchronization,
    Trajectory,
)

from robot_qsft.hardware.description import RobotDescription
from robot_qsft.hardware.robot import Joints

_STRAY_RAD = 0.001


@dataclass(frozen=True, eq=False)
class Setpoint:
    """Where the joints are commanded to be, and how they move there; float64 (J,) each."""

    positions_rad: Joints
    velocities_rad_s: Joints
    accelerations_rad_s2: Joints

    @classmethod
    def at_rest(cls, positions_rad: Joints) -> "Setpoint":
        """Standing still."""
        zero = np.zeros_like(positions_rad)
        return cls(positions_rad.copy(), zero, zero)

    @property
    def resting(self) -> bool:
        """Whether nothing moves."""
        return not self.velocities_rad_s.any() and not self.accelerations_rad_s2.any()


class MotionError(RuntimeError):
    """No motion within the limits exists from here."""


class Motion:
    """Steps of one control period that keep velocity, acceleration and jerk within the limits."""

    def __init__(self, description: RobotDescription):
        """The motions of an arm at its control rate."""
        joints = len(description.joints)
        self._planner = Ruckig(joints, description.period_s)
        self._output = OutputParameter(joints)
        self._trajectory = Trajectory(joints)
        self._velocity_rad_s = description.of_joints("velocity_rad_s")
        self._acceleration_rad_s2 = float(description.of_joints("acceleration_rad_s2").max())
        self._still = np.zeros(joints)
        self._follow = self._parameters(joints, description)
        self._brake = self._parameters(joints, description)
        self._brake.control_interface = ControlInterface.Velocity
        # All joints come to rest together, as far as limits let them: along the path.
        self._brake.synchronization = Synchronization.Phase
        self._brake.target_velocity = self._still
        self._brake.target_acceleration = self._still

    @staticmethod
    def _parameters(joints: int, description: RobotDescription) -> Any:
        parameters = InputParameter(joints)
        parameters.max_velocity = description.of_joints("velocity_rad_s")
        parameters.max_acceleration = description.of_joints("acceleration_rad_s2")
        parameters.max_jerk = description.of_joints("jerk_rad_s3")
        return parameters

    def follow(
        self, setpoint: Setpoint, target_rad: Joints, target_rad_s: Joints, *, speed: float = 1.0
    ) -> Setpoint:
        """One period on the way to a moving target.

        A target in steady motion is met at its own speed; without `target_rad_s` the joints would
        plan to stop at it, and be surprised each period that it has moved on.

        Args:
            setpoint: now.
            target_rad: where the target is a period from now, float64 (J,).
            target_rad_s: how fast it moves, float64 (J,).
            speed: share of the velocity limits that may be used, above 0.

        Raises:
            MotionError: when there is no such motion.
        """
        parameters = self._follow
        self._begin(parameters, setpoint)
        limit_rad_s = self._velocity_rad_s * speed
        parameters.max_velocity = limit_rad_s
        parameters.target_position = target_rad
        parameters.target_velocity = target_rad_s.clip(-limit_rad_s, limit_rad_s)
        return self._step(parameters)

    def brake(self, setpoint: Setpoint) -> Setpoint:
        """One period on the way to rest, as soon as the limits let it.

        Raises:
            MotionError: when there is no such motion.
        """
        self._begin(self._brake, setpoint)
        return self._step(self._brake)

    def way_to_rest(self, setpoint: Setpoint) -> NDArray[np.float64]:
        """Positions on the way that braking from `setpoint` takes, float64 (N, J), the end last.

        Between two of them no joint strays further than a milliradian from the line.

        Raises:
            MotionError: when there is no such motion.
        """
        if setpoint.resting:
            return setpoint.positions_rad[None]
        self._begin(self._brake, setpoint)
        try:
            result = self._planner.calculate(self._brake, self._trajectory)
        except RuckigError as error:
            raise MotionError(str(error)) from error
        if result not in (Result.Working, Result.Finished):
            raise MotionError(f"no way to come to rest ({result})")
        duration_s = self._trajectory.duration
        # An acceleration a bends the way by a h^2 / 8 within a time h.
        steps = math.ceil(duration_s * math.sqrt(self._acceleration_rad_s2 / (8 * _STRAY_RAD)))
        at_time = self._trajectory.at_time
        way = [at_time(step / steps * duration_s)[0] for step in range(1, steps)]
        return np.array([*way, at_time(duration_s)[0]])

    def _begin(self, parameters: Any, setpoint: Setpoint) -> None:
        parameters.current_position = setpoint.positions_rad
        parameters.current_velocity = setpoint.velocities_rad_s
        parameters.current_acceleration = setpoint.accelerations_rad_s2

    def _step(self, parameters: Any) -> Setpoint:
        self._planner.reset()  # or it would take a plan of an earlier setpoint for this one's
        try:
            result = self._planner.update(parameters, self._output)
        except RuckigError as error:
            raise MotionError(str(error)) from error
        if result not in (Result.Working, Result.Finished):
            raise MotionError(f"no motion within the limits ({result})")
        return Setpoint(
            np.array(self._output.new_position),
            np.array(self._output.new_velocity),
            np.array(self._output.new_acceleration),
        )
