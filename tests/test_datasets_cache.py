"""The training cache: equal to the source, rebuilt when that changes, whole or absent."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from robot_qsft.datasets import cache as cache_module
from robot_qsft.datasets import cache_images
from robot_qsft.datasets.cache import TrainingCache
from robot_qsft.datasets.episode import Episode
from robot_qsft.datasets.features import Camera, DatasetInfo
from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.jpeg_cache import JpegFrames
from robot_qsft.datasets.store import Dataset
from robot_qsft.datasets.stored_frames import StoredFrames
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

    def refuse(self: StoredFrames, camera: str, first: int, last: int) -> Iterator[Image]:
        raise AssertionError("decoded again")

    monkeypatch.setattr(StoredFrames, "of_episodes", refuse)
    assert build(Dataset.open(dataset.path)).path == before.path


def test_progress_ends_at_all_frames(dataset: Dataset) -> None:
    told: list[tuple[int, int]] = []
    build(dataset, progress=lambda done, total: told.append((done, total)))
    assert told == [(15, 30), (30, 30)]


@pytest.fixture
def many_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each episode is a worker's task of its own."""
    monkeypatch.setattr(cache_images, "_FRAMES_PER_TASK", 1)


@pytest.mark.usefixtures("many_tasks")
@pytest.mark.parametrize("storage", ["raw", "jpeg"])
def test_same_bytes_whatever_the_number_of_workers(
    dataset: Dataset, tmp_path: Path, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later episodes are ready first: the first takes its time."""
    frames = StoredFrames.of_episodes

    def slow_at_first(self: StoredFrames, camera: str, first: int, last: int) -> Iterator[Image]:
        for frame in frames(self, camera, first, last):
            time.sleep(0.02 * (first == 0))
            yield frame

    one = build(dataset, directory=tmp_path / "one", storage=storage, workers=1)
    monkeypatch.setattr(StoredFrames, "of_episodes", slow_at_first)
    four = build(dataset, directory=tmp_path / "four", storage=storage, workers=4)
    names = sorted(file.name for file in one.path.iterdir())
    assert names == sorted(file.name for file in four.path.iterdir())
    for name in set(names) - {"hashes.json"}:
        assert (one.path / name).read_bytes() == (four.path / name).read_bytes(), name
    assert not any("part" in name for name in names)


@pytest.mark.usefixtures("many_tasks")
def test_workers_stop_when_one_fails(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of endless episodes the second fails."""
    frame = np.zeros((64, 64, 3), np.uint8)

    def endless(self: StoredFrames, camera: str, first: int, last: int) -> Iterator[Image]:
        if first == 1:
            raise ValueError("damaged")
        if first == 0:
            yield from [frame] * 4
        while first == 2:
            yield frame

    monkeypatch.setattr(StoredFrames, "of_episodes", endless)
    with pytest.raises(ValueError, match="damaged"):
        build(dataset, cameras=("front",), storage="jpeg", workers=4)
    assert not list((dataset.path.parent / ".cache").iterdir())


@pytest.mark.parametrize("storage", ["raw", "jpeg"])
def test_missing_frames_are_not_made_up(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    frames = StoredFrames.of_episodes
    monkeypatch.setattr(
        StoredFrames, "of_episodes", lambda self, *where: list(frames(self, *where))[:-1]
    )
    with pytest.raises(ValueError, match="expected 15 frames of camera 'front' in episodes 0 to 2"):
        build(dataset, storage=storage)


# Raw frames or JPEGs.

RAW_BYTES = 15 * 2 * 64 * 64 * 3


def leave_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    usage = shutil.disk_usage("/")._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def test_jpegs_are_near_the_source(dataset: Dataset) -> None:
    """The frames are noise, which JPEGs hold worst: compared are means of blocks of 8x8 pixels."""

    def blocks(frames: Image) -> NDArray[np.float64]:
        return frames.astype(np.float64).reshape(15, 8, 8, 8, 8, 3).mean((2, 4))

    cache = build(dataset, storage="jpeg")
    assert cache.storage == "jpeg" and cache.reason == "asked for"
    for camera, frames in build(dataset, storage="raw").images.items():
        stored = cache.images[camera]
        assert isinstance(stored, JpegFrames) and stored.shape == frames.shape
        actual, expected = blocks(stored[:]), blocks(frames[:])
        others = np.roll(expected, 1, axis=0)
        assert np.abs(actual - expected).mean() < 0.1 * np.abs(actual - others).mean()


def test_raw_where_it_fits(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_free(monkeypatch, RAW_BYTES + 2**30)
    cache = build(dataset, raw_budget_bytes=RAW_BYTES)
    assert cache.storage == "raw" and cache.reason.endswith("fit")


def test_jpegs_where_the_disk_is_too_full(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    leave_free(monkeypatch, RAW_BYTES + 2**30 - 1)
    cache = build(dataset)
    assert cache.storage == "jpeg"
    assert "1.07 GB to spare do not fit into the 1.07 GB that are free" in cache.reason
    [record] = caplog.records
    assert record.levelname == "WARNING" and cache.reason in record.getMessage()


def test_jpegs_where_the_budget_is_too_small(dataset: Dataset) -> None:
    build(dataset, storage="raw")
    cache = build(dataset, raw_budget_bytes=RAW_BYTES - 1)
    assert cache.storage == "jpeg" and "more than the budget of 0.000369 GB" in cache.reason


@pytest.mark.parametrize("storage", ["raw", "jpeg"])
def test_what_was_built_stays_in_use(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    """Whatever room there is now."""
    before = build(dataset, storage=storage)
    leave_free(monkeypatch, {"raw": 0, "jpeg": 2**40}[storage])
    assert build(dataset).path == before.path


def test_unknown_storage_is_refused(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="storage must be auto, raw or jpeg, got 'png'"):
        build(dataset, storage="png")
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        build(dataset, workers=0)


# What makes a cache stale.


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is an hour ahead of what is written to files."""
    now_ns = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now_ns + 3600 * 10**9)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are hashed."""
    names: list[str] = []
    digest = hashlib.file_digest

    def noted(opened: Any, kind: str) -> Any:
        names.append(Path(opened.name).name)
        return digest(opened, kind)

    monkeypatch.setattr(hashlib, "file_digest", noted)
    return names


@pytest.mark.usefixtures("later")
def test_files_are_hashed_once(dataset: Dataset, read: list[str]) -> None:
    build(dataset)
    assert len(read) == len(dataset.source_files())
    read.clear()
    build(Dataset.open(dataset.path))
    build(Dataset.open(dataset.path), image_size=(32, 32))
    assert read == []


def test_files_that_changed_just_now_are_hashed_again(dataset: Dataset, read: list[str]) -> None:
    """The file system's clock may not show the next change."""
    build(dataset)
    build(dataset)
    assert len(read) == 2 * len(dataset.source_files())


def test_hashes_are_remembered_once_files_have_settled(
    dataset: Dataset, read: list[str], request: pytest.FixtureRequest
) -> None:
    cache = build(dataset)
    assert json.loads((cache.path / "hashes.json").read_text()) == {}
    request.getfixturevalue("later")
    build(dataset)
    read.clear()
    build(dataset)
    assert read == []


@pytest.mark.usefixtures("later")
def test_only_the_changed_file_is_read(dataset: Dataset, read: list[str]) -> None:
    """Its length and time of change are those from before."""
    before = build(dataset)
    read.clear()
    file = next(dataset.path.rglob("*.mp4"))
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=times)
    assert build(Dataset.open(dataset.path), cameras=()).path != before.path
    assert read == [file.name]


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("content", ["", "[]", '{"x": ', '{"a": "b"}'])
def test_damaged_memory_of_hashes_is_no_hindrance(
    dataset: Dataset, read: list[str], content: str
) -> None:
    cache = build(dataset)
    read.clear()
    (cache.path / "hashes.json").write_text(content)
    assert build(dataset).path == cache.path
    assert len(read) == len(dataset.source_files())


def test_cache_of_another_layout_is_removed(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "_LAYOUT", ["1"])
        old = build(dataset).path
    assert build(dataset).path != old and not old.exists()


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


@pytest.mark.parametrize(
    ("storage", "file"),
    [
        ("raw", "images-0.npy"),
        ("raw", "states.npy"),
        ("raw", "manifest.json"),
        ("jpeg", "images-0.jpegs"),
        ("jpeg", "images-1.offsets.npy"),
    ],
)
def test_damaged_cache_is_built_again(dataset: Dataset, storage: str, file: str) -> None:
    cache = build(dataset, storage=storage)
    expected = np.array(cache.images["front"][:])
    damaged = cache.path / file
    damaged.write_bytes(damaged.read_bytes()[:-10])
    again = build(dataset, storage=storage)
    assert again.path == cache.path
    np.testing.assert_array_equal(again.images["front"][:], expected)


def test_manifest_with_a_bit_flipped_is_built_again(dataset: Dataset) -> None:
    manifest = build(dataset).path / "manifest.json"
    content = manifest.read_bytes()
    manifest.write_bytes(content.replace(b"states", b"stares"))
    build(dataset)
    assert manifest.read_bytes() == content


def test_array_with_a_damaged_header_is_told(dataset: Dataset) -> None:
    file = build(dataset).path / "images-0.npy"
    file.write_bytes(b"?" + file.read_bytes()[1:])
    with pytest.raises(ValueError, match=r"array at .*images-0.npy.*; delete the folder"):
        build(dataset)


def test_full_disk_leaves_nothing(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = StoredFrames.of_episodes

    def fill_up(self: StoredFrames, camera: str, first: int, last: int) -> Iterator[Image]:
        yield next(frames(self, camera, first, last))
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(StoredFrames, "of_episodes", fill_up)
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
from robot_qsft.datasets.stored_frames import StoredFrames
frames = StoredFrames.of_episodes
def slow(self, camera, first, last):
    for frame in frames(self, camera, first, last):
        yield frame
        print("decoded", flush=True)
        time.sleep(60)
StoredFrames.of_episodes = slow
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
