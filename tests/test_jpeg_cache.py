"""Frames kept as JPEGs: indexed like an array, from any thread and process; damage is told."""

import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from robot_qsft.datasets.batches import gather_frames
from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.jpeg_cache import JpegFrames, JpegWriter, offsets_path, write_jpegs
from robot_qsft.datasets.recycled_memory import RecycledMemory

COUNT, HEIGHT, WIDTH = 23, 32, 48


def scene(number: int) -> Image:
    """A smooth picture whose red is its number times 10, with blue growing to the right."""
    frame = np.full((HEIGHT, WIDTH, 3), number * 10, np.uint8)
    frame[..., 1] = 255 - number * 10
    frame[..., 2] = np.linspace(0, 255, WIDTH, dtype=np.uint8)
    return frame


FRAMES = np.stack([scene(number) for number in range(COUNT)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The frames in parts of 10, 0 and 13."""
    path = tmp_path / "images-0.jpegs"
    writer = JpegWriter(path)
    for first, last in ((0, 10), (10, 10), (10, COUNT)):
        part = tmp_path / "part"
        writer.append(part, write_jpegs(part, iter(FRAMES[first:last])))
    writer.close()
    assert sorted(tmp_path.iterdir()) == [path, offsets_path(path)]
    return path


@pytest.fixture
def frames(path: Path) -> JpegFrames:
    return JpegFrames(path, (HEIGHT, WIDTH))


def error(actual: Image, expected: Image) -> int:
    assert actual.shape == expected.shape and actual.dtype == np.uint8
    return int(np.abs(actual.astype(np.int64) - expected).max(initial=0))


@pytest.mark.parametrize(
    "rows",
    [
        slice(None),
        slice(3, 9),
        slice(20, 99),
        slice(9, 2, -3),
        slice(5, 5),
        np.array([7, 7, 0, 22, 3]),
        np.array([-1, -23]),
        np.array([], np.int64),
        np.arange(COUNT) % 3 == 0,
        np.array([[1, 2], [3, 4]]),
        4,
        -1,
    ],
    ids=repr,
)
def test_rows_are_those_of_an_array(frames: JpegFrames, rows: slice) -> None:
    assert error(frames[rows], FRAMES[rows]) <= 8


def test_looks_like_an_array(frames: JpegFrames) -> None:
    assert len(frames) == COUNT
    assert frames.shape == (COUNT, HEIGHT, WIDTH, 3)
    assert frames.dtype == np.uint8


@pytest.mark.parametrize("rows", [np.array([0, COUNT]), np.array([-COUNT - 1]), COUNT])
def test_no_such_row(frames: JpegFrames, rows: int) -> None:
    with pytest.raises(IndexError, match="23"):
        frames[rows]


def test_others_can_read_the_file(path: Path) -> None:
    """Frame 2 is a JPEG of quality 95 between its offsets: its DQT has a first entry of 2."""
    offsets = np.load(offsets_path(path))
    content = path.read_bytes()[offsets[2] : offsets[3]]
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert error(decoded[..., ::-1], FRAMES[2]) <= 8
    table = content.index(b"\xff\xdb")
    assert content[table + 5] == 2, "16 of the standard table, of which quality 95 takes a tenth"


def test_threads_share_it(frames: JpegFrames) -> None:
    rng = np.random.default_rng(0)
    batches = [rng.integers(COUNT, size=16) for _ in range(24)]
    expected = frames[:]
    with ThreadPoolExecutor(4) as pool:
        for rows, found in zip(batches, pool.map(frames.__getitem__, batches), strict=True):
            np.testing.assert_array_equal(found, expected[rows])


def test_pickled_copy_reads_the_same(frames: JpegFrames) -> None:
    content = pickle.dumps(frames)
    assert len(content) < 1000, "it takes the frames along"
    np.testing.assert_array_equal(pickle.loads(content)[:], frames[:])


def test_other_process_reads_the_same(frames: JpegFrames) -> None:
    expected = frames[3:7]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(frames.__getitem__, (slice(3, 7),)), expected)


def test_file_is_closed_with_the_last_reference(path: Path) -> None:
    def opened() -> int:
        return [link.resolve() for link in Path("/proc/self/fd").iterdir()].count(path)

    frames = JpegFrames(path, (HEIGHT, WIDTH))
    assert opened() == 1
    del frames
    assert opened() == 0


def test_gathered_like_an_array(frames: JpegFrames) -> None:
    rows = np.array([5, 6, 7, 1])
    memory = RecycledMemory()
    np.testing.assert_array_equal(gather_frames(frames, rows, memory=memory), frames[rows])
    np.testing.assert_array_equal(gather_frames(FRAMES, rows, memory=memory), FRAMES[rows])
    for stack in (frames, FRAMES):
        with pytest.raises(IndexError, match="23"):
            gather_frames(stack, np.array([COUNT]), memory=memory)


def test_damaged_jpeg_is_told_when_it_is_read(path: Path) -> None:
    offsets = np.load(offsets_path(path))
    content = bytearray(path.read_bytes())
    content[offsets[4] : offsets[5]] = bytes(offsets[5] - offsets[4])
    path.write_bytes(content)
    frames = JpegFrames(path, (HEIGHT, WIDTH))
    assert error(frames[5:], FRAMES[5:]) <= 8
    with pytest.raises(ValueError, match=rf"no frame .* at byte {offsets[4]}; delete the folder"):
        frames[3:5]


def test_frames_of_another_size_are_refused(path: Path) -> None:
    with pytest.raises(ValueError, match=r"no frame of \(16, 48\)"):
        JpegFrames(path, (16, WIDTH))[0]


@pytest.mark.parametrize(
    "offsets",
    [
        np.arange(5),
        np.zeros(0, np.int64),
        np.zeros((2, 2), np.int64),
        np.arange(5, dtype=np.float64),
    ],
)
def test_index_that_does_not_fit_is_refused(path: Path, offsets: np.ndarray) -> None:
    np.save(offsets_path(path), offsets)
    with pytest.raises(ValueError, match="not what its index tells; delete the folder"):
        JpegFrames(path, (HEIGHT, WIDTH))


def test_index_that_goes_back_is_refused(path: Path) -> None:
    offsets = np.load(offsets_path(path))
    offsets[[3, 4]] = offsets[[4, 3]]
    np.save(offsets_path(path), offsets)
    with pytest.raises(ValueError, match="not what its index tells"):
        JpegFrames(path, (HEIGHT, WIDTH))


@pytest.mark.parametrize("which", ["frames", "index"])
def test_missing_file_is_told(path: Path, which: str) -> None:
    (path if which == "frames" else offsets_path(path)).unlink()
    with pytest.raises(ValueError, match=r"No such file .*; delete the folder"):
        JpegFrames(path, (HEIGHT, WIDTH))


def test_pickle_for_an_index_is_refused(path: Path) -> None:
    offsets_path(path).write_bytes(pickle.dumps([0, 1]))
    with pytest.raises(ValueError, match="delete the folder"):
        JpegFrames(path, (HEIGHT, WIDTH))


# Memory for batches.


def test_memory_comes_back_when_nobody_holds_it() -> None:
    memory = RecycledMemory()
    first = memory.empty((4, 8))
    address = first.ctypes.data
    second = memory.empty((4, 8))
    assert second.ctypes.data != address
    del first
    assert memory.empty((8, 4)).ctypes.data == address


def test_memory_stays_while_a_part_is_held() -> None:
    memory = RecycledMemory()
    whole = memory.empty((4, 8))
    whole[:] = 3
    part = whole[1:].T[2:][:, 1]
    del whole
    memory.empty((4, 8))[:] = 9
    assert (part == 3).all()
