"""n-step returns against brute force; batches that bring their successors along."""

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from robot_qsft.datasets.batches import (
    NO_SUCCESSOR,
    Batch,
    Returns,
    SamplerConfig,
    TrainingData,
    WindowSampler,
    n_step_returns,
)
from robot_qsft.datasets.tables import Tables, action_chunks
from robot_qsft.policies.instructions import BUCKETS, word_tokens
from robot_qsft.policies.vision import random_shift

DISCOUNT = 0.9

episodes = st.lists(
    st.tuples(
        st.lists(st.sampled_from([0.0, 0.0, 0.5, 1.0]), min_size=1, max_size=9), st.booleans()
    ),
    min_size=1,
    max_size=5,
)


def returns_of(
    rewards: list[list[float]], terminated: list[bool], *, steps: int, discount: float = DISCOUNT
) -> Returns:
    lengths = [len(each) for each in rewards]
    return n_step_returns(
        np.concatenate(rewards).astype(np.float32),
        np.cumsum([0, *lengths[:-1]]),
        np.array(terminated),
        steps=steps,
        discount=discount,
    )


def test_returns_by_hand() -> None:
    """Reward 1 on the last of three steps, which terminates; n = 2, discount 0.5."""
    returns = returns_of([[0, 0, 1]], [True], steps=2, discount=0.5)
    assert returns.rewards.tolist() == [0, 0.5, 1]
    assert returns.discounts.tolist() == [0.25, 0, 0]
    assert returns.bootstrap_frames[0] == 2
    assert returns.monte_carlo.tolist() == [0.25, 0.5, 1]


def test_timed_out_episode_bootstraps_from_its_last_frame() -> None:
    """Three steps without reward, n = 2: one and two steps before the end the rest is skipped."""
    returns = returns_of([[0, 0, 0]], [False], steps=2, discount=0.5)
    assert returns.bootstrap_frames.tolist() == [2, 2, 2]
    assert returns.discounts.tolist() == [0.25, 0.25, 0.5]


@settings(deadline=None)
@given(episodes, st.integers(1, 6))
def test_returns_are_those_of_brute_force(data: list[tuple[list[float], bool]], steps: int) -> None:
    returns = returns_of([rewards for rewards, _ in data], [end for _, end in data], steps=steps)
    frame = 0
    for rewards, terminated in data:
        first, last = frame, frame + len(rewards) - 1
        for t in range(len(rewards)):
            ahead = rewards[t : t + steps]
            n_step = sum(DISCOUNT**k * reward for k, reward in enumerate(ahead))
            assert returns.rewards[frame] == pytest.approx(n_step, abs=1e-6)
            whole = sum(DISCOUNT**k * reward for k, reward in enumerate(rewards[t:]))
            assert returns.monte_carlo[frame] == pytest.approx(whole, abs=1e-6)
            if t + steps < len(rewards):
                assert returns.bootstrap_frames[frame] == first + t + steps
                assert returns.discounts[frame] == pytest.approx(DISCOUNT**steps)
            elif terminated:
                assert returns.discounts[frame] == 0
            else:
                assert returns.bootstrap_frames[frame] == last
                assert returns.discounts[frame] == pytest.approx(DISCOUNT ** len(ahead))
            frame += 1


def training_data(lengths: list[int], terminated: list[bool], *, pictures: bool) -> TrainingData:
    """Episodes whose images hold the number of their frame."""
    count, starts = sum(lengths), np.cumsum([0, *lengths[:-1]])
    nothing = np.zeros((count, 0), np.float32)
    tables = Tables(
        states=nothing,
        environment_states=nothing,
        actions=nothing,
        rewards=np.zeros(count, np.float32),
        successes=np.zeros(count, np.bool_),
        episode_starts=starts,
        terminated=np.array(terminated),
        truncated=~np.array(terminated),
        task_indices=np.zeros(len(lengths), np.int64),
        tasks=("",),
        demonstrators=("",) * len(lengths),
        reward_source="next.reward",
        success_source="next.success",
    )
    stack = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((2, 2, 3), np.uint8)
    every = np.arange(len(lengths))
    return TrainingData(tables, {"front": stack} if pictures else {}, every, every[:0])


LENGTHS = [13, 1, 30, 7, 22, 2, 18]
TERMINATED = [True, True, False, False, True, False, True]


def sampler_over(
    *,
    steps: int = 3,
    batch_size: int = 16,
    seed: int = 0,
    chosen: list[int] | None = None,
    window: int = 4,
    pictures: bool = False,
) -> tuple[WindowSampler, Returns]:
    data = training_data(LENGTHS, TERMINATED, pictures=pictures)
    returns = returns_of([[0.0] * length for length in LENGTHS], TERMINATED, steps=steps)
    sampler = WindowSampler(
        data,
        returns,
        episodes=data.training if chosen is None else np.array(chosen),
        steps=steps,
        config=SamplerConfig(batch_size=batch_size, window=window),
        seed=seed,
    )
    return sampler, returns


def first_epoch(sampler: WindowSampler) -> list[Batch]:
    """The batches before a counted frame comes back."""
    seen: set[int] = set()
    found = []
    for batch in islice(sampler.batches(), sum(LENGTHS)):
        counted = batch.frames[batch.counted].tolist()
        if seen.intersection(counted):
            break
        seen.update(counted)
        found.append(batch)
    return found


@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize("window", [1, 4, 100])
@pytest.mark.parametrize("batch_size", [6, 16])
def test_frames_are_counted_once_per_epoch_but_for_the_last_part_of_a_batch(
    steps: int, window: int, batch_size: int
) -> None:
    sampler, _ = sampler_over(steps=steps, batch_size=batch_size, window=window)
    epoch = first_epoch(sampler)
    counted = np.concatenate([batch.frames[batch.counted] for batch in epoch])
    assert len(set(counted.tolist())) == len(counted)
    assert sum(LENGTHS) - batch_size < len(counted) <= sum(LENGTHS)
    assert {len(batch.frames) for batch in epoch} == {batch_size}


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(7, 40), st.integers(1, 9), st.integers(0, 99))
def test_successor_rows_are_the_frames_to_bootstrap_from(
    steps: int, batch_size: int, window: int, seed: int
) -> None:
    sampler, returns = sampler_over(steps=steps, batch_size=batch_size, window=window, seed=seed)
    for batch in islice(sampler.batches(), 12):
        bootstraps = returns.discounts[batch.frames] > 0
        here = (batch.successors != NO_SUCCESSOR) & bootstraps
        assert ((batch.successors >= NO_SUCCESSOR) & (batch.successors < batch_size)).all()
        np.testing.assert_array_equal(
            batch.frames[batch.successors[here]], returns.bootstrap_frames[batch.frames[here]]
        )


def test_step_that_ends_the_task_needs_no_successor() -> None:
    sampler, returns = sampler_over()
    for batch in islice(sampler.batches(), 10):
        ended = returns.discounts[batch.frames] == 0
        assert (batch.successors[ended] != NO_SUCCESSOR).all()


def test_most_counted_rows_have_their_successor_in_the_batch() -> None:
    """Missing are only those at the end of a batch that cuts a window: at most n in each."""
    sampler, _ = sampler_over(batch_size=16, steps=3)
    for batch in islice(sampler.batches(), 20):
        assert (batch.successors[batch.counted] == NO_SUCCESSOR).sum() <= 3


def test_batch_that_could_hold_successors_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="above the 5 steps"):
        sampler_over(batch_size=5, steps=5)


def same(one: Batch, other: Batch) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("frames", "successors", "counted")
    )


@pytest.mark.parametrize("first", [0, 1, 7, 23, 61])
def test_batch_is_the_same_wherever_one_starts(first: int) -> None:
    """An epoch has about 8 batches, so 61 lies several epochs on."""
    sampler, _ = sampler_over()
    from_start = list(islice(sampler.batches(), first, first + 3))
    resumed = list(islice(sampler_over()[0].batches(first), 3))
    assert all(same(one, other) for one, other in zip(from_start, resumed, strict=True))


def test_epochs_and_seeds_differ() -> None:
    batch = next(sampler_over()[0].batches())
    assert not same(batch, next(sampler_over(seed=1)[0].batches()))
    assert not same(batch, next(sampler_over()[0].batches(20)))


def test_windows_are_cut_elsewhere_in_every_epoch() -> None:
    """Else the same frames would always be the ones that a batch's end parts from their successor.

    Where a window is cut, the frames behind the cut come along uncounted.
    """
    sampler, _ = sampler_over(batch_size=6)
    batches_per_epoch = len(first_epoch(sampler))
    extras = [
        {
            frame
            for batch in islice(sampler.batches(first), batches_per_epoch)
            for frame in batch.frames[~batch.counted].tolist()
        }
        for first in (0, batches_per_epoch)
    ]
    assert len(extras[0] ^ extras[1]) > 10


def test_only_the_given_episodes_are_drawn() -> None:
    sampler, _ = sampler_over(chosen=[0, 4])
    frames = np.concatenate([batch.frames for batch in islice(sampler.batches(), 10)])
    starts = np.cumsum([0, *LENGTHS])
    allowed = {*range(starts[0], starts[1]), *range(starts[4], starts[5])}
    assert set(frames.tolist()) == allowed


def test_images_are_those_of_the_frames() -> None:
    sampler, _ = sampler_over(pictures=True)
    batch = next(sampler.batches())
    assert batch.images["front"].shape == (16, 2, 2, 3)
    np.testing.assert_array_equal(batch.images["front"][:, 0, 0, 0], batch.frames)


def test_too_few_frames_for_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="2 episodes hold 14 frames, fewer than one batch of 16"):
        sampler_over(chosen=[0, 1])


@pytest.mark.parametrize("setting", [{"batch_size": 1}, {"window": 0}])
def test_setting_out_of_range_is_refused(setting: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))} must be at least"):
        SamplerConfig(**setting)


# What happens to a batch on its way into the network.


def numbered_images(count: int, size: int) -> torch.Tensor:
    """Images in which every pixel is different and tells its row and column."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    pixel = torch.stack([rows, columns, rows * size + columns], dim=-1)
    return pixel.to(torch.uint8).expand(count, -1, -1, -1)


def test_random_shift_moves_the_whole_image_and_repeats_the_border() -> None:
    images = numbered_images(64, 8)
    shifted = random_shift(images, pixels=2, generator=torch.Generator().manual_seed(0))
    assert shifted.dtype == torch.uint8
    seen = set()
    for image in shifted:
        down, right = (int(image[4, 4, axis]) - 4 for axis in (0, 1))
        rows = (torch.arange(8) + down).clamp(0, 7)
        columns = (torch.arange(8) + right).clamp(0, 7)
        assert torch.equal(image, images[0][rows][:, columns])
        seen.add((down, right))
    assert {down for down, _ in seen} == {right for _, right in seen} == {-2, -1, 0, 1, 2}
    assert any(down != right for down, right in seen)


def test_no_shift_leaves_images_as_they_are() -> None:
    images = numbered_images(3, 8)
    assert torch.equal(random_shift(images, pixels=0, generator=torch.Generator()), images)


def test_random_shift_follows_its_generator() -> None:
    one, same, other = (
        random_shift(
            numbered_images(16, 8), pixels=3, generator=torch.Generator().manual_seed(seed)
        )
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def tokens(instruction: str, length: int = 4) -> NDArray[np.int64]:
    return word_tokens(instruction, length)


def test_words_are_told_apart_whatever_their_case_and_punctuation() -> None:
    assert tokens("Pick up the cube.").tolist() == tokens("pick up the CUBE").tolist()
    assert len(set(tokens("pick up the cube").tolist())) == 4
    assert tokens("pick up the cube").tolist() != tokens("pick up the ball").tolist()


def test_instruction_is_cut_and_padded() -> None:
    whole = tokens("pick up the cube").tolist()
    assert tokens("pick up the cube and place it").tolist() == whole
    assert tokens("pick up").tolist() == [*whole[:2], 0, 0]
    assert tokens("", 3).tolist() == [0, 0, 0]
    assert tokens("pick", 0).shape == (0,)


@given(st.text())
def test_word_tokens_fit_the_embedding(instruction: str) -> None:
    found = tokens(instruction)
    assert ((found >= 0) & (found < BUCKETS)).all()


def test_chunks_end_with_their_episode() -> None:
    actions = np.arange(1, 11, dtype=np.float32).reshape(5, 2)
    chunks = action_chunks(actions, np.array([0, 3]), length=2)
    assert chunks.tolist() == [
        [1, 2, 3, 4],
        [3, 4, 5, 6],
        [5, 6, 5, 6],  # the last action of the first episode again
        [7, 8, 9, 10],
        [9, 10, 9, 10],
    ]
    np.testing.assert_array_equal(action_chunks(actions, np.array([0, 3]), length=1), actions)
