"""The two output heads: behaviour pi(a|s) over bins, likelihood p(a|s) over bins and reject.

Shape legend: B batch, D action tokens, H likelihood heads, K bins, V = K + 1, W width.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robot_qsft.policies.values import MASKED_LOGIT


@dataclass(frozen=True)
class TokenLogProbabilities:
    """Normalised log-probabilities of both heads, float32.

    Attributes:
        behaviour_BDK: log pi(a|s).
        likelihood_HBDV: log p(a|s), reject token last; (H, B, D, K) in the form without it.
    """

    behaviour_BDK: Tensor
    likelihood_HBDV: Tensor


class TokenHeads(nn.Module):
    """Linear read-outs, one set of weights per action dimension.

    Every likelihood head starts as a copy of the behaviour head with a little noise of its own,
    and a reject token so likely that Q = p / pi = `initial_value` everywhere: pessimistic.

    Raises:
        ValueError: when `initial_value` is not strictly between 0 and 1.
    """

    missing_DK: Tensor

    def __init__(
        self,
        *,
        width: int,
        bins: tuple[int, ...],
        likelihood_heads: int,
        reject_token: bool,
        initial_value: float,
    ):
        super().__init__()
        if not 0 < initial_value < 1:
            raise ValueError(f"initial_value must lie between 0 and 1, got {initial_value}")
        dimensions, most = len(bins), max(bins)
        self.reject_token = reject_token
        behaviour_DWK = torch.randn(dimensions, width, most) * 0.02
        noise_HDWK = torch.randn(likelihood_heads, dimensions, width, most) * 0.005
        likelihood_HDWK = behaviour_DWK + noise_HDWK
        self.behaviour_weight_DWK = nn.Parameter(behaviour_DWK)
        self.behaviour_bias_DK = nn.Parameter(torch.zeros(dimensions, most))
        outputs = most + reject_token
        likelihood_weight = torch.zeros(likelihood_heads, dimensions, width, outputs)
        likelihood_weight[..., :most] = likelihood_HDWK
        likelihood_bias = torch.zeros(likelihood_heads, dimensions, outputs)
        if reject_token:
            # logsumexp of the K_d existing bins is about log K_d at the start.
            odds = math.log((1 - initial_value) / initial_value)
            likelihood_bias[..., -1] = torch.tensor([math.log(count) + odds for count in bins])
        self.likelihood_weight_HDWV = nn.Parameter(likelihood_weight)
        self.likelihood_bias_HDV = nn.Parameter(likelihood_bias)
        missing_DK = torch.arange(most) >= torch.tensor(bins)[:, None]
        self.register_buffer("missing_DK", missing_DK, persistent=False)

    def forward(
        self, hidden_BTW: Tensor, likelihood_hidden_BTW: Tensor, first: int = 0
    ) -> TokenLogProbabilities:
        """Log-probabilities of the tokens `first` … `first` + T - 1 of the action.

        Args:
            hidden_BTW: what the behaviour head reads; T <= D.
            likelihood_hidden_BTW: what the likelihood heads read; the same where trunks are shared.
            first: action dimension of the first token.
        """
        dims = slice(first, first + hidden_BTW.shape[1])
        missing_DK = self.missing_DK[dims]
        behaviour_BDK = (
            torch.einsum("btw,twk->btk", hidden_BTW.float(), self.behaviour_weight_DWK[dims])
            + self.behaviour_bias_DK[dims]
        ).masked_fill(missing_DK, MASKED_LOGIT)
        likelihood_HBDV = (
            torch.einsum(
                "btw,htwv->hbtv",
                likelihood_hidden_BTW.float(),
                self.likelihood_weight_HDWV[:, dims],
            )
            + self.likelihood_bias_HDV[:, None, dims]
        )
        if self.reject_token:
            missing_DK = torch.nn.functional.pad(missing_DK, (0, 1))
        likelihood_HBDV = likelihood_HBDV.masked_fill(missing_DK, MASKED_LOGIT)
        return TokenLogProbabilities(
            behaviour_BDK.log_softmax(dim=-1), likelihood_HBDV.log_softmax(dim=-1)
        )
