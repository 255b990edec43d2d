"""A data set made ready for training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from robot_qsft.datasets.batches import TrainingData
from robot_qsft.datasets.cache import Storage, TrainingCache
from robot_qsft.datasets.labelled import labelled
from robot_qsft.datasets.labels import Labels, labels_path
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
    storage: Storage = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> TrainingData:
    """Decode frames once into the cache, lay labels over the tables, hold out some episodes.

    Args:
        dataset: what to train on.
        cameras: which to read; none for training without images.
        image_size: height and width of the frames in pixels.
        validation_share: of the episodes, held out.
        storage: how the cache keeps frames; see `TrainingCache.open_or_build`.
        progress: told of frames decoded and frames in all.

    Raises:
        ValueError: when the data set is damaged or has no such camera.
    """
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1 pixel, got {image_size}")
    cache = TrainingCache.open_or_build(
        dataset,
        image_size=(image_size, image_size),
        cameras=cameras,
        storage=storage,
        progress=progress,
    )
    labels = Labels.read(labels_path(dataset.path), episodes=len(dataset))
    tables = labelled(cache.tables, labels)
    split = split_episodes(
        tables,
        validation_fraction=validation_share,
        generator=np.random.default_rng(_SPLIT_SEED),
    )
    return TrainingData(tables, cache.images, split.training, split.validation)


@dataclass(frozen=True)
class DataSource:
    """Where training data comes from; calling it, in whichever process, loads the data.

    Attributes:
        path: folder of the data set.
        cameras: which to read; () for training without images.
        image_size: height and width of the frames in pixels.
        validation_share: of the episodes, held out.
        episodes: train on the first so many training episodes only; None for all.
        storage: how the cache keeps frames; see `TrainingCache.open_or_build`.
    """

    path: Path
    cameras: tuple[str, ...]
    image_size: int
    validation_share: float
    episodes: int | None = None
    storage: Storage = "auto"

    def __call__(self) -> TrainingData:
        """The data; see `load_training_data`."""
        data = load_training_data(
            Dataset.open(self.path),
            cameras=self.cameras,
            image_size=self.image_size,
            validation_share=self.validation_share,
            storage=self.storage,
        )
        return replace(data, training=data.training[: self.episodes])
