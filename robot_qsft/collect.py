"""Scripted demonstrations into a data set on disk."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from robot_qsft.datasets.episode import Episode
from robot_qsft.datasets.features import Camera, DatasetInfo
from robot_qsft.datasets.store import Dataset
from robot_qsft.datasets.writer import DatasetWriter
from robot_qsft.json_file import write_json
from robot_qsft.sim.environment import make_environment, settings_of
from robot_qsft.sim.recipes import Quality, attempts
from robot_qsft.sim.robosuite.config import RobosuiteConfig
from robot_qsft.sim.rollouts import Rollout, Simulation, rollouts
from robot_qsft.simulators import DEFAULT_ENVIRONMENT, SimulatorChoice

SETTINGS = "collected.json"
_COMMIT_EVERY = 500
"""Episodes between two points that an interrupted collection can go on from."""


@dataclass(frozen=True)
class CollectConfig:
    """What is demonstrated, how well, and how often.

    Attributes:
        quality: recipe of the demonstrators.
        episodes: how many.
        environment: where.
        seed: of the whole collection; episode i depends on it and i alone.
        storage: "image" keeps camera frames exactly (PNG), "video" small (AV1, slightly lossy).
    """

    quality: Quality = "stitch"
    episodes: int = 2400
    environment: SimulatorChoice = DEFAULT_ENVIRONMENT
    seed: int = 0
    storage: Literal["image", "video"] = "image"

    def __post_init__(self) -> None:
        """Refuse an empty collection.

        Raises:
            ValueError: naming the field.
        """
        if self.episodes < 1:
            raise ValueError(f"episodes must be at least 1, got {self.episodes}")


def collect(
    config: CollectConfig,
    path: Path,
    *,
    workers: int,
    ray: str = "",
    resume: bool,
    progress: Callable[[Rollout], None],
    commit_every: int = _COMMIT_EVERY,
) -> Dataset:
    """Collect demonstrations into a new data set at `path`.

    Args:
        config: what to collect.
        path: folder of the data set.
        workers: processes; 0 for one per core.
        ray: address of a Ray cluster that does the work instead; "" for none.
        resume: go on with an interrupted collection of the same settings.
        progress: told of every episode.
        commit_every: episodes that an interruption can lose at most.

    Raises:
        ValueError: when something lies at `path` that this collection cannot continue.
    """
    done = _already_collected(config, path, resume=resume)
    planned = attempts(
        config.quality, config.environment, episodes=config.episodes, seed=config.seed
    )
    made = rollouts(planned[done:], workers=workers, ray=ray)
    info = _info(config)
    while done < config.episodes:
        count = min(commit_every, config.episodes - done)
        with DatasetWriter(path, info=info, append=done > 0) as writer:
            for rollout in islice(made, count):
                writer.add_episode(rollout.episode)
                progress(rollout)
            if done == 0:  # before the data set is there, so that it never is without
                write_json(path / SETTINGS, _settings(config))
        done += count
    return Dataset.open(path)


def record(
    config: CollectConfig,
    path: Path,
    *,
    workers: int,
    ray: str = "",
    progress: Callable[[Rollout], None],
) -> None:
    """Collect demonstrations of robosuite into a robomimic HDF5 file, simulator states included.

    The file appears when it is complete; an interrupted collection begins again.

    Args:
        config: what to collect.
        path: of the file; nothing may be there.
        workers: processes; 0 for one per core.
        ray: address of a Ray cluster that does the work instead; "" for none.
        progress: told of every episode.

    Raises:
        ValueError: when something is at `path`, or the environment is not robosuite's.
    """
    if not isinstance(config.environment, RobosuiteConfig):
        raise ValueError(
            f"a robomimic file holds states of robosuite, not of {config.environment.simulator}; "
            "let --out be a folder"
        )
    if path.exists():
        raise ValueError(f"{path} exists already; remove it or choose another --out")
    from robot_qsft.sim.robosuite.recording import write_recordings
    from robot_qsft.sim.robosuite.tasks import RobosuiteEnvironment

    planned = [
        replace(one, keep_simulation=True)
        for one in attempts(
            config.quality, config.environment, episodes=config.episodes, seed=config.seed
        )
    ]

    def episodes() -> Iterator[tuple[Episode, Simulation]]:
        for rollout in rollouts(planned, workers=workers, ray=ray):
            assert rollout.simulation is not None, "asked for"
            progress(rollout)
            yield rollout.episode, rollout.simulation

    write_recordings(path, episodes(), RobosuiteEnvironment(config.environment))


def _already_collected(config: CollectConfig, path: Path, *, resume: bool) -> int:
    """Episodes at `path` that belong to this collection."""
    if not path.exists():
        return 0
    settings = path / SETTINGS
    if not resume:
        raise ValueError(f"{path} exists already; add --resume, or choose another --out")
    if not (path / "meta/info.json").is_file():  # interrupted before anything was put in place
        settings.unlink(missing_ok=True)
        return 0
    if not settings.is_file() or json.loads(settings.read_text()) != json.loads(
        json.dumps(_settings(config))
    ):
        raise ValueError(
            f"{path} was collected with other settings; repeat them, or choose another --out"
        )
    return len(Dataset.open(path))


def _settings(config: CollectConfig) -> dict[str, Any]:
    return {**asdict(config), "environment": settings_of(config.environment)}


def _info(config: CollectConfig) -> DatasetInfo:
    environment = make_environment(config.environment)
    size = config.environment.image_size
    return DatasetInfo(
        fps=config.environment.control_hz,
        action_names=environment.action_names,
        state_names=environment.state_names,
        environment_state_names=environment.environment_state_names,
        cameras={name: Camera(size, size, config.storage) for name in config.environment.cameras},
        robot_type=config.environment.robot_type,
    )
