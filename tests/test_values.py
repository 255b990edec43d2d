"""Values read off likelihoods, and the tilted policy: by hand, by brute force, by property."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robot_qsft.policies.token_policy import DecodingConfig, Extraction, tilted_logits
from robot_qsft.policies.values import (
    MASKED_LOGIT,
    demonstrator_value,
    max_value,
    q_values,
    soft_value,
    support,
    tilt,
)

shapes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(2, 6))
seeds = st.integers(0, 2**32 - 1)
betas = st.floats(0.01, 32)
thresholds = st.sampled_from([0.0, 0.05, 0.1, 0.5, 1.0])


def log_distribution(seed: int, shape: tuple[int, ...], *, missing: int = 0) -> Tensor:
    """Random log-probabilities whose last `missing` bins do not exist."""
    logits = torch.from_numpy(np.random.default_rng(seed).normal(0, 2, shape))
    if missing:
        logits[..., -missing:] = MASKED_LOGIT
    return logits.log_softmax(dim=-1)


def rejecting(log_pi: Tensor, q: Tensor) -> Tensor:
    """The likelihood whose value is `q`: p(a) = q(a) pi(a), the rest is rejected. One head."""
    p = log_pi.exp() * q
    return torch.cat([p, 1 - p.sum(-1, keepdim=True)], dim=-1).log().clamp(min=MASKED_LOGIT)[None]


PI = torch.tensor([[[0.5, 0.3, 0.15, 0.05]]], dtype=torch.float64)
Q = torch.tensor([[[0.2, 0.8, 0.4, 0.9]]], dtype=torch.float64)


def test_value_is_the_ratio_of_likelihood_and_behaviour() -> None:
    torch.testing.assert_close(q_values(PI.log(), rejecting(PI.log(), Q)), Q)


def test_ratio_above_one_is_clipped() -> None:
    log_p = torch.tensor([[[[0.9, 0.05, 0.03, 0.02]]]], dtype=torch.float64).log()
    q = q_values(PI.log(), log_p)
    torch.testing.assert_close(
        q, torch.tensor([[[1.0, 0.05 / 0.3, 0.2, 0.4]]], dtype=torch.float64)
    )


def test_value_is_the_smaller_of_two_heads() -> None:
    other = torch.tensor([[[0.3, 0.1, 0.6, 0.9]]], dtype=torch.float64)
    heads = torch.cat([rejecting(PI.log(), Q), rejecting(PI.log(), other)])
    expected = torch.tensor([[[0.2, 0.1, 0.4, 0.9]]], dtype=torch.float64)
    torch.testing.assert_close(q_values(PI.log(), heads), expected)


@settings(deadline=None)
@given(shapes, st.integers(1, 3), seeds)
def test_values_lie_between_zero_and_one(
    shape: tuple[int, int, int], heads: int, seed: int
) -> None:
    batch, dimensions, bins = shape
    log_pi = log_distribution(seed, shape, missing=1)
    q = q_values(log_pi, log_distribution(seed + 1, (heads, batch, dimensions, bins + 1)))
    assert q.shape == log_pi.shape
    assert ((q >= 0) & (q <= 1)).all()


def test_value_of_a_vanishing_behaviour_is_finite() -> None:
    log_pi = torch.tensor([[[0.0, -2e4]]])
    log_p = torch.tensor([[[[-3.0, -1.0, -1.0]]]])
    assert q_values(log_pi, log_p)[0, 0].tolist() == [pytest.approx(math.exp(-3)), 1.0]


def test_support_is_a_share_of_the_likeliest_bin() -> None:
    log_pi = torch.tensor([0.6, 0.3, 0.07, 0.03]).log()
    assert support(log_pi, 0.1).tolist() == [True, True, True, False]
    assert support(log_pi, 0.5).tolist() == [True, True, False, False]
    assert support(log_pi, 1.0).tolist() == [True, False, False, False]


def test_support_without_threshold_is_every_bin_that_exists() -> None:
    log_pi = torch.tensor([0.0, -30.0, MASKED_LOGIT])
    assert support(log_pi, 0.0).tolist() == [True, True, False]


def test_soft_value_by_hand() -> None:
    """Two equally likely bins of value 0 and 1, tilted by ln 3: weights 1/4 and 3/4."""
    log_pi = torch.tensor([[[0.5, 0.5]]]).log()
    q = torch.tensor([[[0.0, 1.0]]])
    value = soft_value(log_pi, q, beta=math.log(3), threshold=0.1)
    torch.testing.assert_close(value, torch.tensor([[0.75]]))


def test_soft_value_ignores_unsupported_bins() -> None:
    """Bin 3 has the best value, but a tenth of the likeliest one's probability is 0.05 > 0.049."""
    pi = torch.tensor([[[0.5, 0.301, 0.15, 0.049]]], dtype=torch.float64)
    weights = (pi * torch.exp(5 * Q))[0, 0, :3]
    expected = float((weights * Q[0, 0, :3]).sum() / weights.sum())
    assert float(soft_value(pi.log(), Q, beta=5, threshold=0.1)) == pytest.approx(expected)


def test_max_value_ignores_unsupported_bins() -> None:
    assert float(max_value(PI.log(), Q, threshold=0.2)) == 0.8
    assert float(max_value(PI.log(), Q, threshold=0.0)) == 0.9


@settings(deadline=None)
@given(shapes, seeds, betas, thresholds)
def test_soft_value_lies_between_the_worst_and_the_best_supported_bin(
    shape: tuple[int, int, int], seed: int, beta: float, threshold: float
) -> None:
    log_pi = log_distribution(seed, shape, missing=1)
    q = torch.from_numpy(np.random.default_rng(seed).random(shape))
    soft = soft_value(log_pi, q, beta=beta, threshold=threshold)
    best = max_value(log_pi, q, threshold=threshold)
    worst = q.masked_fill(~support(log_pi, threshold), 1.0).amin(dim=-1)
    assert (soft <= best + 1e-12).all()
    assert (soft >= worst - 1e-12).all()


@settings(deadline=None)
@given(shapes, seeds, st.lists(betas, min_size=2, max_size=2).map(sorted), thresholds)
def test_soft_value_rises_with_beta(
    shape: tuple[int, int, int], seed: int, pair: list[float], threshold: float
) -> None:
    log_pi = log_distribution(seed, shape)
    q = torch.from_numpy(np.random.default_rng(seed).random(shape))
    low, high = (soft_value(log_pi, q, beta=beta, threshold=threshold) for beta in pair)
    assert (high >= low - 1e-12).all()


def test_large_beta_makes_the_soft_value_the_maximum() -> None:
    soft = soft_value(PI.log(), Q, beta=1e4, threshold=0.05)
    torch.testing.assert_close(soft, max_value(PI.log(), Q, threshold=0.05))


def test_without_tilt_the_soft_value_is_the_demonstrators_own() -> None:
    """0.5 * 0.2 + 0.3 * 0.8 + 0.15 * 0.4 + 0.05 * 0.9 = 0.445, and so is 1 - p(reject)."""
    soft = soft_value(PI.log(), Q, beta=0, threshold=0.1)
    assert float(soft) == pytest.approx(0.445)
    assert float(demonstrator_value(rejecting(PI.log(), Q))) == pytest.approx(0.445)


def test_demonstrator_value_is_the_smaller_of_two_heads() -> None:
    log_p = torch.tensor([[[[0.3, 0.3, 0.4]]], [[[0.1, 0.1, 0.8]]]]).log()
    torch.testing.assert_close(demonstrator_value(log_p), torch.tensor([[0.2]]))


def test_demonstrator_value_keeps_its_digits_near_zero() -> None:
    """1 - exp(x) in float32 would be 0 for x = -1e-9."""
    log_p = torch.tensor([[[[-20.0, -1e-9]]]])
    assert float(demonstrator_value(log_p)) == pytest.approx(1e-9)


@settings(deadline=None)
@given(shapes, seeds, thresholds)
def test_beta_zero_is_the_behaviour_to_the_bit(
    shape: tuple[int, int, int], seed: int, threshold: float
) -> None:
    log_pi = log_distribution(seed, shape, missing=1).float()
    q = torch.from_numpy(np.random.default_rng(seed).random(shape)).float()
    assert torch.equal(tilt(log_pi, q, beta=0, threshold=threshold), log_pi)


@settings(deadline=None)
@given(shapes, seeds, betas, thresholds)
def test_tilt_adds_beta_q_to_the_log_odds_and_drops_unsupported_bins(
    shape: tuple[int, int, int], seed: int, beta: float, threshold: float
) -> None:
    log_pi = log_distribution(seed, shape, missing=1)
    q = torch.from_numpy(np.random.default_rng(seed).random(shape))
    policy = tilt(log_pi, q, beta=beta, threshold=threshold).softmax(dim=-1)
    expected = log_pi.exp() * torch.exp(beta * q)
    expected = torch.where(support(log_pi, threshold), expected, 0.0)
    torch.testing.assert_close(policy, expected / expected.sum(-1, keepdim=True))
    assert (policy[..., -1] == 0).all()  # the bin that does not exist


@settings(deadline=None)
@given(shapes, seeds, betas | st.just(0.0), thresholds)
def test_one_token_is_chosen_by_the_same_logits_and_values(
    shape: tuple[int, int, int], seed: int, beta: float, threshold: float
) -> None:
    _, heads, bins = shape
    log_pi = log_distribution(seed, (1, 1, bins), missing=1).float()
    log_p = log_distribution(seed + 1, (heads, 1, 1, bins + 1)).float()
    q = q_values(log_pi, log_p)
    expected = tilt(log_pi, q, beta=beta, threshold=threshold)
    found, found_q = tilted_logits(
        [*log_pi[0, 0].tolist(), MASKED_LOGIT],
        log_p[:, 0, 0].tolist(),
        DecodingConfig(beta=beta, support_threshold=threshold),
    )
    supported = support(log_pi, threshold if beta else 0.0)
    torch.testing.assert_close(torch.tensor(found[:-1]), expected[0, 0])
    torch.testing.assert_close(torch.tensor(found_q[:-1]), (q * supported)[0, 0])
    assert (found[-1], found_q[-1]) == (MASKED_LOGIT, 0), "the reject token is no action"


@pytest.mark.parametrize(
    ("extraction", "beta", "good_mass"), [("ratio", 8, 0.931), ("paper", 30, 0.148)]
)
def test_paper_extraction_hardly_tilts_many_bins(
    extraction: Extraction, beta: float, good_mass: float
) -> None:
    """40 equally likely bins, 4 of value 0.8 among 36 of 0.2 (shared/reference, section 1.5).

    The ratio at beta = 8: 4 e^(8 * 0.6) / (4 e^(8 * 0.6) + 36) = 0.931. The paper's form sees
    p = Q / 40: 4 e^(30 * 0.6 / 40) / (4 e^(30 * 0.6 / 40) + 36) = 0.148.
    """
    log_pi = torch.full((1, 1, 40), 1 / 40).double().log()
    q = torch.where(torch.arange(40) < 4, 0.8, 0.2).double()[None, None]
    log_p = rejecting(log_pi, q)
    logits, _ = tilted_logits(
        [*log_pi[0, 0].tolist(), MASKED_LOGIT],
        log_p[:, 0, 0].tolist(),
        DecodingConfig(beta=beta, extraction=extraction),
    )
    chosen = torch.tensor(logits).softmax(dim=-1)
    assert float(chosen[:4].sum()) == pytest.approx(good_mass, abs=5e-4)


def test_paper_extraction_takes_the_smaller_of_two_heads() -> None:
    log_pi = np.log([0.5, 0.5])
    log_p = np.log([[0.4, 0.1, 0.5], [0.2, 0.3, 0.5]])
    decoding = DecodingConfig(beta=2.0, extraction="paper")
    logits, _ = tilted_logits([*log_pi.tolist(), MASKED_LOGIT], log_p.tolist(), decoding)
    np.testing.assert_allclose(logits[:-1] - log_pi, [0.4, 0.2], atol=1e-12)
