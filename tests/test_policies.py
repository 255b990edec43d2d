"""Network, decoder, the policy that acts, and its checkpoint."""

import json
import math
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from robot_qsft.datasets.interface import Observation
from robot_qsft.policies.action_tokenizer import ActionTokenizer, Dimension
from robot_qsft.policies.checkpoint import load_policy, save_policy
from robot_qsft.policies.heads import TokenLogProbabilities
from robot_qsft.policies.instructions import BUCKETS
from robot_qsft.policies.rt import Decoder, PolicySpec, RTConfig, RTNetwork, TokenInputs
from robot_qsft.policies.token_policy import DecodingConfig, TokenPolicy
from robot_qsft.policies.values import MASKED_LOGIT, q_values

CONFIG = RTConfig(
    width=16, layers=2, attention_heads=2, stem_channels=(4, 8), image_tokens=2, dropout=0.2
)
SPEC = PolicySpec(
    cameras=(),
    image_size=16,
    state_size=3,
    environment_state_size=2,
    bins=(4, 3, 5),
    discrete=(False, True, False),
)
CAMERA_SPEC = replace(SPEC, cameras=("front",))

LAYOUTS = {
    "state only": (CONFIG, SPEC),
    "one camera": (CONFIG, CAMERA_SPEC),
    "two cameras, words": (
        replace(CONFIG, instruction_words=3),
        replace(SPEC, cameras=("front", "wrist"), environment_state_size=0),
    ),
    "token learner": (replace(CONFIG, image_pooling="token_learner"), CAMERA_SPEC),
    "separate trunks": (replace(CONFIG, trunks="separate"), CAMERA_SPEC),
    "one head": (replace(CONFIG, likelihood_heads=1), SPEC),
    "no reject token": (replace(CONFIG, reject_token=False), SPEC),
    "one dimension": (CONFIG, replace(SPEC, bins=(6,), discrete=(False,))),
}
layouts = pytest.mark.parametrize(("config", "spec"), LAYOUTS.values(), ids=LAYOUTS)


def new_network(config: RTConfig, spec: PolicySpec, *, seed: int = 0) -> RTNetwork:
    """A network as it is before training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RTNetwork(config, spec).eval()


def stirred_network(config: RTConfig, spec: PolicySpec, *, seed: int = 0) -> RTNetwork:
    """A network whose outputs depend strongly on everything it reads."""
    network = new_network(config, spec, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return network


def random_inputs(config: RTConfig, spec: PolicySpec, *, batch: int = 4) -> TokenInputs:
    rng = np.random.default_rng(0)
    size = (batch, spec.image_size, spec.image_size, 3)

    def normal(width: int) -> Tensor:
        return torch.from_numpy(rng.normal(size=(batch, width)).astype(np.float32))

    return TokenInputs(
        state_BS=normal(spec.state_size),
        environment_state_BE=normal(spec.environment_state_size),
        words_BI=torch.from_numpy(rng.integers(BUCKETS, size=(batch, config.instruction_words))),
        images={
            camera: torch.from_numpy(rng.integers(256, size=size, dtype=np.uint8))
            for camera in spec.cameras
        },
    )


def random_tokens(spec: PolicySpec, *, batch: int = 4) -> Tensor:
    rng = np.random.default_rng(1)
    return torch.from_numpy(rng.integers(spec.bins, size=(batch, len(spec.bins))))


def tokenizer_of(spec: PolicySpec) -> ActionTokenizer:
    """Discrete values 0, 1, ...; continuous bins of width 1 from 0 on."""
    dimensions = []
    for count, is_discrete in zip(spec.bins, spec.discrete, strict=True):
        edges = () if is_discrete else tuple(float(edge) for edge in range(count + 1))
        offset = 0.0 if is_discrete else 0.5
        dimensions.append(Dimension(edges, tuple(index + offset for index in range(count))))
    return ActionTokenizer(tuple(dimensions))


# The network.


@layouts
@torch.no_grad()
def test_distributions_are_normalised_over_the_bins_that_exist(
    config: RTConfig, spec: PolicySpec
) -> None:
    output = stirred_network(config, spec)(random_inputs(config, spec), random_tokens(spec))
    pi, p = output.behaviour_BDK.exp(), output.likelihood_HBDV.exp()
    dimensions, most = len(spec.bins), max(spec.bins)
    assert pi.shape == (4, dimensions, most)
    assert p.shape == (config.likelihood_heads, 4, dimensions, most + config.reject_token)
    torch.testing.assert_close(pi.sum(-1), torch.ones(4, dimensions))
    torch.testing.assert_close(p.sum(-1), torch.ones(p.shape[:-1]))
    for dimension, count in enumerate(spec.bins):
        assert not pi[:, dimension, count:].any()
        assert not p[:, :, dimension, count:most].any()


@layouts
def test_learning_and_acting_read_the_same(config: RTConfig, spec: PolicySpec) -> None:
    """Attention is computed in another way where no gradient is asked for."""
    network, tokens = stirred_network(config, spec), random_tokens(spec)
    inputs = random_inputs(config, spec)
    learning = network(inputs, tokens)
    with torch.no_grad():
        acting = network(inputs, tokens)
    assert learning.behaviour_BDK.requires_grad
    torch.testing.assert_close(learning.behaviour_BDK, acting.behaviour_BDK, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        learning.likelihood_HBDV, acting.likelihood_HBDV, atol=1e-5, rtol=1e-4
    )


@layouts
@torch.no_grad()
def test_decoder_gives_the_same_as_the_whole_pass(config: RTConfig, spec: PolicySpec) -> None:
    network, tokens = stirred_network(config, spec), random_tokens(spec)
    inputs = random_inputs(config, spec)
    whole = network(inputs, tokens)
    decoder = Decoder(network, inputs)
    for dimension in range(len(spec.bins)):
        if dimension:
            decoder.append(tokens[:, dimension - 1])
        behaviour = whole.behaviour_BDK[:, dimension : dimension + 1]
        likelihood = whole.likelihood_HBDV[:, :, dimension : dimension + 1]
        step = decoder.log_heads()
        bins = behaviour.shape[-1]
        torch.testing.assert_close(step[0, ..., :bins], behaviour, atol=1e-4, rtol=1e-4)
        assert (step[0, ..., bins:] < MASKED_LOGIT / 2).all()
        torch.testing.assert_close(step[1:], likelihood, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(decoder.log_behaviour(), behaviour, atol=1e-4, rtol=1e-4)


def difference_by_dimension(
    one: TokenLogProbabilities, other: TokenLogProbabilities
) -> tuple[Tensor, Tensor]:
    """Change of each action dimension's output: of the head it changes least, and most."""
    behaviour = (one.behaviour_BDK - other.behaviour_BDK).abs().amax(dim=(0, 2))
    likelihood = (one.likelihood_HBDV - other.likelihood_HBDV).abs().amax(dim=(0, 1, 3))
    return torch.minimum(behaviour, likelihood), torch.maximum(behaviour, likelihood)


@pytest.mark.parametrize("trunks", ["shared", "separate"])
@pytest.mark.parametrize("changed", [0, 1, 2])
@torch.no_grad()
def test_token_is_seen_by_later_dimensions_only(trunks: Any, changed: int) -> None:
    config = replace(CONFIG, trunks=trunks)
    network, inputs = stirred_network(config, SPEC), random_inputs(config, SPEC)
    tokens = random_tokens(SPEC)
    others = tokens.clone()
    others[:, changed] = (others[:, changed] + 1) % SPEC.bins[changed]
    least, most = difference_by_dimension(network(inputs, tokens), network(inputs, others))
    assert (most[: changed + 1] < 1e-5).all()
    assert (least[changed + 1 :] > 1e-2).all()


def test_states_are_noisy_in_training_only() -> None:
    network = stirred_network(replace(CONFIG, dropout=0.0, state_noise=0.5), SPEC)
    inputs = random_inputs(CONFIG, SPEC)
    with torch.no_grad():
        assert torch.equal(network.trunk.observe(inputs), network.trunk.observe(inputs))
        network.train()
        assert not torch.equal(network.trunk.observe(inputs), network.trunk.observe(inputs))


WHOLE_CONFIG, WHOLE_SPEC = (
    replace(CONFIG, instruction_words=3),
    replace(SPEC, cameras=("front", "wrist")),
)


def with_state(inputs: TokenInputs) -> TokenInputs:
    return replace(inputs, state_BS=inputs.state_BS + 1)


def with_environment_state(inputs: TokenInputs) -> TokenInputs:
    return replace(inputs, environment_state_BE=inputs.environment_state_BE + 1)


def with_words(inputs: TokenInputs) -> TokenInputs:
    return replace(inputs, words_BI=(inputs.words_BI + 1) % BUCKETS)


def with_cameras_swapped(inputs: TokenInputs) -> TokenInputs:
    front, wrist = inputs.images["front"], inputs.images["wrist"]
    return replace(inputs, images={"front": wrist, "wrist": front})


@pytest.mark.parametrize(
    "change", [with_state, with_environment_state, with_words, with_cameras_swapped]
)
@torch.no_grad()
def test_every_part_of_the_observation_matters(
    change: Callable[[TokenInputs], TokenInputs],
) -> None:
    network = stirred_network(WHOLE_CONFIG, WHOLE_SPEC)
    inputs, tokens = random_inputs(WHOLE_CONFIG, WHOLE_SPEC), random_tokens(WHOLE_SPEC)
    least, _ = difference_by_dimension(network(inputs, tokens), network(change(inputs), tokens))
    assert (least > 1e-2).all()


@pytest.mark.parametrize("initial_value", [0.02, 0.05, 0.5])
@torch.no_grad()
def test_values_start_at_the_initial_value(initial_value: float) -> None:
    config = replace(CONFIG, initial_value=initial_value)
    output = new_network(config, CAMERA_SPEC)(
        random_inputs(config, CAMERA_SPEC), random_tokens(CAMERA_SPEC)
    )
    q = q_values(output.behaviour_BDK, output.likelihood_HBDV)
    for dimension, count in enumerate(CAMERA_SPEC.bins):
        existing = q[:, dimension, :count]
        assert ((existing > 0.8 * initial_value) & (existing < 1.2 * initial_value)).all()


@torch.no_grad()
def test_likelihood_heads_start_apart() -> None:
    output = new_network(CONFIG, SPEC)(random_inputs(CONFIG, SPEC), random_tokens(SPEC))
    first, second = output.likelihood_HBDV
    assert 1e-3 < (first - second)[:, :, :3].abs().max() < 0.5


@pytest.mark.parametrize("trunks", ["shared", "separate"])
@torch.no_grad()
def test_normalisation_is_part_of_the_network(trunks: Any) -> None:
    config = replace(CONFIG, trunks=trunks)
    raw, normalised = stirred_network(config, SPEC), stirred_network(config, SPEC)
    mean, std = torch.tensor([1.0, -2, 3, 0, 5]), torch.tensor([2.0, 1, 0.5, 4, 1])
    normalised.set_normalisation(mean, std)
    inputs, tokens = random_inputs(CONFIG, SPEC), random_tokens(SPEC)
    scaled = replace(
        inputs,
        state_BS=inputs.state_BS * std[:3] + mean[:3],
        environment_state_BE=inputs.environment_state_BE * std[3:] + mean[3:],
    )
    _, most = difference_by_dimension(raw(inputs, tokens), normalised(scaled, tokens))
    assert (most < 1e-4).all()


@pytest.mark.parametrize("trunks", ["shared", "separate"])
def test_likelihood_moves_the_trunk_only_where_it_is_shared(trunks: Any) -> None:
    config = replace(CONFIG, trunks=trunks)
    network = stirred_network(config, SPEC)
    output = network(random_inputs(config, SPEC), random_tokens(SPEC))
    output.likelihood_HBDV[..., 0].sum().backward()
    moved = any(
        parameter.grad is not None and bool(parameter.grad.any())
        for parameter in network.trunk.parameters()
    )
    assert moved == (trunks == "shared")


def test_dropout_is_for_training_only() -> None:
    network = stirred_network(CONFIG, SPEC)
    inputs, tokens = random_inputs(CONFIG, SPEC), random_tokens(SPEC)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        calm, calm_again = network(inputs, tokens), network(inputs, tokens)
        network.train()
        noisy, noisy_again = network(inputs, tokens), network(inputs, tokens)
    assert torch.equal(calm.behaviour_BDK, calm_again.behaviour_BDK)
    assert not torch.equal(noisy.behaviour_BDK, noisy_again.behaviour_BDK)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: replace(CONFIG, width=15), "width must be a multiple of attention_heads"),
        (lambda: replace(CONFIG, likelihood_heads=0), "likelihood_heads must be at least 1"),
        (lambda: replace(CAMERA_SPEC, image_size=20), "image_size must be a multiple of 8"),
        (lambda: new_network(replace(CONFIG, initial_value=1.0), SPEC), "initial_value must lie"),
        (lambda: DecodingConfig(beta=-1), "beta must be finite and at least 0"),
        (lambda: DecodingConfig(beta=math.nan), "beta must be finite and at least 0"),
        (lambda: DecodingConfig(execute=-1), "execute must be at least 0"),
        (lambda: DecodingConfig(support_threshold=1.5), r"support_threshold must lie in \[0, 1\]"),
    ],
)
def test_setting_out_of_range_is_refused(make: Callable[[], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


# Acting.


def policy_over(network: RTNetwork, *, has_values: bool = True, **decoding: Any) -> TokenPolicy:
    return TokenPolicy(
        network,
        tokenizer_of(network.spec),
        DecodingConfig(**{"temperature": 0.0, **decoding}),
        has_values=has_values,
    )


def observation_like(inputs: TokenInputs, row: int) -> Observation:
    return Observation(
        state=inputs.state_BS[row].numpy(),
        instruction="",
        images={camera: stack[row].numpy() for camera, stack in inputs.images.items()},
        environment_state=inputs.environment_state_BE[row].numpy(),
    )


@torch.no_grad()
def greedy_by_whole_passes(
    network: RTNetwork, inputs: TokenInputs, *, beta: float, threshold: float
) -> tuple[list[list[int]], list[float], list[float]]:
    """Tokens, Q of the last and log pi of all, a whole pass and plain arithmetic per token."""
    batch = len(inputs.state_BS)
    tokens = torch.zeros(batch, len(network.spec.bins), dtype=torch.long)
    log_probability = torch.zeros(batch)
    q = torch.zeros(batch, 1)
    for dimension, count in enumerate(network.spec.bins):
        output = network(inputs, tokens)
        pi = output.behaviour_BDK[:, dimension, :count].exp()
        p = output.likelihood_HBDV[:, :, dimension, :count].exp()
        q = (p / pi).amin(dim=0).clamp(max=1)
        tilted = pi * torch.exp(beta * q)
        if beta:
            tilted[pi < threshold * pi.amax(dim=-1, keepdim=True)] = 0
        chosen = tilted.argmax(dim=-1)
        tokens[:, dimension] = chosen
        log_probability += pi.gather(1, chosen[:, None])[:, 0].log()
        q = q.gather(1, chosen[:, None])
    return tokens.tolist(), q[:, 0].tolist(), log_probability.tolist()


@pytest.mark.parametrize("beta", [0.0, 8.0])
@pytest.mark.parametrize("trunks", ["shared", "separate"])
def test_greedy_action_is_that_of_whole_passes(trunks: Any, beta: float) -> None:
    config = replace(CONFIG, trunks=trunks)
    network = stirred_network(config, CAMERA_SPEC)
    inputs = random_inputs(config, CAMERA_SPEC, batch=16)
    policy = policy_over(network, beta=beta, support_threshold=0.2)
    policy.reset(seed=0)
    expected = greedy_by_whole_passes(network, inputs, beta=beta, threshold=0.2)
    for row, (tokens, value, log_probability) in enumerate(zip(*expected, strict=True)):
        chunk = policy.act(observation_like(inputs, row))
        np.testing.assert_array_equal(
            chunk.actions, tokenizer_of(CAMERA_SPEC).decode(np.array([tokens]))
        )
        assert chunk.value == pytest.approx(value, abs=1e-4)
        assert chunk.behaviour_log_probability == pytest.approx(log_probability, abs=1e-3)


def test_tilt_changes_some_actions() -> None:
    """Else the test above would say nothing about beta."""
    network = stirred_network(CONFIG, SPEC)
    inputs = random_inputs(CONFIG, SPEC, batch=16)
    plain, tilted = (policy_over(network, beta=beta) for beta in (0.0, 8.0))
    observations = [observation_like(inputs, row) for row in range(16)]
    differ = [
        not np.array_equal(plain.act(each).actions, tilted.act(each).actions)
        for each in observations
    ]
    assert 0 < sum(differ) < 16


CHUNK_SPEC = replace(SPEC, bins=SPEC.bins * 3, discrete=SPEC.discrete * 3, chunk=3)
"""Three actions at once."""


@pytest.mark.parametrize("has_values", [True, False])
@pytest.mark.parametrize("trunks", ["shared", "separate"])
def test_what_is_committed_begins_the_chunk_and_the_rest_follows_from_it(
    trunks: Any, has_values: bool
) -> None:
    """Committing to what would have been chosen anyway changes nothing; to something else does."""
    config = replace(CONFIG, trunks=trunks)
    network = stirred_network(config, CHUNK_SPEC)
    inputs = random_inputs(config, CHUNK_SPEC, batch=16)
    policy = policy_over(network, has_values=has_values, beta=8.0)
    tokenizer, differ = tokenizer_of(CHUNK_SPEC), 0
    for row in range(16):
        observation = observation_like(inputs, row)
        free = policy.act(observation)
        assert free.actions.shape == (3, 3)
        for committed in (0, 1, 2):
            bound = policy.act_after(observation, free.actions[:committed])
            np.testing.assert_array_equal(bound.actions, free.actions)
            if has_values:
                assert bound.value == pytest.approx(free.value, abs=1e-4)
        other = tokenizer.decode(tokenizer.encode(free.actions.reshape(1, -1)) * 0).reshape(3, 3)
        bound = policy.act_after(observation, other[:2])
        np.testing.assert_array_equal(bound.actions[:2], other[:2])
        differ += not np.array_equal(bound.actions[2], free.actions[2])
    assert differ > 0


def test_a_chunk_is_decided_as_far_as_it_is_executed() -> None:
    network = stirred_network(CONFIG, CHUNK_SPEC)
    observation = observation_like(random_inputs(CONFIG, CHUNK_SPEC), 0)
    whole = policy_over(network, beta=8.0).act(observation)
    for execute, length in ((0, 3), (1, 1), (2, 2), (3, 3), (9, 3)):
        chunk = policy_over(network, beta=8.0, execute=execute).act(observation)
        np.testing.assert_array_equal(chunk.actions, whole.actions[:length])


@pytest.mark.parametrize("shape", [(3, 3), (1, 2), (3,)])
def test_commitments_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    network = stirred_network(CONFIG, CHUNK_SPEC)
    observation = observation_like(random_inputs(CONFIG, CHUNK_SPEC), 0)
    with pytest.raises(ValueError, match="committed actions must be fewer than 3 rows of 3"):
        policy_over(network).act_after(observation, np.zeros(shape, np.float32))


def test_policy_without_values_acts_by_its_behaviour_alone() -> None:
    network = stirred_network(CONFIG, SPEC)
    inputs = random_inputs(CONFIG, SPEC)
    cloned = policy_over(network, has_values=False, beta=8.0)
    plain = policy_over(network, beta=0.0)
    for row in range(4):
        observation = observation_like(inputs, row)
        chunk = cloned.act(observation)
        assert chunk.value is None
        np.testing.assert_array_equal(chunk.actions, plain.act(observation).actions)


def sampled(policy: TokenPolicy, observation: Observation, *, seed: int, draws: int) -> list[Any]:
    policy.reset(seed=seed)
    return [policy.act(observation).actions[0].tolist() for _ in range(draws)]


def test_sampled_actions_follow_the_seed() -> None:
    network = stirred_network(CONFIG, SPEC)
    observation = observation_like(random_inputs(CONFIG, SPEC), 0)
    policy = policy_over(network, temperature=1.0, beta=1.0)
    first = sampled(policy, observation, seed=3, draws=20)
    assert sampled(policy, observation, seed=3, draws=20) == first
    assert sampled(policy, observation, seed=4, draws=20) != first


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sampled_actions_have_the_tilted_frequencies(temperature: float) -> None:
    """One dimension, so a draw is one token; 1,500 draws are within 0.04 of the probability."""
    spec = replace(SPEC, bins=(4,), discrete=(False,))
    network = stirred_network(CONFIG, spec)
    inputs = random_inputs(CONFIG, spec, batch=1)
    policy = policy_over(network, temperature=temperature, beta=3.0, support_threshold=0.05)
    draws = sampled(policy, observation_like(inputs, 0), seed=0, draws=1500)
    frequencies = np.bincount(np.array(draws)[:, 0].astype(int), minlength=4) / 1500
    with torch.no_grad():
        output = network(inputs, torch.zeros(1, 1, dtype=torch.long))
    pi = output.behaviour_BDK[0, 0].exp()
    p = output.likelihood_HBDV[:, 0, 0, :4].exp()
    tilted = pi * torch.exp(3 * (p / pi).amin(dim=0).clamp(max=1))
    tilted[pi < 0.05 * pi.max()] = 0
    tilted **= 1 / temperature
    np.testing.assert_allclose(frequencies, tilted / tilted.sum(), atol=0.04)


def test_instruction_reaches_the_network() -> None:
    config = replace(CONFIG, instruction_words=3)
    policy = policy_over(stirred_network(config, SPEC))
    observation = observation_like(random_inputs(config, SPEC), 0)
    one = policy.act(replace(observation, instruction="lift the cube"))
    other = policy.act(replace(observation, instruction="drop the ball"))
    assert one.behaviour_log_probability != other.behaviour_log_probability


def test_policy_that_reads_no_environment_state_may_be_told_it() -> None:
    spec = replace(SPEC, environment_state_size=0)
    policy = policy_over(stirred_network(CONFIG, spec))
    observation = Observation(np.zeros(3, np.float32), "")
    told = replace(observation, environment_state=np.ones(7, np.float32))
    np.testing.assert_array_equal(policy.act(told).actions, policy.act(observation).actions)


@pytest.mark.parametrize("kind", ["flipped", "read-only", "float64"])
def test_array_of_any_layout_is_read(kind: str) -> None:
    """Simulators give flipped views of images, memory maps are read-only, Python has doubles."""
    policy = policy_over(stirred_network(CONFIG, CAMERA_SPEC))
    observation = observation_like(random_inputs(CONFIG, CAMERA_SPEC), 0)
    image, state = observation.images["front"], observation.state
    if kind == "flipped":
        image = image[::-1].copy()[::-1]
    elif kind == "float64":
        state = state.astype(np.float64)
    else:
        image, state = image.copy(), state.copy()
        image.flags.writeable = state.flags.writeable = False
    other = replace(observation, state=state, images={"front": image})
    expected, found = policy.act(observation), policy.act(other)
    np.testing.assert_array_equal(found.actions, expected.actions)
    assert found.value == expected.value


IMAGE = np.zeros((16, 16, 3), np.uint8)
UNFIT = {
    "no camera": ({"images": {}}, "needs camera 'front', the observation has no camera"),
    "another camera": ({"images": {"wrist": IMAGE}}, r"needs camera 'front', .* has \['wrist'\]"),
    "another size": ({"images": {"front": IMAGE[:8]}}, r"uint8 \(16, 16, 3\), got uint8 \(8, 16"),
    "another type": ({"images": {"front": IMAGE / 255}}, r"uint8 \(16, 16, 3\), got float64"),
    "short state": ({"state": np.zeros(2, np.float32)}, r"state must have 3 entries.*\(2,\)"),
    "NaN state": ({"state": np.array([0, np.nan, 0], np.float32)}, "state holds NaN"),
    "long environment state": (
        {"environment_state": np.zeros(7, np.float32)},
        r"environment_state must have 2 entries.*\(7,\)",
    ),
    "infinite environment state": (
        {"environment_state": np.array([0, np.inf], np.float32)},
        "environment_state holds NaN or infinity",
    ),
}


@pytest.mark.parametrize(("change", "match"), UNFIT.values(), ids=UNFIT)
def test_observation_that_does_not_fit_is_refused(change: dict[str, Any], match: str) -> None:
    policy = policy_over(stirred_network(CONFIG, CAMERA_SPEC))
    fitting = Observation(np.zeros(3, np.float32), "", {"front": IMAGE}, np.zeros(2, np.float32))
    policy.act(fitting)
    with pytest.raises(ValueError, match=match):
        policy.act(replace(fitting, **change))


@pytest.mark.parametrize(
    ("part", "has_values"), [("trunk", True), ("trunk", False), ("likelihood_trunk", True)]
)
def test_network_that_gives_nan_does_not_act(part: str, has_values: bool) -> None:
    network = stirred_network(replace(CONFIG, trunks="separate"), SPEC)
    with torch.no_grad():
        getattr(network, part).action_DKW.fill_(math.nan)
    observation = observation_like(random_inputs(CONFIG, SPEC), 0)
    with pytest.raises(ValueError, match="network's output holds NaN"):
        policy_over(network, has_values=has_values).act(observation)


# The checkpoint.


def saved(folder: Path, config: RTConfig = CONFIG, spec: PolicySpec = SPEC) -> RTNetwork:
    folder.mkdir(exist_ok=True)
    network = stirred_network(config, spec)
    network.set_normalisation(torch.arange(5.0), torch.arange(1.0, 6.0))
    save_policy(folder, network, tokenizer_of(spec), method="qsft", trained={"steps": 7})
    return network


@pytest.mark.parametrize(
    ("config", "spec"),
    [
        (CONFIG, SPEC),
        (replace(CONFIG, trunks="separate", instruction_words=2), CAMERA_SPEC),
        (replace(CONFIG, reject_token=False, likelihood_heads=1), SPEC),
    ],
)
@torch.no_grad()
def test_loaded_network_is_the_same_to_the_bit(
    tmp_path: Path, config: RTConfig, spec: PolicySpec
) -> None:
    network = saved(tmp_path, config, spec)
    loaded, tokenizer, method = load_policy(tmp_path)
    assert (loaded.config, loaded.spec, method) == (config, spec, "qsft")
    assert tokenizer == tokenizer_of(spec)
    assert not loaded.training
    inputs, tokens = random_inputs(config, spec), random_tokens(spec)
    expected, found = network(inputs, tokens), loaded(inputs, tokens)
    assert torch.equal(found.behaviour_BDK, expected.behaviour_BDK)
    assert torch.equal(found.likelihood_HBDV, expected.likelihood_HBDV)


def test_loaded_policy_acts_the_same(tmp_path: Path) -> None:
    network = saved(tmp_path)
    observation = observation_like(random_inputs(CONFIG, SPEC), 0)
    expected = policy_over(network, beta=4.0).act(observation)
    found = TokenPolicy.load(tmp_path, DecodingConfig(beta=4.0, temperature=0)).act(observation)
    np.testing.assert_array_equal(found.actions, expected.actions)
    assert found.value == expected.value


def test_cloned_policy_is_loaded_without_values(tmp_path: Path) -> None:
    network = stirred_network(CONFIG, SPEC)
    save_policy(tmp_path, network, tokenizer_of(SPEC), method="bc", trained={})
    observation = observation_like(random_inputs(CONFIG, SPEC), 0)
    assert TokenPolicy.load(tmp_path, DecodingConfig()).act(observation).value is None


WEIGHTS, DESCRIPTION = "policy.safetensors", "policy.json"


def test_checkpoint_is_tensors_and_json(tmp_path: Path) -> None:
    saved(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {WEIGHTS, DESCRIPTION}


def change_description(folder: Path, **changes: Any) -> None:
    path = folder / DESCRIPTION
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop_from_description(folder: Path, key: str) -> None:
    path = folder / DESCRIPTION
    description = json.loads(path.read_text())
    del description[key]
    path.write_text(json.dumps(description))


def cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def widen(folder: Path) -> None:
    description = json.loads((folder / DESCRIPTION).read_text())
    change_description(folder, config=description["config"] | {"width": 32})


def rename_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["unknown"] = tensors.pop("trunk.state_mean")
    save_file(tensors, folder / WEIGHTS)


def other_bins_in_description(folder: Path) -> None:
    """Both tokenizer and spec of another K, the weights as they were."""
    spec = replace(SPEC, bins=(9, 3, 5))
    (folder / "other").mkdir()
    saved(folder / "other", spec=spec)
    (folder / "other" / DESCRIPTION).replace(folder / DESCRIPTION)


def header_that_promises_too_much(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 2**40) + b"{}")


Damage = Callable[[Path], object]
DAMAGED: dict[str, tuple[Damage, str]] = {
    "no description": (lambda f: (f / DESCRIPTION).unlink(), "holds no policy: policy.json is mis"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "policy.safetensors is missing"),
    "empty description": (lambda f: cut(f / DESCRIPTION, 0), "is cut off or no JSON"),
    "half a description": (lambda f: cut(f / DESCRIPTION, 200), "is cut off or no JSON"),
    "description is no text": (
        lambda f: (f / DESCRIPTION).write_bytes(b"\xff\xfe\x00"),
        "is cut off or no JSON",
    ),
    "description is a list": (
        lambda f: (f / DESCRIPTION).write_text("[]"),
        "format version None, this robot_qsft reads 1",
    ),
    "another version": (
        lambda f: change_description(f, format_version=2),
        "format version 2, this robot_qsft reads 1",
    ),
    "no spec": (lambda f: drop_from_description(f, "spec"), "does not describe a policy"),
    "no method": (lambda f: drop_from_description(f, "method"), "does not describe a policy"),
    "unknown setting": (
        lambda f: change_description(f, config={"depth": 3, "stem_channels": [1, 1]}),
        "does not describe a policy",
    ),
    "tokenizer of another K": (
        lambda f: change_description(
            f, action_tokenizer=tokenizer_of(replace(SPEC, bins=(4, 3, 6))).to_json()
        ),
        r"network of \[4, 3, 5\] bins per action dimension but a tokenizer of \[4, 3, 6\]",
    ),
    "weights of another K": (other_bins_in_description, "another number of bins"),
    "weights of another width": (widen, "does not fit its configuration"),
    "weights of another network": (rename_a_tensor, "does not fit its configuration"),
    "empty weights": (lambda f: cut(f / WEIGHTS, 0), "is cut off or damaged"),
    "header cut off": (lambda f: cut(f / WEIGHTS, 100), "is cut off or damaged"),
    "last byte missing": (lambda f: cut(f / WEIGHTS, -1), "is cut off or damaged"),
    "weights are noise": (header_that_promises_too_much, "is cut off or damaged"),
}


@pytest.mark.parametrize(("damage", "match"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_checkpoint_is_refused_in_one_sentence(
    tmp_path: Path, damage: Damage, match: str
) -> None:
    saved(tmp_path)
    load_policy(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=match) as caught:
        load_policy(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no policy"):
        load_policy(tmp_path / "nowhere")
