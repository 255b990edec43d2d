"""What is in the small data sets, worked out from the episode and the step alone.

Shape legend: H height, T steps, W width.
"""

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.interface import Image

LENGTHS = (4, 5, 6)


def green(episode: int, length: int, step: int) -> int:
    """Green of the world before action `step`, of which there are `length`."""
    return 10 + 5 * episode + 20 * step


def picture(level: int, *, height: int, width: int) -> Image:
    """Red above, blue below."""
    image = np.full((height, width, 3), level, np.uint8)
    image[: height // 2, :, 0], image[: height // 2, :, 2] = 220, 30
    image[height // 2 :, :, 0], image[height // 2 :, :, 2] = 30, 220
    return image


def frames(episode: int, length: int, *, height: int, width: int, extra: int = 0) -> Image:
    """The pictures of an episode and `extra` more, (T + extra, H, W, 3)."""
    return np.stack(
        [
            picture(green(episode, length, step), height=height, width=width)
            for step in range(length + extra)
        ]
    )


def numbers(episode: int, length: int, width: int) -> NDArray[np.float64]:
    """Numbers that look recorded, (T, width)."""
    return np.random.default_rng((episode, width)).uniform(-1, 1, (length, width))
