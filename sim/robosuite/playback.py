"""Recorded demonstrations of robosuite, played again in the simulator.

By state, the simulator is put into every recorded state: observations, images, rewards and outcomes
come out for files that lack them, whatever the simulator's version. By action, the recorded actions
are taken open-loop from the first state: how far that strays tells whether the rebuilt environment
is the recorded one.

Shape legend: A action dimensions, D simulator-state dimensions, T steps.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.episode import Episode
from robot_qsft.datasets.formats.robomimic import RobomimicSource
from robot_qsft.sim.environment import observation_of
from robot_qsft.sim.robosuite.config import RobosuiteConfig
from robot_qsft.sim.robosuite.tasks import RobosuiteEnvironment
from robot_qsft.sim.rollouts import Simulation

_STATES, _ACTIONS = "states", "actions"


@dataclass(frozen=True, eq=False)
class Demonstration:
    """What a file holds of one episode.

    Attributes:
        actions: float32 (T, A).
        simulation: states before each action, and the model.
        instruction: "" where the file has none.
    """

    actions: NDArray[np.float32]
    simulation: Simulation
    instruction: str


class Playback:
    """Plays the demonstrations of one robomimic or robosuite HDF5 file.

    Attributes:
        environment: rebuilt from the file.
    """

    def __init__(self, path: Path, config: RobosuiteConfig) -> None:
        """Rebuild the environment.

        Args:
            path: of the file.
            config: how it is seen and rewarded; task and robot are the file's.

        Raises:
            ValueError: when the file does not tell how the environment is made, or has no states.
        """
        self._source = RobomimicSource(path)
        if _STATES not in self._source.info.columns:
            raise ValueError(
                f"{path} has no simulator states, so nothing can be played; its observations are "
                "read as they are"
            )
        self.environment = RobosuiteEnvironment(replace(config, demos=str(path)))

    def __len__(self) -> int:
        """Number of demonstrations."""
        return len(self._source)

    def demonstration(self, index: int) -> Demonstration:
        """What is recorded of an episode.

        Raises:
            ValueError: when it is damaged, holds NaN, or its actions are those of another robot.
        """
        recording = self._source.recording(index)
        about = f"{recording.name} of {self._source.path}"
        for name in (_STATES, _ACTIONS):
            strange = np.argwhere(~np.isfinite(recording.columns[name]))
            if len(strange):
                raise ValueError(
                    f"{name} of {about} hold NaN or infinity at step {strange[0][0]}; mend them or "
                    "drop the demonstration"
                )
        names, width = self.environment.action_names, recording.columns[_ACTIONS].shape[-1]
        if width != len(names):
            raise ValueError(
                f"actions of {about} are {width} numbers, but the environment that the file tells "
                f"of takes {len(names)} ({', '.join(names)}); mend env_args"
            )
        return Demonstration(
            actions=recording.columns[_ACTIONS].astype(np.float32),
            simulation=Simulation(
                recording.columns[_STATES].astype(np.float64), self._source.model_xml(index)
            ),
            instruction=recording.instruction,
        )

    def by_state(self, demonstration: Demonstration) -> Episode:
        """The episode that recorded states show.

        Reward and success of an action are those of the state after it; the last action is taken in
        the simulator. A success does not end the episode, as the recording went on after it.

        Raises:
            ValueError: when states or actions do not fit the environment.
        """
        environment, states = self.environment, demonstration.simulation.states
        seen = [environment.load(states[0], model=demonstration.simulation.model_xml)]
        outcomes = []
        for state in states[1:]:
            observation, reward, success = environment.go_to(state)
            seen.append(observation)
            outcomes.append((reward, success))
        outcomes.append(environment.apply(demonstration.actions[-1]))
        return self._episode(demonstration, seen, outcomes)

    def by_action(self, demonstration: Demonstration) -> NDArray[np.float64]:
        """States (T, D) that recorded actions lead through, from the first recorded one.

        Raises:
            ValueError: when states or actions do not fit the environment.
        """
        environment = self.environment
        environment.load(
            demonstration.simulation.states[0], model=demonstration.simulation.model_xml
        )
        reached = [environment.simulator_state()]
        for action in demonstration.actions[:-1]:
            environment.apply(action)
            reached.append(environment.simulator_state())
        return np.stack(reached)

    def _episode(
        self,
        demonstration: Demonstration,
        seen: list[dict[str, Any]],
        outcomes: list[tuple[float, bool]],
    ) -> Episode:
        observations = [observation_of(one) for one in seen]
        successes = np.array([success for _, success in outcomes])
        rewards = np.array([reward for reward, _ in outcomes], np.float32)
        return Episode(
            states=np.stack([one.state for one in observations]),
            actions=demonstration.actions,
            rewards=rewards,
            successes=successes,
            terminated=bool(successes[-1]),
            truncated=not successes[-1],
            instruction=demonstration.instruction or observations[0].instruction,
            images={
                camera: np.stack([one.images[camera] for one in observations])
                for camera in observations[0].images
            },
            environment_states=np.stack([one.environment_state for one in observations]),
        )
