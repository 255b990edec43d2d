"""`robot-qsft edit`: what changes, what stays, and that an old data set is never half gone."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from robot_qsft.datasets.edit import exchange, split_episodes_by_share
from robot_qsft.datasets.features import Camera
from robot_qsft.datasets.formats.lerobot import LeRobotSource
from robot_qsft.datasets.labels import Label, Labels, labels_path, now_utc
from robot_qsft.datasets.store import Dataset

WriteDataset = Callable[..., Path]
CommandLine = Callable[..., tuple[int, str]]
Refused = Callable[..., str]


@pytest.fixture
def path(write_dataset: WriteDataset, tmp_path: Path) -> Path:
    """Six episodes of 4 steps; episode i holds the action i and succeeds if i is even."""
    return write_dataset(
        tmp_path / "set",
        actions=[np.full((4, 2), episode, np.float32) for episode in range(6)],
        successes=[episode % 2 == 0 for episode in range(6)],
        camera=Camera(8, 8, "image"),
    )


def firsts(path: Path) -> list[float]:
    """The action that each episode begins with."""
    dataset = Dataset.open(path)
    return [float(dataset.episode(index).actions[0, 0]) for index in range(len(dataset))]


def test_delete(path: Path, tmp_path: Path, command_line: CommandLine) -> None:
    status, printed = command_line(
        "edit", path, "--out", tmp_path / "out", "delete", "--episodes", 1, 4
    )
    assert status == 0 and "4 episodes (2 failure, 2 success), 16 frames" in printed
    assert firsts(tmp_path / "out") == [0, 2, 3, 5]
    assert firsts(path) == [0, 1, 2, 3, 4, 5], "the old one stays"


def test_split(path: Path, tmp_path: Path, command_line: CommandLine) -> None:
    out = tmp_path / "out"
    arguments = ("split", "--shares", "train", 0.5, "valid", 0.5)
    assert command_line("edit", path, "--out", out, *arguments)[0] == 0
    parts = firsts(out / "train"), firsts(out / "valid")
    assert sorted(parts[0] + parts[1]) == [0, 1, 2, 3, 4, 5] and len(parts[0]) == 3
    assert parts[0] == sorted(parts[0])


def test_merge(path: Path, tmp_path: Path, command_line: CommandLine) -> None:
    part = tmp_path / "part"
    command_line("edit", path, "--out", part, "delete", "--episodes", 0, 1, 2, 3)
    command_line("edit", path, "--out", tmp_path / "out", "merge", "--others", part)
    assert firsts(tmp_path / "out") == [0, 1, 2, 3, 4, 5, 4, 5]
    frames = LeRobotSource(tmp_path / "out").frames(7, "front")
    assert len(list(frames)) == 4


def test_merge_of_what_does_not_fit(
    path: Path, write_dataset: WriteDataset, tmp_path: Path, refused: Refused
) -> None:
    other = write_dataset(tmp_path / "o", actions=[np.zeros((4, 3))] * 2, successes=[True, False])
    sentence = refused("edit", path, "--out", tmp_path / "out", "merge", "--others", other)
    assert f"{other} has other columns than {path}" in sentence


def test_rename_in_place(path: Path, command_line: CommandLine) -> None:
    status, _ = command_line("edit", path, "--in-place", "rename", "--names", "front", "top")
    assert status == 0
    assert list(Dataset.open(path).info.cameras) == ["top"]
    assert [entry.name for entry in path.parent.iterdir()] == ["set"], "nothing is left beside it"


def test_resample(path: Path, tmp_path: Path, command_line: CommandLine, refused: Refused) -> None:
    out = tmp_path / "out"
    arguments = ("resample", "--fps", 5, "--actions", "delta")
    assert command_line("edit", path, "--out", out, *arguments)[0] == 0
    dataset = Dataset.open(out)
    assert dataset.info.fps == 5 and dataset.index.lengths.tolist() == [2] * 6
    assert dataset.episode(3).actions.tolist() == [[6, 6], [6, 6]]
    sentence = refused("edit", path, "--out", tmp_path / "o", "resample", "--fps", 5)
    assert "kind: absolute" in sentence


def test_labels_become_part_of_what_is_written(path: Path, command_line: CommandLine) -> None:
    with Labels.edit(labels_path(path), episodes=6) as labels:
        labels.set(Label(5, "episode 5", "success", 1, "person", "ada", now_utc()))
    assert command_line("edit", path, "--in-place", "delete", "--episodes", 0)[0] == 0
    tables = Dataset.open(path).tables()
    assert tables.outcomes == ("failure", "success", "failure", "success", "success")
    assert not labels_path(path).exists()


def test_what_is_refused(path: Path, tmp_path: Path, refused: Refused) -> None:
    assert "either --out FOLDER or --in-place" in refused("edit", path, "delete", "--episodes", 0)
    assert "episode 9 is named" in refused(
        "edit", path, "--out", tmp_path / "o", "delete", "--episodes", 9
    )
    assert "no 'back' to rename" in refused(
        "edit", path, "--out", tmp_path / "o", "rename", "--names", "back", "top"
    )
    assert "give --out" in refused(
        "edit", path, "--in-place", "split", "--shares", "a", 0.5, "b", 0.5
    )
    assert firsts(path) == [0, 1, 2, 3, 4, 5]


def test_a_failed_edit_leaves_the_old_data_set(path: Path, refused: Refused) -> None:
    file = path / "data/chunk-000/file-000.parquet"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    refused("edit", path, "--in-place", "delete", "--episodes", 0)
    assert file.read_bytes() == content[: len(content) // 2]
    file.write_bytes(content)
    assert firsts(path) == [0, 1, 2, 3, 4, 5]


def test_exchange(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a/file").read_text() == "b" and (tmp_path / "b/file").read_text() == "a"
    with pytest.raises(OSError, match="cannot be exchanged in one step"):
        exchange(tmp_path / "a", tmp_path / "missing")


def test_shares() -> None:
    parts = split_episodes_by_share(10, {"a": 0.8, "b": 0.2}, seed=0)
    assert [len(part) for part in parts.values()] == [8, 2]
    assert sorted(parts["a"] + parts["b"]) == list(range(10))
    with pytest.raises(ValueError, match="1 in all"):
        split_episodes_by_share(10, {"a": 0.8, "b": 0.1}, seed=0)
    with pytest.raises(ValueError, match="'b' of 3 episodes would be empty"):
        split_episodes_by_share(3, {"a": 0.9, "b": 0.1}, seed=0)
