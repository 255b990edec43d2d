"""Where the tool is, from the joints: a chain of revolute joints as in a URDF.

Frames are 4x4 homogeneous transforms. Shape legend: J joints.
"""

import math

import numpy as np
from numpy.typing import NDArray

from robot_qsft.hardware.description import RobotDescription, Triple

Transform = NDArray[np.float64]
"""Float64 (4, 4)."""


class Chain:
    """Forward kinematics of an arm."""

    def __init__(self, description: RobotDescription):
        """The chain from the base to the tool."""
        self._fixed_J44 = np.array(
            [transform(joint.origin_m, joint.origin_rpy_rad) for joint in description.joints]
        )
        self._axes_J3 = np.array([joint.axis for joint in description.joints])
        # Rodrigues: R = 1 + sin(q) K + (1 - cos(q)) K^2, with K the axis's cross product.
        self._cross_J33 = np.array([_cross(joint.axis) for joint in description.joints])
        self._squared_J33 = self._cross_J33 @ self._cross_J33
        self._tool_44 = transform(description.tool.origin_m, description.tool.origin_rpy_rad)

    def frames(self, positions_rad: NDArray[np.float64]) -> NDArray[np.float64]:
        """Frames of all joints, after their turn, and of the tool, in the base: (J + 1, 4, 4)."""
        turns_J44 = np.tile(np.eye(4), (len(self._fixed_J44), 1, 1))
        turns_J44[:, :3, :3] += (
            np.sin(positions_rad)[:, None, None] * self._cross_J33
            + (1 - np.cos(positions_rad))[:, None, None] * self._squared_J33
        )
        steps_J44 = self._fixed_J44 @ turns_J44
        frames = [steps_J44[0]]
        for step_44 in steps_J44[1:]:
            frames.append(frames[-1] @ step_44)
        frames.append(frames[-1] @ self._tool_44)
        return np.array(frames)

    def tool(self, positions_rad: NDArray[np.float64]) -> Transform:
        """The tool's frame in the base."""
        frame_44: Transform = self.frames(positions_rad)[-1]
        return frame_44

    def jacobian(self, positions_rad: NDArray[np.float64]) -> NDArray[np.float64]:
        """How the tool moves (3 rows, m) and turns (3 rows, rad) per radian: float64 (6, J)."""
        frames = self.frames(positions_rad)
        axes_J3 = np.einsum("jab,jb->ja", frames[:-1, :3, :3], self._axes_J3)
        arms_J3 = frames[-1, :3, 3] - frames[:-1, :3, 3]
        return np.concatenate([np.cross(axes_J3, arms_J3), axes_J3], axis=1).T


def transform(origin_m: Triple, rpy_rad: Triple) -> Transform:
    """The frame at `origin_m`, turned about the fixed axes x, y, z in this order, as in a URDF."""
    roll, pitch, yaw = rpy_rad
    sr, cr = math.sin(roll), math.cos(roll)
    sp, cp = math.sin(pitch), math.cos(pitch)
    sy, cy = math.sin(yaw), math.cos(yaw)
    frame_44 = np.eye(4)
    frame_44[:3, :3] = [
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ]
    frame_44[:3, 3] = origin_m
    return frame_44


def _cross(axis: Triple) -> NDArray[np.float64]:
    x, y, z = axis
    return np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
