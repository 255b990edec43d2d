"""What every simulated task offers, whichever engine runs it.

Shape legend: A action dimensions, E environment-state dimensions, H height, S state dimensions,
W width.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, get_args

import gymnasium
import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.interface import Observation, Vector

Task: TypeAlias = Literal["Lift", "PickPlace", "Stitch"]
Start: TypeAlias = Literal["table", "gripper"]
Renderer: TypeAlias = Literal["auto", "tiny", "egl"]

TASKS: tuple[Task, ...] = get_args(Task)
CAMERAS = ("front", "wrist")


@dataclass(frozen=True)
class EnvironmentConfig:
    """A task and how it is seen.

    Attributes:
        task: what to do with the cube.
        cameras: of "front" and "wrist"; () renders nothing.
        image_size: height and width of the images in pixels.
        max_steps: control steps before a time-out; at 10 Hz.
        start: whether an episode begins with the cube on the table or in the gripper.
        yaw_action: adds a rotation about the vertical to the actions, and random cube yaw.
        renderer: "tiny" runs on the CPU and draws the same pixels on every machine; "egl" uses
            OpenGL without a display; "auto" takes EGL where a graphics card offers it.
        low_poly: draw the arm from its collision meshes, about ten times as fast.
    """

    task: Task = "PickPlace"
    cameras: tuple[str, ...] = ("front",)
    image_size: int = 64
    max_steps: int = 50
    start: Start = "table"
    yaw_action: bool = False
    renderer: Renderer = "tiny"
    low_poly: bool = True

    def __post_init__(self) -> None:
        """Refuse what no engine can show.

        Raises:
            ValueError: naming the field.
        """
        for name, value, choices in (
            ("task", self.task, TASKS),
            ("start", self.start, get_args(Start)),
            ("renderer", self.renderer, get_args(Renderer)),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        if self.task == "Lift" and self.start == "gripper":
            raise ValueError("Lift begins with the cube on the table; leave start at 'table'")
        unknown = set(self.cameras) - set(CAMERAS)
        if unknown:
            raise ValueError(f"cameras are {', '.join(CAMERAS)}, got {sorted(unknown)}")
        if self.image_size < 8:
            raise ValueError(f"image_size must be at least 8 pixels, got {self.image_size}")
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {self.max_steps}")


class Environment(Protocol):
    """A Gymnasium environment that can be rolled out, recorded and rewound."""

    state_names: tuple[str, ...]
    environment_state_names: tuple[str, ...]
    action_names: tuple[str, ...]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode; the same seed gives the same start state."""

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Apply one action: observation, reward, terminated, truncated, info."""


def make_environment(config: EnvironmentConfig) -> Environment:
    """The environment that `config` describes, on the PyBullet engine."""
    from robot_qsft.sim.pybullet.tasks import TabletopEnvironment

    return TabletopEnvironment(config)


def register_environments() -> None:
    """Make `gymnasium.make("robot_qsft/TASK-v0")` work; calling it again changes nothing."""
    for task in TASKS:
        name = f"robot_qsft/{task}-v0"
        if name not in gymnasium.registry:
            gymnasium.register(
                id=name,
                entry_point="robot_qsft.sim.pybullet.tasks:make_task",
                kwargs={"task": task},
            )


def observation_of(gym_observation: dict[str, Any]) -> Observation:
    """The typed form of a Gymnasium observation."""
    state: Vector = gym_observation["state"]
    return Observation(
        state=state,
        instruction=gym_observation["instruction"],
        images=gym_observation.get("images", {}),
        environment_state=gym_observation["environment_state"],
    )
