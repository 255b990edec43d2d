"""Collecting demonstrations: what is written, and going on after an interruption."""

import json
import os
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from robot_qsft.collect import CollectConfig, collect
from robot_qsft.datasets.store import Dataset
from robot_qsft.sim.pybullet.config import PyBulletConfig

BATCH = 6


def collect_quietly(config: CollectConfig, path: Path, *, resume: bool, told=None) -> Dataset:
    told = [] if told is None else told
    return collect(config, path, workers=1, resume=resume, progress=told.append, commit_every=BATCH)


def assert_same(here: Dataset, there: Dataset) -> None:
    for field in fields(here.tables()):
        one, other = getattr(here.tables(), field.name), getattr(there.tables(), field.name)
        np.testing.assert_array_equal(one, other, err_msg=field.name)
    assert here.info == there.info
    for camera in here.info.cameras:
        pairs = zip(here.frames(camera), there.frames(camera), strict=True)
        assert all(np.array_equal(one, other) for one, other in pairs)


COLLECT = """
import sys
from pathlib import Path
from robot_qsft.collect import CollectConfig, collect
from robot_qsft.sim.pybullet.config import PyBulletConfig
path, commit_every, workers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
if __name__ == "__main__":
    environment = PyBulletConfig("Stitch", image_size=16)
    config = CollectConfig("stitch", episodes=24, environment=environment)
    def progress(rollout):
        print(rollout.attempt.seed, flush=True)
        if commit_every == 1000:
            sys.stdin.read()
    collect(
        config, path, workers=workers, resume=False, progress=progress, commit_every=commit_every
    )
"""


def start_collecting(path, environment, *, commit_every, workers=1):
    return subprocess.Popen(
        [sys.executable, "-c", COLLECT, str(path), str(commit_every), str(workers)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def assert_group_ends(group: int) -> None:
    """Worker processes do not outlive their parent."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    pytest.fail("workers outlived their parent")


def test_killed_and_resumed_it_holds_the_same(
    demonstrations, collection, process_environment, tmp_path
):
    path = tmp_path / "set"
    process = start_collecting(path, process_environment, commit_every=BATCH)
    for _ in range(BATCH + 2):
        assert process.stdout.readline(), process.communicate()[1]
    process.kill()
    process.communicate()
    before = len(Dataset.open(path))
    assert before % BATCH == 0
    assert 0 < before < 24

    told = []
    resumed = collect_quietly(collection, path, resume=True, told=told)
    assert len(told) == 24 - before
    assert_same(resumed, Dataset.open(demonstrations))
    assert not (path / ".writing").exists()


def test_killed_before_anything_was_put_in_place_no_worker_stays_and_it_starts_over(
    demonstrations, collection, process_environment, tmp_path
):
    path = tmp_path / "set"
    process = start_collecting(path, process_environment, commit_every=1000, workers=2)
    assert process.stdout.readline(), process.communicate()[1]
    process.kill()
    process.communicate()
    assert_group_ends(process.pid)
    assert [entry.name for entry in path.iterdir()] == [".writing"]
    with pytest.raises(ValueError, match="exists already; add --resume"):
        collect_quietly(collection, path, resume=False)
    assert_same(collect_quietly(collection, path, resume=True), Dataset.open(demonstrations))


def test_killed_between_settings_and_data_it_starts_over(collection, demonstrations, tmp_path):
    """The settings are written first; alone they count for nothing."""
    path = tmp_path / "set"
    path.mkdir()
    (path / "collected.json").write_text((demonstrations / "collected.json").read_text())
    few = replace(collection, episodes=2)
    assert len(collect_quietly(few, path, resume=True)) == 2
    assert json.loads((path / "collected.json").read_text())["episodes"] == 2


def test_interrupted_by_hand_it_leaves_no_unfinished_files(collection, tmp_path):
    def interrupt(rollout):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(collection, tmp_path / "set", workers=1, resume=False, progress=interrupt)
    assert not (tmp_path / "set").exists()


def test_finished_collection_is_not_repeated(collection, demonstrations):
    files = [file for file in demonstrations.rglob("*") if file.is_file()]
    before = {file: file.stat().st_mtime_ns for file in files}
    told = []
    assert len(collect_quietly(collection, demonstrations, resume=True, told=told)) == 24
    assert told == []
    assert {file: file.stat().st_mtime_ns for file in files} == before


def test_what_is_there_is_neither_overwritten_nor_mixed(collection, demonstrations):
    before = (demonstrations / "meta/info.json").read_bytes()
    with pytest.raises(ValueError, match="exists already; add --resume, or choose another"):
        collect_quietly(collection, demonstrations, resume=False)
    for other in (replace(collection, seed=1), replace(collection, quality="noisy")):
        with pytest.raises(ValueError, match="collected with other settings; repeat them"):
            collect_quietly(other, demonstrations, resume=True)
    assert (demonstrations / "meta/info.json").read_bytes() == before


def test_data_of_somebody_else_is_not_gone_on_with(collection, write_dataset, tmp_path):
    path = write_dataset(tmp_path / "set", actions=[np.ones((3, 2))], successes=[True])
    with pytest.raises(ValueError, match="collected with other settings"):
        collect_quietly(collection, path, resume=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds other files"):
        collect_quietly(collection, tmp_path / "full", resume=True)
    assert (tmp_path / "full/thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("quality", "task", "storage"),
    [
        ("expert", "Lift", "image"),
        ("noisy", "PickPlace", "image"),
        ("mixed", "PickPlace", "video"),
        ("stitch", "Stitch", "image"),
    ],
)
def test_recipes_write_readable_sets(tmp_path, quality, task, storage):
    size = 64 if storage == "video" else 16
    config = CollectConfig(
        quality=quality,
        episodes=2,
        environment=PyBulletConfig(task, image_size=size, max_steps=45),
        storage=storage,
    )
    dataset = collect_quietly(config, tmp_path / "set", resume=False)
    tables = dataset.tables()
    assert len(dataset) == 2
    assert tables.actions.shape == (dataset.frame_count, len(dataset.info.action_names))
    assert (np.abs(tables.actions) <= 1).all()
    assert (tables.episode_returns == tables.episode_successes).all()
    assert (tables.terminated == tables.episode_successes).all()
    assert (tables.terminated != tables.truncated).all()
    expected = ("stitch/prior", "stitch/task") if quality == "stitch" else (quality,) * 2
    assert tables.demonstrators == expected
    frames = list(dataset.frames("front"))
    assert len(frames) == dataset.frame_count
    assert all(frame.shape == (size, size, 3) and frame.std() > 5 for frame in frames)
    if quality == "expert":
        assert tables.episode_successes.all()


def test_recipe_that_does_not_fit_the_task_is_refused(tmp_path):
    for config, message in (
        (CollectConfig(environment=PyBulletConfig("Lift")), "needs the Stitch task, got Lift"),
        (
            CollectConfig(quality="expert", environment=PyBulletConfig(yaw_action=True)),
            "leave yaw_action off",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            collect_quietly(config, tmp_path / "set", resume=False)
    with pytest.raises(ValueError, match="episodes must be at least 1, got 0"):
        CollectConfig(episodes=0)
    assert not (tmp_path / "set").exists()
