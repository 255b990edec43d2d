"""The objective: targets by hand, minimisers by descent, fixed points by dynamic programming."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robot_qsft.objective import (
    ObjectiveConfig,
    behaviour_loss,
    prefix_values,
    reject_loss,
    smoothed_targets,
    smoothing_kernels,
    spread_loss,
    token_targets,
)
from robot_qsft.policies.values import MASKED_LOGIT

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def token_mdps() -> ModuleType:
    """benchmarks/fixed_point.py, which compares the objective with dynamic programming."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        return importlib.import_module("fixed_point")


# Smoothing.


def test_smoothing_by_hand() -> None:
    """sigma 0.7: exp(-1 / 0.98) = 0.3604 one bin away, exp(-4 / 0.98) = 0.0169 two away."""
    kernel = smoothing_kernels((3,), (False,), 0.7)[0]
    one, two = 0.3604, 0.0169
    edge, middle = 1 + one + two, 1 + 2 * one
    expected = [
        [1 / edge, one / edge, two / edge],
        [one / middle, 1 / middle, one / middle],
        [two / edge, one / edge, 1 / edge],
    ]
    torch.testing.assert_close(kernel, torch.tensor(expected), atol=1e-4, rtol=0)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 8), st.booleans()), min_size=1, max_size=4),
    st.floats(0.1, 3),
)
def test_smoothing_stays_within_the_bins_that_exist(
    dimensions: list[tuple[int, bool]], sigma: float
) -> None:
    bins, discrete = zip(*dimensions, strict=True)
    kernels = smoothing_kernels(bins, discrete, sigma)
    for kernel, count, is_discrete in zip(kernels, bins, discrete, strict=True):
        torch.testing.assert_close(kernel[:count].sum(dim=-1), torch.ones(count))
        assert not kernel[:, count:].any()
        assert (kernel[:count].argmax(dim=-1) == torch.arange(count)).all()
        if is_discrete:
            assert torch.equal(kernel[:count, :count], torch.eye(count))


def test_no_smoothing_is_one_hot() -> None:
    kernels = smoothing_kernels((2, 3), (False, False), 0.0)
    assert torch.equal(kernels[1], torch.eye(3))
    assert torch.equal(kernels[0], torch.diag(torch.tensor([1.0, 1.0, 0.0])))


def test_smoothed_target_is_the_row_of_its_own_dimension() -> None:
    kernels = torch.arange(2 * 3 * 3).reshape(2, 3, 3).float()
    targets = smoothed_targets(torch.tensor([[0, 2], [1, 0]]), kernels)
    assert targets[:, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert targets[:, 1].tolist() == [[15, 16, 17], [9, 10, 11]]


# Targets.


def test_targets_by_hand() -> None:
    """Inside the action the next prefix's value; at its end 0.25 + 0.5 * 0.6 = 0.55."""
    targets = token_targets(
        torch.tensor([[0.1, 0.2, 0.3]]),
        bootstrap_values_B=torch.tensor([0.6]),
        rewards_B=torch.tensor([0.25]),
        discounts_B=torch.tensor([0.5]),
        lower_bounds_B=torch.tensor([0.0]),
    )
    torch.testing.assert_close(targets, torch.tensor([[0.2, 0.3, 0.55]]))


def test_terminated_step_does_not_bootstrap() -> None:
    targets = token_targets(
        torch.tensor([[0.1], [0.1]]),
        bootstrap_values_B=torch.tensor([0.9, 0.9]),
        rewards_B=torch.tensor([1.0, 0.0]),
        discounts_B=torch.tensor([0.0, 0.0]),
        lower_bounds_B=torch.tensor([0.0, 0.0]),
    )
    assert targets[:, 0].tolist() == [1, 0]


unit = st.floats(0, 1, width=32)


@settings(deadline=None)
@given(
    st.lists(st.tuples(unit, unit, unit, unit, unit, unit), min_size=1, max_size=5),
    st.integers(1, 2),
)
def test_targets_lie_between_the_return_reached_and_one(
    rows: list[tuple[float, ...]], dimensions: int
) -> None:
    columns = torch.tensor(rows)
    bounds = columns[:, 5]
    targets = token_targets(
        columns[:, :dimensions],
        bootstrap_values_B=columns[:, 2],
        rewards_B=columns[:, 3],
        discounts_B=columns[:, 4],
        lower_bounds_B=bounds,
    )
    assert targets.shape == (len(rows), dimensions)
    assert (targets >= bounds[:, None]).all()
    assert (targets <= 1).all()


def test_prefix_values_by_hand() -> None:
    """One dimension, pi = (0.6, 0.36, 0.04), p = (0.3, 0.36, 0.04): Q = (0.5, 1, 1).

    The last bin has less than a tenth of 0.6 and is ignored. max: 1. soft, beta = 0:
    0.6 * 0.5 + 0.36 + 0.04 = 0.7 over all bins.
    """
    log_pi = torch.tensor([[[0.6, 0.36, 0.04]]]).log()
    log_p = torch.tensor([[[[0.3, 0.36, 0.04, 0.3]]]]).log()
    hard = prefix_values(log_pi, log_p, ObjectiveConfig(backup="max"))
    torch.testing.assert_close(hard, torch.tensor([[1.0]]))
    soft = prefix_values(log_pi, log_p, ObjectiveConfig(backup="soft", backup_beta=0.0))
    torch.testing.assert_close(soft, torch.tensor([[0.7]]))
    weights = 0.6 * np.exp(2 * 0.5), 0.36 * np.exp(2 * 1)
    tilted = prefix_values(log_pi, log_p, ObjectiveConfig(backup="soft", backup_beta=2.0))
    expected = (weights[0] * 0.5 + weights[1]) / sum(weights)
    assert float(tilted) == pytest.approx(expected, abs=1e-6)


# Losses.


def test_losses_by_hand() -> None:
    """Bin 0 demonstrated, weight 0.25, p = (0.5, 0.2, 0.3)."""
    log_p = torch.tensor([0.5, 0.2, 0.3]).log()[None, None, None]
    one_hot, weight = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[0.25]])
    reject = -(0.25 * np.log(0.5) + 0.75 * np.log(0.3))
    assert float(reject_loss(log_p, one_hot, weight)) == pytest.approx(reject)
    one_hot = torch.tensor([[[1.0, 0.0, 0.0]]])
    spread = -(0.25 * np.log(0.5) + 0.375 * np.log(0.2) + 0.375 * np.log(0.3))
    assert float(spread_loss(log_p, one_hot, weight)) == pytest.approx(spread)
    assert float(behaviour_loss(log_p[0], one_hot)) == pytest.approx(-np.log(0.5))


def test_spread_leaves_out_bins_that_do_not_exist() -> None:
    log_p = torch.tensor([[[[0.5, 0.3, 0.2]]]]).log()
    wide = torch.nn.functional.pad(log_p, (0, 2), value=MASKED_LOGIT)
    target, weight = torch.tensor([[[0.8, 0.2, 0.0]]]), torch.tensor([[0.4]])
    wide_target = torch.nn.functional.pad(target, (0, 2))
    torch.testing.assert_close(
        spread_loss(wide, wide_target, weight), spread_loss(log_p, target, weight)
    )


def test_spread_over_a_single_bin_costs_nothing() -> None:
    """A dimension that never changes has one bin and nowhere to spread to."""
    log_p = torch.tensor([[[[0.0, MASKED_LOGIT]]]])
    loss = spread_loss(log_p, torch.tensor([[[1.0, 0.0]]]), torch.tensor([[0.4]]))
    assert loss.tolist() == [[[0.0]]]


@pytest.mark.parametrize("loss", [reject_loss, spread_loss])
def test_heads_are_trained_apart(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 2, 5)))
    logits.requires_grad_()
    size = 4 if loss is reject_loss else 5
    one_hot = torch.nn.functional.one_hot(torch.zeros(3, 2, dtype=torch.long), size).double()
    losses = loss(logits.log_softmax(dim=-1), one_hot, torch.full((3, 2), 0.5).double())
    assert losses.shape == (2, 3, 2)
    losses[0].sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].abs().sum() > 0
    assert not logits.grad[1].any()


PI = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
OUTCOMES = torch.tensor([[0.9, 0.1], [0.2, 0.0], [1.0, 1.0], [0.0, 0.6]], dtype=torch.float64)
"""Two equally likely targets of each bin; their means are 0.5, 0.1, 1 and 0.3."""


def minimise(loss: Callable[[Tensor, Tensor, Tensor], Tensor], *, tokens: int) -> Tensor:
    """The distribution over `tokens` that gradient descent on the expected loss ends at."""
    logits = torch.zeros(tokens).double().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")
    bins = torch.arange(len(PI)).repeat_interleave(2)
    one_hot = torch.nn.functional.one_hot(bins, len(PI)).double()[:, None]

    def closure() -> Tensor:
        optimizer.zero_grad()
        log_p = logits.log_softmax(dim=-1).expand(1, len(bins), 1, -1)
        losses = loss(log_p, one_hot, OUTCOMES.reshape(-1, 1))
        expected = (PI[bins] / 2 * losses[0, :, 0]).sum()
        expected.backward()
        return expected

    optimizer.step(closure)
    return logits.detach().softmax(dim=-1)


def test_descent_on_the_reject_loss_ends_at_q_times_pi() -> None:
    """p(a) = E[w|a] pi(a) = (0.25, 0.03, 0.15, 0.015), the rest is rejected."""
    expected = torch.tensor([0.25, 0.03, 0.15, 0.015, 0.555], dtype=torch.float64)
    torch.testing.assert_close(minimise(reject_loss, tokens=5), expected, atol=1e-4, rtol=0)


def test_descent_on_the_spread_loss_ends_above_q_times_pi() -> None:
    """p(a) = w pi(a) + sum over the other a' of pi(a') (1 - w) / 3 (reference, section 1.3).

    The rejected mass is pi (1 - w) = (0.25, 0.27, 0, 0.035), 0.555 in all; bin 0, say, gets
    0.25 + (0.555 - 0.25) / 3 = 0.35167.
    """
    accepted = np.array([0.25, 0.03, 0.15, 0.015])
    rejected = np.array([0.25, 0.27, 0.0, 0.035])
    expected = torch.from_numpy(accepted + (0.555 - rejected) / 3)
    torch.testing.assert_close(minimise(spread_loss, tokens=4), expected, atol=1e-4, rtol=0)


# Fixed points.


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("backup", ["max", "soft"])
def test_fixed_point_is_that_of_dynamic_programming(
    token_mdps: ModuleType, backup: str, steps: int
) -> None:
    config = ObjectiveConfig(backup=backup, steps=steps)
    for seed in range(100, 105):
        mdp = token_mdps.random_mdp(np.random.default_rng(seed))
        error, _ = token_mdps.error_and_violation(mdp, config)
        assert error < 1e-6, seed


def test_likelihood_keeps_the_papers_bounds(token_mdps: ModuleType) -> None:
    config = ObjectiveConfig(backup="max", steps=1)
    for seed in range(100, 105):
        mdp = token_mdps.random_mdp(np.random.default_rng(seed))
        _, violation = token_mdps.error_and_violation(mdp, config)
        assert violation < 1e-6, seed


def test_reject_token_is_exact_where_the_spread_form_saturates(token_mdps: ModuleType) -> None:
    """The toy of shared/reference/algorithms.md, P1: mean error 0.000, 0.767 and 0.500."""
    assert token_mdps.chain_error("reject", leak=0.0, threshold=0.05) < 1e-9
    spread = token_mdps.chain_error("spread", leak=1e-4, threshold=0.0)
    assert spread == pytest.approx(0.767, abs=1e-3)
    masked = token_mdps.chain_error("spread", leak=1e-4, threshold=0.05)
    assert masked == pytest.approx(0.500, abs=1e-3)


def test_dynamic_programming_by_hand(token_mdps: ModuleType) -> None:
    """Both good tokens lead on: V = 0.98^(steps left), good first tokens 0.98^k, bad ones 0."""
    config = ObjectiveConfig(backup="max", steps=1, discount=0.98)
    q, values = token_mdps.dynamic_programming(token_mdps.chain_mdp(leak=0.0), config)
    np.testing.assert_allclose(values, 0.98 ** np.arange(7, -1, -1))
    np.testing.assert_allclose(q[0][:, :2], np.repeat(values[:, None], 2, axis=1))
    assert not q[0][:, 2:].any()


@pytest.mark.parametrize(("setting", "value"), [("discount", 0.0), ("discount", 1.1), ("steps", 0)])
def test_setting_out_of_range_is_refused(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=setting):
        ObjectiveConfig(**{setting: value})
