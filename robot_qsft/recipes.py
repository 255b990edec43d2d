"""Named training runs."""

from dataclasses import replace

from robot_qsft.datasets.batches import SamplerConfig
from robot_qsft.objective import ObjectiveConfig
from robot_qsft.train import TrainConfig


def images() -> TrainConfig:
    """From camera images and proprioception."""
    return TrainConfig()


def state() -> TrainConfig:
    """From low-dimensional state, the simulator's truth included; minutes on two CPU cores."""
    return TrainConfig(environment_state=True, sampler=SamplerConfig(batch_size=256))


def paper(base: TrainConfig) -> TrainConfig:
    """Q-SFT as the paper has it: two networks, 1 step, hard maximum, mass spread over all bins.

    On robot data its values saturate at 1. Act by it with `DecodingConfig(extraction="paper")`.
    """
    return replace(
        base,
        network=replace(base.network, trunks="separate", likelihood_heads=1, reject_token=False),
        objective=ObjectiveConfig(
            form="spread",
            backup="max",
            steps=1,
            support_threshold=0.0,
            monte_carlo_bound=False,
            smoothing_bins=0.0,
            discount=base.objective.discount,
        ),
    )


def bc(base: TrainConfig) -> TrainConfig:
    """Behaviour cloning of all episodes with the same network and budget."""
    return replace(base, method="bc")


def filtered_bc(base: TrainConfig) -> TrainConfig:
    """Behaviour cloning of the successful episodes only."""
    return replace(base, method="bc", episodes="successful")
