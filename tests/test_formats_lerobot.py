"""LeRobot data sets of every version as sources: the fixtures, variants, damaged and hostile ones.

What the fixtures hold is told in their README.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robot_qsft.datasets.episode import Episode
from robot_qsft.datasets.features import Camera, DatasetInfo
from robot_qsft.datasets.field_map import FieldMap, Part
from robot_qsft.datasets.formats.detect import open_source
from robot_qsft.datasets.formats.lerobot import LeRobotSource, matches
from robot_qsft.datasets.mapped import MappedSource, settle
from robot_qsft.datasets.outcomes import Evidence, judge
from robot_qsft.datasets.source import Column, EncodedFrames
from robot_qsft.datasets.writer import DatasetWriter

SHARED = Path(__file__).parent.parent.parent / "shared"
FIXTURES = SHARED / "fixtures"
needs_fixtures = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason="the format fixtures lie outside the repository"
)
NAMES = ("x", "y", "z", "rx", "ry", "rz", "g")
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
PLACES = {
    "timestamp": pa.float32(),
    "frame_index": pa.int64(),
    "episode_index": pa.int64(),
    "index": pa.int64(),
    "task_index": pa.int64(),
}
LENGTHS = (3, 4, 2)


def png(grey: int, height: int = 4, width: int = 6) -> bytes:
    encoded: bytes = cv2.imencode(".png", np.full((height, width, 3), grey, np.uint8))[1].tobytes()
    return encoded


class Recorded:
    """A data set to be written in any version, column by column; 3, 4 and 2 steps at 10 fps."""

    def __init__(self, lengths: Sequence[int] = LENGTHS) -> None:
        self.lengths = tuple(lengths)
        self.rows = sum(lengths)
        self.features: dict[str, Any] = {}
        self.columns: dict[str, pa.Array] = {}
        self.task_of_episode = [episode % 2 for episode in range(len(lengths))]
        self.tasks = ["pick", "place"]
        self.more: dict[str, Any] = {}
        rng = np.random.default_rng(0)
        self.add(
            "action",
            "float32",
            [2],
            pa.FixedSizeListArray.from_arrays(
                pa.array(rng.normal(size=self.rows * 2), pa.float32()), 2
            ),
            names=["x", "y"],
        )

    def add(
        self, key: str, dtype: str, shape: list[int], column: pa.Array | None, *, names: Any = None
    ) -> None:
        self.features[key] = {"dtype": dtype, "shape": shape, "names": names}
        if column is not None:
            self.columns[key] = column

    def add_images(self, key: str, shape: list[int], *, names: Any = None) -> None:
        """Frame i of the whole set is of grey i, 4x6 pixels."""
        rows = [{"bytes": png(row), "path": f"frame-{row:06d}.png"} for row in range(self.rows)]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        self.add(key, "image", shape, pa.array(rows, kind), names=names)

    def table(self) -> pa.Table:
        lengths = np.array(self.lengths)
        of_row = np.repeat(np.arange(len(lengths)), lengths)
        frame = np.concatenate([np.arange(length) for length in lengths])
        places = {
            "timestamp": frame / 10,
            "frame_index": frame,
            "episode_index": of_row,
            "index": np.arange(self.rows),
            "task_index": np.array(self.task_of_episode)[of_row],
        }
        return pa.table(
            self.columns | {name: pa.array(places[name], kind) for name, kind in PLACES.items()}
        )

    def info(self, version: str) -> dict[str, Any]:
        v3 = version.startswith("v3")
        return {
            "codebase_version": version,
            "robot_type": "panda",
            "total_episodes": len(self.lengths),
            "total_frames": self.rows,
            "total_tasks": len(self.tasks),
            "chunks_size": 1000,
            "fps": 10,
            "splits": {"train": f"0:{len(self.lengths)}"},
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
            if v3
            else "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
            "video_path": None,
            "features": self.features
            | {
                name: {"dtype": kind.to_pandas_dtype().__name__, "shape": [1], "names": None}
                for name, kind in PLACES.items()
            },
            **self.more,
        }

    def write(self, path: Path, version: str, *, task_column: str = "task") -> Path:
        (path / "meta").mkdir(parents=True)
        (path / "meta/info.json").write_text(json.dumps(self.info(version)))
        table, starts = self.table(), np.cumsum([0, *self.lengths])
        if version.startswith("v3"):
            self._write_v3(path, table, task_column)
            return path
        for episode, length in enumerate(self.lengths):
            file = path / self.info(version)["data_path"].format(
                episode_chunk=episode // self.info(version)["chunks_size"], episode_index=episode
            )
            file.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table.slice(starts[episode], length), file, compression="none")
        episodes = [
            {"episode_index": e, "tasks": [self.tasks[self.task_of_episode[e]]], "length": length}
            for e, length in enumerate(self.lengths)
        ]
        write_lines(path / "meta/episodes.jsonl", episodes)
        tasks = [{"task_index": index, "task": task} for index, task in enumerate(self.tasks)]
        write_lines(path / "meta/tasks.jsonl", tasks)
        if version == "v2.0":
            (path / "meta/stats.json").write_text("{}")
        else:
            write_lines(path / "meta/episodes_stats.jsonl", [])
        return path

    def _write_v3(self, path: Path, table: pa.Table, task_column: str) -> None:
        for file in (DATA, EPISODES):
            (path / file).parent.mkdir(parents=True)
        pq.write_table(table, path / DATA)
        starts = np.cumsum([0, *self.lengths])
        count = len(self.lengths)
        rows = {
            "episode_index": range(count),
            "length": self.lengths,
            "data/chunk_index": [0] * count,
            "data/file_index": [0] * count,
            "dataset_from_index": starts[:-1],
            "dataset_to_index": starts[1:],
        }
        pq.write_table(
            pa.table({name: pa.array(column, pa.int64()) for name, column in rows.items()}),
            path / EPISODES,
        )
        pq.write_table(
            pa.table({"task_index": range(len(self.tasks)), task_column: self.tasks}),
            path / "meta/tasks.parquet",
        )


def write_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


versions = pytest.mark.parametrize("version", ["v2.0", "v2.1", "v3.0"])


def edit_info(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    info = json.loads((path / "meta/info.json").read_text())
    edit(info)
    (path / "meta/info.json").write_text(json.dumps(info))


def edit_table(file: Path, edit: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(edit(pq.read_table(file)), file)


def set_column(file: Path, key: str, values: Any) -> None:
    def edit(table: pa.Table) -> pa.Table:
        column = values if isinstance(values, pa.Array) else pa.array(values)
        return table.set_column(table.column_names.index(key), key, column)

    edit_table(file, edit)


def greys(source: LeRobotSource, index: int, camera: str) -> list[int]:
    return [int(frame[0, 0, 0]) for frame in source.frames(index, camera)]


def all_of(path: Path) -> list[Any]:
    """Everything that a source gives, as comparable values."""
    source = LeRobotSource(path)
    seen: list[Any] = [source.info]
    for index in range(len(source)):
        one = source.recording(index)
        seen.append((one.name, one.instruction, one.evidence, one.demonstrator))
        seen += [(k, v.dtype.name, v.shape, v.tolist()) for k, v in one.columns.items()]
        for camera in source.info.cameras:
            seen += [(frame.shape, frame.tobytes()) for frame in source.frames(index, camera)]
    return seen


# The fixtures


def check_fixture(source: LeRobotSource, folder: Path, *, v3: bool) -> None:
    vector = Column("float32", (7,), NAMES)
    expected = {
        "observation.state": vector,
        "action": vector,
        "next.reward": Column("float32"),
        "next.done": Column("bool"),
        "timestamp": Column("float32"),
    }
    if v3:
        expected |= {
            "next.success": Column("bool"),
            "observation.force": Column("float32", (2, 3)),
        }
    info = source.info
    assert info.columns == expected
    assert info.cameras == {"front": Camera(64, 64), "wrist": Camera(32, 32, "image")}
    assert (info.fps, info.robot_type, info.notes) == (10, "panda", ())
    assert info.splits == {"train": (0, 1, 2)} and info.tasks == ("pick cube", "place cube")
    assert len(source) == 3
    for index, steps in enumerate((12, 13, 14)):
        recording = source.recording(index)
        raw = (
            pq.read_table(folder / DATA).slice((0, 12, 25)[index], steps)
            if v3
            else pq.read_table(folder / f"data/chunk-000/episode_{index:06d}.parquet")
        )
        assert len(recording) == steps and recording.name == f"episode {index}"
        assert recording.instruction == ("place cube" if index == 2 else "pick cube")
        assert recording.demonstrator == ""
        for name, column in expected.items():
            found = recording.columns[name]
            assert found.dtype == column.dtype and found.shape == (steps, *column.shape)
            np.testing.assert_array_equal(found, np.array(raw.column(name).to_pylist()))
        last = np.arange(steps) == steps - 1
        np.testing.assert_array_equal(recording.columns["next.reward"], last)
        np.testing.assert_array_equal(recording.columns["next.done"], last)
        assert recording.evidence == Evidence(
            "next.success" if v3 else "next.reward", True, steps - 1
        )
        grey = (40 * index + 5 * np.arange(steps))[:, None, None, None] % 255
        assert np.abs(np.stack(list(source.frames(index, "front"))) - grey).max() <= 1
        wrist = np.stack(list(source.frames(index, "wrist")))
        assert wrist.shape == (steps, 32, 32, 3) and wrist.dtype == np.uint8
        assert (wrist == grey).all()
        stored = source.encoded_frames(index, "wrist")
        assert stored is not None
        for (image, content), shown, row in zip(stored, wrist, raw.to_pylist(), strict=True):
            np.testing.assert_array_equal(image, shown)
            assert content == row["observation.images.wrist"]["bytes"]
        assert source.encoded_frames(index, "front") is None


@needs_fixtures
@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_fixture(version: str) -> None:
    folder = FIXTURES / ("lerobot_v30" if version == "v3.0" else "lerobot_v21")
    source = open_source(folder)
    assert isinstance(source, LeRobotSource) and isinstance(source, EncodedFrames)
    assert source.info.format == f"LeRobotDataset {version}"
    check_fixture(source, folder, v3=version == "v3.0")
    files = source.files()
    assert list(files) == sorted(files) and all(file.is_file() for file in files)
    stored = {file for file in folder.rglob("*") if file.is_file()}
    assert set(files) == {file for file in stored if "stats" not in file.name}
    evidences = [source.recording(index).evidence for index in range(3)]
    assert judge(evidences) == ("success",) * 3


@needs_fixtures
def test_v20_made_of_the_fixture(tmp_path: Path) -> None:
    """It has statistics of the whole set in place of those per episode."""
    path = tmp_path / "set"
    shutil.copytree(FIXTURES / "lerobot_v21", path, copy_function=shutil.copyfile)
    for folder in (path, *path.rglob("*")):
        folder.chmod(0o755 if folder.is_dir() else 0o644)
    (path / "meta/episodes_stats.jsonl").unlink()
    (path / "meta/stats.json").write_text("{}")
    edit_info(path, lambda info: info.update(codebase_version="v2.0"))
    source = LeRobotSource(path)
    assert source.info.format == "LeRobotDataset v2.0"
    check_fixture(source, path, v3=False)


@needs_fixtures
def test_episodes_are_read_in_any_order_and_frames_side_by_side() -> None:
    source = LeRobotSource(FIXTURES / "lerobot_v30")
    for index in (2, 0, 1, 2):
        first = source.recording(index).columns["action"]
        again = LeRobotSource(FIXTURES / "lerobot_v30").recording(index).columns["action"]
        np.testing.assert_array_equal(first, again)
    pairs = zip(source.frames(1, "front"), source.frames(2, "wrist"), strict=False)
    for step, (front, wrist) in enumerate(pairs):
        assert abs(int(front[0, 0, 0]) - (40 + 5 * step)) <= 1
        assert wrist[0, 0, 0] == 80 + 5 * step


@needs_fixtures
def test_identity_map_on_the_fixture_keeps_every_value() -> None:
    source = LeRobotSource(FIXTURES / "lerobot_v30")
    names = tuple(source.info.columns)
    mapped = MappedSource(
        source,
        FieldMap(
            (Part("action"),),
            state=(Part("observation.state"),),
            cameras={"front": "front", "wrist": "wrist"},
            reward="next.reward",
            end_at_success=False,
            keep=names,
        ),
    )
    words = settle([mapped.evidence(source.recording(i)) for i in range(3)], assume=None)
    for index, (word, outcome) in enumerate(words):
        recording = source.recording(index)
        episode = mapped.episode(recording, word)
        assert outcome == "success" and set(names) <= episode.columns.keys()
        for name in names:
            assert episode.columns[name].dtype == recording.columns[name].dtype
            assert episode.columns[name].tobytes() == recording.columns[name].tobytes()


# Variants


@versions
def test_columns_of_every_kind_keep_dtype_and_value(tmp_path: Path, version: str) -> None:
    rng = np.random.default_rng(1)
    recorded = Recorded()
    rows = recorded.rows
    wide = rng.normal(size=(rows, 3))
    wide[2, 1] = np.nan
    deep = rng.normal(size=(rows, 2, 3)).astype(np.float32)
    counts = rng.integers(-(2**62), 2**62, rows)
    tiny = rng.integers(0, 256, (rows, 2)).astype(np.uint8)
    flags = rng.random(rows) > 0.5
    recorded.add("wide", "float64", [3], pa.array(wide.tolist()), names=["a", "b", "c"])
    recorded.add("observation.force", "float32", [2, 3], pa.array(deep.tolist()))
    recorded.add("count", "int64", [1], pa.array(counts), names=["n"])
    recorded.add("tiny", "uint8", [2], pa.array(tiny.tolist()), names=None)
    recorded.add("intervention", "bool", [1], pa.array(flags))
    recorded.add("half", "float16", [], pa.array(wide[:, 0].astype(np.float16)))
    recorded.add("annotation.human.action", "string", [1], pa.array([f"ö{i}" for i in range(rows)]))
    source = LeRobotSource(recorded.write(tmp_path / "set", version))
    assert source.info.columns == {
        "action": Column("float32", (2,), ("x", "y")),
        "wide": Column("float64", (3,), ("a", "b", "c")),
        "observation.force": Column("float32", (2, 3)),
        "count": Column("int64"),
        "tiny": Column("uint8", (2,)),
        "intervention": Column("bool"),
        "half": Column("float16"),
        "annotation.human.action": Column("string"),
        "timestamp": Column("float32"),
    }
    whole: dict[str, list[np.ndarray]] = {}
    for index, length in enumerate(LENGTHS):
        recording = source.recording(index)
        assert len(recording) == length and recording.evidence == Evidence("none", None)
        for name, column in recording.columns.items():
            whole.setdefault(name, []).append(column)
    found = {name: np.concatenate(parts) for name, parts in whole.items()}
    assert found["wide"].tobytes() == wide.tobytes()
    assert found["observation.force"].tobytes() == deep.astype(np.float32).tobytes()
    assert found["count"].tobytes() == counts.tobytes()
    assert found["tiny"].tobytes() == tiny.tobytes()
    assert found["intervention"].tobytes() == flags.tobytes()
    assert found["half"].tobytes() == wide[:, 0].astype(np.float16).tobytes()
    assert found["annotation.human.action"].tolist() == [f"ö{i}" for i in range(rows)]
    np.testing.assert_array_equal(found["timestamp"][:4], np.float32([0, 0.1, 0.2, 0]))


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_text_in_the_types_that_pandas_writes(tmp_path: Path, kind: pa.DataType) -> None:
    recorded = Recorded()
    recorded.add("note", "string", [1], pa.array(list("abcdefghi")).cast(kind))
    source = LeRobotSource(recorded.write(tmp_path / "set", "v3.0"))
    assert source.recording(1).columns["note"].tolist() == list("defg")


@pytest.mark.parametrize(
    ("dtype", "stored", "expected"),
    [
        ("float32", pa.array([0.1] * 9, pa.float64()), np.float32(0.1)),
        ("float32", pa.array([3] * 9, pa.int64()), 3),
        ("bool", pa.array([1] * 9, pa.int64()), True),
        ("bool", pa.array([0.0] * 9), False),
        ("int64", pa.array([5.0] * 9), 5),
        ("int32", pa.array([7] * 9, pa.int64()), 7),
    ],
)
def test_numbers_come_in_the_dtype_that_info_tells(
    tmp_path: Path, dtype: str, stored: pa.Array, expected: Any
) -> None:
    recorded = Recorded()
    recorded.add("x", dtype, [1], stored)
    column = LeRobotSource(recorded.write(tmp_path / "set", "v3.0")).recording(0).columns["x"]
    assert column.dtype == dtype and column.tolist() == [expected] * 3


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        ("int64", pa.array([0.5] * 9)),
        ("int64", pa.array([np.nan] * 9)),
        ("int8", pa.array([300] * 9)),
        ("bool", pa.array([2] * 9)),
        ("uint8", pa.array([-1] * 9)),
        ("float32", pa.array(["a"] * 9)),
        ("float32", pa.array([0] * 9, pa.timestamp("s"))),
        ("string", pa.array([1] * 9)),
        ("string", pa.array(["a"] * 8 + [None])),
        ("float32", pa.array([1.0] * 8 + [None])),
        ("float32", pa.array([[1.0, 2.0]] * 9)),
        ("float32", pa.array([{"a": 1.0}] * 9)),
        ("float32", pa.array([[{"a": 1.0}]] * 9)),
        ("float32", pa.array([{"a": 1.0}] * 9, pa.map_(pa.string(), pa.float64()))),
        ("float32", pa.array([b"1234"] * 9)),
        ("float32", pa.array([None] * 9)),
    ],
)
def test_numbers_that_do_not_fit_what_info_tells(
    tmp_path: Path, dtype: str, stored: pa.Array
) -> None:
    recorded = Recorded()
    recorded.add("x", dtype, [1], stored)
    source = LeRobotSource(recorded.write(tmp_path / "set", "v3.0"))
    with pytest.raises(ValueError, match=r"expected .* 'x' in episode 2 of .*file-000") as caught:
        source.recording(2)
    assert "\n" not in str(caught.value)


@versions
def test_cameras_of_several_shapes_and_storages(tmp_path: Path, version: str) -> None:
    recorded = Recorded()
    recorded.add_images("observation.images.hwc", [4, 6, 3], names=["height", "width", "channel"])
    recorded.add_images("observation.images.chw", [3, 4, 6], names=["channels", "height", "width"])
    recorded.add_images("observation.image", [3, 4, 6])
    recorded.add("observation.images.depth", "video", [4, 6, 1], None)
    recorded.features["observation.images.depth"]["info"] = {"video.is_depth_map": True}
    recorded.add_images("observation.images.far", [4, 6, 1])
    recorded.features["observation.images.far"]["info"] = {"is_depth_map": True}
    recorded.add("language_persistent", "language", [1], pa.array([[{"role": "user"}]] * 9))
    source = LeRobotSource(recorded.write(tmp_path / "set", version))
    camera = Camera(4, 6, "image")
    assert source.info.cameras == {"hwc": camera, "chw": camera, "image": camera}
    assert source.info.notes == tuple(
        f"{key} is neither number, text nor colour image: left out"
        for key in (
            *("observation.images.depth", "observation.images.far"),
            "language_persistent",
        )
    )
    assert "language_persistent" not in source.recording(0).columns
    for name in source.info.cameras:
        assert [greys(source, index, name) for index in range(3)] == [
            [0, 1, 2],
            [3, 4, 5, 6],
            [7, 8],
        ]
        assert next(source.frames(0, name)).shape == (4, 6, 3)
        stored = source.encoded_frames(2, name)
        assert stored is not None and [content for _, content in stored] == [png(7), png(8)]


@versions
def test_missing_names_splits_and_robot(tmp_path: Path, version: str) -> None:
    recorded = Recorded()
    recorded.features["action"]["names"] = None
    recorded.more = {
        "robot_type": None,
        "splits": {"train": "0:2", "val": "2:3", "far": "2:9", "x": "a:b", "y": 3, "z": "1:0"},
    }
    recorded.more["splits"] |= {"long": f"0:{'9' * 5000}", "none": None}
    source = LeRobotSource(recorded.write(tmp_path / "set", version))
    assert source.info.columns["action"] == Column("float32", (2,))
    assert source.info.robot_type is None
    assert source.info.splits == {"train": (0, 1), "val": (2,)}
    edit_info(tmp_path / "set", lambda info: info.update(splits=[], robot_type={"a": 1}))
    info = LeRobotSource(tmp_path / "set").info
    assert info.splits == {} and info.robot_type is None


@versions
def test_names_in_groups_and_of_the_wrong_number(tmp_path: Path, version: str) -> None:
    recorded = Recorded()
    recorded.features["action"]["names"] = {"motors": ["elbow", "wrist"]}
    recorded.add("b", "float32", [2], pa.array([[1.0, 2]] * 9), names=["only"])
    columns = LeRobotSource(recorded.write(tmp_path / "set", version)).info.columns
    assert columns["action"].names == ("elbow", "wrist")
    assert columns["b"] == Column("float32", (2,), ("b_0", "b_1"))


@pytest.mark.parametrize("task_column", ["task", "__index_level_0__"])
def test_both_spellings_of_the_task_column(tmp_path: Path, task_column: str) -> None:
    path = Recorded().write(tmp_path / "set", "v3.0", task_column=task_column)
    source = LeRobotSource(path)
    assert source.info.tasks == ("pick", "place")
    assert [source.recording(index).instruction for index in range(3)] == ["pick", "place", "pick"]


@versions
def test_tasks_in_any_order(tmp_path: Path, version: str) -> None:
    path = Recorded().write(tmp_path / "set", version)
    if version == "v3.0":
        edit_table(path / "meta/tasks.parquet", lambda table: table.take([1, 0]))
    else:
        lines = (path / "meta/tasks.jsonl").read_text().splitlines()
        (path / "meta/tasks.jsonl").write_text("\n".join([lines[1], "", lines[0]]))
    source = LeRobotSource(path)
    assert source.info.tasks == ("pick", "place")
    assert source.recording(1).instruction == "place"


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_row_groups_need_not_follow_episodes(tmp_path: Path, size: int) -> None:
    recorded = Recorded()
    recorded.add_images("observation.images.a", [4, 6, 3])
    path = recorded.write(tmp_path / "set", "v3.0")
    before = all_of(path)
    pq.write_table(pq.read_table(path / DATA), path / DATA, row_group_size=size)
    assert pq.ParquetFile(path / DATA).num_row_groups == -(-9 // size)
    assert all_of(path) == before


@versions
def test_files_that_were_let_go_of_are_opened_again(tmp_path: Path, version: str) -> None:
    recorded = Recorded()
    recorded.add_images("observation.images.a", [4, 6, 3])
    source = LeRobotSource(recorded.write(tmp_path / "set", version))
    before = source.recording(1).columns["action"], list(source.frames(1, "a"))
    source.close()
    assert (source.recording(1).columns["action"] == before[0]).all()
    np.testing.assert_array_equal(list(source.frames(1, "a")), before[1])


@versions
def test_a_name_that_no_table_could_show_is_refused(tmp_path: Path, version: str) -> None:
    path = Recorded().write(tmp_path / "set", version)

    def rename(info: dict[str, Any]) -> None:
        info["features"]["x" * 5000] = info["features"].pop("action")

    edit_info(path, rename)
    with pytest.raises(ValueError, match="one of 5000 came, which begins with 'xxxx") as refused:
        LeRobotSource(path)
    assert len(str(refused.value)) < 200


@versions
def test_what_an_interrupted_append_left_is_ignored(tmp_path: Path, version: str) -> None:
    recorded = Recorded((3, 4, 2, 5))
    path = recorded.write(tmp_path / "set", version)
    edit_info(path, lambda info: info.update(total_episodes=3, total_frames=9))
    late = {"episode_000003.parquet", "file-001.parquet"}
    if version == "v3.0":
        # The fourth episode stands in a shard of its own, whose data file never came.
        table = pq.read_table(path / EPISODES)
        pq.write_table(table.slice(0, 3), path / EPISODES)
        fourth = table.slice(3, 1).set_column(3, "data/file_index", pa.array([1]))
        pq.write_table(fourth, path / EPISODES.replace("000.p", "001.p"))
    else:
        (path / "data/chunk-000/episode_000003.parquet").unlink()
    source = LeRobotSource(path)
    assert len(source) == 3 and len(source.recording(2)) == 2
    assert not [file for file in source.files() if file.name in late]
    with pytest.raises(IndexError, match=r"episode 3 asked for, but .* has 3"):
        source.recording(3)


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_lines_of_episodes_in_any_order(tmp_path: Path, version: str) -> None:
    path = Recorded().write(tmp_path / "set", version)
    before = all_of(path)
    lines = (path / "meta/episodes.jsonl").read_text().splitlines()
    (path / "meta/episodes.jsonl").write_text("\n\n".join(reversed(lines)))
    assert all_of(path) == before


def test_small_chunks_of_v2(tmp_path: Path) -> None:
    """Two episodes per chunk: the third lies in chunk 1."""
    recorded = Recorded()
    recorded.more = {"chunks_size": 2}
    path = recorded.write(tmp_path / "set", "v2.1")
    assert (path / "data/chunk-001/episode_000002.parquet").is_file()
    assert [len(LeRobotSource(path).recording(index)) for index in range(3)] == list(LENGTHS)


def test_gr00t_columns(tmp_path: Path) -> None:
    """A v2 set with `modality.json`, annotations and rewards beside it."""
    recorded = Recorded()
    recorded.add("annotation.human.validity", "int64", [1], pa.array([0] * 9))
    recorded.add("next.reward", "float64", [1], pa.array([0.0] * 2 + [1.0] + [0.0] * 6))
    recorded.add("next.done", "bool", [1], pa.array([False, False, True] * 3))
    path = recorded.write(tmp_path / "set", "v2.0")
    (path / "meta/modality.json").write_text("{}")
    source = LeRobotSource(path)
    assert source.info.columns["annotation.human.validity"] == Column("int64")
    assert source.info.columns["next.reward"] == Column("float64")
    evidences = [source.recording(index).evidence for index in range(3)]
    assert evidences == [
        Evidence("next.reward", True, 2),
        Evidence("next.reward", False),
        Evidence("next.reward", False),
    ]
    assert judge(evidences) == ("success", "failure", "failure")


def test_evidence_in_flags_rewards_or_nothing(tmp_path: Path) -> None:
    def evidences(name: str, **columns: list[Any]) -> list[Evidence]:
        recorded = Recorded()
        for key, values in columns.items():
            dtype = "bool" if isinstance(values[0], bool) else "float32"
            recorded.add(
                key.replace("_", ".", 1) if key.startswith("next") else key,
                dtype,
                [1],
                pa.array(values),
            )
        source = LeRobotSource(recorded.write(tmp_path / name, "v3.0"))
        return [source.recording(index).evidence for index in range(3)]

    flags = [False, True, False] + [False] * 6
    assert evidences("a", next_success=flags, is_success=[True] * 9, next_reward=[0.0] * 9) == [
        Evidence("next.success", True, 1),
        Evidence("next.success", False),
        Evidence("next.success", False),
    ]
    assert evidences("b", is_success=[True] * 9, next_reward=[0.0] * 9)[1] == Evidence(
        "is_success", True, 0
    )
    dense = [0.0] * 3 + [0.5] * 6
    assert judge(evidences("c", next_reward=dense)) == ("unknown",) * 3
    placeholder = evidences("d", next_success=[False] * 9)
    assert judge(placeholder) == ("unknown",) * 3
    assert evidences("e", next_done=[True] * 9) == [Evidence("none", None)] * 3


# Sets that our own writer makes


def grey_episode(first: int, steps: int, *, cameras: dict[str, Camera], task: str) -> Episode:
    rewards = np.zeros(steps, np.float32)
    rewards[-1] = 1
    frames = {
        name: np.broadcast_to(
            (first + 10 * np.arange(steps, dtype=np.uint8))[:, None, None, None],
            (steps, camera.height, camera.width, 3),
        )
        for name, camera in cameras.items()
    }
    return Episode(
        states=np.full((steps, 1), first, np.float32),
        actions=np.arange(steps, dtype=np.float32)[:, None] + first,
        rewards=rewards,
        successes=rewards > 0,
        terminated=True,
        truncated=False,
        instruction=task,
        images=frames,
        environment_states=np.zeros((steps, 0), np.float32),
        demonstrator=f"person {first}",
    )


CAMERAS = {"left": Camera(64, 64), "right": Camera(64, 96), "wrist": Camera(4, 6, "image")}


@pytest.mark.parametrize("way", ["small files", "appends"])
def test_several_shards_and_cameras(tmp_path: Path, way: str) -> None:
    path = tmp_path / "set"
    info = DatasetInfo(fps=10, action_names=("a",), state_names=("s",), cameras=CAMERAS)
    episodes = [
        grey_episode(20 * index, 3 + index % 2, cameras=CAMERAS, task="ab"[index % 2])
        for index in range(4)
    ]
    if way == "small files":
        with DatasetWriter(path, info=info, data_file_size_mb=0, video_file_size_mb=0) as writer:
            for episode in episodes:
                writer.add_episode(episode)
    else:
        for append, two in ((False, episodes[:2]), (True, episodes[2:])):
            with DatasetWriter(path, info=info, append=append) as writer:
                for episode in two:
                    writer.add_episode(episode)
    files = 4 if way == "small files" else 2
    for pattern in (
        *("data/chunk-*/*.parquet", "videos/observation.images.left/*/*.mp4"),
        "videos/observation.images.right/*/*.mp4",
    ):
        assert len(list(path.glob(pattern))) == files
    source = LeRobotSource(path)
    assert source.info.cameras == CAMERAS and source.info.tasks == ("a", "b")
    for index in (3, 0, 2, 1):
        recording, written = source.recording(index), episodes[index]
        assert recording.instruction == written.instruction
        assert recording.demonstrator == f"person {20 * index}"
        for name, values in (("action", written.actions), ("observation.state", written.states)):
            # A vector of one entry is stored as a single number.
            np.testing.assert_array_equal(recording.columns[name], values[:, 0])
        for name, camera in CAMERAS.items():
            frames = np.stack(list(source.frames(index, name)))
            assert frames.shape == (len(written), camera.height, camera.width, 3)
            assert np.abs(frames.astype(int) - written.images[name]).max() <= 2
        np.testing.assert_array_equal(list(source.frames(index, "wrist")), written.images["wrist"])
    assert len([file for file in source.files() if file.suffix == ".mp4"]) == 2 * files


def test_outcomes_that_our_writer_recorded(tmp_path: Path) -> None:
    path = Recorded().write(tmp_path / "set", "v3.0")
    edit_table(
        path / EPISODES,
        lambda table: table.append_column(
            "outcome", pa.array(["success", "failure", "unknown"])
        ).append_column("outcome_source", pa.array(["label", "file path", None])),
    )
    source = LeRobotSource(path)
    assert [source.recording(index).evidence for index in range(3)] == [
        Evidence("label", True, None, certain=True),
        Evidence("file path", False, None, certain=True),
        Evidence("none", None, None, certain=True),
    ]
    # What others call an outcome is theirs.
    set_column(path / EPISODES, "outcome", ["success", "failure", "so so"])
    assert LeRobotSource(path).recording(0).evidence == Evidence("none", None)
    set_column(path / EPISODES, "outcome", [1, 2, 3])
    assert LeRobotSource(path).recording(0).evidence == Evidence("none", None)
    set_column(path / EPISODES, "outcome", [["a"], [], ["b"]])
    with pytest.raises(
        ValueError, match=r"expected text in the column 'outcome' of .*meta/episodes"
    ):
        LeRobotSource(path)


# Large sets


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_ten_thousand_episodes_open_at_once(
    tmp_path: Path, version: str, record_property: Callable[[str, object], None]
) -> None:
    count = 10_000
    recorded = Recorded((1,) * count)
    path = tmp_path / "set"
    if version == "v3.0":
        recorded.write(path, version)
    else:
        Recorded((1,)).write(path, version)
        (path / "meta/info.json").write_text(json.dumps(recorded.info(version)))
        first = path / "data/chunk-000/episode_000000.parquet"
        for episode in range(1, count):
            file = path / f"data/chunk-{episode // 1000:03d}/episode_{episode:06d}.parquet"
            file.parent.mkdir(exist_ok=True)
            os.link(first, file)
        lines = [{"episode_index": e, "tasks": ["pick"], "length": 1} for e in range(count)]
        write_lines(path / "meta/episodes.jsonl", lines)
        write_lines(path / "meta/tasks.jsonl", [{"task_index": 0, "task": "pick"}])
    began_s = time.monotonic()
    source = LeRobotSource(path)
    taken_s = time.monotonic() - began_s
    record_property("open_s", taken_s)
    assert len(source) == count and taken_s < 10
    assert len(source.recording(0 if version == "v2.1" else count - 1)) == 1


# Damaged and hostile sets


def test_matches_by_content(tmp_path: Path) -> None:
    path = Recorded().write(tmp_path / "set", "v2.1")
    assert matches(path) and not matches(tmp_path) and not matches(path / "meta/info.json")
    assert not matches(tmp_path / "nowhere")


def test_unknown_episodes_and_cameras(tmp_path: Path) -> None:
    recorded = Recorded()
    recorded.add_images("observation.images.a", [4, 6, 3])
    source = LeRobotSource(recorded.write(tmp_path / "set", "v3.0"))
    for index in (-1, 3):
        for ask in (source.recording, lambda i: source.frames(i, "a")):
            with pytest.raises(IndexError, match=f"episode {index} asked for, but .* has 3"):
                ask(index)
        with pytest.raises(IndexError):
            source.encoded_frames(index, "a")
    for read in (source.frames, source.encoded_frames):
        with pytest.raises(ValueError, match=r"camera 'b' asked for, but .* has a; choose"):
            read(0, "b")


def info_with(**changes: Any) -> Callable[[Path], None]:
    return lambda path: edit_info(path, lambda info: info.update(changes))


def feature_with(**changes: Any) -> Callable[[Path], None]:
    return lambda path: edit_info(path, lambda info: info["features"]["action"].update(changes))


DAMAGE: list[tuple[str, Callable[[Path], object], str]] = [
    ("both", lambda path: shutil.rmtree(path), "no such folder; mend the path"),
    ("both", lambda path: (path / "meta/info.json").unlink(), "has no meta/info.json"),
    ("both", lambda path: (path / "meta/info.json").write_text("{"), "is not JSON"),
    ("both", lambda path: (path / "meta/info.json").write_bytes(b"\xff"), "is not JSON"),
    ("both", lambda path: (path / "meta/info.json").write_text("[" * 10**5), "is not JSON"),
    ("both", lambda path: (path / "meta/info.json").write_text("[]"), "but none came"),
    ("both", info_with(codebase_version="v1.6"), "v2.0, v2.1 or v3.0 .* but v1.6 came"),
    ("both", info_with(codebase_version="v2.2"), "but v2.2 came"),
    ("both", info_with(codebase_version="a\nb" * 100), r"but a\\nba\\nb.* came; convert"),
    ("both", info_with(fps=0), "expected fps above 0 in .* but 0 came"),
    ("both", info_with(fps=-10), "expected fps above 0"),
    ("both", info_with(fps=float("nan")), "expected fps above 0"),
    ("both", info_with(fps=float("inf")), "expected fps above 0"),
    ("both", info_with(fps=10**400), "expected fps above 0"),
    ("both", info_with(fps="10"), "'fps' in .* cannot be '10'"),
    ("both", info_with(fps=True), "'fps' in .* cannot be True"),
    ("both", info_with(features=[]), r"'features' in .* cannot be \[\]"),
    ("both", info_with(features={"a": 1}), "feature 'a' .* should have a dtype and a shape"),
    ("both", info_with(total_episodes=0), "at least one, but 0 came"),
    ("both", info_with(total_episodes=-1), "at least one, but 0 came"),
    ("both", info_with(total_episodes=4), "the 4 episodes that info.json counts .* but 3 came"),
    ("both", info_with(total_episodes=10**30), "the 10{30} episodes .* but 3 came"),
    ("both", feature_with(shape=[0]), "feature 'action' .* whole numbers above 0, but"),
    ("both", feature_with(shape=[-2]), "feature 'action' .* whole numbers above 0"),
    ("both", feature_with(shape=[2.0]), "feature 'action' .* whole numbers above 0"),
    ("both", feature_with(shape="2"), "feature 'action' .* whole numbers above 0"),
    ("both", feature_with(shape=[10**9, 10**9]), "feature 'action' .* whole numbers above 0"),
    ("both", feature_with(shape=[1] * 9), "feature 'action' .* whole numbers above 0"),
    ("both", feature_with(dtype=3), "feature 'action' .* should have a dtype"),
    ("both", feature_with(shape=[3]), "expected 3 numbers in each of the 3 rows of 'action'"),
    ("both", feature_with(dtype="image"), "info.json: .* should be height x width x channels"),
    ("both", feature_with(dtype="image", shape=[4, 6, 3]), "expected image bytes for camera"),
    ("both", feature_with(dtype="video", shape=[4, 6, 3]), "expected 'video_path' in"),
    ("both", info_with(data_path="../{episode_index}"), "cannot be filled in|leads out"),
    ("both", info_with(data_path="/etc/passwd"), "the path '/etc/passwd' .* leads out of the data"),
    ("both", info_with(data_path="data/../../x"), "leads out of the data set"),
    ("both", info_with(data_path="{nothing}"), "the path '{nothing}' .* cannot be filled in"),
    ("both", info_with(data_path="{"), "cannot be filled in"),
    ("both", info_with(data_path="{}"), "cannot be filled in"),
    ("both", info_with(data_path="{0}"), "cannot be filled in"),
    ("both", info_with(data_path="a\0b"), "none that a file can have"),
    ("both", info_with(data_path="a\ud800"), "none that a file can have"),
    ("both", info_with(data_path="x" * 300), "none that a file can have"),
    ("both", info_with(data_path="nowhere"), "expected the file nowhere of the data set"),
    ("both", info_with(data_path=""), "expected the file . of the data set"),
    ("v3.0", info_with(data_path="{chunk_index.real}"), "cannot be filled in"),
    ("v3.0", info_with(data_path="{chunk_index.__class__}"), "cannot be filled in"),
    ("v3.0", info_with(data_path="{chunk_index!r}"), "cannot be filled in"),
    ("v3.0", info_with(data_path="{chunk_index:0999999999d}"), "cannot be filled in"),
    ("v3.0", info_with(data_path="{chunk_index:{file_index}}"), "cannot be filled in|is missing"),
    ("v2.1", info_with(data_path="{episode_index.real}"), "cannot be filled in"),
    ("v2.1", info_with(data_path="{episode_index[0]}"), "cannot be filled in"),
    ("v2.1", info_with(chunks_size=0), "'chunks_size' in .* cannot be 0"),
    ("v2.1", info_with(chunks_size="1"), "'chunks_size' in .* cannot be '1'"),
    (
        "v2.1",
        lambda path: (path / "meta/episodes.jsonl").unlink(),
        "expected the file .*episodes.jsonl, but it is missing",
    ),
    (
        "v2.1",
        lambda path: (path / "meta/tasks.jsonl").write_text('{"task_index": 0}'),
        r"tasks.jsonl is damaged \(line 1 has no 'task'\)",
    ),
    (
        "v2.1",
        lambda path: (path / "meta/tasks.jsonl").write_text('{"task_index": 1, "task": "a"}'),
        "number its tasks from 0 without gaps",
    ),
    (
        "v2.1",
        lambda path: (path / "meta/episodes.jsonl").write_text("[" * 10**5),
        "episodes.jsonl is damaged",
    ),
    (
        "v2.1",
        lambda path: write_lines(
            path / "meta/episodes.jsonl", [{"episode_index": 0, "length": 3}] * 3
        ),
        "numbered from 0 on without gaps",
    ),
    *(
        (
            "v2.1",
            lambda path, length=length: write_lines(
                path / "meta/episodes.jsonl",
                [{"episode_index": e, "length": length} for e in range(3)],
            ),
            message,
        )
        for length, message in (
            (0, "a length above 0"),
            (-3, "a length above 0"),
            (10**30, "a length above 0"),
            (1 << 50, "a length above 0"),
            (1 << 39, "expected 549755813888 rows in"),
            (9, "expected 9 rows in .* but it has 3"),
            (2.5, "line 1 has no 'length'"),
        )
    ),
    (
        "v2.1",
        lambda path: (path / "data/chunk-000/episode_000001.parquet").unlink(),
        "expected the file data/chunk-000/episode_000001.parquet of .* is missing",
    ),
    (
        "v2.1",
        lambda path: shutil.copy(
            path / "data/chunk-000/episode_000000.parquet",
            path / "data/chunk-000/episode_000001.parquet",
        ),
        "expected 4 rows in .*episode_000001.parquet, but it has 3",
    ),
    (
        "v2.1",
        lambda path: edit_table(
            path / "data/chunk-000/episode_000000.parquet",
            lambda table: pq.read_table(path / "data/chunk-000/episode_000001.parquet"),
        ),
        "expected episode 0 where meta/ says it lies in .* rows of another came",
    ),
    ("v3.0", lambda path: (path / DATA).unlink(), "expected the file data/.* is missing"),
    ("v3.0", lambda path: shutil.rmtree(path / "meta/episodes"), "the 3 episodes .* but 0 came"),
    ("v3.0", lambda path: (path / EPISODES).write_bytes(b""), "expected a complete parquet file"),
    ("v3.0", lambda path: (path / DATA).write_bytes(b"PAR1" * 9), "expected a complete parquet"),
    ("v3.0", lambda path: (path / "meta/tasks.parquet").unlink(), "expected a parquet file at"),
    (
        "v3.0",
        lambda path: edit_table(path / DATA, lambda table: table.take([0, 1, 3, 2, *range(4, 9)])),
        "expected episode 0 where meta/ says it lies in .* rows of another came",
    ),
    (
        "v3.0",
        lambda path: edit_table(path / DATA, lambda table: table.slice(0, 8)),
        "expected 9 rows in .* but it has 8",
    ),
    (
        "v3.0",
        lambda path: edit_table(path / DATA, lambda table: table.drop_columns(["task_index"])),
        "expected a column 'task_index' in",
    ),
    *(
        ("v3.0", lambda path, values=values: set_column(path / DATA, "task_index", values), message)
        for values, message in (
            ([2] * 9, "expected task_index below 2"),
            ([-1] * 9, "expected task_index below 2"),
            ([0.5] * 9, "expected numbers of int64 for 'task_index'"),
            ([0] * 2 + [None] * 7, "expected 1 numbers in each of the 3 rows of 'task_index'"),
        )
    ),
    *(
        (
            "v3.0",
            lambda path, name=name, values=values: set_column(path / EPISODES, name, values),
            message,
        )
        for name, values, message in (
            ("episode_index", [0, 1, 1], "numbered from 0 on without gaps"),
            ("episode_index", [-1, 0, 1], "numbered from 0 on without gaps"),
            ("episode_index", ["0", "1", "2"], "do not fit together|expected numbers"),
            ("episode_index", [[0], [1], [2]], "do not fit together|expected numbers"),
            ("episode_index", [0, 1, None], "the 3 episodes .* but 2 came"),
            ("length", [3, 4, 0], "a length above 0"),
            ("length", [3, 4, -2], "a length above 0"),
            ("length", [3.0, 4.0, 2.0], "a length above 0"),
            ("length", [3, 4, None], "expected numbers in the column 'length'"),
            ("length", [3, 4, 3], "expected 10 rows in"),
            ("length", [4, 3, 2], "expected episode 0 where meta/ says"),
            ("data/file_index", [0, 0, 7], "expected the file data/chunk-000/file-007.parquet"),
            ("data/file_index", [0, 0, 0.5], "cannot be filled in"),
            ("data/file_index", ["a", "b", "c"], "expected numbers in the column"),
        )
    ),
]


def test_damage_of_every_version_is_told_in_one_sentence(tmp_path: Path) -> None:
    """One test for all: writing the sets takes longer than reading them."""
    recorded = Recorded()
    sound = {version: recorded.write(tmp_path / version, version) for version in ("v2.1", "v3.0")}
    for version, path in sound.items():
        assert len(all_of(path)) == 1 + 3 + 3 * 2, version
    for number, (where, damage, message) in enumerate(DAMAGE):
        for version in sound if where == "both" else (where,):
            path = tmp_path / f"{version}-{number}"
            shutil.copytree(sound[version], path)
            damage(path)
            with pytest.raises(ValueError, match=message) as caught:
                all_of(path)
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500


def video_set(path: Path) -> Path:
    info = DatasetInfo(
        fps=10, action_names=("a",), state_names=("s",), cameras={"c": Camera(64, 64)}
    )
    with DatasetWriter(path, info=info) as writer:
        for first in (0, 100):
            writer.add_episode(grey_episode(first, 3, cameras=dict(info.cameras), task="a"))
    return path


@pytest.mark.parametrize(
    ("times_s", "message"),
    [
        ([0.0, np.nan], "expected times in seconds in the column 'videos/.*/from_timestamp'"),
        ([0.0, np.inf], "expected times in seconds"),
        ([0.0, -1.0], "expected times in seconds"),
        ([0.0, 1e300], "expected times in seconds"),
        ([0.0, 50.0], "has no frame at 50.000 s"),
        ([0.0, None], "expected numbers in the column 'videos/"),
    ],
)
def test_times_in_videos(tmp_path: Path, times_s: list[Any], message: str) -> None:
    path = video_set(tmp_path / "set")
    set_column(path / EPISODES, "videos/observation.images.c/from_timestamp", times_s)
    with pytest.raises(ValueError, match=message) as caught:
        all_of(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "template", ["{video_key.__class__}", "../{video_key}", "{video_key:>9999999}", "/{video_key}"]
)
def test_video_paths_stay_in_the_folder(tmp_path: Path, template: str) -> None:
    path = video_set(tmp_path / "set")
    edit_info(path, lambda info: info.update(video_path=template))
    with pytest.raises(ValueError, match=r"cannot be filled in|leads out of the data set"):
        LeRobotSource(path)


def test_a_video_key_cannot_climb_out(tmp_path: Path) -> None:
    path = video_set(tmp_path / "set")

    def edit(info: dict[str, Any]) -> None:
        info["features"]["../../x"] = info["features"].pop("observation.images.c")

    edit_info(path, edit)
    edit_table(
        path / EPISODES,
        lambda table: table.rename_columns(
            [name.replace("observation.images.c", "../../x") for name in table.column_names]
        ),
    )
    with pytest.raises(ValueError, match="leads out of the data set"):
        LeRobotSource(path)


@pytest.mark.parametrize("dtype", ["complex64", "object", "datetime64", "(2,3)f4", "U5", "\ud800"])
def test_dtypes_that_are_no_numbers_are_left_out(tmp_path: Path, dtype: str) -> None:
    recorded = Recorded()
    recorded.add("odd", dtype, [1], pa.array([0] * 9))
    source = LeRobotSource(recorded.write(tmp_path / "set", "v3.0"))
    assert source.info.notes == ("odd is neither number, text nor colour image: left out",)
    assert set(source.recording(0).columns) == {"action", "timestamp"}


def _tampered(content: bytes, rng: np.random.Generator) -> bytes:
    way = rng.integers(4)
    if way == 0:
        return content[: rng.integers(len(content))]
    changed = bytearray(content)
    if way == 1:
        at, size = rng.integers(len(content)), rng.integers(1, 9)
        changed[at : at + size] = rng.bytes(rng.integers(0, 9))
        return bytes(changed)
    # In parquet what tells of the rest stands at the end.
    last = len(content) if way == 2 else min(len(content), 400)
    for _ in range(rng.integers(1, 4)):
        changed[len(content) - 1 - rng.integers(last)] ^= 1 << rng.integers(8)
    return bytes(changed)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_damaged_bytes_end_in_one_sentence_or_in_sound_data(tmp_path: Path, version: str) -> None:
    """Parquet has no check sums here: values may change, but never their kind or number."""
    recorded = Recorded()
    recorded.add_images("observation.images.a", [4, 6, 3])
    recorded.add("note", "string", [1], pa.array(list("abcdefghi")))
    path = recorded.write(tmp_path / "set", version)
    source = LeRobotSource(path)
    expected = {index: source.recording(index).columns for index in range(3)}
    rng = np.random.default_rng(0)
    refused = 0
    for file in source.files():
        content = file.read_bytes()
        for _ in range(40):
            file.write_bytes(_tampered(content, rng))
            try:
                damaged = LeRobotSource(path)
                for index in range(min(len(damaged), 3)):
                    recording = damaged.recording(index)
                    for name, column in recording.columns.items():
                        told = damaged.info.columns[name]
                        assert column.shape == (len(recording), *told.shape)
                        assert column.dtype == (object if told.dtype == "string" else told.dtype)
                    if recording.columns.keys() == expected[index].keys():
                        assert len(recording) == LENGTHS[index]
                    for camera in damaged.info.cameras:
                        assert len(list(damaged.frames(index, camera))) == len(recording)
            except ValueError as error:
                refused += 1
                assert "\n" not in str(error), repr(error)
                assert "; " in str(error), repr(error)
        file.write_bytes(content)
    assert refused > 40
    assert len(all_of(path)) == 1 + 3 * (1 + 3) + 9
