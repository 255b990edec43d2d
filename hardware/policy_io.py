"""Between arm and policy: what it is told of the arm, and what its actions mean for the joints.

Both are settled by the demonstrations that the policy was trained on.

Shape legend: A action dimensions, C chunk length, J joints, S state dimensions; X = J + 1, the last
entry being the gripper's opening.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.interface import Vector
from robot_qsft.hardware.description import RobotDescription
from robot_qsft.hardware.kinematics import Chain, Transform
from robot_qsft.hardware.limits import Bounds
from robot_qsft.hardware.robot import Joints, RobotState

Told: TypeAlias = Literal["joints", "tool"]
Meant: TypeAlias = Literal["joint_position", "joint_delta", "tool_delta"]
_ITERATIONS = 20
_DAMPING = 0.02
_CLOSE = 1e-4
_LEAST_INSIDE_M = 0.002
"""Targets of the tool stay this far inside the workspace."""


@dataclass(frozen=True)
class PolicyIOConfig:
    """What states and actions are.

    Attributes:
        state: "joints" (positions in radians, then the gripper's opening, 0 … 1) or "tool"
            (position in metres, quaternion x y z w with x >= 0, the gripper's opening in metres).
        actions: "joint_position" (radians), "joint_delta" (on the measured positions, adding up
            within a chunk), or "tool_delta" (displacement of the tool along the base's axes, adding
            up; its orientation stays what it was when the episode began). Last comes the gripper,
            where there is one.
        step_m: displacement that a tool delta of 1 stands for.
        step_rad: turn that a joint delta of 1 stands for.
        gripper: the last action entry is the "opening" (0 … 1), or open where its "sign" is plus.
    """

    state: Told = "joints"
    actions: Meant = "joint_position"
    step_m: float = 1.0
    step_rad: float = 1.0
    gripper: Literal["opening", "sign"] = "opening"

    def __post_init__(self) -> None:
        """Refuse steps of nothing.

        Raises:
            ValueError: naming the field.
        """
        for name in ("step_m", "step_rad"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and above 0, got {getattr(self, name)}")


class PolicyIO:
    """Translates for one arm and one policy."""

    def __init__(self, description: RobotDescription, config: PolicyIOConfig):
        """Nothing is begun yet."""
        self._description = description
        self._config = config
        self._chain = Chain(description)
        self._bounds = Bounds.of(description)
        self._orientation_33: NDArray[np.float64] | None = None

    @property
    def action_names(self) -> tuple[str, ...]:
        """What each of the A action entries is."""
        moved = self._description.joint_names
        if self._config.actions == "tool_delta":
            moved = ("x", "y", "z")
        return moved + self._gripper_names

    @property
    def state_names(self) -> tuple[str, ...]:
        """What each of the S state entries is."""
        told = self._description.joint_names
        if self._config.state == "tool":
            told = ("tool_x", "tool_y", "tool_z", "tool_qx", "tool_qy", "tool_qz", "tool_qw")
        return told + self._gripper_names

    @property
    def _gripper_names(self) -> tuple[str, ...]:
        return () if self._description.gripper is None else ("gripper",)

    def begin(self, measured: RobotState) -> None:
        """An episode begins here."""
        self._orientation_33 = self._chain.tool(measured.positions_rad)[:3, :3]

    def state(self, measured: RobotState) -> Vector:
        """What the policy is told, float32 (S,)."""
        gripper = self._description.gripper
        if self._config.state == "joints":
            opening = [] if gripper is None else [measured.gripper_opening]
            return np.concatenate([measured.positions_rad, opening]).astype(np.float32)
        frame_44 = self._chain.tool(measured.positions_rad)
        opening = [] if gripper is None else [measured.gripper_opening * gripper.open_m]
        return np.concatenate([frame_44[:3, 3], quaternion(frame_44), opening]).astype(np.float32)

    def targets(self, measured: RobotState, actions_CA: Vector) -> NDArray[np.float64]:
        """Where actions chosen by an observation of `measured` lead, float64 (C, X).

        Raises:
            ValueError: when they have another size.
        """
        if actions_CA.ndim != 2 or actions_CA.shape[1] != len(self.action_names):
            raise ValueError(
                f"the policy's actions have shape {actions_CA.shape}, but "
                f"{self._config.actions} on {self._description.name} takes "
                f"{len(self.action_names)} numbers; check --io.actions"
            )
        actions = actions_CA.astype(np.float64)
        has_gripper = self._description.gripper is not None
        moved = actions[:, :-1] if has_gripper else actions
        if self._config.actions == "joint_position":
            joints_CJ = moved
        elif self._config.actions == "joint_delta":
            joints_CJ = measured.positions_rad + self._config.step_rad * moved.cumsum(axis=0)
        else:
            joints_CJ = self._reach(measured, self._config.step_m * moved.cumsum(axis=0))
        if not has_gripper:
            opening_C1 = np.full((len(actions), 1), measured.gripper_opening)
        elif self._config.gripper == "sign":
            opening_C1 = (actions[:, -1:] > 0).astype(np.float64)
        else:
            opening_C1 = actions[:, -1:].clip(0, 1)
        return np.concatenate([joints_CJ, opening_C1], axis=1)

    def _reach(self, measured: RobotState, moves_C3: NDArray[np.float64]) -> NDArray[np.float64]:
        """Joints (C, J) that bring the tool where each move from its measured place leads."""
        frame_44 = self._chain.tool(measured.positions_rad)
        goal_44 = frame_44.copy()
        if self._orientation_33 is not None:
            goal_44[:3, :3] = self._orientation_33
        inside = self._description.workspace.inside
        low_m = np.array(inside.low_m) + _LEAST_INSIDE_M
        high_m = np.array(inside.high_m) - _LEAST_INSIDE_M
        positions_rad, reached = measured.positions_rad, []
        for move_m in moves_C3:
            goal_44[:3, 3] = (frame_44[:3, 3] + move_m).clip(low_m, high_m)
            positions_rad = inverse_kinematics(self._chain, goal_44, positions_rad, self._bounds)
            reached.append(positions_rad)
        return np.array(reached)


def inverse_kinematics(
    chain: Chain, goal_44: Transform, begin_rad: Joints, bounds: Bounds
) -> Joints:
    """Joints that bring the tool to a frame, or as near as a few steps get; float64 (J,).

    Damped least squares (Wampler 1986) from `begin_rad`, within the soft limits.
    """
    positions_rad = begin_rad.clip(bounds.soft_low_rad, bounds.soft_high_rad)
    damping_66 = _DAMPING**2 * np.eye(6)
    for _ in range(_ITERATIONS):
        frame_44 = chain.tool(positions_rad)
        turn_33 = goal_44[:3, :3] @ frame_44[:3, :3].T
        # Half the antisymmetric part is the axis times the angle's sine.
        turn_rad = 0.5 * np.array(
            [
                turn_33[2, 1] - turn_33[1, 2],
                turn_33[0, 2] - turn_33[2, 0],
                turn_33[1, 0] - turn_33[0, 1],
            ]
        )
        error_6 = np.concatenate([goal_44[:3, 3] - frame_44[:3, 3], turn_rad])
        if np.abs(error_6).max() < _CLOSE:
            break
        jacobian_6J = chain.jacobian(positions_rad)
        step_rad = jacobian_6J.T @ np.linalg.solve(
            jacobian_6J @ jacobian_6J.T + damping_66, error_6
        )
        positions_rad = (positions_rad + step_rad).clip(bounds.soft_low_rad, bounds.soft_high_rad)
    return positions_rad


def quaternion(frame_44: Transform) -> NDArray[np.float64]:
    """The orientation of a frame as x, y, z, w with x >= 0, float64 (4,).

    By the largest of the four, so that nothing is divided by a small number (Shepperd 1978).
    """
    r = frame_44[:3, :3]
    squares = np.array(
        [
            1 + r[0, 0] - r[1, 1] - r[2, 2],
            1 - r[0, 0] + r[1, 1] - r[2, 2],
            1 - r[0, 0] - r[1, 1] + r[2, 2],
            1 + r[0, 0] + r[1, 1] + r[2, 2],
        ]
    )
    products = np.array(
        [
            [squares[0], r[1, 0] + r[0, 1], r[0, 2] + r[2, 0], r[2, 1] - r[1, 2]],
            [r[1, 0] + r[0, 1], squares[1], r[2, 1] + r[1, 2], r[0, 2] - r[2, 0]],
            [r[0, 2] + r[2, 0], r[2, 1] + r[1, 2], squares[2], r[1, 0] - r[0, 1]],
            [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], squares[3]],
        ]
    )
    largest = int(squares.argmax())
    turned = products[largest] / (2 * math.sqrt(squares[largest]))
    return np.asarray(turned if turned[0] >= 0 else -turned)
