"""What the viewer is given, read back from the recording file."""

import builtins
import subprocess
import sysconfig
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rerun
from rerun.chunk import RrdReader

from robot_qsft.datasets.features import Camera
from robot_qsft.datasets.field_map import FieldMap, Part
from robot_qsft.datasets.formats.detect import open_source
from robot_qsft.datasets.interface import Observation
from robot_qsft.datasets.labels import Label, Labels, labels_path
from robot_qsft.datasets.mapped import MappedSource
from robot_qsft.datasets.store import Dataset
from robot_qsft.datasets.suggest_map import suggest
from robot_qsft.policies.token_policy import BC_GREEDY, TokenPolicy
from robot_qsft.readings import read_values
from robot_qsft.train import train
from robot_qsft.view import view_episode

SHARED = Path(__file__).parent.parent.parent / "shared"


def read(path: Path) -> dict[str, dict[str, list[Any]]]:
    """Entity to column to one value per step, what is static and blueprints left out."""
    entities: dict[str, dict[str, list[Any]]] = {}
    for chunk in RrdReader(path).store().stream():
        if chunk.is_static:
            continue
        columns = entities.setdefault(chunk.entity_path, {})
        for name, values in chunk.to_record_batch().to_pydict().items():
            columns.setdefault(name, []).extend(values)
    return entities


def curve(entities: dict[str, dict[str, list[Any]]], entity: str) -> list[float]:
    return [value for (value,) in entities[entity]["Scalars:scalars"]]


def seconds(columns: dict[str, list[Any]]) -> list[float]:
    return [value.total_seconds() for value in columns["time"]]


@pytest.fixture(scope="session")
def run(tiny, training_data, silent, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(tiny, training_data, folder, progress=silent, resume=False)
    return folder


def test_everything_recorded_is_there_over_steps_and_seconds(demonstrations, tmp_path):
    path = tmp_path / "episode.rrd"
    view_episode(open_source(demonstrations), 3, save=path)
    episode = Dataset.open(demonstrations).episode(3)
    entities = read(path)
    steps = list(range(len(episode)))
    for entry, name in enumerate(("x", "y", "z", "gripper_open")):
        assert curve(entities, f"/action/{name}") == episode.actions[:, entry].tolist()
        assert entities[f"/action/{name}"]["step"] == steps
        assert seconds(entities[f"/action/{name}"]) == pytest.approx([step / 10 for step in steps])
    assert curve(entities, "/state/hand_z_m") == episode.states[:, 2].tolist()
    assert curve(entities, "/reward") == episode.rewards.tolist()
    assert curve(entities, "/success") == episode.successes.astype(float).tolist()
    cube = entities["/observation.environment_state/cube_x_m"]["Scalars:scalars"]
    assert cube == [[value] for value in episode.environment_states[:, 0].tolist()]
    camera = entities["/cameras/front"]
    assert camera["step"] == steps
    assert seconds(camera) == pytest.approx([step / 10 for step in steps])
    assert camera["EncodedImage:media_type"] == [["image/jpeg"]] * len(steps)
    for (blob,), image in zip(camera["EncodedImage:blob"], episode.images["front"], strict=True):
        shown = cv2.imdecode(np.array(blob, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        # JPEG keeps colour at half the resolution, so edges differ.
        assert np.abs(shown.astype(int) - image).mean() < 12


def test_rerun_itself_finds_the_file_sound(demonstrations, tmp_path):
    path = tmp_path / "episode.rrd"
    view_episode(open_source(demonstrations), 0, save=path)
    rerun_program = Path(sysconfig.get_path("scripts")) / "rerun"
    checked = subprocess.run(
        [rerun_program, "rrd", "verify", path], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert [one.name for one in tmp_path.iterdir()] == ["episode.rrd"]


@pytest.mark.parametrize("name", ["lerobot_v30", "lerobot_v21", "rlds"])
def test_other_formats_are_shown_as_recorded(tmp_path, name):
    if not SHARED.is_dir():
        pytest.skip("needs the fixtures in ../shared")
    source = open_source(SHARED / "fixtures" / name)
    view_episode(source, 1, save=tmp_path / "episode.rrd")
    entities = read(tmp_path / "episode.rrd")
    steps = len(source.recording(1))
    cameras = {name: one for name, one in entities.items() if name.startswith("/cameras/")}
    assert len(cameras) == len(source.info.cameras) > 0
    assert all(one["step"] == list(range(steps)) for one in cameras.values())
    assert curve(entities, "/reward") == [0] * (steps - 1) + [1]
    assert ("time" in entities["/reward"]) == (source.info.fps is not None)


def test_with_a_field_map_the_episode_is_shown_as_training_sees_it(demonstrations, tmp_path):
    field_map = FieldMap(
        action=(Part("action", entries=(2, 3), names=("up", "open"), kind="absolute"),),
        state=(Part("observation.state", entries=(0,), unit="m", to_unit="cm"),),
        cameras={"eye": "front"},
        resample_fps=5,
    )
    source = open_source(demonstrations)
    view_episode(source, 2, field_map=field_map, save=tmp_path / "episode.rrd")
    entities = read(tmp_path / "episode.rrd")
    seen = MappedSource(source, field_map).episode(
        source.recording(2), source.recording(2).evidence
    )
    assert len(seen) < len(source.recording(2))
    assert set(entities) == {
        "/state/hand_x_m",
        "/action/up",
        "/action/open",
        "/reward",
        "/success",
        "/cameras/eye",
    }
    assert entities["/action/up"]["step"] == entities["/cameras/eye"]["step"] == seen.steps.tolist()
    assert seconds(entities["/action/up"]) == pytest.approx(seen.steps / 10)
    assert curve(entities, "/action/open") == seen.columns["action"][:, 1].tolist()


def test_a_checkpoint_adds_its_values_of_the_recorded_actions(demonstrations, run, tmp_path):
    source = open_source(demonstrations)
    view_episode(source, 5, checkpoint=run, save=tmp_path / "episode.rrd")
    entities = read(tmp_path / "episode.rrd")
    episode = Dataset.open(demonstrations).episode(5)
    assert entities["/value/action"]["step"] == list(range(len(episode)))
    values = curve(entities, "/value/action")
    states = curve(entities, "/value/state")
    likelihoods = curve(entities, "/behaviour_log_likelihood")
    assert all(0 <= value <= 1 for value in [*values, *states])
    assert all(value < 0 for value in likelihoods)
    # A checkpoint itself serves as well as its run.
    (last,) = sorted((run / "checkpoints").iterdir())[-1:]
    view_episode(source, 5, checkpoint=last, save=tmp_path / "again.rrd")
    assert curve(read(tmp_path / "again.rrd"), "/value/action") == values


def test_readings_are_those_of_acting(demonstrations, run):
    """Where the policy itself would choose the recorded action, both must say the same of it."""
    source = open_source(demonstrations)
    mapped = MappedSource(source, suggest(source))
    recording = source.recording(5)
    episode = Dataset.open(demonstrations).episode(5)
    (last,) = sorted((run / "checkpoints").iterdir())[-1:]
    policy = TokenPolicy.load(last, BC_GREEDY)
    seen = mapped.episode(recording, recording.evidence)
    chosen = []
    for step in range(len(episode)):
        policy.reset(seed=0)
        observation = Observation(
            state=episode.states[step],
            instruction=episode.instruction,
            images={"front": episode.images["front"][step]},
        )
        chosen.append(policy.act(observation))
    actions = np.concatenate([one.actions for one in chosen])
    read = read_values(last, mapped, 5, replace(seen, columns={**seen.columns, "action": actions}))
    assert read.behaviour_log_likelihoods == pytest.approx(
        [one.behaviour_log_probability for one in chosen], abs=1e-4
    )
    assert read.action_values == pytest.approx([one.value for one in chosen], abs=1e-4)


def test_a_policy_without_values_shows_its_likelihood_only(
    demonstrations, tiny, training_data, silent, tmp_path
):
    train(
        replace(tiny, method="bc", steps=2),
        training_data,
        tmp_path / "run",
        progress=silent,
        resume=False,
    )
    path = tmp_path / "episode.rrd"
    view_episode(open_source(demonstrations), 0, checkpoint=tmp_path / "run", save=path)
    entities = read(path)
    assert "/behaviour_log_likelihood" in entities
    assert not any(entity.startswith("/value") for entity in entities)


def test_what_does_not_fit_ends_in_a_sentence(
    demonstrations, run, write_dataset, tmp_path, monkeypatch
):
    source = open_source(demonstrations)
    save = tmp_path / "episode.rrd"
    for episode in (-1, 24):
        with pytest.raises(ValueError, match=rf"episode {episode} asked for, but .* has 24"):
            view_episode(source, episode, save=save)
    with pytest.raises(ValueError, match="holds no checkpoint"):
        view_episode(source, 0, checkpoint=tmp_path, save=save)
    other = write_dataset(tmp_path / "other", actions=[np.zeros((3, 4))], successes=[True])
    with pytest.raises(ValueError, match=r"reads 8 entries of 'observation\.state'"):
        view_episode(open_source(other), 0, checkpoint=run, save=save)
    blind = replace(suggest(source), cameras={})
    with pytest.raises(ValueError, match="needs the camera 'front', but the episode has none"):
        view_episode(source, 0, checkpoint=run, field_map=blind, save=save)
    with pytest.raises(ValueError, match=r"such as episode\.rrd"):
        view_episode(source, 0, save=tmp_path / "episode.mp4")
    with pytest.raises(ValueError, match=r"such as episode\.rrd"):
        view_episode(source, 0, save=tmp_path / "nowhere/episode.rrd")
    with pytest.raises(ValueError, match="goes nowhere"):
        view_episode(source, 0, spawn=False)
    assert [one.name for one in tmp_path.iterdir()] == ["other"]


def test_a_damaged_video_leaves_no_recording(write_dataset, tmp_path):
    path = write_dataset(
        tmp_path / "data",
        actions=[np.zeros((5, 2))] * 2,
        successes=[True, False],
        camera=Camera(16, 16, "video"),
    )
    (video,) = (path / "videos").rglob("*.mp4")
    video.write_bytes(video.read_bytes()[:100])
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="readable video"):
        view_episode(open_source(path), 0, save=tmp_path / "out/episode.rrd")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_label_says_how_the_episode_ended(write_dataset, tmp_path):
    path = write_dataset(
        tmp_path / "data", actions=[np.zeros((4, 1))] * 2, successes=[False, False]
    )
    source = open_source(path)
    label = Label(
        1, source.recording(1).name, "success", 2, "person", "me", "2025-06-01T12:00:00+00:00"
    )
    with Labels.edit(labels_path(path), episodes=2) as labels:
        labels.set(label)
    view_episode(source, 1, save=tmp_path / "episode.rrd")
    assert curve(read(tmp_path / "episode.rrd"), "/success") == [0, 0, 1, 1]


def test_the_viewer_is_opened_where_nothing_is_saved(demonstrations, monkeypatch):
    opened: list[dict[str, Any]] = []
    monkeypatch.setattr(rerun, "spawn", lambda **options: opened.append(options))
    view_episode(open_source(demonstrations), 0)
    (options,) = opened
    assert Path(options["executable_path"]).name == "rerun"
    assert options["default_blueprint"] is not None

    def fails(**options):
        raise RuntimeError("no display\nmore")

    monkeypatch.setattr(rerun, "spawn", fails)
    with pytest.raises(ValueError, match=r"cannot be opened \(no display\); write a file"):
        view_episode(open_source(demonstrations), 0)


def test_without_rerun_it_says_what_to_install(demonstrations, monkeypatch, tmp_path):
    original = builtins.__import__

    def missing(name, *arguments, **options):
        if name.split(".")[0] == "rerun":
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ValueError, match=r"pip install 'robot-qsft\[view\]'"):
        view_episode(open_source(demonstrations), 0, save=tmp_path / "episode.rrd")
