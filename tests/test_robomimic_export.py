"""Sources of several formats written as robomimic HDF5, and read again."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_qsft.datasets.field_map import FieldMap, Part
from robot_qsft.datasets.formats.detect import open_source
from robot_qsft.datasets.formats.robomimic import RobomimicSource
from robot_qsft.datasets.labels import Label, LabelOutcome
from robot_qsft.datasets.mapped import MappedSource
from robot_qsft.datasets.outcomes import judge
from robot_qsft.datasets.robomimic_export import export_robomimic
from robot_qsft.datasets.suggest_map import suggest

h5py = pytest.importorskip("h5py")

FIXTURES = Path(__file__).parent.parent.parent / "shared" / "fixtures"
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason="no shared fixtures here")
HOME = "/home/somebody"


def write(path: Path, *, rewards: bool = True) -> Path:
    """Demos of 4, 5 and 6 steps; demo_1 fails, the others succeed at their last but one step."""
    kwargs = {"robots": ["Panda"], "control_freq": 20, "bddl_file": f"{HOME}/a.bddl"}
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": kwargs})
        for number in range(3):
            rng = np.random.default_rng(number)
            steps = 4 + number
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = steps
            demo.attrs["model_file"] = f"<mujoco file='{HOME}/b.xml'/>"
            demo.attrs["ep_meta"] = json.dumps({"lang": f"lift cube {number}"})
            demo["actions"] = rng.uniform(-1, 1, (steps, 7))
            demo["states"] = rng.normal(size=(steps, 32))
            if rewards:
                demo["rewards"] = (np.arange(steps) >= steps - 2) * float(number != 1)
            demo["obs/object"] = rng.normal(size=(steps, 10))
            demo["obs/robot0_eef_pos"] = rng.normal(size=(steps, 3))
            demo["obs/robot0_gripper_qpos"] = rng.normal(size=(steps, 2))
            demo["obs/agentview_image"] = rng.integers(0, 256, (steps, 8, 6, 3), np.uint8)
        file["mask/train"] = np.array(["demo_2", "demo_0"], "S")
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "image.hdf5")


def mapped(path: Path, **changes: Any) -> MappedSource:
    source = open_source(path)
    return MappedSource(source, replace(suggest(source), **changes))


def label(episode: int, outcome: LabelOutcome, frame: int | None = None) -> dict[int, Label]:
    when = "2025-06-01T12:00:00+00:00"
    name = f"demo_{episode}"
    return {episode: Label(episode, name, outcome, frame, source="person", by="me", when=when)}


def outcomes(path: Path) -> tuple[str, ...]:
    source = open_source(path)
    return judge([source.recording(index).evidence for index in range(len(source))])


def test_what_came_from_robomimic_keeps_its_names_and_bits(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.hdf5"
    before = mapped(path, keep=("states",))
    told: list[tuple[str, int, int]] = []
    assert export_robomimic(before, out, progress=lambda *one: told.append(one)) == 0
    assert told == [
        *(("episodes", done, 3) for done in (1, 2, 3)),
        *(("written", done, 3) for done in (1, 2, 3)),
    ]
    with h5py.File(path) as old, h5py.File(out) as new:
        for number in range(3):
            # Both successes are cut after their first step that is solved, the last but one.
            steps = 4 + number - (number != 1)
            was, became = old[f"data/demo_{number}"], new[f"data/demo_{number}"]
            names = ("object", "robot0_eef_pos", "robot0_gripper_qpos", "agentview_image")
            assert set(became["obs"]) == set(names)
            for name in ("actions", "states", *(f"obs/{name}" for name in names)):
                assert became[name].dtype == was[name].dtype, name
                assert became[name][:].tobytes() == was[name][:steps].tobytes(), name
            solved = [0] * (steps - 1) + [int(number != 1)]
            assert became["rewards"][:].tolist() == solved == became["dones"][:].tolist()
        assert new["mask/train"][:].tolist() == [b"demo_0", b"demo_2"]
        assert "outcome_unknown" not in new["mask"]
    after = RobomimicSource(out)
    assert (after.info.fps, after.info.robot_type) == (20, "panda")
    assert [after.recording(index).instruction for index in range(3)] == [
        "lift cube 0",
        "lift cube 1",
        "lift cube 2",
    ]
    assert outcomes(out) == ("success", "failure", "success")


def test_nobody_elses_paths_are_written(path: Path, tmp_path: Path) -> None:
    export_robomimic(mapped(path), tmp_path / "out.hdf5")
    assert HOME.encode() in path.read_bytes()
    written = (tmp_path / "out.hdf5").read_bytes()
    assert HOME.encode() not in written and str(tmp_path).encode() not in written
    assert RobomimicSource(tmp_path / "out.hdf5").env_args == {
        "env_name": "panda",
        "type": 2,
        "env_kwargs": {"control_freq": 20, "robots": ["panda"]},
    }


def test_unknown_outcomes_are_paid_nothing_and_stay_unknown(tmp_path: Path) -> None:
    source = mapped(write(tmp_path / "a.hdf5", rewards=False))
    out = tmp_path / "out.hdf5"
    assert export_robomimic(source, out, labels=label(2, "success", 3) | label(0, "failure")) == 1
    with h5py.File(out) as file:
        assert file["mask/outcome_unknown"][:].tolist() == [b"demo_1"]
        assert file["data/demo_0/rewards"][:].tolist() == [0, 0, 0, 0]
        assert file["data/demo_1/rewards"][:].tolist() == [0, 0, 0, 0, 0]
        # What came after the labelled success frame is left out, as the map says.
        assert file["data/demo_2/rewards"][:].tolist() == [0, 0, 0, 1]
    # Without the mask, demo_1 would be taken for a failure, as others are paid.
    assert outcomes(out) == ("failure", "unknown", "success")
    again = tmp_path / "again.hdf5"
    assert export_robomimic(mapped(out), again) == 1
    assert outcomes(again) == ("failure", "unknown", "success")


def test_labels_count_more_than_the_record(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.hdf5"
    labels = label(0, "failure") | label(2, "unclear")
    assert export_robomimic(mapped(path), out, labels=labels) == 2
    with h5py.File(out) as file:
        assert [len(file[f"data/demo_{number}/actions"]) for number in range(3)] == [4, 5, 6]
        assert not any(
            file[f"data/demo_{number}/{name}"][:].any()
            for number in range(3)
            for name in ("rewards", "dones")
        )
        # No reward is left that says of demo_1 that it failed: its zeros may be placeholders.
        assert file["mask/outcome_unknown"][:].tolist() == [b"demo_1", b"demo_2"]
    with pytest.raises(ValueError, match="success at frame 9, but 'demo_0' has 4 frames"):
        export_robomimic(mapped(path), tmp_path / "b.hdf5", labels=label(0, "success", 9))
    assert not (tmp_path / "b.hdf5").exists()


@needs_fixtures
@pytest.mark.parametrize("version", ["lerobot_v30", "lerobot_v21"])
def test_a_lerobot_set(version: str, tmp_path: Path) -> None:
    out = tmp_path / "out.hdf5"
    before = mapped(FIXTURES / version)
    assert export_robomimic(before, out) == 0
    after = open_source(out)
    assert isinstance(after, RobomimicSource)
    assert (after.info.fps, after.info.splits) == (10, before.source.info.splits)
    assert [after.recording(index).instruction for index in range(3)] == [
        "pick cube",
        "pick cube",
        "place cube",
    ]
    assert outcomes(out) == ("success",) * 3
    for index in range(3):
        recording, copied = before.source.recording(index), after.recording(index).columns
        names = {"actions": "action", "obs/state": "observation.state", "rewards": "next.reward"}
        if version == "lerobot_v30":
            names["obs/observation.force"] = "observation.force"
        for ours, theirs in names.items():
            assert copied[ours].dtype == recording.columns[theirs].dtype
            np.testing.assert_array_equal(copied[ours], recording.columns[theirs])
        assert copied["dones"].tolist() == [0] * (len(recording) - 1) + [1]
        for camera in ("front", "wrist"):
            np.testing.assert_array_equal(
                list(after.frames(index, f"{camera}_image")),
                list(before.source.frames(index, camera)),
            )


def test_steps_where_the_task_itself_ended_are_done(tmp_path: Path) -> None:
    path = tmp_path / "hopper.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"] = np.zeros((5, 4), np.float32)
        file["actions"] = np.zeros((5, 2), np.float32)
        file["rewards"] = np.full(5, 0.5, np.float32)
        file["terminals"] = np.array([0, 1, 0, 0, 0], bool)
        file["timeouts"] = np.array([0, 0, 0, 0, 1], bool)
    assert export_robomimic(mapped(path, fps=50), tmp_path / "out.hdf5") == 2
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert file["data/demo_0/dones"][:].tolist() == [0, 1]  # it fell
        assert file["data/demo_1/dones"][:].tolist() == [0, 0, 0]  # time ran out
        assert file["data/demo_1/obs/state"].shape == (3, 4)
        assert json.loads(file["data"].attrs["env_args"])["env_name"] == "unknown"


def test_what_the_map_changes_is_written_as_it_has_it(path: Path, tmp_path: Path) -> None:
    source = open_source(path)
    one = FieldMap(
        action=(Part("actions", entries=(6, 0), kind="absolute"),),
        state=(Part("obs/robot0_eef_pos", unit="m", to_unit="mm"), Part("states", entries=(5,))),
        environment_state=(Part("states"),),
        cameras={"top": "agentview_image"},
        resample_fps=10,
        keep=("obs/object", "states"),
        rename={"states": "world"},
    )
    out = tmp_path / "out.hdf5"
    export_robomimic(MappedSource(source, one), out)
    stored = source.recording(1).columns
    with h5py.File(out) as file:
        demo = file["data/demo_1"]
        assert set(demo["obs"]) == {"state", "environment_state", "object", "world", "top_image"}
        # Of 5 steps at 20 Hz rows 0, 2 and 4 are kept; targets are those of the last row merged.
        merged = stored["actions"][[1, 3, 4]][:, [6, 0]]
        np.testing.assert_array_equal(demo["actions"][:], merged.astype(np.float32))
        np.testing.assert_allclose(
            demo["obs/state"][:, 0], 1000 * stored["obs/robot0_eef_pos"][::2, 0], rtol=1e-6
        )
        np.testing.assert_array_equal(demo["obs/world"][:], stored["states"][::2])
        np.testing.assert_array_equal(demo["obs/object"][:], stored["obs/object"][::2])
        frames = list(source.frames(1, "agentview_image"))
        np.testing.assert_array_equal(demo["obs/top_image"][:], frames[::2])
        assert json.loads(file["data"].attrs["env_args"])["env_kwargs"]["control_freq"] == 10


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"keep": ("obs/object", "states"), "rename": {"states": "object"}},
            "two columns or cameras would be 'obs/object'",
        ),
        (
            {"keep": ("states",), "rename": {"states": "agentview_image"}},
            "two columns or cameras would be 'obs/agentview_image'",
        ),
        (
            {"keep": ("states",), "rename": {"states": "object/pose"}},
            "cannot hold 'obs/object' and something below it",
        ),
        ({"keep": ("states",), "rename": {"states": "../x"}}, "expected a name such as actions"),
    ],
)
def test_names_that_fall_together_are_refused(
    path: Path, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        export_robomimic(mapped(path, **changes), tmp_path / "out.hdf5")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["image.hdf5"]
