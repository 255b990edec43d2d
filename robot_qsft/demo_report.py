"""What the demo's report shows, put together from its results.

Shape legend: T steps of an episode.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from robot_qsft.calibration import calibration, discounted_returns
from robot_qsft.datasets.features import DatasetInfo
from robot_qsft.datasets.outcomes import infer_outcomes
from robot_qsft.datasets.tables import Tables
from robot_qsft.evaluate import Evaluation, film
from robot_qsft.intervals import Estimate
from robot_qsft.report import (
    DataSummary,
    Difference,
    Example,
    Film,
    Method,
    Outcomes,
    ReportContents,
    ValueTrace,
)
from robot_qsft.sim.environment import EnvironmentConfig
from robot_qsft.sim.recipes import attempts
from robot_qsft.sim.rollouts import rollouts
from robot_qsft.train import TrainConfig

_FILM_PIXELS = 256
_STILLS = 6


@dataclass(frozen=True)
class DemoMethod:
    """A method and how it did."""

    name: str
    description: str
    evaluation: Evaluation


def demo_contents(
    methods: Sequence[DemoMethod],
    difference: Estimate,
    tables: Tables,
    info: DatasetInfo,
    training: TrainConfig,
    environment: EnvironmentConfig,
    facts: Mapping[str, str],
) -> ReportContents:
    """The report of a demo; the last method is the one it is about, the first its baseline."""
    best, baseline = methods[-1], methods[0]
    discount = training.objective.discount
    trained_on = tables.episode_successes.mean()
    return ReportContents(
        title="From mixed demonstrations to a policy that beats them",
        summary=(
            f"Trained on {len(tables.episode_starts)} demonstrations, of which {trained_on:.0%} "
            f"succeed and none shows the whole task, {best.name} solves "
            f"{best.evaluation.rate().value:.0%} of the start states where "
            f"{baseline.name} solves {baseline.evaluation.rate().value:.0%}."
        ),
        methods=tuple(
            Method(one.name, one.description, one.evaluation.successes, one.evaluation.rate())
            for one in methods
        ),
        difference=Difference(best.name, baseline.name, difference),
        films=tuple(_film(one, environment) for one in methods),
        value_method=best.name,
        succeeding=_trace(best.evaluation, True, discount, environment),
        failing=_trace(best.evaluation, False, discount, environment),
        calibration=calibration(best.evaluation, discount),
        data=_data_summary(tables, info, environment),
        facts=facts,
    )


def _film(method: DemoMethod, environment: EnvironmentConfig) -> Film:
    """The first episode that ended as most of the method's episodes did."""
    usual = method.evaluation.rate().value >= 0.5
    episode = next(one for one in method.evaluation.episodes if one.success == usual)
    frames = film(environment, episode, size=_FILM_PIXELS)
    return Film(method.name, frames, episode.success, episode.seed, fps=environment.control_hz)


def _trace(
    evaluation: Evaluation, success: bool, discount: float, environment: EnvironmentConfig
) -> ValueTrace | None:
    """The first episode that succeeded (or failed), and how its value went."""
    episode = next((one for one in evaluation.episodes if one.success == success), None)
    if episode is None:
        return None
    frames = film(environment, episode, size=_FILM_PIXELS // 2)
    steps = np.linspace(0, episode.steps - 1, min(_STILLS, episode.steps)).round().astype(int)
    return ValueTrace(
        label=f"start state {episode.seed}: {'success' if success else 'failure'}",
        values=np.array(episode.values),
        returns=discounted_returns(episode, discount),
        stills=frames[steps],
        still_steps=tuple(int(step) for step in steps),
    )


def _data_summary(tables: Tables, info: DatasetInfo, environment: EnvironmentConfig) -> DataSummary:
    outcomes = infer_outcomes(tables).outcomes
    counted = []
    for name in sorted(set(tables.demonstrators)):
        ended = [
            outcome
            for outcome, who in zip(outcomes, tables.demonstrators, strict=True)
            if who == name
        ]
        counted.append(
            Outcomes(name, ended.count("success"), ended.count("failure"), ended.count("unknown"))
        )
    return DataSummary(
        fps=info.fps,
        outcomes=tuple(counted),
        lengths=tables.episode_lengths,
        actions=tables.actions,
        action_names=info.action_names,
        examples=tuple(_examples(environment)),
    )


def _examples(environment: EnvironmentConfig) -> list[Example]:
    """First and last frame of one demonstration of each kind."""
    camera = environment.film_camera
    seen = replace(environment, cameras=(camera,), image_size=_FILM_PIXELS // 2)
    examples = []
    for rollout in rollouts(attempts("stitch", seen, episodes=2, seed=0), workers=1):
        frames = rollout.episode.images[camera]
        name = rollout.attempt.demonstrator
        examples += [Example(frames[0], f"{name}, start"), Example(frames[-1], f"{name}, end")]
    return examples
