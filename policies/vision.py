"""Camera images to tokens.

Shape legend: B batch, C channels, H height, M image tokens, N stem positions, P pixels, W width.
"""

import torch
from torch import Tensor, nn

STEM_STRIDE = 8
"""Pixels between neighbouring stem positions."""


class ImageTokenizer(nn.Module):
    """A small convolutional stem and a TokenLearner.

    The stem halves the image three times; TokenLearner (Ryoo et al. 2021, arXiv 2106.11297, as in
    RT-1) pools its positions into a few tokens by learned attention maps.
    """

    def __init__(self, *, image_size: int, channels: tuple[int, int, int], width: int, tokens: int):
        super().__init__()
        first, second, third = channels
        self.stem = nn.Sequential(
            nn.Conv2d(3, first, kernel_size=5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(first, second, kernel_size=3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(second, third, kernel_size=3, stride=2, padding=1),
            nn.ReLU(),
        )
        positions = (image_size // STEM_STRIDE) ** 2
        self.position_NC = nn.Parameter(torch.randn(positions, third) * 0.02)
        self.norm = nn.LayerNorm(third)
        self.attention = nn.Sequential(nn.Linear(third, third), nn.ReLU(), nn.Linear(third, tokens))
        self.project = nn.Linear(third, width)

    def forward(self, images_BHWC: Tensor) -> Tensor:
        """Tokens (B, M, W) of uint8 images (B, H, W, 3)."""
        # In place: a batch of images as floats is large, and three copies of it cost as much as
        # a convolution.
        pixels_BCHW = images_BHWC.permute(0, 3, 1, 2).float().mul_(1 / 127.5).sub_(1)
        features_BCHW = self.stem(pixels_BCHW)
        features_BNC = self.norm(features_BCHW.flatten(2).transpose(1, 2) + self.position_NC)
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
    shifts = torch.randint(-pixels, pixels + 1, (2, batch, 1), generator=generator)
    shifts = shifts.to(images_BHWC.device)
    rows_BH = (torch.arange(height, device=images_BHWC.device) + shifts[0]).clamp(0, height - 1)
    columns_BW = (torch.arange(width, device=images_BHWC.device) + shifts[1]).clamp(0, width - 1)
    batch_B11 = torch.arange(batch, device=images_BHWC.device)[:, None, None]
    return images_BHWC[batch_B11, rows_BH[:, :, None], columns_BW[:, None, :]]
