"""Episodes of robosuite as robomimic's data sets hold them.

    actions, rewards, states       float64 states of the simulator before each action
    dones                          1 where the task is solved
    obs/robot0_eef_pos, ...        proprioception, by robosuite's names
    obs/object                     the environment state
    obs/agentview_image, ...       frames, upright
    model_file                     the episode's model
    env_args                       how robosuite makes the environment

robomimic trains on such a file and rebuilds the environment from it; robosuite's own playback takes
it, too.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from robot_qsft.datasets.episode import Episode
from robot_qsft.datasets.formats.robomimic_writer import Demo, write_robomimic
from robot_qsft.sim.robosuite.config import CAMERAS
from robot_qsft.sim.robosuite.engine import import_robosuite
from robot_qsft.sim.robosuite.tasks import RobosuiteEnvironment
from robot_qsft.sim.rollouts import Simulation


def write_recordings(
    path: Path,
    episodes: Iterable[tuple[Episode, Simulation]],
    environment: RobosuiteEnvironment,
) -> None:
    """Write episodes of an environment to one file, which appears when it is complete.

    Args:
        path: of the file; nothing may be there.
        episodes: taken one by one, each with what it was computed from.
        environment: made as theirs was; it is only asked how it is made.

    Raises:
        ValueError: when something is at `path`, or h5py is not installed.
    """
    robosuite = import_robosuite(log=environment.config.log)
    write_robomimic(
        path,
        demos=_demos(episodes, environment),
        env_args=environment.env_args.as_json(robosuite),
        splits={},
    )


def _demos(
    episodes: Iterable[tuple[Episode, Simulation]], environment: RobosuiteEnvironment
) -> Iterator[Demo]:
    for episode, simulation in episodes:
        seen = environment.observation_columns(episode)
        yield Demo(
            columns={
                "actions": episode.actions,
                "rewards": episode.rewards,
                "dones": episode.successes.astype(np.int64),
                "states": simulation.states,
                **{f"obs/{name}": values for name, values in seen.items()},
            },
            images={f"{CAMERAS[name]}_image": frames for name, frames in episode.images.items()},
            instruction=episode.instruction,
            model_xml=simulation.model_xml,
        )
