"""Values read off token likelihoods, and the policy they give.

Shape legend: B batch, D action tokens, H likelihood heads, K bins, V = K + 1 (bins and reject).

With a reject token the weighted cross-entropy of Q-SFT (Hong, Dragan and Levine 2025,
arXiv 2411.05193) has the minimiser p(a|s) = Q(s, a) * pi(a|s), so Q = p / pi.
"""

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Backup: TypeAlias = Literal["soft", "max"]

MASKED_LOGIT = -1e9
"""Logit of a bin that does not exist; finite, so that 0 * logit stays 0."""


def q_values(log_pi_BDK: Tensor, log_p_HBDV: Tensor) -> Tensor:
    """Q(s, a) = p(a|s) / pi(a|s), the smallest of the heads, clipped to [0, 1], (B, D, K).

    `log_p_HBDV` may come without the reject token (V = K), as in the paper's Eq. 3. The minimum of
    two estimates counters the optimism of maximising over noisy ratios (Fujimoto et al. 2018,
    arXiv 1802.09477, Eq. 10). Clipping before `exp` keeps an unsupported bin finite.
    """
    least_BDK = log_p_HBDV[..., : log_pi_BDK.shape[-1]].amin(dim=0)
    return (least_BDK - log_pi_BDK).clamp_(max=0.0).exp_()


def support(log_pi_BDK: Tensor, threshold: float) -> Tensor:
    """Bins that the demonstrators use: pi(a|s) >= threshold * max_a pi(a|s), bool (B, D, K).

    Outside it p / pi is a ratio of two small numbers, that is, noise.
    """
    if threshold == 0:
        return log_pi_BDK > MASKED_LOGIT / 2
    return log_pi_BDK >= log_pi_BDK.amax(dim=-1, keepdim=True) + math.log(threshold)


def soft_value(log_pi_BDK: Tensor, q_BDK: Tensor, *, beta: float, threshold: float) -> Tensor:
    """Value of a prefix under the tilted policy, sum_a softmax_a(log pi + beta Q) Q, (B, D).

    The sum runs over the support. beta = 0 gives the demonstrators' value; large beta the maximum.
    """
    tilted_BDK = tilt(log_pi_BDK, q_BDK, beta=beta, threshold=threshold)
    return (tilted_BDK.softmax(dim=-1) * q_BDK).sum(dim=-1)


def max_value(log_pi_BDK: Tensor, q_BDK: Tensor, *, threshold: float) -> Tensor:
    """Value of a prefix as the best supported bin, max_a Q, (B, D) (paper, Eq. 3)."""
    return q_BDK.masked_fill(~support(log_pi_BDK, threshold), 0.0).amax(dim=-1)


def tilt(log_pi_BDK: Tensor, q_BDK: Tensor, *, beta: float, threshold: float) -> Tensor:
    """Logits of pi(a|s) exp(beta Q(s, a)) on the support, (B, D, K).

    beta = 0 gives `log_pi_BDK` itself: without a tilt there is nothing to guard against, so no bin
    is masked.
    """
    if beta == 0:
        return log_pi_BDK
    tilted_BDK = torch.add(log_pi_BDK, q_BDK, alpha=beta)
    return tilted_BDK.masked_fill_(~support(log_pi_BDK, threshold), MASKED_LOGIT)


def demonstrator_value(log_p_HBDV: Tensor) -> Tensor:
    """Value of the demonstrators themselves, 1 - p(reject|s), the smallest of the heads, (B, D)."""
    return (-torch.expm1(log_p_HBDV[..., -1])).amin(dim=0)
