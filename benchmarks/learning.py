"""What the learning benchmarks share: data, runs side by side, evaluations, curves.

Everything lies under `runs/benchmarks/NAME`, so an interrupted benchmark goes on where it stopped.
"""

import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from report import Figure, at_least, at_most

from robot_qsft.collect import CollectConfig, collect
from robot_qsft.console import Counter, frame_bar, progress_bar
from robot_qsft.evaluate import Evaluation, EvaluationConfig, PolicyFactory, evaluate
from robot_qsft.intervals import Estimate, over_seeds
from robot_qsft.policies.token_policy import DecodingConfig
from robot_qsft.sim.environment import EnvironmentConfig
from robot_qsft.sim.pybullet.config import PyBulletConfig
from robot_qsft.train import TrainConfig
from robot_qsft.train_many import Job, train_many
from robot_qsft.training_data import DataSource, load_training_data

ROOT = Path(__file__).parent.parent / "runs" / "benchmarks"


@dataclass(frozen=True)
class Setup:
    """A benchmark's folder, data and start states."""

    folder: Path
    demonstrations: CollectConfig
    evaluation: EvaluationConfig

    @property
    def environment(self) -> EnvironmentConfig:
        """Where the demonstrations come from, and where policies are tried."""
        return self.demonstrations.environment

    def data(self, validation_share: float, episodes: int | None = None) -> DataSource:
        """The demonstrations, or the first so many of them."""
        environment = self.environment
        return DataSource(
            self.folder / "data",
            environment.cameras,
            environment.image_size,
            validation_share,
            episodes,
        )


def stitch_setup(
    name: str, cameras: tuple[str, ...], *, episodes: int, evaluation: EvaluationConfig
) -> Setup:
    """The stitch task as the benchmark `name` has it, seen by `cameras`."""
    environment = PyBulletConfig("Stitch", cameras=cameras)
    demonstrations = CollectConfig("stitch", episodes=episodes, environment=environment)
    return Setup(ROOT / name, demonstrations, evaluation)


@dataclass(frozen=True)
class Run:
    """A training run of the benchmark and the decodings that it is tried with."""

    name: str
    config: TrainConfig
    decodings: tuple[DecodingConfig, ...]
    episodes: int | None = None


def run_all(
    setup: Setup, runs: list[Run], *, evaluations: str = "evaluations"
) -> dict[tuple[str, DecodingConfig], Evaluation]:
    """Collect, train every run two at a time, evaluate each with all its decodings.

    Results of each run lie in its folder `evaluations`.
    """
    with progress_bar() as progress:
        counter = Counter(progress, "demonstrations", setup.demonstrations.episodes)
        dataset = collect(
            setup.demonstrations,
            setup.folder / "data",
            workers=0,
            resume=True,
            progress=lambda rollout: counter.add(rollout.episode.success),
        )
        load_training_data(  # decodes the frames once, for all runs
            dataset,
            cameras=setup.environment.cameras,
            image_size=setup.environment.image_size,
            validation_share=runs[0].config.validation_share,
            progress=frame_bar(progress),
        )
        jobs = [
            Job(
                run.name,
                run.config,
                setup.folder / run.name,
                setup.data(run.config.validation_share, run.episodes),
            )
            for run in runs
        ]
        checkpoints = train_many(jobs, workers=min(2, os.cpu_count() or 1), progress=progress)
    results = {}
    with progress_bar() as progress:
        for run, checkpoint in zip(runs, checkpoints, strict=True):
            for decoding in run.decodings:
                label = decoding_label(decoding)
                counter = Counter(progress, f"{run.name} {label}", setup.evaluation.episodes)
                results[run.name, decoding] = evaluate(
                    PolicyFactory(str(checkpoint), decoding),
                    setup.environment,
                    setup.evaluation,
                    setup.folder / run.name / evaluations / label,
                    settings={"checkpoint": checkpoint.name, "decoding": asdict(decoding)},
                    progress=lambda episode, counter=counter: counter.add(episode.success),
                )
    return results


def decoding_label(decoding: DecodingConfig) -> str:
    """Short and fit for a folder's name."""
    return f"beta-{decoding.beta:g}-temperature-{decoding.temperature:g}"


def successes(
    results: dict[tuple[str, DecodingConfig], Evaluation],
    names: list[str],
    decoding: DecodingConfig,
) -> NDArray[np.float64]:
    """0 or 1 per (training seed, start state) of the runs called `names`."""
    return np.array([results[name, decoding].successes for name in names], np.float64)


def mean_over_seeds(outcomes_SN: NDArray[np.float64]) -> Estimate:
    """Mean over training seeds and start states, with its interval."""
    return over_seeds(outcomes_SN, np.random.default_rng(0))


def figure_of(
    name: str,
    estimate: Estimate,
    seeds: tuple[int, ...],
    *,
    least: float | None = None,
    most: float | None = None,
) -> Figure:
    """A figure of the benchmark, with a bar where there is one."""
    parts = {
        "figure": name,
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "n": estimate.n,
        "seeds": seeds,
    }
    if least is not None:
        return at_least(least, **parts)
    return Figure(**parts) if most is None else at_most(most, **parts)
