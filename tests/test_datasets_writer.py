"""Writing data sets: what comes back, appending, and what an interruption leaves."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_qsft.datasets.episode import Episode
from robot_qsft.datasets.features import Camera, DatasetInfo
from robot_qsft.datasets.statistics import QUANTILES
from robot_qsft.datasets.store import Dataset
from robot_qsft.datasets.video import VideoWriter, choose_encoder
from robot_qsft.datasets.writer import DatasetWriter

INFO = DatasetInfo(
    fps=10,
    action_names=("x", "y", "gripper"),
    state_names=("px", "py"),
    environment_state_names=("cube",),
    cameras={"front": Camera(64, 64), "wrist": Camera(9, 7, "image")},
    robot_type="panda",
)


def smooth_frames(rng: np.random.Generator, steps: int, height: int, width: int) -> np.ndarray:
    coarse = rng.integers(0, 256, (steps, 3, 3, 3), dtype=np.uint8)
    return np.stack([cv2.resize(frame, (width, height)) for frame in coarse])


def make_episode(info: DatasetInfo = INFO, *, seed: int = 0, steps: int = 6) -> Episode:
    rng = np.random.default_rng(seed)
    success = seed % 2 == 0
    rewards = np.zeros(steps, np.float32)
    rewards[-1] = success
    return Episode(
        states=rng.normal(size=(steps, len(info.state_names))).astype(np.float32),
        actions=rng.normal(size=(steps, len(info.action_names))).astype(np.float32),
        rewards=rewards,
        successes=rewards > 0,
        terminated=success,
        truncated=seed % 3 == 1 and not success,
        instruction=f"task {seed % 3}",
        images={
            name: smooth_frames(rng, steps, camera.height, camera.width)
            for name, camera in info.cameras.items()
        },
        environment_states=rng.normal(size=(steps, len(info.environment_state_names))).astype(
            np.float32
        ),
        demonstrator=f"script/{seed}",
    )


def write(path: Path, episodes: list[Episode], info: DatasetInfo = INFO, **options: object) -> None:
    with DatasetWriter(path, info=info, **options) as writer:  # type: ignore[arg-type]
        for episode in episodes:
            writer.add_episode(episode)


def assert_same(read: Episode, written: Episode, info: DatasetInfo = INFO) -> None:
    for name in ("states", "actions", "rewards", "successes", "environment_states"):
        expected = getattr(written, name)
        actual = getattr(read, name)
        assert actual.dtype == expected.dtype and actual.shape == expected.shape, name
        np.testing.assert_array_equal(actual, expected, err_msg=name)
    for name in ("terminated", "truncated", "instruction", "demonstrator"):
        assert getattr(read, name) == getattr(written, name), name
    assert set(read.images) == set(written.images)
    for name, frames in written.images.items():
        if info.cameras[name].storage == "image":
            np.testing.assert_array_equal(read.images[name], frames)
        else:
            error = np.abs(read.images[name].astype(np.int64) - frames)
            assert error.mean() < 8, f"codec error {error.mean()}"
            others = np.abs(read.images[name].astype(np.int64) - np.roll(frames, 1, axis=0))
            assert len(frames) == 1 or error.mean() < others.mean(), "frames are displaced"


def test_round_trip(tmp_path: Path) -> None:
    episodes = [make_episode(seed=seed, steps=5 + seed) for seed in range(5)]
    write(tmp_path / "set", episodes)
    dataset = Dataset.open(tmp_path / "set")
    assert dataset.info == INFO
    assert len(dataset) == 5 and dataset.frame_count == sum(map(len, episodes))
    for index, episode in enumerate(episodes):
        assert_same(dataset.episode(index), episode)
    tables = dataset.tables()
    assert tables.reward_source == "next.reward" and tables.success_source == "next.success"
    assert tables.tasks == ("task 0", "task 1", "task 2")
    assert tables.instructions == tuple(episode.instruction for episode in episodes)
    np.testing.assert_array_equal(tables.episode_starts, [0, 5, 11, 18, 26])
    np.testing.assert_array_equal(tables.episode_returns, [1, 0, 1, 0, 1])
    np.testing.assert_array_equal(tables.episode_successes, [True, False, True, False, True])
    for camera in INFO.cameras:
        together = np.concatenate([dataset.episode(index).images[camera] for index in range(5)])
        np.testing.assert_array_equal(np.stack(list(dataset.frames(camera))), together)


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(low, 3) for low in (1, 0, 0)]),
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    image=st.none() | st.tuples(st.integers(1, 12), st.integers(1, 12)),
    fps=st.integers(1, 120),
)
def test_any_shape_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: tuple[int, int, int],
    lengths: list[int],
    image: tuple[int, int] | None,
    fps: int,
) -> None:
    names = [tuple(f"entry{i}" for i in range(size)) for size in sizes]
    info = DatasetInfo(
        fps=fps,
        action_names=names[0],
        state_names=names[1],
        environment_state_names=names[2],
        cameras={"cam": Camera(*image, "image")} if image else {},
    )
    episodes = [make_episode(info, seed=seed, steps=steps) for seed, steps in enumerate(lengths)]
    path = tmp_path_factory.mktemp("shapes") / "set"
    write(path, episodes, info)
    dataset = Dataset.open(path)
    assert dataset.info == info
    for index, episode in enumerate(episodes):
        assert_same(dataset.episode(index), episode, info)


def test_append_is_as_if_written_at_once(tmp_path: Path) -> None:
    episodes = [make_episode(seed=seed) for seed in range(5)]
    write(tmp_path / "once", episodes)
    write(tmp_path / "twice", episodes[:2])
    write(tmp_path / "twice", episodes[2:], append=True)
    once, twice = Dataset.open(tmp_path / "once"), Dataset.open(tmp_path / "twice")
    for index, episode in enumerate(episodes):
        assert_same(twice.episode(index), episode)
    assert once.stored_info == twice.stored_info
    stored = [
        json.loads((path / "meta/stats.json").read_text()) for path in (once.path, twice.path)
    ]
    for key, statistics in stored[0].items():
        for name, values in statistics.items():
            np.testing.assert_allclose(stored[1][key][name], values, atol=1e-12, err_msg=key)
    assert (twice.path / "data/chunk-000/file-001.parquet").exists()


def test_appending_nothing_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "set", [make_episode()])
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*") if p.is_file())
    write(tmp_path / "set", [], append=True)
    assert before == sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*") if p.is_file())


def test_files_roll_over(tmp_path: Path) -> None:
    info = DatasetInfo(
        fps=10,
        action_names=("a",),
        cameras={"video": Camera(128, 128), "image": Camera(128, 128, "image")},
    )
    rng = np.random.default_rng(0)
    episodes = []
    for seed in range(8):
        episode = make_episode(info, seed=seed, steps=8)
        noise = rng.integers(0, 256, (8, 128, 128, 3), dtype=np.uint8)
        episode.images["video"][:], episode.images["image"][:] = noise, noise  # type: ignore[index]
        episodes.append(episode)
    write(tmp_path / "set", episodes, info, data_file_size_mb=1, video_file_size_mb=1)
    dataset = Dataset.open(tmp_path / "set")
    assert len(set(dataset.index.data_files)) > 2
    assert (tmp_path / "set/data/chunk-000/file-001.parquet").stat().st_size < 1_300_000
    for index in range(8):
        np.testing.assert_array_equal(
            dataset.episode(index).images["image"], episodes[index].images["image"]
        )
    assert len(list(dataset.frames("video"))) == len(list(dataset.frames("image"))) == 64


def test_many_short_episodes_make_few_row_groups(tmp_path: Path) -> None:
    """Whoever opens a file holds something of every row group."""
    episodes = [make_episode(seed=seed, steps=3) for seed in range(300)]
    write(tmp_path / "set", episodes)
    data = pq.ParquetFile(tmp_path / "set/data/chunk-000/file-000.parquet")
    assert data.num_row_groups <= 3
    assert data.metadata.num_rows == 900
    dataset = Dataset.open(tmp_path / "set")
    for index in (0, 149, 299):
        np.testing.assert_array_equal(dataset.episode(index).actions, episodes[index].actions)


def test_layout_is_that_of_lerobot(tmp_path: Path) -> None:
    """Types, names and numbers that LeRobot's own reader depends on."""
    lengths = [4, 7]
    write(tmp_path, [make_episode(seed=s, steps=n) for s, n in enumerate(lengths)])
    data = pq.ParquetFile(tmp_path / "data/chunk-000/file-000.parquet")
    assert data.num_row_groups == 1
    types = {field.name: str(field.type) for field in data.schema_arrow}
    assert types == {
        "observation.state": "fixed_size_list<element: float>[2]",
        "observation.environment_state": "float",
        "action": "fixed_size_list<element: float>[3]",
        "observation.images.wrist": "struct<bytes: binary, path: string>",
        "next.reward": "float",
        "next.done": "bool",
        "next.success": "bool",
        "next.truncated": "bool",
        "timestamp": "float",
        "frame_index": "int64",
        "episode_index": "int64",
        "index": "int64",
        "task_index": "int64",
    }
    rows = data.read().to_pylist()
    assert [row["index"] for row in rows] == list(range(11))
    assert [row["frame_index"] for row in rows] == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6]
    assert rows[10]["timestamp"] == np.float32(0.6)
    assert [row["next.done"] for row in rows] == [row["index"] in (3, 10) for row in rows]
    assert [row["next.truncated"] for row in rows] == [row["index"] == 10 for row in rows]

    episodes = pq.read_table(tmp_path / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    key = "videos/observation.images.front"
    assert [row[f"{key}/from_timestamp"] for row in episodes] == [0.0, 0.4]
    assert [row[f"{key}/to_timestamp"] for row in episodes] == [0.4, 1.1]
    assert [(r["dataset_from_index"], r["dataset_to_index"]) for r in episodes] == [(0, 4), (4, 11)]
    assert episodes[1]["stats/next.success/min"] == [False]
    assert episodes[1]["stats/frame_index/max"] == [6]
    assert np.shape(episodes[1]["stats/observation.images.front/q50"]) == (3, 1, 1)

    tasks = pq.ParquetFile(tmp_path / "meta/tasks.parquet").schema_arrow
    assert json.loads(tasks.metadata[b"pandas"])["index_columns"] == ["task"]
    info = json.loads((tmp_path / "meta/info.json").read_text())
    assert info["splits"] == {"train": "0:2"} and info["codebase_version"] == "v3.0"
    stats = json.loads((tmp_path / "meta/stats.json").read_text())
    actions = Dataset.open(tmp_path).tables().actions
    for name, quantile in QUANTILES.items():
        np.testing.assert_allclose(
            stats["action"][name], np.quantile(actions.astype(np.float64), quantile, axis=0)
        )
    assert set(stats) == set(info["features"])


def test_pandas_takes_the_task_for_the_index(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is no dependency")
    write(tmp_path, [make_episode(seed=seed) for seed in range(3)])
    tasks = pandas.read_parquet(tmp_path / "meta/tasks.parquet")
    assert tasks.index.name == "task" and list(tasks.index) == ["task 0", "task 1", "task 2"]
    assert list(tasks.task_index) == [0, 1, 2]


def test_an_exception_leaves_what_was_there(tmp_path: Path) -> None:
    with pytest.raises(KeyError), DatasetWriter(tmp_path / "new", info=INFO) as writer:
        writer.add_episode(make_episode())
        raise KeyError
    assert not (tmp_path / "new").exists()
    write(tmp_path / "set", [make_episode()])
    before = sorted(tmp_path.rglob("*"))
    with (
        pytest.raises(KeyError),
        DatasetWriter(tmp_path / "set", info=INFO, append=True) as writer,
    ):
        writer.add_episode(make_episode(seed=1))
        raise KeyError
    assert sorted(tmp_path.rglob("*")) == before


def test_close_within_the_block(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "set", info=INFO) as writer:
        writer.add_episode(make_episode())
        writer.close()
    assert len(Dataset.open(tmp_path / "set")) == 1
    with (
        pytest.raises(ValueError, match="at least one episode"),
        DatasetWriter(tmp_path / "new", info=INFO) as writer,
    ):
        writer.close()


def test_without_av1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    codec = av.codec.Codec
    missing = ["libsvtav1"]

    def find(name: str, mode: str) -> av.codec.Codec:
        if name in missing:
            raise av.codec.codec.UnknownCodecError(name)
        return codec(name, mode)

    monkeypatch.setattr(av.codec, "Codec", find)
    episode = make_episode()
    write(tmp_path / "set", [episode])
    assert "videos are written with libx264 instead" in caplog.text
    dataset = Dataset.open(tmp_path / "set")
    about = dataset.stored_info["features"]["observation.images.front"]["info"]
    assert about["video.codec"] == "h264"
    assert_same(dataset.episode(0), episode)
    missing.append("libx264")
    with pytest.raises(ValueError, match="it has none of them; install the `av` wheel"):
        DatasetWriter(tmp_path / "other", info=INFO)


KILLED = """
import sys, time, runpy
names = runpy.run_path(sys.argv[1])
with names["DatasetWriter"](sys.argv[2], info=names["INFO"], append=sys.argv[3] == "append") as w:
    for seed in range(3):
        w.add_episode(names["make_episode"](seed=seed, steps=40))
    print("written", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("mode", ["new", "append"])
def test_sigkill_leaves_what_was_there(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "set"
    episodes = [make_episode(seed=seed) for seed in range(3)]
    if mode == "append":
        write(path, episodes[:2])
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, __file__, str(path), mode], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    with pytest.raises(ValueError, match="another process is writing"):
        DatasetWriter(path, info=INFO, append=mode == "append")
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert (path / ".writing").exists()
    if mode == "append":
        assert_same(Dataset.open(path).episode(1), episodes[1])
        write(path, episodes[2:], append=True)
    else:
        with pytest.raises(ValueError, match=r"no meta/info\.json"):
            Dataset.open(path)
        write(path, episodes)
    assert not (path / ".writing").exists()
    dataset = Dataset.open(path)
    assert len(dataset) == 3
    for index, episode in enumerate(episodes):
        assert_same(dataset.episode(index), episode)


@pytest.mark.parametrize("mode", ["new", "append"])
@pytest.mark.parametrize("renames", range(6))
def test_a_break_between_any_two_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, renames: int
) -> None:
    """Six files are renamed: data, video, episodes, tasks, statistics, info."""
    path = tmp_path / "set"
    episodes = [make_episode(seed=seed) for seed in range(4)]
    if mode == "append":
        write(path, episodes[:2])
    done = []
    replace = Path.replace

    def break_off(self: Path, target: Path) -> Path:
        if len(done) == renames:
            raise OSError("power cut")
        done.append(target)
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", break_off)
        with pytest.raises(OSError, match="power cut"):
            write(path, episodes[2:], append=mode == "append")
    if mode == "append":
        dataset = Dataset.open(path)
        assert len(dataset) == 2 and len(list(dataset.frames("front"))) == 12
        assert_same(dataset.episode(1), episodes[1])
        write(path, episodes[2:], append=True)
    else:
        write(path, episodes)
    dataset = Dataset.open(path)
    assert len(dataset) == 4
    for index, episode in enumerate(episodes):
        assert_same(dataset.episode(index), episode)
    stored = {p for p in path.rglob("*") if p.is_file()} - {path / "meta/stats.json"}
    assert stored == set(dataset.source_files())


def test_refusals(tmp_path: Path) -> None:
    write(tmp_path / "set", [make_episode()])
    with pytest.raises(ValueError, match=r"already; choose another folder, delete it, or append"):
        DatasetWriter(tmp_path / "set", info=INFO)
    with pytest.raises(ValueError, match=r"to append to at .* there is none"):
        DatasetWriter(tmp_path / "none", info=INFO, append=True)
    assert not (tmp_path / "none").exists()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/thesis.txt").write_text("dear")
    with pytest.raises(ValueError, match="empty folder"):
        DatasetWriter(tmp_path / "notes", info=INFO)
    assert (tmp_path / "notes/thesis.txt").read_text() == "dear"
    with pytest.raises(ValueError, match="at least one episode"):
        write(tmp_path / "empty", [])
    other = DatasetInfo(fps=20, action_names=("x",))
    with pytest.raises(ValueError, match="has fps 10, but 20 came"):
        DatasetWriter(tmp_path / "set", info=other, append=True)
    odd = DatasetInfo(fps=20, action_names=("x",), cameras={"cam": Camera(63, 64)})
    with pytest.raises(ValueError, match="even sides, but camera 'cam' is 63x64"):
        DatasetWriter(tmp_path / "odd", info=odd)
    small = DatasetInfo(fps=10, action_names=("x",))
    with DatasetWriter(tmp_path / "small", info=small) as writer:
        with pytest.raises(ValueError, match="expected states of 0 entries"):
            writer.add_episode(make_episode())
        writer.add_episode(make_episode(small))
    with DatasetWriter(tmp_path / "set", info=INFO, append=True) as writer:
        episode = make_episode()
        episode.images["front"] = episode.images["wrist"]  # type: ignore[index]
        with pytest.raises(ValueError, match="64x64x3 from camera 'front'"):
            writer.add_episode(episode)
    assert len(Dataset.open(tmp_path / "set")) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 0}, "fps must be a whole number"),
        ({"action_names": ()}, "at least one action"),
        ({"cameras": {"a/b": Camera(4, 4)}}, "would break a path"),
    ],
)
def test_info_refusals(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DatasetInfo(**({"fps": 10, "action_names": ("x",)} | options))  # type: ignore[arg-type]


def test_camera_refusals() -> None:
    with pytest.raises(ValueError, match="0x4 came"):
        Camera(0, 4)
    with pytest.raises(ValueError, match="'gif' came"):
        Camera(4, 4, "gif")  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="Linux's scheduler is asked")
def test_encoding_leaves_the_process_its_priority(tmp_path):
    """SVT-AV1 makes a process of root's real-time; other users' it may not, and this shows less."""
    before = os.sched_getscheduler(0)
    writer = VideoWriter(tmp_path / "a.mp4", fps=10, height=64, width=64, encoder=choose_encoder())
    writer.write(np.zeros((3, 64, 64, 3), np.uint8))
    during = {
        os.sched_getscheduler(int(thread.name)) for thread in Path("/proc/self/task").iterdir()
    }
    writer.close()
    assert during == {before} and os.sched_getscheduler(0) == before
