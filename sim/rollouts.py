"""Episodes, in parallel processes and in order.

Shape legend: D simulator-state dimensions, T steps.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.episode import Episode
from robot_qsft.datasets.interface import Policy, Vector
from robot_qsft.datasets.parallel import in_processes, on_ray
from robot_qsft.sim.environment import (
    Environment,
    EnvironmentConfig,
    RecordableEnvironment,
    make_environment,
    observation_of,
)

PolicyFactory = Callable[[], Policy]
_KEPT = 8
"""Environments and policies that a process keeps for later episodes."""


@dataclass(frozen=True)
class Attempt:
    """One episode to be run.

    Attributes:
        environment: where.
        policy: makes who acts; hashable and picklable, as worker processes call and keep it.
        seed: of the start state and of the policy's randomness.
        demonstrator: name to record.
        keep_images: whether the episode has the frames; without, only those are rendered that the
            policy asks for.
        keep_simulation: whether the simulator's states and model are kept, too (robosuite).
    """

    environment: EnvironmentConfig
    policy: PolicyFactory
    seed: int
    demonstrator: str = ""
    keep_images: bool = True
    keep_simulation: bool = False


@dataclass(frozen=True, eq=False)
class Simulation:
    """What an episode was computed from, as robomimic's data sets keep it.

    Attributes:
        states: float64 (T, D), of the simulator before each action.
        model_xml: of the episode.
    """

    states: NDArray[np.float64]
    model_xml: str


@dataclass(frozen=True, eq=False)
class Rollout:
    """An episode and what its policy thought on the way.

    Attributes:
        attempt: what was run.
        episode: what happened.
        values: float32 (T,), value of each chosen action; NaN where the policy gave none.
        behaviour_log_probabilities: float32 (T,), in nats; NaN likewise.
        simulation: where it was asked for.
    """

    attempt: Attempt
    episode: Episode
    values: Vector
    behaviour_log_probabilities: Vector
    simulation: Simulation | None = None


def rollouts(attempts: Iterable[Attempt], *, workers: int, ray: str = "") -> Iterator[Rollout]:
    """Run attempts, yielding them in their order; memory stays flat however many there are.

    The result of an attempt does not depend on who runs it, nor on what ran before it. An attempt
    whose worker dies is run again.

    Args:
        attempts: what to run.
        workers: processes; 0 for one per core, 1 runs in this one.
        ray: address of a Ray cluster that does the work instead; "" for none.

    Raises:
        ValueError: when a policy or environment refuses what it is given, naming the seed.
        RuntimeError: when an attempt fails otherwise, naming its seed and cause.
    """
    if ray:
        return on_ray(_run, attempts, address=ray, describe=_name)
    return in_processes(_run, attempts, workers=workers, describe=_name)


def _name(attempt: Attempt) -> str:
    return f"the episode with seed {attempt.seed} in {attempt.environment.task}"


def _run(attempt: Attempt) -> Rollout:
    try:
        return run_attempt(attempt, _environment(attempt.environment), _policy(attempt.policy))
    except Exception as error:
        kind = ValueError if isinstance(error, ValueError) else RuntimeError
        raise kind(f"{_name(attempt)} failed: {error}") from error


def run_attempt(attempt: Attempt, environment: Environment, policy: Policy) -> Rollout:
    """Run one attempt in a given environment."""
    gym_observation, _ = environment.reset(seed=attempt.seed)
    policy.reset(seed=attempt.seed)
    observations, actions, rewards, successes = [], [], [], []
    values, log_probabilities = [], []
    simulator = environment if attempt.keep_simulation else None
    assert simulator is None or isinstance(simulator, RecordableEnvironment)
    simulator_states = []
    terminated = truncated = False
    while not (terminated or truncated):
        chunk = policy.act(observation_of(gym_observation))
        for index, action in enumerate(chunk.actions):
            observation = observation_of(gym_observation)
            if not attempt.keep_images:
                observation = replace(observation, images={})
            observations.append(observation)
            if simulator is not None:
                simulator_states.append(simulator.simulator_state())
            asks_next = index + 1 == len(chunk.actions)
            gym_observation, reward, terminated, truncated, info = environment.step(
                action, render=attempt.keep_images or asks_next
            )
            actions.append(action)
            rewards.append(reward)
            successes.append(bool(info["is_success"]))
            values.append(chunk.value if index == 0 else None)
            log_probabilities.append(chunk.behaviour_log_probability if index == 0 else None)
            if terminated or truncated:
                break
    episode = Episode(
        states=np.stack([seen.state for seen in observations]),
        actions=np.stack(actions),
        rewards=np.array(rewards, np.float32),
        successes=np.array(successes),
        terminated=terminated,
        truncated=truncated,
        instruction=observations[0].instruction,
        images={
            camera: np.stack([seen.images[camera] for seen in observations])
            for camera in observations[0].images
        },
        environment_states=np.stack([seen.environment_state for seen in observations]),
        demonstrator=attempt.demonstrator,
    )
    simulation = None
    if simulator is not None:
        simulation = Simulation(np.stack(simulator_states), simulator.model_xml())
    return Rollout(attempt, episode, _floats(values), _floats(log_probabilities), simulation)


def _floats(numbers: list[float | None]) -> Vector:
    return np.array([np.nan if number is None else number for number in numbers], np.float32)


@lru_cache(maxsize=_KEPT)
def _environment(config: EnvironmentConfig) -> Environment:
    return make_environment(config)


@lru_cache(maxsize=_KEPT)
def _policy(factory: PolicyFactory) -> Policy:
    return factory()
