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

    All heads of a dimension lie side by side in one matrix, the behaviour head first and padded to
    the width of the others, so that one product serves them all and Q-SFT acts as fast as BC.

    Raises:
        ValueError: when `initial_value` is not strictly between 0 and 1.
    """

    missing_DHV: Tensor

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
        self.bins = most
        outputs = most + reject_token
        behaviour_DWK = torch.randn(dimensions, width, most) * 0.02
        weight_DWHV = torch.zeros(dimensions, width, 1 + likelihood_heads, outputs)
        weight_DWHV[..., :most] = behaviour_DWK[:, :, None]
        weight_DWHV[:, :, 1:, :most] += (
            torch.randn(dimensions, width, likelihood_heads, most) * 0.005
        )
        bias_DHV = torch.zeros(dimensions, 1 + likelihood_heads, outputs)
        # True of outputs that stand for no token: bins beyond K_d, and reject under behaviour.
        missing_DHV = torch.zeros(dimensions, 1 + likelihood_heads, outputs, dtype=torch.bool)
        missing_DHV[..., :most] = (torch.arange(most) >= torch.tensor(bins)[:, None])[:, None]
        if reject_token:
            # logsumexp of the K_d existing bins is about log K_d at the start.
            odds = math.log((1 - initial_value) / initial_value)
            bias_DHV[..., -1] = torch.tensor([math.log(count) + odds for count in bins])[:, None]
            missing_DHV[:, 0, -1] = True
        self.weight_DWX = nn.Parameter(weight_DWHV.flatten(2))
        self.bias_DX = nn.Parameter(bias_DHV.flatten(1))
        self.outputs = outputs
        self.register_buffer("missing_DHV", missing_DHV, persistent=False)

    def forward(
        self, hidden_BTW: Tensor, likelihood_hidden_BTW: Tensor, first: int = 0
    ) -> TokenLogProbabilities:
        """Log-probabilities of the tokens `first` … `first` + T - 1 of the action.

        Args:
            hidden_BTW: what the behaviour head reads; T <= D.
            likelihood_hidden_BTW: what the likelihood heads read; the same where trunks are shared.
            first: action dimension of the first token.
        """
        joint_HBTV = self.joint(hidden_BTW, likelihood_hidden_BTW, first)
        return TokenLogProbabilities(joint_HBTV[0, ..., : self.bins], joint_HBTV[1:])

    def joint(self, hidden_BTW: Tensor, likelihood_hidden_BTW: Tensor, first: int = 0) -> Tensor:
        """What `forward` gives in one tensor (1 + H, B, T, V): behaviour first, reject masked."""
        if likelihood_hidden_BTW is hidden_BTW:
            return self._read(hidden_BTW, first, 0, None)
        behaviour_1BTV = self._read(hidden_BTW, first, 0, 1)
        return torch.cat([behaviour_1BTV, self._read(likelihood_hidden_BTW, first, 1, None)])

    def behaviour(self, hidden_BTW: Tensor, first: int = 0) -> Tensor:
        """Log-probabilities (B, T, K) of the behaviour head alone."""
        return self._read(hidden_BTW, first, 0, 1)[0, ..., : self.bins]

    def _read(self, hidden_BTW: Tensor, first: int, start: int, stop: int | None) -> Tensor:
        """Normalised log-probabilities (H, B, T, V) of the heads `start` to `stop`."""
        dims = slice(first, first + hidden_BTW.shape[1])
        missing_THV = self.missing_DHV[dims, start:stop]
        heads = missing_THV.shape[1]
        outputs = slice(start * self.outputs, (start + heads) * self.outputs)
        weight_TWX, bias_TX = self.weight_DWX[dims, :, outputs], self.bias_DX[dims, outputs]
        logits_TBX = torch.baddbmm(bias_TX[:, None], hidden_BTW.float().transpose(0, 1), weight_TWX)
        logits_TBHV = logits_TBX.view(*logits_TBX.shape[:2], heads, self.outputs)
        logits_TBHV = logits_TBHV.masked_fill(missing_THV[:, None], MASKED_LOGIT)
        log_HBTV: Tensor = logits_TBHV.log_softmax(dim=-1).permute(2, 1, 0, 3)
        return log_HBTV
