"""How an environment is made, in robomimic's words.

    {"env_name": "PickPlaceCan", "env_version": "1.5.2", "type": 1, "env_kwargs": {...}}

`env_kwargs` are the arguments of `robosuite.make`. What concerns windows, cameras and time limits
is ours to choose; robot, controllers, rate and physics are taken as they stand.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from robot_qsft.datasets.formats.robomimic import RobomimicSource
from robot_qsft.sim.robosuite.config import RobosuiteConfig, Task

_OF_ROBOSUITE: Final = 1
"""The `type` of robosuite's environments."""
_ENV_NAMES: dict[Task, str] = {
    "Lift": "Lift",
    "Can": "PickPlaceCan",
    "Square": "NutAssemblySquare",
    "Stack": "Stack",
    "Door": "Door",
}
_OURS: dict[str, Any] = {
    "has_renderer": False,
    "has_offscreen_renderer": False,
    "use_camera_obs": False,
    "use_object_obs": True,
    "ignore_done": True,
    "hard_reset": False,
    "seed": 0,
}
_NOT_THEIRS = (
    "camera_",
    "render_",
    "renderer",
    "horizon",
    "reward_shaping",
    *_OURS,
)
"""How arguments begin that a file may hold and that are chosen here."""


@dataclass(frozen=True)
class EnvArgs:
    """An environment's name and the arguments that decide its physics.

    Attributes:
        env_name: robosuite's.
        env_kwargs: of `robosuite.make`, without what `make` adds.
        shaped: whether its reward is dense.
    """

    env_name: str
    env_kwargs: Mapping[str, Any]
    shaped: bool

    def make(self, robosuite: Any) -> Any:
        """Robosuite's own environment.

        Raises:
            ValueError: when robosuite does not know it, or refuses an argument.
        """
        try:
            return robosuite.make(
                self.env_name,
                **copy.deepcopy(dict(self.env_kwargs)),
                **_OURS,
                reward_shaping=self.shaped,
            )
        except Exception as error:  # whatever robosuite stumbles over in arguments from a file
            raise ValueError(
                f"robosuite {robosuite.__version__} cannot make {self.env_name} with "
                f"{json.dumps(self.env_kwargs, default=str):.300} ({type(error).__name__}: "
                f"{error!s:.200}); mend env_args"
            ) from error

    def as_json(self, robosuite: Any) -> dict[str, Any]:
        """What robomimic's files hold as `env_args`."""
        return {
            "env_name": self.env_name,
            "env_version": robosuite.__version__,
            "type": _OF_ROBOSUITE,
            "env_kwargs": {**self.env_kwargs, "reward_shaping": self.shaped},
        }


def env_args_of(config: RobosuiteConfig) -> EnvArgs:
    """The environment that a configuration describes.

    Raises:
        ValueError: when `config.demos` is no file of robosuite demonstrations.
    """
    shaped = config.reward == "shaped"
    if config.demos:
        return EnvArgs(*_read(Path(config.demos)), shaped)
    from robosuite import load_composite_controller_config, load_part_controller_config

    controllers = load_composite_controller_config(robot=config.robot)
    if config.controller == "joint_position":
        arm = load_part_controller_config(default_controller="JOINT_POSITION")
        controllers["body_parts"]["right"] = {
            **arm,
            "gripper": controllers["body_parts"]["right"]["gripper"],
        }
    kwargs = {
        "robots": [config.robot],
        "controller_configs": controllers,
        "control_freq": config.control_hz,
        "lite_physics": True,
    }
    return EnvArgs(_ENV_NAMES[config.task], kwargs, shaped)


def read_env_args(source: RobomimicSource) -> tuple[str, dict[str, Any]]:
    """Name and arguments of the environment that a file's demonstrations were made in.

    Files of robosuite 1.4 and before have controllers in another form, which is translated, and
    physics that forwarded the model once more per step.

    Raises:
        ValueError: when the file does not tell, or tells of another simulator.
    """
    env_args = source.env_args
    name, kwargs = env_args.get("env_name"), env_args.get("env_kwargs")
    kind = env_args.get("type", env_args.get("env_type"))
    if not isinstance(name, str) or not isinstance(kwargs, dict):
        raise ValueError(
            f"{source.path} does not tell how its environment is made (env_args); give --task and "
            "--robot instead of --demos"
        )
    if kind != _OF_ROBOSUITE:
        raise ValueError(
            f"{source.path} is of another simulator (env_args: type {kind}, where robosuite's is "
            f"{_OF_ROBOSUITE}); only robosuite's can be rebuilt"
        )
    kept = {key: value for key, value in kwargs.items() if not key.startswith(_NOT_THEIRS)}
    version = str(env_args.get("env_version", ""))
    if version and tuple(version.split(".")[:2]) < ("1", "5"):
        kept.setdefault("lite_physics", False)
    controllers = kept.get("controller_configs")
    if isinstance(controllers, list) and len(controllers) == 1:
        controllers = controllers[0]
    if isinstance(controllers, dict):
        from robosuite.controllers.composite.composite_controller_factory import (
            refactor_composite_controller_config,
        )

        robots = kept.get("robots", "Panda")
        robot = robots if isinstance(robots, str) else robots[0]
        kept["controller_configs"] = refactor_composite_controller_config(
            controllers, robot, ["right"]
        )
    return name, kept


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    return read_env_args(RobomimicSource(path))
