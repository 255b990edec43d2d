"""Named training runs."""

from dataclasses import replace

from robot_qsft.datasets.batches import SamplerConfig
from robot_qsft.objective import ObjectiveConfig
from robot_qsft.policies.rt import RTConfig
from robot_qsft.train import TrainConfig


def images() -> TrainConfig:
    """From camera images and proprioception."""
    return TrainConfig()


def rt1_images() -> TrainConfig:
    """From images and an instruction, a network of the size of RT-1 (34M parameters); for a GPU.

    Brohan et al. 2022 (arXiv 2212.06817): eight tokens per image by TokenLearner, eight layers.
    """
    network = RTConfig(
        width=576,
        layers=8,
        attention_heads=8,
        stem_channels=(64, 128),
        image_tokens=8,
        image_pooling="token_learner",
        instruction_words=12,
    )
    return TrainConfig(network=network, learning_rate=3e-4)


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
