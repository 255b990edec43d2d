"""The Q-SFT objective: token-level Bellman targets and the weighted cross-entropy.

Shape legend: B batch, D action tokens, H likelihood heads, K bins, V = K + 1 (bins and reject).

Hong, Dragan and Levine 2025 (arXiv 2411.05193) train token likelihoods by cross-entropy with the
Bellman target as weight. An action is D tokens; inside an action there is no reward, no discount
and no change of the environment, so the target of a token is the value of the prefix it ends.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robot_qsft.policies.values import MASKED_LOGIT, Backup, max_value, q_values, soft_value


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is learnt. The defaults are the recipe found to work on robot data.

    Attributes:
        form: where the weight that the demonstrated token does not get goes: to a "reject" token
            (then p = Q * pi exactly), or in equal parts to all other bins, "spread" (paper, Eq. 3;
            values saturate at 1).
        backup: value of a prefix: "soft" (expectation under the tilted policy) or hard "max".
        backup_beta: sharpness of the soft backup.
        support_threshold: bins below this share of the likeliest one's probability are ignored.
        discount: per environment step.
        steps: n of the n-step return.
        monte_carlo_bound: keep targets at or above the return that was actually reached.
        smoothing_bins: standard deviation, in bins, of the Gaussian that lets neighbouring bins
            share a target; 0 for none. Discrete dimensions are never smoothed.
    """

    form: Literal["reject", "spread"] = "reject"
    backup: Backup = "soft"
    backup_beta: float = 3.0
    support_threshold: float = 0.1
    discount: float = 0.97
    steps: int = 5
    monte_carlo_bound: bool = True
    smoothing_bins: float = 0.7

    def __post_init__(self) -> None:
        """Refuse settings outside their range.

        Raises:
            ValueError: naming the field.
        """
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount must lie in (0, 1], got {self.discount}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        for name in ("backup_beta", "smoothing_bins"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {getattr(self, name)}")
        if not 0 <= self.support_threshold <= 1:
            raise ValueError(f"support_threshold must lie in [0, 1], got {self.support_threshold}")


def smoothing_kernels(bins: tuple[int, ...], discrete: tuple[bool, ...], sigma: float) -> Tensor:
    """Row k of matrix d is the target distribution of token k in dimension d, (D, K, K).

    A Gaussian of `sigma` bins, cut at the borders and normalised; one-hot where sigma is 0 or the
    dimension is discrete. With sigma 0.7, three bins and token 1: exp(-1/0.98) = 0.36 beside 1,
    so (0.21, 0.58, 0.21).
    """
    most = max(bins)
    kernels_DKK = torch.zeros(len(bins), most, most)
    for kernel_KK, count, is_discrete in zip(kernels_DKK, bins, discrete, strict=True):
        if sigma == 0 or is_discrete:
            kernel_KK[:count, :count] = torch.eye(count)
        else:
            index = torch.arange(count, dtype=torch.float32)
            weights = torch.exp(-0.5 * ((index[:, None] - index) / sigma) ** 2)
            kernel_KK[:count, :count] = weights / weights.sum(dim=1, keepdim=True)
    return kernels_DKK


def smoothed_targets(tokens_BD: Tensor, kernels_DKK: Tensor) -> Tensor:
    """Target distribution over bins of every demonstrated token, (B, D, K)."""
    dimensions_D = torch.arange(tokens_BD.shape[1], device=tokens_BD.device)
    return kernels_DKK[dimensions_D, tokens_BD]


def prefix_values(log_pi_BDK: Tensor, log_p_HBDV: Tensor, config: ObjectiveConfig) -> Tensor:
    """Value of each prefix of the demonstrated action, before its token is chosen, (B, D).

    Column 0 is the value of the state, V(s).
    """
    q_BDK = q_values(log_pi_BDK, log_p_HBDV)
    if config.backup == "max":
        return max_value(log_pi_BDK, q_BDK, threshold=config.support_threshold)
    return soft_value(
        log_pi_BDK, q_BDK, beta=config.backup_beta, threshold=config.support_threshold
    )


def token_targets(
    prefix_values_BD: Tensor,
    *,
    bootstrap_values_B: Tensor,
    rewards_B: Tensor,
    discounts_B: Tensor,
    lower_bounds_B: Tensor,
) -> Tensor:
    """Bellman targets of the demonstrated tokens, the weights of the cross-entropy, (B, D).

    For a token inside the action the value of the next prefix; for the last token
    R_n + gamma^n V(s_n), R_n being the discounted reward of the n steps (paper, section 4; the
    per-dimension backup of Chebotar et al. 2023, arXiv 2309.10150). Never below
    `lower_bounds_B`, clipped to [0, 1].

    Args:
        prefix_values_BD: from the target network, see `prefix_values`.
        bootstrap_values_B: V at the state n steps on.
        rewards_B: discounted reward of the steps up to there.
        discounts_B: gamma^n; 0 where the episode terminated before.
        lower_bounds_B: the return reached from here; 0 for no bound.
    """
    last_B1 = (rewards_B + discounts_B * bootstrap_values_B)[:, None]
    targets_BD = torch.cat([prefix_values_BD[:, 1:], last_B1], dim=1)
    return torch.maximum(targets_BD, lower_bounds_B[:, None]).clamp(0.0, 1.0)


def behaviour_loss(log_pi_BDK: Tensor, targets_BDK: Tensor) -> Tensor:
    """Cross-entropy of the behaviour head, -sum_a target(a) log pi(a|s), (B, D), in nats."""
    return -(targets_BDK * log_pi_BDK).sum(dim=-1)


def reject_loss(log_p_HBDV: Tensor, targets_BDK: Tensor, weights_BD: Tensor) -> Tensor:
    """-[w sum_a target(a) log p(a|s) + (1 - w) log p(reject|s)] for each head, (H, B, D).

    Its minimiser is p(a|s) = E[w|s, a] pi(a|s) (paper, Eq. 2).
    """
    chosen_HBD = (targets_BDK * log_p_HBDV[..., :-1]).sum(dim=-1)
    return -(weights_BD * chosen_HBD + (1 - weights_BD) * log_p_HBDV[..., -1])


def spread_loss(log_p_HBDK: Tensor, targets_BDK: Tensor, weights_BD: Tensor) -> Tensor:
    """-[w log p(a|s) + (1 - w)/(K - 1) sum_{a' != a} log p(a'|s)], (H, B, D) (paper, Eq. 3).

    With a smoothed target t the second term weighs bin a' by (1 - t(a'))/(K - 1), which is the
    same for a one-hot t. Bins that do not exist (masked logits) take no part.
    """
    exists_BDK = log_p_HBDK[0] > MASKED_LOGIT / 2
    others_BDK = torch.where(exists_BDK, 1 - targets_BDK, 0.0)
    # A dimension of one bin has no others; its likelihood is 1 whatever the weight.
    others_BDK = others_BDK / (exists_BDK.sum(dim=-1, keepdim=True) - 1).clamp(min=1)
    weights_BD1 = weights_BD[..., None]
    mixed_BDK = weights_BD1 * targets_BDK + (1 - weights_BD1) * others_BDK
    return -(mixed_BDK * log_p_HBDK).sum(dim=-1)
