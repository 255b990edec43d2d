"""Training batches in which most steps bring their own successor along.

Q-SFT needs the value of the state n steps on. Instead of reading that state separately, batches are
made of windows of consecutive steps: within a window each row's successor is n rows on, so one pass
of the target network over the batch serves as s and as s'.

Shape legend: A action dimensions, B batch, E environment-state dimensions, H height, N frames of
the data, S state dimensions, W width.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.interface import Image, Vector
from robot_qsft.datasets.jpeg_cache import JpegFrames
from robot_qsft.datasets.recycled_memory import RecycledMemory
from robot_qsft.datasets.tables import Tables

NO_SUCCESSOR = -1


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What is trained on: whole episodes laid end to end, and which of them are held out.

    Attributes:
        tables: all low-dimensional columns.
        images: camera to uint8 (N, H, W, 3), possibly memory-mapped, or decoded when read.
        training: int64, episodes to train on.
        validation: int64, episodes held out.
    """

    tables: Tables
    images: Mapping[str, Image | JpegFrames]
    training: NDArray[np.int64]
    validation: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Returns:
    """What every frame's n-step target is made of; each (N,).

    Attributes:
        rewards: float32, discounted reward of the next n steps, or up to the end.
        discounts: float32, gamma^k on the value of the frame to bootstrap from, 0 at termination.
        bootstrap_frames: int64, that frame: n steps on, or the last one of an episode that timed
            out (the observation after the last action is not recorded, so its neighbour stands in).
        monte_carlo: float32, discounted return up to the end of the episode.
    """

    rewards: Vector
    discounts: Vector
    bootstrap_frames: NDArray[np.int64]
    monte_carlo: Vector


def n_step_returns(
    rewards: Vector,
    episode_starts: NDArray[np.int64],
    terminated: NDArray[np.bool_],
    *,
    steps: int,
    discount: float,
) -> Returns:
    """Targets' ingredients for every frame (Sutton and Barto 2018, Eq. 7.1).

    Three steps with reward 1 on the last, which terminates, n = 2 and discount 0.5: rewards
    (0, 0.5, 1), discounts (0.25, 0, 0), Monte-Carlo returns (0.25, 0.5, 1).
    """
    count = len(rewards)
    ends = np.append(episode_starts[1:], count)
    lengths = ends - episode_starts
    end_N = np.repeat(ends, lengths)
    terminated_N = np.repeat(terminated, lengths)
    frame_N = np.arange(count)

    monte_carlo = np.zeros(count + 1)
    n_step = np.zeros(count)
    for offset in range(steps):
        ahead_N = frame_N + offset
        inside_N = ahead_N < end_N
        n_step[inside_N] += discount**offset * rewards[ahead_N[inside_N]]
    last_N = frame_N == end_N - 1
    for frame in range(count - 1, -1, -1):
        later = 0.0 if last_N[frame] else monte_carlo[frame + 1]
        monte_carlo[frame] = rewards[frame] + discount * later

    remaining_N = end_N - frame_N
    reaches_end_N = remaining_N <= steps
    discounts = discount ** np.minimum(remaining_N, steps).astype(np.float64)
    discounts[reaches_end_N & terminated_N] = 0.0
    bootstrap = np.where(reaches_end_N, end_N - 1, frame_N + steps)
    return Returns(
        n_step.astype(np.float32),
        discounts.astype(np.float32),
        bootstrap.astype(np.int64),
        monte_carlo[:-1].astype(np.float32),
    )


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows for one gradient step.

    Attributes:
        frames: int64 (B,), where the rows come from.
        successors: int64 (B,), row in this batch to bootstrap from; NO_SUCCESSOR where it is
            needed but not here.
        counted: bool (B,), False for rows that are here only as somebody's successor.
        images: camera to uint8 (B, H, W, 3).
    """

    frames: NDArray[np.int64]
    successors: NDArray[np.int64]
    counted: NDArray[np.bool_]
    images: Mapping[str, Image]


@dataclass(frozen=True)
class SamplerConfig:
    """How rows are drawn.

    Attributes:
        batch_size: B.
        window: most consecutive steps taken from one episode at a time; a window that is cut from
            a longer episode is followed by n rows that are only successors.
    """

    batch_size: int = 128
    window: int = 40

    def __post_init__(self) -> None:
        """Refuse batches that could hold nothing but a successor.

        Raises:
            ValueError: naming the field.
        """
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, got {self.batch_size}")
        if self.window < 1:
            raise ValueError(f"window must be at least 1, got {self.window}")


def gather_frames(
    frames: Image | JpegFrames, rows: NDArray[np.int64], *, memory: RecycledMemory
) -> Image:
    """Frames at some rows (B,) of (N, H, W, 3), in an array of `memory`, uint8 (B, H, W, 3).

    Raises:
        IndexError: when there is no such row.
        ValueError: when a stored frame is damaged.
    """
    out = memory.empty((len(rows), *frames.shape[1:]))
    if isinstance(frames, JpegFrames):
        frames.read(rows, out)
    else:
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(frames):
            raise IndexError(f"frames {rows.min()} to {rows.max()} asked for, of {len(frames)}")
        # The mode is the one in which numpy copies straight into `out`.
        np.take(frames, rows, axis=0, out=out, mode="clip")
    return out


class WindowSampler:
    """Endless batches; the i-th depends on the seed and i alone, so a run can be resumed anywhere.

    Every frame is counted once per epoch, but for those of the last batch where it is not full.
    """

    def __init__(
        self,
        data: TrainingData,
        returns: Returns,
        *,
        episodes: NDArray[np.int64],
        steps: int,
        config: SamplerConfig,
        seed: int,
    ):
        """Prepare to draw from the given episodes of `data`, successors lying `steps` on.

        Raises:
            ValueError: when these episodes have fewer frames than one batch needs, or a batch could
                hold nothing but successors.
        """
        if config.batch_size <= steps:
            raise ValueError(
                f"batch_size must be above the {steps} steps of the return, got {config.batch_size}"
            )
        self._images = data.images
        self._memory = RecycledMemory()
        self._returns = returns
        self._starts = data.tables.episode_starts[episodes]
        self._ends = self._starts + data.tables.episode_lengths[episodes]
        self._steps = steps
        self._config = config
        self._seed = seed
        count = int((self._ends - self._starts).sum())
        if count < config.batch_size:
            raise ValueError(
                f"{len(episodes)} episodes hold {count} frames, fewer than one batch of "
                f"{config.batch_size}; collect more episodes or lower the batch size"
            )

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """Batches from number `first` on."""
        epoch, skipped = 0, 0
        while True:
            frames, successors, counted = self._epoch(epoch)
            count = len(frames) // self._config.batch_size
            for index in range(max(first - skipped, 0), count):
                yield self._batch(frames, successors, counted, index)
            skipped += count
            epoch += 1

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """All windows in a random order: frames, successors within the epoch, counted."""
        rng = np.random.default_rng([self._seed, epoch])
        windows = self._windows(rng)
        rng.shuffle(windows)
        frames = np.concatenate([rows for rows, _ in windows])
        counted = np.concatenate([is_counted for _, is_counted in windows])
        lengths = [len(rows) for rows, _ in windows]
        window_end = np.repeat(np.cumsum(lengths), lengths)
        here = np.arange(len(frames))
        ahead = here + self._returns.bootstrap_frames[frames] - frames
        successors = np.where(ahead < window_end, ahead, NO_SUCCESSOR)
        needless = self._returns.discounts[frames] == 0
        return frames, np.where(needless, here, successors), counted

    def _windows(
        self, rng: np.random.Generator
    ) -> list[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
        """Frames of every window with its trailing successors, and which of them are counted."""
        windows = []
        longest = self._config.window
        for start, end in zip(self._starts, self._ends, strict=True):
            first_cut = start + int(rng.integers(1, longest + 1)) if end - start > longest else end
            cuts = [start, *range(first_cut, end, longest), end]
            for first, last in pairwise(cuts):
                rows = np.arange(first, min(last + self._steps, end))
                windows.append((rows, rows < last))
        return windows

    def _batch(
        self,
        frames: NDArray[np.int64],
        successors: NDArray[np.int64],
        counted: NDArray[np.bool_],
        index: int,
    ) -> Batch:
        size = self._config.batch_size
        rows = slice(index * size, (index + 1) * size)
        inside = successors[rows] - rows.start
        inside[(inside < 0) | (inside >= size)] = NO_SUCCESSOR
        images = {
            camera: gather_frames(stack, frames[rows], memory=self._memory)
            for camera, stack in self._images.items()
        }
        return Batch(frames[rows], inside, counted[rows], images)
