"""Training batches in which most steps bring their own successor along.

Q-SFT needs the value of the state n steps on. Instead of reading that state separately, an episode
is cut into chains t, t+n, t+2n, …: within a chain each row's successor is the next row, so one pass
of the target network over the batch serves as s and as s'.

Shape legend: A action dimensions, B batch, E environment-state dimensions, H height, N frames of
the data, S state dimensions, W width.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.interface import Image, Vector
from robot_qsft.datasets.tables import Tables

NO_SUCCESSOR = -1


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What is trained on: whole episodes laid end to end, and which of them are held out.

    Attributes:
        tables: all low-dimensional columns.
        images: camera to uint8 (N, H, W, 3), possibly memory-mapped.
        training: int64, episodes to train on.
        validation: int64, episodes held out.
    """

    tables: Tables
    images: Mapping[str, Image]
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
        chain_rows: longest run of successors taken from one episode at a time; short ones mix more
            episodes into a batch, long ones waste fewer rows.
    """

    batch_size: int = 128
    chain_rows: int = 8

    def __post_init__(self) -> None:
        """Refuse batches that could hold nothing but a successor.

        Raises:
            ValueError: naming the field.
        """
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, got {self.batch_size}")
        if self.chain_rows < 1:
            raise ValueError(f"chain_rows must be at least 1, got {self.chain_rows}")


class ChainSampler:
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
            ValueError: when these episodes have fewer frames than one batch needs.
        """
        self._images = data.images
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
        """All chains in a random order: frames, successors within the epoch, counted."""
        rng = np.random.default_rng([self._seed, epoch])
        pieces = self._pieces(rng)
        rng.shuffle(pieces)
        frames = np.concatenate([rows for rows, _ in pieces])
        counted = np.concatenate([is_counted for _, is_counted in pieces])
        starts = np.cumsum([0] + [len(rows) for rows, _ in pieces])
        piece_end = np.repeat(starts[1:], np.diff(starts))
        here = np.arange(len(frames))
        bootstrap = self._returns.bootstrap_frames[frames]
        nearby = np.minimum(here + 1, piece_end - 1)
        successors = np.where(
            bootstrap == frames, here, np.where(frames[nearby] == bootstrap, nearby, NO_SUCCESSOR)
        )
        needless = self._returns.discounts[frames] == 0
        return frames, np.where(needless, here, successors), counted

    def _pieces(
        self, rng: np.random.Generator
    ) -> list[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
        """Chains cut to `chain_rows`, each with the row that its last one bootstraps from."""
        pieces = []
        steps, longest = self._steps, self._config.chain_rows
        discounts, bootstrap_frames = self._returns.discounts, self._returns.bootstrap_frames
        for start, end in zip(self._starts, self._ends, strict=True):
            for phase in range(min(steps, end - start)):
                chain = np.arange(start + phase, end, steps)
                cuts = np.arange(int(rng.integers(1, longest + 1)), len(chain), longest)
                for rows in np.split(chain, cuts):
                    is_counted = np.ones(len(rows), np.bool_)
                    bootstrap = bootstrap_frames[rows[-1]]
                    if discounts[rows[-1]] > 0 and bootstrap != rows[-1]:
                        rows = np.append(rows, bootstrap)
                        is_counted = np.append(is_counted, False)
                    pieces.append((rows, is_counted))
        return pieces

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
        images = {camera: stack[frames[rows]] for camera, stack in self._images.items()}
        return Batch(frames[rows], inside, counted[rows], images)
