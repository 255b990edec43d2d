"""Camera images to tokens.

Shape legend: B batch, C channels, H height, M image tokens, N stem positions, W width.
"""

from typing import Literal, TypeAlias

import torch
from einops import rearrange
from torch import Tensor, nn

Pooling: TypeAlias = Literal["grid", "token_learner"]

STEM_STRIDE = 8
"""Pixels between neighbouring stem positions."""


class ImageTokenizer(nn.Module):
    """Overlapping patches, a convolution over them, and a few tokens made of its positions."""

    def __init__(
        self,
        *,
        image_size: int,
        channels: tuple[int, int],
        width: int,
        tokens: int,
        pooling: Pooling,
    ):
        super().__init__()
        first, second = channels
        # Most of the work is where the image is still large, hence the first stride of 4.
        self.stem = nn.Sequential(
            nn.Conv2d(3, first, kernel_size=6, stride=4, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(first, second, kernel_size=3, stride=2, padding=1),
            nn.ReLU(inplace=True),
        )
        pool = GridPooling if pooling == "grid" else TokenLearner
        positions = (image_size // STEM_STRIDE) ** 2
        self.pool = pool(positions=positions, channels=second, width=width, tokens=tokens)

    def forward(self, images_BHWC: Tensor) -> Tensor:
        """Tokens (B, M, W) of uint8 images (B, H, W, 3)."""
        # In place: a batch of images as floats is large, and three copies of it cost as much as
        # a convolution.
        pixels_BCHW = images_BHWC.permute(0, 3, 1, 2).float().mul_(1 / 127.5).sub_(1)
        tokens_BMW: Tensor = self.pool(self.stem(pixels_BCHW).flatten(2))
        return tokens_BMW


class GridPooling(nn.Module):
    """Each token a linear read of the whole grid, with weights of its own for every position.

    Nothing is averaged over positions, so it is exact about where things are.
    """

    def __init__(self, *, positions: int, channels: int, width: int, tokens: int):
        super().__init__()
        self.tokens = tokens
        self.norm = nn.LayerNorm(channels * positions)
        self.project = nn.Linear(channels * positions, tokens * width)

    def forward(self, features_BCN: Tensor) -> Tensor:
        """Tokens (B, M, W)."""
        tokens_BX: Tensor = self.project(self.norm(features_BCN.flatten(1)))
        return rearrange(tokens_BX, "b (m w) -> b m w", m=self.tokens)


class TokenLearner(nn.Module):
    """Each token an average over positions by a learned attention map.

    Ryoo et al. 2021 (arXiv 2106.11297), as in RT-1. Its weights hardly grow with the image.
    """

    def __init__(self, *, positions: int, channels: int, width: int, tokens: int):
        super().__init__()
        self.position_NC = nn.Parameter(torch.randn(positions, channels) * 0.02)
        self.norm = nn.LayerNorm(channels)
        self.attention = nn.Sequential(
            nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, tokens)
        )
        self.project = nn.Linear(channels, width)

    def forward(self, features_BCN: Tensor) -> Tensor:
        """Tokens (B, M, W)."""
        features_BNC = self.norm(features_BCN.transpose(1, 2) + self.position_NC)
        maps_BMN = self.attention(features_BNC).transpose(1, 2).softmax(dim=-1)
        tokens_BMW: Tensor = self.project(maps_BMN @ features_BNC)
        return tokens_BMW


def random_shift(images_BHWC: Tensor, *, pixels: int, generator: torch.Generator) -> Tensor:
    """Each image moved by up to `pixels` in x and y, borders repeated, same shape and dtype.

    Kostrikov, Yarats and Fergus 2021 (arXiv 2004.13649), section 4.1.
    """
    if pixels == 0:
        return images_BHWC
    batch, height, width, _ = images_BHWC.shape
    corners = torch.randint(0, 2 * pixels + 1, (batch, 2), generator=generator).tolist()
    padded = _repeat_border(_repeat_border(images_BHWC, pixels, dim=1), pixels, dim=2)
    moved_BHWC = torch.empty_like(images_BHWC)
    # A copy of each window is ten times as fast as gathering single pixels.
    for moved, image, (top, left) in zip(moved_BHWC, padded, corners, strict=True):
        moved.copy_(image[top : top + height, left : left + width])
    return moved_BHWC


def _repeat_border(images: Tensor, pixels: int, *, dim: int) -> Tensor:
    """`images` with its first and last slice along `dim` repeated `pixels` times outward."""
    first, last = images.narrow(dim, 0, 1), images.narrow(dim, -1, 1)
    return torch.cat([first] * pixels + [images] + [last] * pixels, dim=dim)
