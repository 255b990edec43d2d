"""A data set made ready for training."""

from collections.abc import Sequence

import numpy as np
from rich.progress import Progress

from robot_qsft.datasets.batches import TrainingData
from robot_qsft.datasets.cache import TrainingCache
from robot_qsft.datasets.split import split_episodes
from robot_qsft.datasets.store import Dataset

_SPLIT_SEED = 0
"""The same episodes are held out in every run on the same data."""


def load_training_data(
    dataset: Dataset,
    *,
    cameras: Sequence[str],
    image_size: int,
    validation_share: float,
    progress: Progress,
) -> TrainingData:
    """Decode frames once into the cache and hold out some episodes.

    Args:
        dataset: what to train on.
        cameras: which to read; none for training without images.
        image_size: height and width of the frames in pixels.
        validation_share: of the episodes, held out.
        progress: shows the decoding.

    Raises:
        ValueError: when the data set is damaged or has no such camera.
    """
    task = progress.add_task("decoding frames", total=None, note="")
    cache = TrainingCache.open_or_build(
        dataset,
        image_size=(image_size, image_size),
        cameras=cameras,
        progress=lambda done, total: progress.update(task, completed=done, total=total),
    )
    progress.remove_task(task)
    split = split_episodes(
        cache.tables,
        validation_fraction=validation_share,
        generator=np.random.default_rng(_SPLIT_SEED),
    )
    return TrainingData(cache.tables, cache.images, split.training, split.validation)
