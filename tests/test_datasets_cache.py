"""The training cache: equal to the source, rebuilt when that changes, whole or absent."""

import errno
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from robot_qsft.datasets.cache import TrainingCache
from robot_qsft.datasets.episode import Episode
from robot_qsft.datasets.features import Camera, DatasetInfo
from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.store import Dataset
from robot_qsft.datasets.writer import DatasetWriter

INFO = DatasetInfo(
    fps=10,
    action_names=("x",),
    state_names=("p", "q"),
    cameras={"front": Camera(64, 64), "wrist": Camera(8, 6, "image")},
)


def write(path: Path, *, seeds: range, append: bool = False) -> Dataset:
    with DatasetWriter(path, info=INFO, append=append) as writer:
        for seed in seeds:
            rng = np.random.default_rng(seed)
            steps = 4 + seed
            writer.add_episode(
                Episode(
                    states=rng.normal(size=(steps, 2)).astype(np.float32),
                    actions=rng.normal(size=(steps, 1)).astype(np.float32),
                    rewards=np.eye(1, steps, steps - 1, dtype=np.float32)[0] * (seed % 2),
                    successes=np.eye(1, steps, steps - 1, dtype=np.bool_)[0] & bool(seed % 2),
                    terminated=seed % 2 == 1,
                    truncated=seed % 2 == 0,
                    instruction=f"task {seed}",
                    images={
                        name: rng.integers(0, 256, (steps, c.height, c.width, 3), dtype=np.uint8)
                        for name, c in INFO.cameras.items()
                    },
                    environment_states=np.zeros((steps, 0), np.float32),
                    demonstrator=f"script/{seed}",
                )
            )
    return Dataset.open(path)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return write(tmp_path / "set", seeds=range(3))


def build(dataset: Dataset, **options: object) -> TrainingCache:
    settings = {"image_size": (64, 64), "cameras": ("front", "wrist")} | options
    return TrainingCache.open_or_build(dataset, **settings)  # type: ignore[arg-type]


def test_cache_equals_source(dataset: Dataset) -> None:
    cache = build(dataset)
    assert cache.path.parent == dataset.path.parent / ".cache"
    for name, expected in vars(dataset.tables()).items():
        actual = getattr(cache.tables, name)
        if isinstance(expected, np.ndarray):
            assert actual.dtype == expected.dtype
            np.testing.assert_array_equal(actual, expected, err_msg=name)
        else:
            assert actual == expected, name
    front, wrist = cache.images["front"], cache.images["wrist"]
    assert isinstance(front, np.memmap) and not front.flags.writeable and front.dtype == np.uint8
    np.testing.assert_array_equal(front, list(dataset.frames("front")))
    resized = [
        cv2.resize(frame, (64, 64), interpolation=cv2.INTER_AREA)
        for frame in dataset.frames("wrist")
    ]
    np.testing.assert_array_equal(wrist, resized)


def test_height_comes_first(dataset: Dataset) -> None:
    assert build(dataset, image_size=(4, 10)).images["front"].shape == (15, 4, 10, 3)


def test_no_cameras(dataset: Dataset) -> None:
    cache = build(dataset, cameras=())
    assert cache.images == {} and not list(cache.path.glob("images*"))


def test_opened_not_built_again(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build(dataset)

    def refuse(self: Dataset, camera: str) -> Iterator[Image]:
        raise AssertionError("decoded again")

    monkeypatch.setattr(Dataset, "frames", refuse)
    assert build(Dataset.open(dataset.path)).path == before.path


def test_progress_ends_at_all_frames(dataset: Dataset) -> None:
    told: list[tuple[int, int]] = []
    build(dataset, progress=lambda done, total: told.append((done, total)))
    assert told == [(15, 30), (30, 30)]


def test_source_change_rebuilds(dataset: Dataset) -> None:
    before, other_size = build(dataset), build(dataset, image_size=(32, 32))
    changed = write(dataset.path, seeds=range(3, 4), append=True)
    after = build(changed)
    assert after.path != before.path and len(after.images["front"]) == 22
    assert not before.path.exists() and not other_size.path.exists(), "stale caches stay"


def test_a_bit_flipped_in_the_source_rebuilds(dataset: Dataset) -> None:
    before = build(dataset)
    file = next(dataset.path.rglob("*.mp4"))
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)
    assert build(Dataset.open(dataset.path), cameras=()).path != before.path
    assert not before.path.exists()


def test_another_data_set_of_that_name_keeps_its_cache(dataset: Dataset, tmp_path: Path) -> None:
    other = write(tmp_path / "elsewhere/set", seeds=range(1))
    first = build(dataset, directory=tmp_path / "caches")
    second = build(other, directory=tmp_path / "caches")
    assert first.path != second.path and first.path.exists() and second.path.exists()


@pytest.mark.parametrize("file", ["images-0.npy", "states.npy", "manifest.json"])
def test_damaged_cache_is_built_again(dataset: Dataset, file: str) -> None:
    cache = build(dataset)
    expected = np.array(cache.images["front"])
    damaged = cache.path / file
    damaged.write_bytes(damaged.read_bytes()[:-10])
    np.testing.assert_array_equal(build(dataset).images["front"], expected)


def test_full_disk_leaves_nothing(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = Dataset.frames

    def fill_up(self: Dataset, camera: str) -> Iterator[Image]:
        yield next(frames(self, camera))
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Dataset, "frames", fill_up)
        with pytest.raises(OSError, match=r"No space left on device\); free some space") as caught:
            build(dataset)
    assert caught.value.errno == errno.ENOSPC
    assert not list((dataset.path.parent / ".cache").iterdir())
    assert len(build(dataset).images["front"]) == 15


def test_damaged_source_leaves_nothing(dataset: Dataset) -> None:
    file = next(dataset.path.rglob("*.mp4"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="readable video"):
        build(dataset)
    assert not list((dataset.path.parent / ".cache").iterdir())


KILLED = """
import sys, time
from robot_qsft.datasets.cache import TrainingCache
from robot_qsft.datasets.store import Dataset
frames = Dataset.frames
def slow(self, camera):
    for frame in frames(self, camera):
        yield frame
        print("decoded", flush=True)
        time.sleep(60)
Dataset.frames = slow
dataset = Dataset.open(sys.argv[1])
TrainingCache.open_or_build(dataset, image_size=(64, 64), cameras=("front", "wrist"))
"""


def test_killed_build_does_not_hinder_the_next(dataset: Dataset) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(dataset.path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "decoded\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert list((dataset.path.parent / ".cache").glob(".building-*"))
    cache = build(dataset)
    np.testing.assert_array_equal(cache.images["front"], list(dataset.frames("front")))
    assert list((dataset.path.parent / ".cache").iterdir()) == [cache.path]
