"""What every simulated task offers, whichever engine runs it.

Shape legend: A action dimensions, D simulator-state dimensions, E environment-state dimensions,
H height, S state dimensions, W width.
"""

from dataclasses import asdict
from typing import Any, Protocol, TypeAlias, runtime_checkable

import gymnasium
import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.interface import Observation, Vector
from robot_qsft.sim.pybullet import config as pybullet_config
from robot_qsft.sim.pybullet.config import PyBulletConfig
from robot_qsft.sim.robosuite import config as robosuite_config
from robot_qsft.sim.robosuite.config import RobosuiteConfig

EnvironmentConfig: TypeAlias = PyBulletConfig | RobosuiteConfig


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
        self, action: NDArray[np.float32], *, render: bool = True
    ) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Apply one action: observation, reward, terminated, truncated, info.

        Without `render` the observation has no images, which may be most of the work.
        """


@runtime_checkable
class RecordableEnvironment(Environment, Protocol):
    """An environment whose simulator is told by a vector and a model, as robosuite's is."""

    def simulator_state(self) -> NDArray[np.float64]:
        """What with the model decides how an episode goes on, float64 (D,)."""

    def model_xml(self) -> str:
        """The episode's model."""


def make_environment(config: EnvironmentConfig) -> Environment:
    """The environment that `config` describes.

    Raises:
        ValueError: when its simulator is not installed, or cannot render here.
    """
    if isinstance(config, RobosuiteConfig):
        from robot_qsft.sim.robosuite.tasks import RobosuiteEnvironment

        return RobosuiteEnvironment(config)
    from robot_qsft.sim.pybullet.tasks import TabletopEnvironment

    return TabletopEnvironment(config)


def settings_of(config: EnvironmentConfig) -> dict[str, Any]:
    """A configuration as JSON, with the simulator that it is of."""
    return {"simulator": config.simulator, **asdict(config)}


def register_environments() -> None:
    """Make environments known to `gymnasium.make`; calling it again changes nothing.

    Those of PyBullet are `robot_qsft/TASK-v0`, those of robosuite `robot_qsft/RobosuiteTASK-v0`.
    """
    for name, package, tasks in (
        ("", "pybullet", pybullet_config.TASKS),
        ("Robosuite", "robosuite", robosuite_config.TASKS),
    ):
        for task in tasks:
            known_as = f"robot_qsft/{name}{task}-v0"
            if known_as not in gymnasium.registry:
                gymnasium.register(
                    id=known_as,
                    entry_point=f"robot_qsft.sim.{package}.tasks:make_task",
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
