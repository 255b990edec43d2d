"""Time to choose an action: Q-SFT against BC, which reads the behaviour head alone.

Both act by the same weights on the same observations at the same temperature, in turn, on one
thread.
"""

import sys
import time

import numpy as np
import torch
from report import Figure, at_most, publish, quick_from_command_line

from robot_qsft import recipes
from robot_qsft.datasets.interface import Observation, Policy
from robot_qsft.intervals import Estimate, bootstrap_median
from robot_qsft.policies.action_tokenizer import ActionTokenizer, TokenizerConfig
from robot_qsft.policies.rt import PolicySpec, RTNetwork
from robot_qsft.policies.token_policy import DecodingConfig, TokenPolicy

IMAGE_SIZE = 64
BLOCK = 10
"""Actions timed together."""


def main() -> int:
    """Measure and publish."""
    quick = quick_from_command_line(__doc__)
    torch.set_num_threads(1)
    actions = np.random.default_rng(0).uniform(-1, 1, (1000, 4)).astype(np.float32)
    tokenizer = ActionTokenizer.fit(actions, TokenizerConfig())
    figures = []
    for seen, cameras, config, blocks in (
        ("state", (), recipes.state().network, 200),
        ("one camera", ("front",), recipes.images().network, 200),
        ("two cameras", ("front", "wrist"), recipes.rt1_images().network, 40),
    ):
        torch.manual_seed(0)
        spec = PolicySpec(cameras, IMAGE_SIZE, 8, 0, tokenizer.bins, tokenizer.discrete)
        network = RTNetwork(config, spec)
        ratio, bc_ms = _measure(network, tokenizer, blocks=20 if quick else blocks)
        name = f"{seen}, {network.parameter_count() / 1e6:.1f}M parameters"
        figures += [
            at_most(
                1.05,
                figure=f"Q-SFT ÷ BC action latency, {name}",
                value=ratio.value,
                low=ratio.low,
                high=ratio.high,
                n=ratio.n,
                seeds=(0,),
            ),
            Figure(f"BC, ms per action, {name}", bc_ms.value, bc_ms.low, bc_ms.high, bc_ms.n, (0,)),
        ]
    return 0 if publish("action_latency", figures, quick=quick) else 1


def _measure(
    network: RTNetwork, tokenizer: ActionTokenizer, *, blocks: int
) -> tuple[Estimate, Estimate]:
    qsft = TokenPolicy(network, tokenizer, DecodingConfig(), has_values=True)
    bc = TokenPolicy(network, tokenizer, DecodingConfig(beta=0), has_values=False)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    observation = Observation(
        rng.normal(size=network.spec.state_size).astype(np.float32),
        "put the red cube on the green square",
        images=dict.fromkeys(network.spec.cameras, image),
    )
    for policy in (qsft, bc):
        _block_s(policy, observation)
    pairs = np.empty((blocks, 2))
    for index in range(blocks):
        first, second = (0, 1) if index % 2 else (1, 0)  # neither always follows the other
        for column in (first, second):
            pairs[index, column] = _block_s((qsft, bc)[column], observation)
    draws = np.random.default_rng(0)
    ratio = bootstrap_median(pairs[:, 0] / pairs[:, 1], draws)
    return ratio, bootstrap_median(1000 * pairs[:, 1] / BLOCK, draws)


def _block_s(policy: Policy, observation: Observation) -> float:
    start = time.perf_counter()
    for _ in range(BLOCK):
        policy.act(observation)
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
