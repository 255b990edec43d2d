"""One step's losses, against numbers worked by hand.

Networks are stood in for by tables. Two action tokens of two bins each, no smoothing. The target's
behaviour is (1/2, 1/2) everywhere and its likelihood (q/2, q/2, 1 - q), so every Q = p / pi is q
and the value of every prefix is q too.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from robot_qsft.datasets.batches import NO_SUCCESSOR, Batch, n_step_returns
from robot_qsft.datasets.tables import Tables
from robot_qsft.learning_step import Collator, TensorBatch, losses
from robot_qsft.objective import ObjectiveConfig, smoothing_kernels
from robot_qsft.policies.heads import TokenLogProbabilities
from robot_qsft.policies.rt import TokenInputs

KERNELS = smoothing_kernels((2, 2), (False, False), 0.0)
LOG_2 = float(np.log(2))

# Row 0 bootstraps from row 1, whose own successor is not here; row 2 is here as somebody else's
# successor only; row 3 ends its episode with reward 1.
VALUES_BD = torch.tensor([[0.2, 0.4], [0.6, 0.8], [0.3, 0.9], [0.1, 0.5]])
BATCH = TensorBatch(
    inputs=TokenInputs(
        state_BS=torch.arange(4.0)[:, None],
        environment_state_BE=torch.zeros(4, 0),
        words_BI=torch.zeros(4, 0, dtype=torch.int64),
    ),
    tokens_BD=torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0]]),
    counted_B=torch.tensor([True, True, False, True]),
    successors_B=torch.tensor([1, NO_SUCCESSOR, 2, 3]),
    rewards_B=torch.tensor([0.0, 0.0, 0.0, 1.0]),
    discounts_B=torch.tensor([0.5, 0.5, 0.5, 0.0]),
    lower_bounds_B=torch.zeros(4),
)
# Targets of (first, last) token: next prefix, and r + discount * V(successor).
#   row 0: 0.4, 0.5 * 0.6 = 0.3      row 1: 0.8, unknown      row 3: 0.5, 1
TARGETS = (0.4, 0.3, 0.8, 0.5, 1.0)


def target(inputs, tokens_BD):
    values_BD = VALUES_BD[inputs.state_BS[:, 0].long()]
    halves_BDK = (values_BD / 2)[..., None].expand(-1, -1, 2)
    likelihood_BDV = torch.cat([halves_BDK, 1 - values_BD[..., None]], dim=-1)
    behaviour_BDK = torch.full((len(tokens_BD), 2, 2), 0.5)
    return TokenLogProbabilities(behaviour_BDK.log(), likelihood_BDV.log()[None])


class Table(torch.nn.Module):
    """A network with logits of its own for every row: uniform over bins, reject 1/2."""

    def __init__(self, heads=1):
        super().__init__()
        self.behaviour = torch.nn.Parameter(torch.zeros(4, 2, 2))
        likelihood = torch.tensor([0.25, 0.25, 0.5]).log().expand(heads, 4, 2, 3)
        self.likelihood = torch.nn.Parameter(likelihood.clone())

    def forward(self, inputs, tokens_BD):
        rows = inputs.state_BS[:, 0].long()
        return TokenLogProbabilities(
            self.behaviour[rows].log_softmax(dim=-1),
            self.likelihood[:, rows].log_softmax(dim=-1),
        )


def compute(network, batch=BATCH, *, target=target, method="qsft", **objective):
    return losses(
        network,
        target,
        batch,
        KERNELS,
        method=method,
        objective=ObjectiveConfig(**objective),
        autocast=False,
    )


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("backup", ["soft", "max"])
def test_losses_are_those_worked_by_hand(heads, backup):
    found = compute(Table(heads), backup=backup)
    # A token of target w costs -[w log 1/4 + (1 - w) log 1/2] = (1 + w) log 2, per head.
    likelihood = heads * (1 + np.mean(TARGETS)) * LOG_2
    assert float(found.behaviour) == pytest.approx(LOG_2)
    assert float(found.likelihood) == pytest.approx(likelihood)
    assert found.as_floats()["loss"] == pytest.approx(LOG_2 + likelihood)
    assert float(found.mean_value) == pytest.approx((0.4 + 0.8 + 0.5) / 3)
    assert set(found.as_floats()) == {"loss", "behaviour", "likelihood", "mean_value"}


def test_return_reached_bounds_the_targets_from_below():
    batch = replace(BATCH, lower_bounds_B=torch.tensor([0.35, 0.0, 1.0, 0.0]))
    # Row 0 becomes 0.4, 0.35; the bound of row 2, which is not counted, tells nothing.
    expected = (1 + np.mean([0.4, 0.35, 0.8, 0.5, 1.0])) * LOG_2
    assert float(compute(Table(), batch).likelihood) == pytest.approx(expected)


def test_gradient_reaches_counted_tokens_with_a_known_target_only():
    network = Table()
    compute(network).total.backward()
    behaviour_BD = network.behaviour.grad.abs().sum(dim=-1) > 0
    assert behaviour_BD.tolist() == [[True, True], [True, True], [False, False], [True, True]]
    likelihood_BD = network.likelihood.grad[0].abs().sum(dim=-1) > 0
    assert likelihood_BD.tolist() == [[True, True], [True, False], [False, False], [True, True]]
    # d/dlogit of a cross-entropy with target t is (p - t) / 5 counted tokens: row 3's last token
    # is token 0 with weight 1.
    expected = (np.array([0.25, 0.25, 0.5]) - np.array([1, 0, 0])) / 5
    np.testing.assert_allclose(network.likelihood.grad[0, 3, 1], expected, atol=1e-6)


def test_behaviour_cloning_asks_no_target_network():
    network = Table()
    found = compute(network, method="bc", target=None)
    found.total.backward()
    assert float(found.total.detach()) == pytest.approx(LOG_2)
    assert float(found.likelihood) == float(found.mean_value) == 0
    assert network.likelihood.grad is None


def test_a_batch_without_any_known_target_costs_nothing_and_is_finite():
    """One action dimension, so that its only token is the last one."""
    batch = replace(
        BATCH,
        tokens_BD=BATCH.tokens_BD[:, :1],
        successors_B=torch.full((4,), NO_SUCCESSOR),
    )

    def first_only(network):
        def called(inputs, tokens_BD):
            both = network(inputs, tokens_BD.expand(-1, 2))
            return TokenLogProbabilities(both.behaviour_BDK[:, :1], both.likelihood_HBDV[:, :, :1])

        return called

    found = losses(
        first_only(Table()),
        first_only(target),
        batch,
        KERNELS[:1],
        method="qsft",
        objective=ObjectiveConfig(),
        autocast=False,
    )
    assert float(found.likelihood) == 0
    assert float(found.total.detach()) == pytest.approx(LOG_2)


@pytest.mark.parametrize(("bound", "expected"), [(True, [1.0, 0.5]), (False, [0.0, 0.0])])
def test_collator_gathers_the_rows_asked_for(bound, expected):
    """Two episodes of two steps; the first is paid at its end."""
    starts, terminated = np.array([0, 2]), np.array([True, True])
    rewards = np.array([0, 1, 0, 0], np.float32)
    tables = Tables(
        states=np.arange(4, dtype=np.float32)[:, None],
        environment_states=np.arange(8, dtype=np.float32).reshape(4, 2),
        actions=np.zeros((4, 1), np.float32),
        rewards=rewards,
        successes=rewards > 0,
        episode_starts=starts,
        terminated=terminated,
        truncated=~terminated,
        task_indices=np.array([1, 0]),
        tasks=("a", "b"),
        demonstrators=("", ""),
        reward_source="next.reward",
        success_source="next.success",
    )
    collate = Collator(
        tables,
        n_step_returns(rewards, starts, terminated, steps=1, discount=0.5),
        tokens_ND=np.array([[10], [11], [12], [13]]),
        words_MI=np.array([[7], [8]]),
        environment_state_size=1,
        monte_carlo_bound=bound,
        device=torch.device("cpu"),
    )
    image = np.arange(3 * 8 * 8 * 3, dtype=np.uint8).reshape(3, 8, 8, 3)
    batch = collate(
        Batch(
            frames=np.array([1, 0, 3]),
            successors=np.array([0, NO_SUCCESSOR, 2]),
            counted=np.array([True, True, False]),
            images={"front": image},
        ),
        shift_pixels=0,
        generator=torch.Generator(),
    )
    assert batch.inputs.state_BS.tolist() == [[1], [0], [3]]
    assert batch.inputs.environment_state_BE.tolist() == [[2], [0], [6]]
    assert batch.inputs.words_BI.tolist() == [[8], [8], [7]]
    np.testing.assert_array_equal(batch.inputs.images["front"], image)
    assert batch.tokens_BD.tolist() == [[11], [10], [13]]
    assert batch.successors_B.tolist() == [0, NO_SUCCESSOR, 2]
    assert batch.counted_B.tolist() == [True, True, False]
    assert batch.rewards_B.tolist() == [1, 0, 0]
    assert batch.discounts_B.tolist() == [0, 0.5, 0]
    assert batch.lower_bounds_B[:2].tolist() == expected
