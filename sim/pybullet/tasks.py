"""The tabletop tasks: lift a cube, or carry it into a marked area.

Shape legend: A action dimensions (4, or 5 with yaw), E = 10, S = 8.
"""

from dataclasses import dataclass
from string import ascii_lowercase
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.interface import Vector
from robot_qsft.sim.contract import checked_action, observation_space
from robot_qsft.sim.pybullet.config import PyBulletConfig, Task
from robot_qsft.sim.pybullet.scene import CUBE_HALF_M, GOAL_HALF_M, Scene, SceneSnapshot

STEP_M = 0.045
"""Hand displacement that an action of 1 asks for in one control step."""
STEP_RAD = 0.3
LIFTED_M = 0.1
"""Height of the cube's centre at which Lift succeeds."""

WORKSPACE_LOW_M = np.array([0.30, -0.28, 0.015])
WORKSPACE_HIGH_M = np.array([0.68, 0.33, 0.35])
CUBE_LOW_M = np.array([0.40, -0.16, CUBE_HALF_M])
CUBE_HIGH_M = np.array([0.56, 0.04, CUBE_HALF_M])
GOAL_LOW_M = np.array([0.43, 0.17, 0.001])
GOAL_HIGH_M = np.array([0.53, 0.23, 0.001])
HAND_LOW_M = np.array([0.40, -0.16, 0.13])
HAND_HIGH_M = np.array([0.56, 0.04, 0.22])
CUBE_YAW_RAD = 0.5

_INSTRUCTIONS: dict[Task, str] = {
    "Lift": "lift the red cube",
    "PickPlace": "put the red cube on the green square",
    "Stitch": "put the red cube on the green square",
}


@dataclass(frozen=True)
class Snapshot:
    """Everything that decides how an episode goes on."""

    scene: SceneSnapshot
    goal_m: NDArray[np.float64]
    yaw_rad: float
    steps: int
    finished: bool
    random: dict[str, Any]
    """State of the generator that draws the next start state."""


class TabletopEnvironment(gymnasium.Env[dict[str, Any], NDArray[np.float32]]):
    """One cube, one hand, one goal.

    Actions are (x, y, z[, yaw], gripper) in [-1, 1]: displacement of the hand in steps of 4.5 cm
    [0.3 rad], gripper open above 0 and closed otherwise. The reward is 1 on the step that first
    succeeds, which terminates; a time-out truncates.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    state_names: tuple[str, ...] = (
        "hand_x_m",
        "hand_y_m",
        "hand_z_m",
        "hand_qx",
        "hand_qy",
        "hand_qz",
        "hand_qw",
        "gripper_opening_m",
    )
    environment_state_names: tuple[str, ...] = (
        "cube_x_m",
        "cube_y_m",
        "cube_z_m",
        "cube_from_hand_x_m",
        "cube_from_hand_y_m",
        "cube_from_hand_z_m",
        "cube_yaw_rad",
        "goal_x_m",
        "goal_y_m",
        "goal_z_m",
    )

    def __init__(self, config: PyBulletConfig, render_mode: str | None = None):
        """Load the world.

        Raises:
            ValueError: when EGL is asked for and does not work.
        """
        self.config = config
        self.render_mode = render_mode
        self.action_names = (
            ("x", "y", "z") + (("yaw",) if config.yaw_action else ()) + ("gripper_open",)
        )
        self._scene = Scene(renderer=config.renderer, low_poly=config.low_poly)
        self._goal_m = GOAL_LOW_M
        self._yaw_rad = 0.0
        self._steps = 0
        self._finished = True
        self.observation_space = observation_space(
            state=len(self.state_names),
            environment_state=len(self.environment_state_names),
            cameras=config.cameras,
            image_size=config.image_size,
            instruction=gymnasium.spaces.Text(64, charset=ascii_lowercase + " "),
        )
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (len(self.action_names),), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode from a start state that follows from the seed alone."""
        super().reset(seed=seed, options=options)
        draw = self.np_random.uniform
        cube_m, hand_m = draw(CUBE_LOW_M, CUBE_HIGH_M), draw(HAND_LOW_M, HAND_HIGH_M)
        self._goal_m = draw(GOAL_LOW_M, GOAL_HIGH_M)
        yaw_rad = draw(-CUBE_YAW_RAD, CUBE_YAW_RAD) if self.config.yaw_action else 0.0
        in_gripper = self.config.start == "gripper"
        self._scene.reset(
            hand_m=hand_m,
            cube_m=cube_m,
            cube_yaw_rad=0.0 if in_gripper else yaw_rad,
            goal_m=self._goal_m,
            cube_in_gripper=in_gripper,
        )
        self._yaw_rad = 0.0
        self._steps = 0
        self._finished = False
        return self._observe(), {"is_success": False}

    def step(
        self, action: NDArray[np.float32], *, render: bool = True
    ) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Apply one action, float (A,); values beyond [-1, 1] are clipped.

        Args:
            action: what to do for a tenth of a second.
            render: whether the observation has images.

        Raises:
            ValueError: when the action has another shape or holds NaN, or the episode is over.
        """
        clipped = checked_action(action, self.action_names)
        if self._finished:
            raise ValueError("the episode is over; call reset first")
        target_m = self._scene.hand_pose()[0] + STEP_M * clipped[:3]
        if self.config.yaw_action:
            self._yaw_rad = float(np.clip(self._yaw_rad + STEP_RAD * clipped[3], -1.0, 1.0))
        self._scene.step(
            target_m.clip(WORKSPACE_LOW_M, WORKSPACE_HIGH_M),
            self._yaw_rad,
            gripper_open=bool(clipped[-1] > 0),
        )
        self._steps += 1
        success = self._succeeded()
        truncated = not success and self._steps >= self.config.max_steps
        self._finished = success or truncated
        observation = self._observe(render=render)
        return observation, float(success), success, truncated, {"is_success": success}

    @property
    def scene(self) -> Scene:
        """The world, for who drives it by the joints."""
        return self._scene

    def truth(self) -> tuple[Vector, bool]:
        """The environment state, float32 (10,), and whether the task is solved."""
        truth: Vector = self._observe(render=False)["environment_state"]
        return truth, self._succeeded()

    def render(self) -> NDArray[np.uint8]:
        """The front camera's image."""
        return self._scene.render(self.config.film_camera, self.config.image_size)

    def close(self) -> None:
        """Release the physics world."""
        self._scene.close()

    def snapshot(self) -> Snapshot:
        """The full present state."""
        return Snapshot(
            scene=self._scene.snapshot(),
            goal_m=self._goal_m,
            yaw_rad=self._yaw_rad,
            steps=self._steps,
            finished=self._finished,
            random=dict(self.np_random.bit_generator.state),
        )

    def restore(self, snapshot: Snapshot) -> dict[str, Any]:
        """Return to a snapshot of this environment; gives the observation there."""
        self._scene.restore(snapshot.scene)
        self._goal_m, self._yaw_rad = snapshot.goal_m, snapshot.yaw_rad
        self._steps, self._finished = snapshot.steps, snapshot.finished
        self.np_random.bit_generator.state = snapshot.random
        return self._observe()

    def _succeeded(self) -> bool:
        cube_m, _ = self._scene.cube_pose()
        opening_m = self._scene.gripper_opening_m()
        if self.config.task == "Lift":
            held = abs(opening_m - 2 * CUBE_HALF_M) < 0.01
            return bool(held and cube_m[2] > LIFTED_M)
        inside = (np.abs(cube_m - self._goal_m)[:2] < GOAL_HALF_M).all()
        resting = cube_m[2] < CUBE_HALF_M + 0.005
        released = opening_m > 2 * CUBE_HALF_M + 0.01
        return bool(inside and resting and released)

    def _observe(self, *, render: bool = True) -> dict[str, Any]:
        hand_m, orientation = self._scene.hand_pose()
        cube_m, yaw_rad = self._scene.cube_pose()
        orientation = orientation * (1 if orientation[0] >= 0 else -1)  # q and -q are one rotation
        opening_m = [self._scene.gripper_opening_m()]
        state: Vector = np.concatenate([hand_m, orientation, opening_m]).astype(np.float32)
        truth = np.concatenate([cube_m, cube_m - hand_m, [yaw_rad], self._goal_m])
        observation: dict[str, Any] = {
            "state": state,
            "environment_state": truth.astype(np.float32),
            "instruction": _INSTRUCTIONS[self.config.task],
        }
        if self.config.cameras and render:
            observation["images"] = {
                camera: self._scene.render(camera, self.config.image_size)
                for camera in self.config.cameras
            }
        return observation


def make_task(task: Task, render_mode: str | None = None, **options: Any) -> TabletopEnvironment:
    """What `gymnasium.make("robot_qsft/TASK-v0", **options)` builds; options of the config."""
    return TabletopEnvironment(PyBulletConfig(task=task, **options), render_mode)
