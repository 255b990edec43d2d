"""A table, a Franka Panda, a cube and a marked goal area in PyBullet.

Positions are in metres in the robot's base frame: x forward, y to its left, z up from the table.
"""

import importlib.util
import math
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pybullet_data
from numpy.typing import NDArray

from robot_qsft.datasets.interface import Image
from robot_qsft.sim.pybullet.client import PhysicsClient, silence
from robot_qsft.sim.pybullet.config import Renderer

CONTROL_HZ = 10
PHYSICS_HZ = 100
CUBE_HALF_M = 0.02
GOAL_HALF_M = 0.045
FINGER_OPEN_M = 0.04
"""Travel of one finger; the gripper opens twice as far."""

_ARM_JOINTS = list(range(7))
_FINGER_JOINTS = [9, 10]
_GRASP_LINK = 11
_HOME_RAD = (0.0, 0.25, 0.0, -2.1, 0.0, 2.35, math.pi / 4)
_ARM_FORCE_N = 200.0
_FINGER_FORCE_N = 20.0
_POSITION_GAIN = 0.2
_HAND_COLOUR = (0.95, 0.75, 0.1, 1.0)
_ARM_COLOUR = (0.85, 0.85, 0.88, 1.0)
_HAND_LINKS = (8, 9, 10)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera; positions in the frame it is mounted on."""

    eye_m: tuple[float, float, float]
    target_m: tuple[float, float, float]
    up: tuple[float, float, float]
    field_of_view_deg: float
    on_hand: bool = False


CAMERAS = {
    "front": Camera((0.95, 0.035, 0.50), (0.465, 0.035, 0.13), (0.0, 0.0, 1.0), 42.0),
    "wrist": Camera((0.09, 0.0, -0.10), (0.02, 0.0, 0.02), (1.0, 0.0, 0.0), 80.0, on_hand=True),
}


class SceneSnapshot:
    """A full physics state, released with the object."""

    def __init__(self, client: PhysicsClient):
        self.state_id: int = client.saveState()
        weakref.finalize(self, _remove_state, client, self.state_id)


def _remove_state(client: PhysicsClient, state_id: int) -> None:
    if client.connected:
        client.removeState(state_id)


class Scene:
    """One physics world; independent of all others in the process."""

    def __init__(self, *, renderer: Renderer, low_poly: bool):
        """Load the world.

        Raises:
            ValueError: when `renderer` is "egl" and EGL does not work here.
        """
        self._client = PhysicsClient()
        self._renderer = self._choose_renderer(renderer)
        client = self._client
        client.setGravity(0, 0, -9.81)
        client.setPhysicsEngineParameter(
            fixedTimeStep=1 / PHYSICS_HZ, numSolverIterations=50, deterministicOverlappingPairs=1
        )
        self._robot = self._load_robot(low_poly)
        self._box((0.45, 0.6, 0.05), (0.62, 0.56, 0.48, 1), (0.45, 0.0, -0.05), mass_kg=0.0)
        cube = (CUBE_HALF_M,) * 3
        self._cube = self._box(cube, (0.9, 0.05, 0.05, 1), (0.5, 0.0, CUBE_HALF_M), mass_kg=0.1)
        client.changeDynamics(
            self._cube, -1, lateralFriction=1.0, spinningFriction=0.01, rollingFriction=0.0001
        )
        goal = client.createVisualShape(
            client.GEOM_BOX,
            halfExtents=(GOAL_HALF_M, GOAL_HALF_M, 0.001),
            rgbaColor=(0.1, 0.7, 0.15, 1),
        )
        self._goal = client.createMultiBody(0, -1, goal)
        # The fingers mirror each other.
        gear = client.createConstraint(
            self._robot, 9, self._robot, 10, client.JOINT_GEAR, (1, 0, 0), (0, 0, 0), (0, 0, 0)
        )
        client.changeConstraint(gear, gearRatio=-1, erp=0.1, maxForce=50)
        self._clean = SceneSnapshot(client)

    @property
    def renderer(self) -> str:
        """Which renderer is in use, "egl" or "tiny"."""
        return "egl" if self._renderer == self._client.ER_BULLET_HARDWARE_OPENGL else "tiny"

    def close(self) -> None:
        """End the physics server."""
        self._client.close()

    def reset(
        self,
        *,
        hand_m: NDArray[np.float64],
        cube_m: NDArray[np.float64],
        cube_yaw_rad: float,
        goal_m: NDArray[np.float64],
        cube_in_gripper: bool,
    ) -> None:
        """Put everything in its place, at rest, forgetting all that went before."""
        client = self._client
        self.restore(self._clean)
        for joint, angle in zip(_ARM_JOINTS, _HOME_RAD, strict=True):
            client.resetJointState(self._robot, joint, angle)
        for _ in range(5):  # each pass starts from the last solution
            angles = self._inverse_kinematics(hand_m, 0.0)
            for joint, angle in zip(_ARM_JOINTS, angles, strict=True):
                client.resetJointState(self._robot, joint, angle)
        opening_m = CUBE_HALF_M if cube_in_gripper else FINGER_OPEN_M
        for joint in _FINGER_JOINTS:
            client.resetJointState(self._robot, joint, opening_m)
        place_m = self.hand_pose()[0] if cube_in_gripper else cube_m
        yaw = client.getQuaternionFromEuler((0, 0, cube_yaw_rad))
        client.resetBasePositionAndOrientation(self._cube, place_m, yaw)
        client.resetBasePositionAndOrientation(self._goal, goal_m, (0, 0, 0, 1))
        if cube_in_gripper:
            for _ in range(3):  # let the fingers take hold
                self.step(hand_m, 0.0, gripper_open=False)

    def step(self, hand_m: NDArray[np.float64], yaw_rad: float, *, gripper_open: bool) -> None:
        """Drive the hand toward a pose for one control period, fingers pointing down."""
        self.drive(
            self._inverse_kinematics(hand_m, yaw_rad), FINGER_OPEN_M if gripper_open else 0.0
        )
        for _ in range(PHYSICS_HZ // CONTROL_HZ):
            self.advance()

    def drive(self, positions_rad: Sequence[float], finger_m: float) -> None:
        """Set the motors' goals: of the arm's seven joints, and of each finger."""
        client = self._client
        client.setJointMotorControlArray(
            self._robot,
            _ARM_JOINTS,
            client.POSITION_CONTROL,
            targetPositions=positions_rad,
            forces=[_ARM_FORCE_N] * 7,
            positionGains=[_POSITION_GAIN] * 7,
        )
        client.setJointMotorControlArray(
            self._robot,
            _FINGER_JOINTS,
            client.POSITION_CONTROL,
            targetPositions=[finger_m] * 2,
            forces=[_FINGER_FORCE_N] * 2,
        )

    def advance(self) -> None:
        """One step of physics, 1 / PHYSICS_HZ seconds."""
        self._client.stepSimulation()

    def joint_state(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Positions in radians and velocities in radians per second of the arm, (7,) each."""
        states = self._client.getJointStates(self._robot, _ARM_JOINTS)
        return np.array([one[0] for one in states]), np.array([one[1] for one in states])

    def hand_pose(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Position (3,) in metres and orientation quaternion xyzw (4,) of the grasp point."""
        link = self._client.getLinkState(self._robot, _GRASP_LINK, computeForwardKinematics=1)
        return np.array(link[4]), np.array(link[5])

    def gripper_opening_m(self) -> float:
        """Distance between the fingers."""
        states = self._client.getJointStates(self._robot, _FINGER_JOINTS)
        return float(sum(state[0] for state in states))

    def cube_pose(self) -> tuple[NDArray[np.float64], float]:
        """Position (3,) in metres and yaw in radians of the cube."""
        position, orientation = self._client.getBasePositionAndOrientation(self._cube)
        return np.array(position), float(self._client.getEulerFromQuaternion(orientation)[2])

    def render(self, camera: str, size: int) -> Image:
        """RGB image uint8 (size, size, 3), top row first."""
        client, view = self._client, CAMERAS[camera]
        eye, target, up = (np.array(v) for v in (view.eye_m, view.target_m, view.up))
        if view.on_hand:
            position, orientation = self.hand_pose()
            rotation = np.array(client.getMatrixFromQuaternion(orientation)).reshape(3, 3)
            eye, target, up = position + rotation @ eye, position + rotation @ target, rotation @ up
        pixels = client.getCameraImage(
            size,
            size,
            client.computeViewMatrix(eye.tolist(), target.tolist(), up.tolist()),
            client.computeProjectionMatrixFOV(view.field_of_view_deg, 1.0, 0.02, 3.0),
            renderer=self._renderer,
            shadow=0,
            flags=client.ER_NO_SEGMENTATION_MASK,
            lightDirection=(0.6, -0.4, 1.2),
        )[2]
        # Builds without numpy return a flat tuple.
        rgba = np.asarray(pixels, np.uint8).reshape(size, size, 4)
        return np.ascontiguousarray(rgba[:, :, :3])

    def snapshot(self) -> SceneSnapshot:
        """The present state of the world."""
        return SceneSnapshot(self._client)

    def restore(self, snapshot: SceneSnapshot) -> None:
        """Return to a state of this same world."""
        # Contacts of the present state would outlive the restoring; a cube in the air has none.
        self._client.resetBasePositionAndOrientation(self._cube, (0.5, 0.0, 1.5), (0, 0, 0, 1))
        self._client.performCollisionDetection()
        self._client.restoreState(snapshot.state_id)

    def _inverse_kinematics(self, hand_m: NDArray[np.float64], yaw_rad: float) -> list[float]:
        down = self._client.getQuaternionFromEuler((math.pi, 0.0, yaw_rad))
        solution = self._client.calculateInverseKinematics(
            self._robot,
            _GRASP_LINK,
            hand_m.tolist(),
            down,
            maxNumIterations=20,
            residualThreshold=1e-5,
        )
        return list(solution[:7])

    def _box(
        self, half_m: tuple[float, ...], colour: tuple[float, ...], at_m: Any, *, mass_kg: float
    ) -> int:
        client = self._client
        collision = client.createCollisionShape(client.GEOM_BOX, halfExtents=half_m)
        visual = client.createVisualShape(client.GEOM_BOX, halfExtents=half_m, rgbaColor=colour)
        body: int = client.createMultiBody(mass_kg, collision, visual, at_m)
        return body

    def _load_robot(self, low_poly: bool) -> int:
        """The Panda of `pybullet_data`, drawn from its collision meshes where `low_poly`."""
        meshes = Path(pybullet_data.getDataPath()) / "franka_panda" / "meshes"
        urdf = (meshes.parent / "panda.urdf").read_text()
        if low_poly:
            urdf = urdf.replace("meshes/visual", "meshes/collision")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "panda.urdf"
            path.write_text(urdf.replace("package://meshes", str(meshes)))
            robot: int = self._client.loadURDF(str(path), useFixedBase=True)
        for link in range(-1, self._client.getNumJoints(robot)) if low_poly else ():
            colour = _HAND_COLOUR if link in _HAND_LINKS else _ARM_COLOUR
            self._client.changeVisualShape(robot, link, rgbaColor=colour)
        return robot

    def _choose_renderer(self, renderer: Renderer) -> int:
        client = self._client
        tiny, hardware = client.ER_TINY_RENDERER, client.ER_BULLET_HARDWARE_OPENGL
        if renderer == "tiny" or (renderer == "auto" and not _has_gpu()):
            return int(tiny)
        plugin = importlib.util.find_spec("eglRenderer")
        if plugin is not None and plugin.origin is not None:
            with silence():
                handle = client.loadPlugin(plugin.origin, "_eglRendererPlugin")
            if handle >= 0:
                return int(hardware)
        if renderer == "egl":
            raise ValueError(
                "EGL rendering does not work here; install libegl1 and a driver, or choose "
                "renderer 'tiny'"
            )
        return int(tiny)


def _has_gpu() -> bool:
    """Whether OpenGL would run on a graphics card; in software it is slower than TinyRenderer."""
    return any(any(Path("/dev").glob(pattern)) for pattern in ("dri/renderD*", "nvidia[0-9]*"))
