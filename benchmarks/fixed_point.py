"""Whether the objective's functions are exact: their fixed point against dynamic programming.

Shape legend: B rows of data, D action tokens, H likelihood heads, K bins, N prefixes (a state and
the tokens chosen so far), S states, V = K + 1; `_sa` arrays are indexed by state, then by one token
per dimension.

On small token MDPs nothing is learnt and nothing is noisy: every prefix has its own distribution,
and p is replaced by the exact minimiser of the expected loss. The loss is linear in log p, so its
minimiser is proportional to minus its gradient, which autograd reads off the loss function that
training uses. What remains is the objective itself.
"""

import sys
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from report import Figure, at_most, publish, quick_from_command_line
from torch import Tensor

from robot_qsft.objective import (
    ObjectiveConfig,
    prefix_values,
    reject_loss,
    spread_loss,
    token_targets,
)
from robot_qsft.policies.values import MASKED_LOGIT, q_values

Array = NDArray[np.float64]
MDPS, QUICK_MDPS = 60, 20
HEADS = 2
INITIAL_VALUE = 0.05
CONVERGED = 1e-9
MOST_SWEEPS = 5000


@dataclass(frozen=True, eq=False)
class TokenMDP:
    """States, actions of D tokens, a reward of 1 that ends the episode.

    Attributes:
        behaviour: who made the data; entry d is the distribution of token d after a prefix,
            (S, K_1, ..., K_d+1).
        model: pi, what the behaviour head makes of it; the same, or with some leakage.
        next_state_sa: probability of going on to each state, (S, K_1, ..., K_D, S).
        success_sa: probability of ending with the reward, (S, K_1, ..., K_D); the rest ends
            without.
    """

    behaviour: tuple[Array, ...]
    model: tuple[Array, ...]
    next_state_sa: Array
    success_sa: Array

    @property
    def bins(self) -> tuple[int, ...]:
        """K_d of every dimension."""
        return self.success_sa.shape[1:]


def random_mdp(rng: np.random.Generator) -> TokenMDP:
    """A few states, one to three tokens of two to four bins, some of them never or rarely used."""
    states = int(rng.integers(2, 5))
    bins = tuple(int(count) for count in rng.integers(2, 5, size=rng.integers(1, 4)))
    behaviour = []
    for dimension in range(len(bins)):
        shape = (states, *bins[: dimension + 1])
        used = rng.random(shape) < 0.6
        np.put_along_axis(used, rng.integers(bins[dimension], size=(*shape[:-1], 1)), True, -1)
        rare = np.where(rng.random(shape) < 0.5, 0.0, rng.uniform(0.001, 0.05, shape))
        weights = np.where(used, rng.uniform(0.5, 1.0, shape), rare)
        behaviour.append(weights / weights.sum(-1, keepdims=True))
    # Most actions lead nowhere, so that states and actions differ in value.
    outcomes = rng.dirichlet(np.full(states + 2, 0.3), size=(states, *bins))
    hopeless = rng.random((states, *bins, 1)) < 0.4
    outcomes = np.where(hopeless, outcomes * 0.2, outcomes)
    return TokenMDP(tuple(behaviour), tuple(behaviour), outcomes[..., :states], outcomes[..., -1])


def chain_mdp(*, leak: float) -> TokenMDP:
    """Eight steps of two tokens of 16 bins: the data uses half of them, two of which are good.

    Two good tokens lead on, at the last step to the reward; anything else ends without. The model
    of the behaviour puts `leak` into each unused bin. Dynamic programming: V = 0.98^7 ... 1.
    """
    steps, bins = 8, 16
    uniform = np.where(np.arange(bins) < bins // 2, 2 / bins, 0.0)
    leaking = np.maximum(uniform, leak)
    leaking /= leaking.sum()
    shapes = (steps, bins), (steps, bins, bins)
    next_state_sa = np.zeros((steps, bins, bins, steps))
    success_sa = np.zeros((steps, bins, bins))
    for step in range(steps - 1):
        next_state_sa[step, :2, :2, step + 1] = 1
    success_sa[-1, :2, :2] = 1
    return TokenMDP(
        tuple(np.broadcast_to(uniform, shape) for shape in shapes),
        tuple(np.broadcast_to(leaking, shape) for shape in shapes),
        next_state_sa,
        success_sa,
    )


def dynamic_programming(
    mdp: TokenMDP, config: ObjectiveConfig, *, start: float = 0.0
) -> tuple[list[Array], Array]:
    """Q of every token (entry d: (S, K_1, ..., K_d+1)) and V (S,), by value iteration in numpy.

    Shares no code with the project. The first of n steps is the action at hand, the others are the
    behaviour's.
    """
    probability_sa = np.ones(len(mdp.success_sa))
    for distribution in mdp.behaviour:
        probability_sa = probability_sa[..., None] * distribution
    actions = tuple(range(1, 1 + len(mdp.bins)))
    values = np.full(len(mdp.success_sa), start)
    q: list[Array] = []
    for _ in range(MOST_SWEEPS):
        ahead = values
        for _ in range(config.steps - 1):
            after_sa = mdp.success_sa + config.discount * mdp.next_state_sa @ ahead
            ahead = (probability_sa * after_sa).sum(axis=actions)
        q = [mdp.success_sa + config.discount * mdp.next_state_sa @ ahead]
        for distribution in mdp.model[:0:-1]:
            q.insert(0, _best(q[0], distribution, config))
        updated = _best(q[0], mdp.model[0], config)
        change = np.abs(updated - values).max()
        values = updated
        if change < CONVERGED / 100:
            break
    return q, values


def _best(q: Array, pi: Array, config: ObjectiveConfig) -> Array:
    """The backup over the last axis, on bins of at least a share of the likeliest one's pi."""
    supported = (pi >= config.support_threshold * pi.max(-1, keepdims=True)) & (pi > 0)
    if config.backup == "max":
        best: Array = np.where(supported, q, -np.inf).max(-1)
        return best
    weights = np.where(supported, pi * np.exp(config.backup_beta * q), 0.0)
    mean: Array = (weights * q).sum(-1) / weights.sum(-1)
    return mean


@dataclass(frozen=True, eq=False)
class Rows:
    """Every possible transition of a `TokenMDP` once.

    Attributes:
        prefix_BD: which prefix each token of the action follows.
        token_BD: the tokens.
        weight_BD: probability of the rest of the action and of what follows, given the prefix.
        reward_B: discounted reward of the next n steps.
        discount_B: gamma^n, or 0 where the episode ended.
        next_prefix_B: prefix (a state without tokens) to bootstrap from.
    """

    prefix_BD: Tensor
    token_BD: Tensor
    weight_BD: Tensor
    reward_B: Tensor
    discount_B: Tensor
    next_prefix_B: Tensor


def enumerate_rows(mdp: TokenMDP, *, steps: int, discount: float) -> Rows:
    """All (state, action, outcome of n steps of the behaviour)."""
    states, bins = len(mdp.success_sa), mdp.bins
    index_sa = np.indices((states, *bins)).reshape(1 + len(bins), -1)
    prefixes, rest, offset = [], [np.ones(index_sa.shape[1])], 0
    for dimension in range(len(bins)):
        shape = (states, *bins[:dimension])
        chosen = tuple(index_sa[: dimension + 1])
        prefixes.append(offset + np.ravel_multi_index(chosen, shape))
        offset += int(np.prod(shape))
    for dimension in reversed(range(len(bins))):
        rest.insert(0, rest[0] * mdp.behaviour[dimension][tuple(index_sa[: dimension + 2])])

    state_of = index_sa[0]
    going_on = mdp.next_state_sa.reshape(-1, states)
    success = mdp.success_sa.reshape(-1)
    one_step = np.zeros((states, states))
    reward_of = np.zeros(states)
    np.add.at(one_step, state_of, rest[0][:, None] * going_on)
    np.add.at(reward_of, state_of, rest[0] * success)
    probabilities, rewards = [success], [1.0]
    for step in range(1, steps):
        probabilities.append(going_on @ reward_of)
        rewards.append(discount**step)
        going_on = going_on @ one_step
    failure = 1 - going_on.sum(1) - np.sum(probabilities, axis=0)
    outcome = np.column_stack([going_on, *probabilities, failure])  # (S * A, outcomes)
    count = outcome.shape[1]

    def per_outcome(ends: list[float]) -> Tensor:
        return torch.tensor(np.tile(ends, len(outcome)))

    return Rows(
        prefix_BD=torch.tensor(np.repeat(np.stack(prefixes, 1), count, axis=0)),
        token_BD=torch.tensor(np.repeat(index_sa[1:].T, count, axis=0)),
        weight_BD=torch.tensor(
            np.repeat(np.stack(rest[:-1], 1), count, axis=0) * outcome.reshape(-1, 1)
        ),
        reward_B=per_outcome([0.0] * states + rewards + [0.0]),
        discount_B=per_outcome([discount**steps] * states + [0.0] * (len(rewards) + 1)),
        next_prefix_B=per_outcome([*range(states)] + [0] * (len(rewards) + 1)).long(),
    )


@dataclass(frozen=True, eq=False)
class FixedPoint:
    """Where the objective comes to rest, by prefix.

    Attributes:
        values_N: value of each prefix; the first S are the states.
        q_NK: value of each token.
        p_NK: likelihood of each token.
        pi_NK: behaviour.
    """

    values_N: Array
    q_NK: Array
    p_NK: Array
    pi_NK: Array


def fixed_point(mdp: TokenMDP, config: ObjectiveConfig) -> FixedPoint:
    """Alternate targets and exact projections, as training does, until nothing moves."""
    rows = enumerate_rows(mdp, steps=config.steps, discount=config.discount)
    most = max(mdp.bins)
    pi_NK = np.concatenate(
        [
            np.pad(table.reshape(-1, count), ((0, 0), (0, most - count)))
            for table, count in zip(mdp.model, mdp.bins, strict=True)
        ]
    )
    exists_NK = torch.tensor(
        np.concatenate(
            [
                np.broadcast_to(np.arange(most) < count, (table[..., 0].size, most))
                for table, count in zip(mdp.model, mdp.bins, strict=True)
            ]
        )
    )
    log_pi_NK = _log(torch.tensor(pi_NK))
    one_hot_BDK = torch.nn.functional.one_hot(rows.token_BD, most).double()
    reject = config.form == "reject"
    loss = reject_loss if reject else spread_loss
    p_NV = torch.exp(log_pi_NK) * (INITIAL_VALUE if reject else 1)
    if reject:
        p_NV = torch.cat([p_NV, torch.full((len(p_NV), 1), 1 - INITIAL_VALUE)], dim=1)
        exists_NK = torch.nn.functional.pad(exists_NK, (0, 1), value=True)
    blank_HNV = torch.where(exists_NK, 0.0, MASKED_LOGIT).double().expand(HEADS, -1, -1)

    for _ in range(MOST_SWEEPS):
        log_p_HNV = _log(p_NV).expand(HEADS, -1, -1)
        values_BD = prefix_values(log_pi_NK[rows.prefix_BD], log_p_HNV[:, rows.prefix_BD], config)
        values_N1 = prefix_values(log_pi_NK[:, None], log_p_HNV[:, :, None], config)
        weights_BD = token_targets(
            values_BD,
            bootstrap_values_B=values_N1[rows.next_prefix_B, 0],
            rewards_B=rows.reward_B,
            discounts_B=rows.discount_B,
            lower_bounds_B=torch.zeros_like(rows.reward_B),
        )
        variable_HNV = blank_HNV.clone().requires_grad_()
        expected = loss(variable_HNV[:, rows.prefix_BD], one_hot_BDK, weights_BD)
        (rows.weight_BD * expected).sum().backward()
        assert variable_HNV.grad is not None
        minimiser_NV = -variable_HNV.grad[0]
        minimiser_NV = minimiser_NV / minimiser_NV.sum(dim=-1, keepdim=True)
        change = float((minimiser_NV - p_NV).abs().max())
        p_NV = minimiser_NV
        if change < CONVERGED:
            break
    log_p_HNV = _log(p_NV).expand(HEADS, -1, -1)
    q_NK = q_values(log_pi_NK[:, None], log_p_HNV[:, :, None])[:, 0]
    values_N1 = prefix_values(log_pi_NK[:, None], log_p_HNV[:, :, None], config)
    return FixedPoint(values_N1[:, 0].numpy(), q_NK.numpy(), p_NV[:, :most].numpy(), pi_NK)


def _log(probability: Tensor) -> Tensor:
    return probability.log().clamp(min=MASKED_LOGIT)


def error_and_violation(mdp: TokenMDP, config: ObjectiveConfig) -> tuple[float, float]:
    """Largest |Q - DP| (of V too), and by how much p leaves [pi Q*, Q*], over the bins in use."""
    point = fixed_point(mdp, config)
    q, values = dynamic_programming(mdp, config)
    most = max(mdp.bins)
    q_NK = np.concatenate(
        [
            np.pad(table.reshape(-1, table.shape[-1]), ((0, 0), (0, most - table.shape[-1])))
            for table in q
        ]
    )
    used_NK = point.pi_NK > 0
    error = max(
        np.abs(point.q_NK - q_NK)[used_NK].max(),
        np.abs(point.values_N[: len(values)] - values).max(),
    )
    below = point.pi_NK * q_NK - point.p_NK
    above = point.p_NK - q_NK
    violation = max(below[used_NK].max(), above[used_NK].max(), 0.0)
    return float(error), float(violation)


def chain_error(form: Literal["reject", "spread"], *, leak: float, threshold: float) -> float:
    """Mean |Q - DP| over the first tokens that the data of `chain_mdp` uses, hard max."""
    config = ObjectiveConfig(
        form=form, backup="max", support_threshold=threshold, discount=0.98, steps=1
    )
    point = fixed_point(chain_mdp(leak=leak), config)
    exact, _ = dynamic_programming(chain_mdp(leak=0.0), config)
    states, bins = exact[0].shape
    used = slice(bins // 2)
    return float(np.abs(point.q_NK[:states, used] - exact[0][:, used]).mean())


def second_fixed_points(mdp: TokenMDP, beta: float) -> float:
    """Largest difference of V that value iteration ends at from V = 0 and from V = 1."""
    config = ObjectiveConfig(backup="soft", backup_beta=beta, discount=0.97, steps=1)
    _, low = dynamic_programming(mdp, config, start=0.0)
    _, high = dynamic_programming(mdp, config, start=1.0)
    return float(np.abs(high - low).max())


def main() -> int:
    """Measure, print and write; 1 when a bar is missed."""
    torch.set_num_threads(1)
    quick = quick_from_command_line(__doc__ or "")
    count = QUICK_MDPS if quick else MDPS
    seeds = tuple(range(count))
    mdps = [random_mdp(np.random.default_rng(seed)) for seed in seeds]

    def exact(figure: str, value: float, n: int = count) -> dict[str, Any]:
        return {
            "figure": figure,
            "value": value,
            "low": value,  # computed, not sampled
            "high": value,
            "n": n,
            "seeds": seeds if n == count else (),
        }

    figures: list[Figure] = []
    violation = 0.0
    backups: tuple[Literal["max", "soft"], ...] = ("max", "soft")
    for backup in backups:
        for steps in (1, 3):
            config = ObjectiveConfig(backup=backup, steps=steps)
            found = [error_and_violation(mdp, config) for mdp in mdps]
            name = f"largest |Q − DP|, {backup} backup, {steps}-step targets"
            figures.append(at_most(1e-3, **exact(name, max(error for error, _ in found))))
            if backup == "max" and steps == 1:
                violation = max(outside for _, outside in found)
    figures.append(
        at_most(1e-6, **exact("largest violation of π·Q* ≤ p ≤ Q*, max backup", violation))
    )
    form: Literal["reject", "spread"]
    for form, leak, threshold, what in (
        ("reject", 0.0, 0.05, "reject token"),
        ("reject", 1e-4, 0.05, "reject token, π leaking"),
        ("spread", 1e-4, 0.0, "spread (paper's Eq. 3), π leaking, max over all bins"),
        ("spread", 1e-4, 0.05, "spread, π leaking, max over supported bins"),
    ):
        error = chain_error(form, leak=leak, threshold=threshold)
        parts = exact(f"8-step chain: mean |Q − DP|, {what}", error, 1)
        figures.append(Figure(**parts) if leak else at_most(1e-3, **parts))
    for beta in (3.0, 16.0):
        gap = max(second_fixed_points(mdp, beta) for mdp in mdps)
        name = f"soft backup, β_b = {beta:g}: V from above − V from below, largest"
        figures.append(Figure(**exact(name, gap)))
    return 0 if publish("fixed_point", figures, quick=quick) else 1


if __name__ == "__main__":
    sys.exit(main())
