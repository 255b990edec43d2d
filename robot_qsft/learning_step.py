"""One gradient step: batch in, losses out.

Shape legend: B batch rows, C counted rows, D action tokens, H likelihood heads, K bins.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robot_qsft.datasets.batches import NO_SUCCESSOR, Batch, Returns
from robot_qsft.datasets.tables import Tables
from robot_qsft.objective import (
    ObjectiveConfig,
    behaviour_loss,
    prefix_values,
    reject_loss,
    smoothed_targets,
    spread_loss,
    token_targets,
)
from robot_qsft.policies.rt import RTNetwork, TokenInputs
from robot_qsft.policies.vision import random_shift

Method: TypeAlias = Literal["qsft", "bc"]


@dataclass(frozen=True)
class TensorBatch:
    """A `Batch` as tensors on the training device.

    Attributes:
        inputs: observations of the B rows.
        tokens_BD: demonstrated action tokens.
        counted_B: rows that bear a loss.
        successors_B: row to bootstrap from, or NO_SUCCESSOR.
        rewards_B: n-step reward.
        discounts_B: on the value bootstrapped from.
        lower_bounds_B: the return reached from here, or 0.
    """

    inputs: TokenInputs
    tokens_BD: Tensor
    counted_B: Tensor
    successors_B: Tensor
    rewards_B: Tensor
    discounts_B: Tensor
    lower_bounds_B: Tensor


class Collator:
    """Turns batches of rows into tensors."""

    def __init__(
        self,
        tables: Tables,
        returns: Returns,
        *,
        tokens_ND: NDArray[np.int64],
        words_MI: NDArray[np.int64],
        environment_state_size: int,
        monte_carlo_bound: bool,
        device: torch.device,
    ):
        """Hold the low-dimensional columns of the whole data set as tensors.

        Args:
            tables: the data.
            returns: ingredients of the targets.
            tokens_ND: action tokens of every frame.
            words_MI: word tokens of every task.
            environment_state_size: how much of the environment state the policy reads.
            monte_carlo_bound: whether targets are bounded by the return reached.
            device: where to.
        """
        environment_states = tables.environment_states[:, :environment_state_size]
        self._states = torch.from_numpy(np.ascontiguousarray(tables.states))
        self._environment_states = torch.from_numpy(np.ascontiguousarray(environment_states))
        self._tokens = torch.from_numpy(tokens_ND)
        self._words = torch.from_numpy(words_MI)
        self._task = torch.from_numpy(np.repeat(tables.task_indices, tables.episode_lengths))
        self._rewards = torch.from_numpy(returns.rewards)
        self._discounts = torch.from_numpy(returns.discounts)
        bounds = returns.monte_carlo if monte_carlo_bound else np.zeros_like(returns.monte_carlo)
        self._bounds = torch.from_numpy(bounds)
        self._device = device

    def __call__(
        self, batch: Batch, *, shift_pixels: int, generator: torch.Generator
    ) -> TensorBatch:
        """Gather the rows, moving each image by up to `shift_pixels`."""
        rows = torch.from_numpy(batch.frames)
        images = {
            camera: random_shift(
                torch.from_numpy(stack).to(self._device), pixels=shift_pixels, generator=generator
            )
            for camera, stack in batch.images.items()
        }
        inputs = TokenInputs(
            state_BS=self._states[rows].to(self._device),
            environment_state_BE=self._environment_states[rows].to(self._device),
            words_BI=self._words[self._task[rows]].to(self._device),
            images=images,
        )
        return TensorBatch(
            inputs=inputs,
            tokens_BD=self._tokens[rows].to(self._device),
            counted_B=torch.from_numpy(batch.counted).to(self._device),
            successors_B=torch.from_numpy(batch.successors).to(self._device),
            rewards_B=self._rewards[rows].to(self._device),
            discounts_B=self._discounts[rows].to(self._device),
            lower_bounds_B=self._bounds[rows].to(self._device),
        )


@dataclass(frozen=True)
class Losses:
    """Scalars of one step; `total` carries the gradient."""

    total: Tensor
    behaviour: Tensor
    likelihood: Tensor
    mean_value: Tensor

    def as_floats(self) -> Mapping[str, float]:
        """For the log."""
        return {
            "loss": float(self.total.detach()),
            "behaviour": float(self.behaviour),
            "likelihood": float(self.likelihood),
            "mean_value": float(self.mean_value),
        }


def losses(
    network: RTNetwork,
    target: RTNetwork,
    batch: TensorBatch,
    kernels_DKK: Tensor,
    *,
    method: Method,
    objective: ObjectiveConfig,
    autocast: bool,
) -> Losses:
    """Losses of `network` on the counted rows, targets from `target`.

    The target network reads all rows once: they are both the states to learn at and the
    successors to bootstrap from.
    """
    counted_C = batch.counted_B.nonzero()[:, 0]
    inputs = batch.inputs
    counted_inputs = TokenInputs(
        state_BS=inputs.state_BS[counted_C],
        environment_state_BE=inputs.environment_state_BE[counted_C],
        words_BI=inputs.words_BI[counted_C],
        images={camera: stack[counted_C] for camera, stack in inputs.images.items()},
    )
    tokens_CD = batch.tokens_BD[counted_C]
    device_type = tokens_CD.device.type
    with torch.autocast(device_type, dtype=torch.bfloat16, enabled=autocast):
        predicted = network(counted_inputs, tokens_CD)
    targets_CDK = smoothed_targets(tokens_CD, kernels_DKK)
    behaviour = behaviour_loss(predicted.behaviour_BDK, targets_CDK).mean()
    if method == "bc":
        zero = torch.zeros_like(behaviour)
        return Losses(behaviour, behaviour.detach(), zero, zero)

    with torch.no_grad():
        with torch.autocast(device_type, dtype=torch.bfloat16, enabled=autocast):
            bootstrap = target(inputs, batch.tokens_BD)
        prefix_values_BD = prefix_values(
            bootstrap.behaviour_BDK, bootstrap.likelihood_HBDV, objective
        )
        weights_BD = token_targets(
            prefix_values_BD,
            bootstrap_values_B=prefix_values_BD[batch.successors_B.clamp(min=0), 0],
            rewards_B=batch.rewards_B,
            discounts_B=batch.discounts_B,
            lower_bounds_B=batch.lower_bounds_B,
        )
    weights_CD = weights_BD[counted_C]
    form = reject_loss if objective.form == "reject" else spread_loss
    likelihood_HCD = form(predicted.likelihood_HBDV, targets_CDK, weights_CD)
    # Only the last token of an action looks n steps on.
    known_CD = torch.ones_like(weights_CD)
    known_CD[:, -1] = (batch.successors_B[counted_C] != NO_SUCCESSOR).float()
    likelihood = (likelihood_HCD * known_CD).sum() / known_CD.sum().clamp(min=1)
    return Losses(
        behaviour + likelihood, behaviour.detach(), likelihood.detach(), weights_CD[:, 0].mean()
    )
