"""Demonstrations into a data set: what is kept, the same bytes whatever happens on the way."""

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robot_qsft.datasets.features import Camera
from robot_qsft.datasets.field_map import FieldMap, Part
from robot_qsft.datasets.formats.detect import open_source
from robot_qsft.datasets.formats.lerobot import LeRobotSource
from robot_qsft.datasets.ingest import IngestConfig, ingest
from robot_qsft.datasets.labels import Label, Labels, labels_path, now_utc
from robot_qsft.datasets.mapped import MappedSource
from robot_qsft.datasets.outcomes import infer_outcomes
from robot_qsft.datasets.store import Dataset
from robot_qsft.datasets.suggest_map import suggest

FIXTURES = Path(__file__).parent.parent.parent / "shared" / "fixtures"
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason="no shared fixtures here")
DATA = "data/chunk-000/file-000.parquet"

WriteDataset = Callable[..., Path]
ONE = IngestConfig(workers=1)


def mapped(path: Path) -> MappedSource:
    source = open_source(path)
    return MappedSource(source, suggest(source))


def digest(folder: Path) -> str:
    """Names and bytes of all files."""
    total = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            total.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return total.hexdigest()


@pytest.fixture(scope="module")
def many(write_dataset: WriteDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 episodes of 40 steps with a small camera: several shards."""
    rng = np.random.default_rng(0)
    return write_dataset(
        tmp_path_factory.mktemp("many") / "set",
        actions=[rng.normal(size=(40, 3)) for _ in range(60)],
        successes=[episode % 3 == 0 for episode in range(60)],
        camera=Camera(64, 64, "video"),
    )


@needs_fixtures
@pytest.mark.parametrize("version", ["lerobot_v30", "lerobot_v21"])
def test_round_trip_keeps_every_column_bit_for_bit(version: str, tmp_path: Path) -> None:
    ingest(mapped(FIXTURES / version), tmp_path / "out", ONE)
    before = LeRobotSource(FIXTURES / version)
    tables = [
        pq.read_table(FIXTURES / version / file) for file in dict.fromkeys(before.index.data_files)
    ]
    old, new = pa.concat_tables(tables), pq.read_table(tmp_path / "out" / DATA)
    for name in old.column_names:
        if name == "observation.images.wrist":  # the paths within are named as v3.0 does
            assert [row["bytes"] for row in old.column(name).to_pylist()] == [
                row["bytes"] for row in new.column(name).to_pylist()
            ]
        else:
            assert new.column(name).type == old.column(name).type, name
            assert new.column(name).to_pylist() == old.column(name).to_pylist(), name
    after = LeRobotSource(tmp_path / "out")
    assert after.info.tasks == before.info.tasks and after.info.cameras == before.info.cameras
    for episode in range(len(before)):
        pairs = zip(before.frames(episode, "front"), after.frames(episode, "front"), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs), "the video is copied, not coded anew"


@needs_fixtures
def test_statistics_are_exact(tmp_path: Path) -> None:
    ingest(mapped(FIXTURES / "lerobot_v30"), tmp_path / "out", ONE)
    stored = json.loads((tmp_path / "out/meta/stats.json").read_text())
    actions = np.array(pq.read_table(tmp_path / "out" / DATA).column("action").to_pylist())
    np.testing.assert_allclose(stored["action"]["q01"], np.quantile(actions, 0.01, axis=0))
    np.testing.assert_allclose(stored["action"]["q99"], np.quantile(actions, 0.99, axis=0))
    np.testing.assert_allclose(stored["action"]["std"], actions.std(axis=0), rtol=1e-6)
    assert stored["observation.images.front"]["count"] == [39]


def test_failures_and_outcomes_are_kept(many: Path, tmp_path: Path) -> None:
    dataset = ingest(mapped(many), tmp_path / "out", ONE)
    tables = dataset.tables()
    assert len(dataset) == 60 and tables.outcomes is not None
    assert tables.outcomes.count("success") == 20 and tables.outcomes.count("failure") == 40
    np.testing.assert_array_equal(tables.actions, Dataset.open(many).tables().actions)
    again = LeRobotSource(tmp_path / "out").recording(1).evidence
    assert again.source == "next.success" and again.success is False and again.certain


def test_files_do_not_depend_on_workers(many: Path, tmp_path: Path) -> None:
    ingest(mapped(many), tmp_path / "one", ONE)
    ingest(mapped(many), tmp_path / "two", IngestConfig(workers=2))
    assert len(list((tmp_path / "one/data").rglob("*.parquet"))) == 5
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


KILLED = """
import os, signal, sys
from pathlib import Path
from robot_qsft.datasets.formats.detect import open_source
from robot_qsft.datasets.ingest import IngestConfig, ingest
from robot_qsft.datasets.mapped import MappedSource
from robot_qsft.datasets.suggest_map import suggest

def kill_halfway(what, done, total):
    if what == "frames" and done > total / 3:
        os.killpg(0, signal.SIGKILL)

if __name__ == "__main__":
    source = open_source(sys.argv[1])
    mapped = MappedSource(source, suggest(source))
    ingest(mapped, Path(sys.argv[2]), IngestConfig(workers=2), progress=kill_halfway)
"""


def test_killed_and_gone_on_with(
    many: Path, tmp_path: Path, process_environment: dict[str, str]
) -> None:
    ingest(mapped(many), tmp_path / "whole", ONE)
    out, script = tmp_path / "out", tmp_path / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(many), str(out)]
    ended = subprocess.run(command, env=process_environment, start_new_session=True)
    assert ended.returncode == -signal.SIGKILL
    assert not (out / "meta/info.json").exists(), "nothing is in place before all is there"
    done = {
        shard: (out / f".writing/data/chunk-000/file-{shard:03d}.parquet").stat().st_mtime_ns
        for shard in (int(file.stem) for file in (out / ".writing/shards").glob("*.json"))
    }
    assert len(done) >= 2
    ingest(mapped(many), out, IngestConfig(workers=2))
    assert digest(out) == digest(tmp_path / "whole")
    for shard, written_ns in done.items():
        assert (out / f"data/chunk-000/file-{shard:03d}.parquet").stat().st_mtime_ns == written_ns


def test_other_settings_begin_anew(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    broken = mapped(many)
    with pytest.raises(ZeroDivisionError):
        ingest(
            broken, out, ONE, progress=lambda what, done, total: 1 // (what != "frames" or not done)
        )
    assert (out / ".writing/shards").is_dir()
    dataset = ingest(mapped(many), out, IngestConfig(workers=1, only=(3, 5), storage="image"))
    assert len(dataset) == 2 and dataset.info.cameras["front"].storage == "image"
    assert not (out / ".writing").exists() and not (out / "videos").exists()


def test_labels_count_more_than_the_source(many: Path, tmp_path: Path) -> None:
    source = LeRobotSource(many)
    labels = {
        0: Label(0, "episode 0", "failure", None, "person", "ada", now_utc()),
        1: Label(1, "episode 1", "success", 20, "person", "ada", now_utc()),
        2: Label(2, "episode 2", "unclear", None, "person", "ada", now_utc()),
    }
    sidecar = tmp_path / "labels.parquet"
    with Labels.edit(sidecar, episodes=60) as edited:
        edited.set(*labels.values())
    one = FieldMap(action=(Part("action"),), state=(Part("observation.state"),))
    dataset = ingest(
        MappedSource(source, one),
        tmp_path / "out",
        ONE,
        labels=Labels.read(sidecar, episodes=60),
    )
    tables = dataset.tables()
    assert tables.outcomes is not None
    assert tables.outcomes[:4] == ("failure", "success", "unknown", "success")
    assert dataset.index.lengths[:3].tolist() == [40, 21, 40]  # ends at the marked success
    assert tables.episode_returns[:4].tolist() == [0, 1, 0, 1]
    assert not labels_path(many).exists(), "the source is never changed"


def test_episodes_are_chosen_by_number(many: Path, tmp_path: Path) -> None:
    config = IngestConfig(workers=1, only=(7, 2, 9), leave_out=(9,))
    dataset = ingest(mapped(many), tmp_path / "out", config)
    whole = Dataset.open(many)
    assert len(dataset) == 2
    np.testing.assert_array_equal(dataset.episode(0).actions, whole.episode(7).actions)
    np.testing.assert_array_equal(dataset.episode(1).actions, whole.episode(2).actions)


@needs_fixtures
def test_a_split_is_taken(tmp_path: Path) -> None:
    source = open_source(FIXTURES / "rlds")
    rlds = MappedSource(source, replace(suggest(source), fps=5.0))
    dataset = ingest(rlds, tmp_path / "out", IngestConfig(workers=1, split="val"))
    assert dataset.index.lengths.tolist() == [5]
    with pytest.raises(ValueError, match=r"split 'test' asked for, .* has train, val; choose"):
        ingest(rlds, tmp_path / "other", IngestConfig(split="test"))


def test_what_is_refused(many: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"episode 60 is named, but .* has 60"):
        ingest(mapped(many), tmp_path / "out", IngestConfig(leave_out=(60,)))
    with pytest.raises(ValueError, match="no episode is left"):
        ingest(mapped(many), tmp_path / "out", IngestConfig(only=(1,), leave_out=(1,)))
    with pytest.raises(ValueError, match=f"a data set at {many} already"):
        ingest(mapped(many), many, ONE)
    assert not (tmp_path / "out").exists()
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "note.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        ingest(mapped(many), occupied, ONE)
    assert (occupied / "note.txt").read_text() == "mine"


def test_a_damaged_video_is_named_and_nothing_is_put_in_place(
    write_dataset: WriteDataset, tmp_path: Path
) -> None:
    path = write_dataset(
        tmp_path / "set",
        actions=[np.zeros((20, 1)), np.ones((20, 1))],
        successes=[True, False],
        camera=Camera(64, 64, "video"),
    )
    source = mapped(path)
    video = next(path.rglob("*.mp4"))
    video.write_bytes(video.read_bytes()[:200])
    with pytest.raises(ValueError, match=f"readable video at {video}"):
        ingest(source, tmp_path / "out", ONE)
    assert not (tmp_path / "out/meta").exists()


def test_full_disk_is_one_sentence_and_gone_on_with(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Stands in for a disk that is full when the second shard is written.
    written = []

    def full(*arguments: object, **options: object) -> None:
        if len(written) == 1:
            raise OSError(28, "No space left on device")
        written.append(arguments)
        write_table(*arguments, **options)

    write_table = pq.write_table
    with monkeypatch.context() as patched:
        patched.setattr(pq, "write_table", full)
        with pytest.raises(OSError, match=r"No space left on device.*it goes on"):
            ingest(mapped(many), tmp_path / "out", ONE)
    assert len(list((tmp_path / "out/.writing/shards").glob("*.json"))) == 1
    assert len(ingest(mapped(many), tmp_path / "out", ONE)) == 60


def test_command_tells_what_it_did(
    many: Path, tmp_path: Path, command_line: Callable[..., tuple[int, str]]
) -> None:
    status, printed = command_line("ingest", many, "--out", tmp_path / "out", "--only", 0, 1)
    assert status == 0
    assert "2 episodes (1 failure, 1 success), 80 frames" in printed
    assert infer_outcomes(Dataset.open(tmp_path / "out").tables()).counts["failure"] == 1


def test_command_refuses_in_one_sentence(
    many: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    assert "nothing is there" in refused("ingest", tmp_path / "none", "--out", tmp_path / "o")
    (tmp_path / "note.txt").write_text("hello")
    assert "no format that is known" in refused(
        "ingest", tmp_path / "note.txt", "--out", tmp_path / "o"
    )
    assert "no such file" in refused(
        "ingest", many, "--out", tmp_path / "o", "--labels", tmp_path / "none.parquet"
    )
