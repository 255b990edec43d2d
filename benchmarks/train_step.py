"""Time of a gradient step: Q-SFT against BC on the same network and batches, and the data wait.

The two take turns on every batch, on one thread. The wait is what training itself reports.
"""

import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from report import Figure, at_most, publish, quick_from_command_line

from robot_qsft import recipes
from robot_qsft.collect import CollectConfig, collect
from robot_qsft.datasets.batches import TrainingData, WindowSampler, n_step_returns
from robot_qsft.intervals import bootstrap_median
from robot_qsft.learning_step import losses
from robot_qsft.objective import smoothing_kernels
from robot_qsft.policies.action_tokenizer import ActionTokenizer
from robot_qsft.precision import use_bfloat16
from robot_qsft.sim.pybullet.config import PyBulletConfig
from robot_qsft.train import (
    TrainConfig,
    choose_device,
    collator,
    descend,
    new_state,
    policy_spec,
    train,
)
from robot_qsft.training_data import load_training_data


class LastMetrics:
    """Keeps what the training loop last said."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.metrics: Mapping[str, float] = {}

    def started(self, step: int) -> None:
        """Always at 0."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Remember."""
        self.metrics = metrics

    def validated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Not timed."""


def main() -> int:
    """Measure and publish."""
    quick = quick_from_command_line(__doc__)
    torch.set_num_threads(1)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, base in (("one camera", recipes.images()), ("state", recipes.state())):
            cameras = () if base.environment_state else ("front",)
            figures += _measure(name, base, cameras, Path(folder) / name, quick=quick)
    return 0 if publish("train_step", figures, quick=quick) else 1


def _measure(
    name: str, base: TrainConfig, cameras: tuple[str, ...], folder: Path, *, quick: bool
) -> list[Figure]:
    environment = PyBulletConfig("Stitch", cameras=cameras)
    demonstrations = CollectConfig("stitch", 200, environment)
    dataset = collect(
        demonstrations, folder / "data", workers=0, resume=False, progress=lambda rollout: None
    )
    data = load_training_data(
        dataset, cameras=cameras, image_size=environment.image_size, validation_share=0.05
    )
    seconds = _paired_steps(base, data, pairs=15 if quick else 150)
    ratio = bootstrap_median(seconds[:, 0] / seconds[:, 1], np.random.default_rng(0))
    bc_ms = bootstrap_median(1000 * seconds[:, 1], np.random.default_rng(0))
    watched = LastMetrics()
    steps = 30 if quick else 300
    train(
        replace(base, steps=steps, validate_every=10 * steps),
        data,
        folder / "run",
        progress=watched,
        resume=False,
    )
    wait = watched.metrics["data_wait_share"]
    return [
        at_most(
            1.35,
            figure=f"Q-SFT ÷ BC training step, {name}",
            value=ratio.value,
            low=ratio.low,
            high=ratio.high,
            n=ratio.n,
            seeds=(0,),
        ),
        Figure(f"BC step, ms, {name}", bc_ms.value, bc_ms.low, bc_ms.high, bc_ms.n, (0,)),
        at_most(
            0.05,
            figure=f"share of Q-SFT step time waiting for data, {name}",
            value=wait,
            low=wait,
            high=wait,
            n=steps,
            seeds=(0,),
        ),
    ]


def _paired_steps(base: TrainConfig, data: TrainingData, *, pairs: int) -> np.ndarray:
    """Seconds of a Q-SFT and of a BC step on the same batch, (pairs, 2)."""
    device = choose_device(base.device)
    autocast = use_bfloat16(base.precision, device)
    tables, objective = data.tables, base.objective
    tokenizer = ActionTokenizer.fit(tables.actions, base.tokenizer)
    spec = policy_spec(base, data, tokenizer)
    returns = n_step_returns(
        tables.rewards,
        tables.episode_starts,
        tables.terminated,
        steps=objective.steps,
        discount=objective.discount,
    )
    collate = collator(base, tables, returns, tokenizer, spec, device)
    kernels = smoothing_kernels(spec.bins, spec.discrete, objective.smoothing_bins).to(device)
    sampler = WindowSampler(
        data,
        returns,
        episodes=data.training,
        steps=objective.steps,
        config=base.sampler,
        seed=base.seed,
    )
    rows = np.arange(len(tables.actions))
    configs = (base, recipes.bc(base))
    states = [new_state(config, spec, tables, rows, device) for config in configs]
    seconds = np.zeros((pairs, 2))
    warm_up = 3
    for index, batch in zip(range(-warm_up, pairs), sampler.batches(), strict=False):
        order = (0, 1) if index % 2 else (1, 0)  # neither always follows the other
        for column in order:
            config, state = configs[column], states[column]
            state.network.train()
            _finish(device)
            start = time.perf_counter()
            tensors = collate(batch, shift_pixels=config.shift_pixels, generator=state.generator)
            step_losses = losses(
                state.network,
                state.target,
                tensors,
                kernels,
                method=config.method,
                objective=objective,
                autocast=autocast,
            )
            descend(config, state, step_losses.total)
            _finish(device)
            if index >= 0:
                seconds[index, column] = time.perf_counter() - start
    return seconds


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
