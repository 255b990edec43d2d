"""A causal transformer with a key-value cache.

Shape legend: B batch, H attention heads, S cached tokens, T tokens, W width, Z width of a head.
"""

from typing import TypeAlias

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

KeyValue: TypeAlias = tuple[Tensor, Tensor]
"""Keys and values of the tokens seen so far, each (B, H, S, Z)."""


class Block(nn.Module):
    """Pre-norm attention and feed-forward layers."""

    future_TT: Tensor

    def __init__(self, *, width: int, attention_heads: int, dropout: float, max_tokens: int):
        super().__init__()
        self.attention_heads = attention_heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.ReLU(inplace=True),  # a new tensor of this size costs more than the operation
            nn.Linear(4 * width, width),
        )
        self.dropout = nn.Dropout(dropout)
        future_TT = torch.ones(max_tokens, max_tokens, dtype=torch.bool).triu(1)
        self.register_buffer("future_TT", future_TT, persistent=False)

    def forward(self, x_BTW: Tensor, past: KeyValue | None = None) -> tuple[Tensor, KeyValue]:
        """Attend to earlier tokens; `past` holds those before `x_BTW`, which is then one token."""
        query, key, value = rearrange(
            self.query_key_value(self.attention_norm(x_BTW)),
            "b t (three h z) -> three b h t z",
            three=3,
            h=self.attention_heads,
        )
        if past is not None:
            key = torch.cat([past[0], key], dim=2)
            value = torch.cat([past[1], value], dim=2)
        if torch.is_grad_enabled():
            # Written out: on a dozen tokens the fused CPU kernel's backward is ten times slower.
            scores = (query @ key.transpose(-2, -1)) * query.shape[-1] ** -0.5
            if past is None:
                future_TT = self.future_TT[: x_BTW.shape[1], : x_BTW.shape[1]]
                scores = scores.masked_fill(future_TT, -1e4)
            attended = scores.softmax(dim=-1) @ value
        else:
            attended = scaled_dot_product_attention(query, key, value, is_causal=past is None)
        attended_BTW = rearrange(attended, "b h t z -> b t (h z)")
        x_BTW = x_BTW + self.dropout(self.attention_out(attended_BTW))
        x_BTW = x_BTW + self.dropout(self.feed_forward(x_BTW))
        return x_BTW, (key, value)


class CausalTransformer(nn.Module):
    """Blocks with learned positions and a final norm."""

    def __init__(
        self, *, width: int, layers: int, attention_heads: int, dropout: float, max_tokens: int
    ):
        super().__init__()
        self.position_TW = nn.Parameter(torch.randn(max_tokens, width) * 0.02)
        self.blocks = nn.ModuleList(
            Block(
                width=width,
                attention_heads=attention_heads,
                dropout=dropout,
                max_tokens=max_tokens,
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(
        self, x_BTW: Tensor, past: list[KeyValue] | None = None
    ) -> tuple[Tensor, list[KeyValue]]:
        """Hidden states (B, T, W) and the cache that continues them.

        With `past` from an earlier call, `x_BTW` is the one token that follows it.
        """
        seen = 0 if past is None else past[0][0].shape[2]
        assert past is None or x_BTW.shape[1] == 1, "a cached step takes one token at a time"
        x_BTW = x_BTW + self.position_TW[seen : seen + x_BTW.shape[1]]
        caches: list[KeyValue] = []
        for index, block in enumerate(self.blocks):
            x_BTW, cache = block(x_BTW, None if past is None else past[index])
            caches.append(cache)
        return self.norm(x_BTW), caches
