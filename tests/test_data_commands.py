"""The commands that read demonstrations, as a user types them."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from robot_qsft.datasets.features import Camera
from robot_qsft.datasets.labels import Labels, labels_path
from robot_qsft.datasets.store import Dataset
from robot_qsft.training_data import load_training_data

CommandLine = Callable[..., tuple[int, str]]
Refused = Callable[..., str]


@pytest.fixture
def path(write_dataset: Callable[..., Path], tmp_path: Path) -> Path:
    """Four episodes of 30 steps, two of which succeed."""
    rng = np.random.default_rng(0)
    return write_dataset(
        tmp_path / "set",
        actions=[rng.normal(size=(30, 2)) for _ in range(4)],
        successes=[True, False, True, False],
        camera=Camera(16, 16, "image"),
    )


def test_inspect_suggest_edit_ingest(path: Path, tmp_path: Path, command_line: CommandLine) -> None:
    field_map = tmp_path / "map.yaml"
    report = tmp_path / "report.html"
    status, printed = command_line("inspect", path, "--suggest", field_map, "--html", report)
    assert status == 0 and "2 success" in printed and "2 failure" in printed
    assert report.read_text().startswith("<!doctype html>")
    field_map.write_text(field_map.read_text().replace("instruction: null", "instruction: stack"))
    status, _ = command_line("ingest", path, "--out", tmp_path / "out", "--map", field_map)
    assert status == 0
    assert Dataset.open(tmp_path / "out").tables().tasks == ("stack",)


def test_validate_tells_programs_and_people(path: Path, command_line: CommandLine) -> None:
    status, printed = command_line("validate", path, "--json")
    found = json.loads(printed[printed.index("{\n") : printed.rindex("}") + 1])
    assert status == 0 and found["episodes"] == 4 and found["counts"]["error"] == 0
    file = path / "meta/info.json"
    file.write_text(file.read_text()[:100])
    assert command_line("validate", path)[0] == 1


def test_labels_by_csv_reach_training(
    path: Path, tmp_path: Path, command_line: CommandLine, refused: Refused
) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("episode,outcome,success_frame\n0,failure,\n1,success,10\n3,unclear,\n")
    status, printed = command_line("label", path, "--import-csv", table, "--by", "ada")
    assert status == 0 and "3 labels" in printed
    assert Labels.read(labels_path(path), episodes=4)[1].by == "ada"
    data = load_training_data(Dataset.open(path), cameras=(), image_size=16, validation_share=0.25)
    assert data.tables.outcomes == ("failure", "success", "success", "unknown")
    assert data.tables.episode_returns.tolist() == [0, 1, 1, 0]
    arguments = ("--steps", 1, "--sampler.batch-size", 16, "--device", "cpu", "--cameras")
    run = tmp_path / "run"
    sentence = refused("train", "--data", path, "--run", run, "images", *arguments[:-1])
    assert "unknown, such as episode 3; label them" in sentence
    export = tmp_path / "out.csv"
    assert command_line("label", path, "--export-csv", export)[0] == 0
    assert len(export.read_text().splitlines()) == 4


def test_view_saves_a_recording(
    path: Path, tmp_path: Path, command_line: CommandLine, refused: Refused
) -> None:
    pytest.importorskip("rerun")
    status, _ = command_line("view", path, 1, "--save", tmp_path / "one.rrd")
    assert status == 0 and (tmp_path / "one.rrd").stat().st_size > 1000
    assert "episode 4" in refused("view", path, 4, "--save", tmp_path / "two.rrd")


def test_export_is_read_again(path: Path, tmp_path: Path, command_line: CommandLine) -> None:
    pytest.importorskip("h5py")
    status, printed = command_line("export", path, "--out", tmp_path / "one.hdf5")
    assert status == 0 and "4 episodes in" in printed
    status, printed = command_line("inspect", tmp_path / "one.hdf5")
    assert status == 0 and "robomimic" in printed and "2 failure" in printed


def test_commands_that_only_read_data_start_without_torch() -> None:
    script = "import sys, robot_qsft.data_cli; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
