"""robomimic's files and robosuite's `demo.hdf5`: reading, outcomes, masks, and writing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_qsft.datasets.features import Camera
from robot_qsft.datasets.formats.robomimic import RobomimicSource, matches
from robot_qsft.datasets.formats.robomimic_writer import Demo, write_robomimic
from robot_qsft.datasets.outcomes import NO_EVIDENCE, Evidence, judge
from robot_qsft.datasets.source import Column

h5py = pytest.importorskip("h5py")

# As robomimic's dataset_states_to_obs writes them; demo_10 comes before demo_2 in the file.
NUMBERS = (0, 2, 10)
ENV_ARGS = {
    "env_name": "Lift",
    "env_version": "1.5.1",
    "type": 1,
    "env_kwargs": {"robots": ["Panda"], "control_freq": 20, "reward_shaping": False},
}


def write(path: Path, *, env_args: dict[str, Any] | None = None, dense: bool = False) -> Path:
    """Demos of 3, 5 and 13 steps, of which demo_2 fails."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = 21
        data.attrs["env_args"] = json.dumps(env_args or ENV_ARGS, indent=4)
        for number in NUMBERS:
            rng = np.random.default_rng(number)
            steps = 3 + number
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = steps
            demo.attrs["model_file"] = "<mujoco/>"
            demo.attrs["ep_meta"] = json.dumps({"lang": f"lift cube {number}"})
            rewards = np.zeros(steps)
            rewards[-1] = number != 2
            demo["rewards"] = rewards + (0.25 if dense else 0)
            demo["dones"] = np.eye(1, steps, steps - 1, dtype=int)[0]
            demo["actions"] = rng.uniform(-1, 1, (steps, 7))
            demo["actions_abs"] = rng.uniform(-1, 1, (steps, 7))
            demo["action_dict/rel_pos"] = rng.uniform(-1, 1, (steps, 3)).astype(np.float32)
            demo["states"] = rng.normal(size=(steps, 32))
            for group in ("obs", "next_obs"):
                demo[f"{group}/object"] = rng.normal(size=(steps, 10))
                demo[f"{group}/robot0_eef_pos"] = rng.normal(size=(steps, 3))
                demo[f"{group}/agentview_depth"] = rng.normal(size=(steps, 8, 6, 1))
                images = rng.integers(0, 256, (steps, 8, 6, 3), np.uint8)
                demo.create_dataset(f"{group}/agentview_image", data=images, compression="gzip")
        file["mask/train"] = np.array(["demo_10", "demo_0"], "S")
        file.create_dataset("mask/valid", data=["demo_2"], dtype=h5py.string_dtype())
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "image.hdf5")


def test_demos_come_in_the_order_of_their_numbers_as_stored(path: Path) -> None:
    assert matches(path)
    source = RobomimicSource(path)
    assert source.info.format == "robomimic HDF5" and source.files() == (path,)
    assert (source.info.fps, source.info.robot_type) == (20.0, "panda")
    assert source.info.splits == {"train": (0, 2), "valid": (1,)}
    assert source.info.cameras == {"agentview_image": Camera(8, 6, "image")}
    assert source.info.columns == {
        "action_dict/rel_pos": Column("float32", (3,)),
        "actions": Column("float64", (7,)),
        "actions_abs": Column("float64", (7,)),
        "dones": Column("int64"),
        "obs/object": Column("float64", (10,)),
        "obs/robot0_eef_pos": Column("float64", (3,)),
        "rewards": Column("float64"),
        "states": Column("float64", (32,)),
    }
    assert source.info.notes == (
        "next_obs is no field of a step that is read here: left out",
        "obs/agentview_depth is a depth image: left out",
    )
    assert len(source) == 3
    with h5py.File(path) as file:
        for index, number in enumerate(NUMBERS):
            recording = source.recording(index)
            assert (recording.name, len(recording)) == (f"demo_{number}", 3 + number)
            assert recording.instruction == f"lift cube {number}"
            stored = file[f"data/demo_{number}"]
            for name, column in recording.columns.items():
                np.testing.assert_array_equal(column, stored[name][:])
                assert column.dtype == stored[name].dtype
            frames = list(source.frames(index, "agentview_image"))
            np.testing.assert_array_equal(frames, stored["obs/agentview_image"][:])


def test_outcomes_follow_sparse_rewards_and_nothing_else(path: Path, tmp_path: Path) -> None:
    evidences = [RobomimicSource(path).recording(index).evidence for index in range(3)]
    # 3 and 13 steps, paid at the last.
    assert evidences == [
        Evidence("rewards", True, 2),
        Evidence("rewards", False),
        Evidence("rewards", True, 12),
    ]
    assert judge(evidences) == ("success", "failure", "success")
    dense = RobomimicSource(write(tmp_path / "dense.hdf5", dense=True))
    assert judge([dense.recording(index).evidence for index in range(3)]) == ("unknown",) * 3
    with h5py.File(path, "a") as file:
        for number in NUMBERS:
            del file[f"data/demo_{number}/rewards"]
    # `dones` marks the end of a demo, however it came about.
    assert RobomimicSource(path).recording(0).evidence == NO_EVIDENCE


def test_both_names_of_the_environment_type_and_none_are_read(tmp_path: Path) -> None:
    args = {"env_name": "Lift", "env_type": 1, "env_kwargs": {"control_freq": 10}}
    source = RobomimicSource(write(tmp_path / "a.hdf5", env_args=args))
    assert source.info.fps == 10.0 and source.env_args["env_type"] == 1
    for kwargs in ({"control_freq": "fast"}, {"control_freq": -1}, None, []):
        path = tmp_path / "b.hdf5"
        source = RobomimicSource(write(path, env_args={**args, "env_kwargs": kwargs}))
        assert source.info.fps is None and source.info.robot_type is None
        path.unlink()


def test_raw_robosuite_files_give_states_and_actions_and_say_so(tmp_path: Path) -> None:
    path = tmp_path / "demo.hdf5"
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs.update({"date": "1-1-2025", "repository_version": "1.5.1", "env": "Lift"})
        data.attrs["env_info"] = json.dumps({"robots": "Panda", "control_freq": 20})
        for number in (1, 2):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["model_file"] = "<mujoco/>"
            demo["states"] = np.full((4, 32), number, float)
            demo["actions"] = np.full((4, 7), number, float)
    assert matches(path)
    source = RobomimicSource(path)
    assert source.info.format == "robosuite demo.hdf5"
    assert source.info.notes == (
        "images, observations and rewards are not in the file: the simulator's replay of its "
        "states regenerates them",
    )
    assert (source.info.fps, source.info.robot_type) == (20.0, "panda")
    assert set(source.info.columns) == {"actions", "states"} and not source.info.cameras
    recording = source.recording(1)
    assert recording.name == "demo_2" and (recording.columns["states"] == 2).all()
    assert recording.evidence == NO_EVIDENCE
    # What robomimic's conversion adds leaves it without images all the same.
    other = tmp_path / "converted.hdf5"
    other.write_bytes(path.read_bytes())
    with h5py.File(other, "a") as file:
        file["data"].attrs["env_args"] = json.dumps(ENV_ARGS)
    converted = RobomimicSource(other)
    assert converted.info.format == "robomimic HDF5" and converted.info.notes == source.info.notes


def damage(path: Path, kind: str) -> None:
    with h5py.File(path, "a") as file:
        demo = file["data/demo_2"]
        if kind == "missing column":
            del demo["obs/object"]
        elif kind == "missing camera":
            del demo["obs/agentview_image"]
        elif kind == "no actions":
            del demo["actions"]
        elif kind == "length":
            demo.attrs["num_samples"] = 6
        elif kind == "short column":
            del demo["rewards"]
            demo["rewards"] = np.zeros(4)
        elif kind == "width":
            del demo["states"]
            demo["states"] = np.zeros((5, 31))
        elif kind == "image size":
            del demo["obs/agentview_image"]
            demo["obs/agentview_image"] = np.zeros((5, 8, 7, 3), np.uint8)
        elif kind == "type":
            del demo["dones"]
            demo["dones"] = np.zeros(5)
        elif kind == "text":
            del demo["actions_abs"]
            demo["actions_abs"] = ["a"] * 5
        elif kind == "language":
            demo.attrs["ep_meta"] = "{"
        else:
            demo.attrs["ep_meta"] = "[]"


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("missing column", "expected 'object' in '/data/demo_2/obs' of .* but it is missing"),
        ("missing camera", "expected 'agentview_image' in '/data/demo_2/obs'"),
        ("no actions", "expected 'actions' in '/data/demo_2'"),
        ("length", "expected 6 steps in '/data/demo_2' .* num_samples says, but it has 5"),
        ("short column", r"'/data/demo_2/rewards' .* shape \(5,\).* but \(4,\) came"),
        ("width", r"'/data/demo_2/states' .* shape \(5, 32\).* but \(5, 31\) came"),
        ("image size", "5 colour images of 8x6 as in the first demo, but uint8 in shape"),
        ("type", "expected int64 in '/data/demo_2/dones' .* but float64 came"),
        ("text", r"'/data/demo_2/actions_abs' of .* shape \(5, 7\)"),
        ("language", "expected JSON in attribute 'ep_meta' of '/data/demo_2'"),
        ("language list", "expected a JSON object in attribute 'ep_meta'"),
    ],
)
def test_what_a_demo_lacks_is_refused_never_made_up(path: Path, kind: str, sentence: str) -> None:
    damage(path, kind)
    source = RobomimicSource(path)
    assert len(source.recording(0)) == 3 and len(source.recording(2)) == 13
    with pytest.raises(ValueError, match=sentence) as caught:
        source.recording(1)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_demos_in_masks_and_strange_groups_are_named(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["mask/worse"] = np.array(["demo_7"], "S")
    with pytest.raises(ValueError, match=r"names of demos in mask/worse .* 'demo_7' is none"):
        RobomimicSource(path)
    with h5py.File(path, "a") as file:
        del file["mask"]
        file["data/notes"] = [1]
    with pytest.raises(ValueError, match=r"groups demo_0, demo_1 .* but 'notes' came; rename"):
        RobomimicSource(path)


def test_episodes_and_cameras_that_are_not_there_are_named(path: Path) -> None:
    source = RobomimicSource(path)
    with pytest.raises(IndexError, match="episode 3 asked for"):
        source.recording(3)
    with pytest.raises(IndexError, match="episode -1 asked for"):
        source.frames(-1, "agentview_image")
    with pytest.raises(ValueError, match=r"camera 'front' asked for.*agentview_image; choose"):
        source.frames(0, "front")


def demos_of(source: RobomimicSource) -> Iterator[Demo]:
    for index in range(len(source)):
        recording = source.recording(index)
        images = {camera: source.frames(index, camera) for camera in source.info.cameras}
        yield Demo(recording.columns, images, recording.instruction)


def copy(source: RobomimicSource, path: Path) -> None:
    write_robomimic(
        path, demos=demos_of(source), env_args=source.env_args, splits=source.info.splits
    )


def test_read_and_written_again_all_is_the_same_bit_for_bit(path: Path, tmp_path: Path) -> None:
    first = RobomimicSource(path)
    copy(first, tmp_path / "out/copy.hdf5")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["copy.hdf5"]
    second = RobomimicSource(tmp_path / "out/copy.hdf5")
    assert second.env_args == first.env_args == ENV_ARGS
    assert second.info.columns == first.info.columns
    assert second.info.cameras == first.info.cameras
    assert second.info.splits == first.info.splits
    assert (second.info.fps, second.info.robot_type, second.info.notes) == (20.0, "panda", ())
    for index in range(3):
        before, after = first.recording(index), second.recording(index)
        assert after.name == f"demo_{index}"
        assert (after.instruction, after.evidence) == (before.instruction, before.evidence)
        for name, column in before.columns.items():
            assert column.tobytes() == after.columns[name].tobytes()
        np.testing.assert_array_equal(
            list(first.frames(index, "agentview_image")),
            list(second.frames(index, "agentview_image")),
        )
    copy(second, tmp_path / "again.hdf5")
    copied = (tmp_path / "out/copy.hdf5").read_bytes()
    assert (tmp_path / "again.hdf5").read_bytes() == copied


def test_what_is_written_is_laid_out_as_robomimic_reads_it(path: Path, tmp_path: Path) -> None:
    copy(RobomimicSource(path), tmp_path / "copy.hdf5")
    with h5py.File(tmp_path / "copy.hdf5") as file:
        assert file["data"].attrs["total"] == 21
        assert json.loads(file["data"].attrs["env_args"]) == ENV_ARGS
        assert [file[f"data/demo_{n}"].attrs["num_samples"] for n in range(3)] == [3, 5, 13]
        assert [name.decode() for name in file["mask/train"][:]] == ["demo_0", "demo_2"]
        images = file["data/demo_1/obs/agentview_image"]
        assert (images.dtype, images.shape, images.compression) == (np.uint8, (5, 8, 6, 3), "gzip")
        assert "next_obs" not in file["data/demo_1"]


ACTIONS = np.zeros((2, 7))
FRAMES = [np.zeros((4, 4, 3), np.uint8)] * 2


@pytest.mark.parametrize(
    ("demo", "sentence"),
    [
        (Demo({"obs/x": ACTIONS}), "expected a column 'actions' in demo_0, but obs/x came"),
        (Demo({"actions": ACTIONS[:0]}), "at least one step in demo_0"),
        (Demo({"actions": ACTIONS, "dones": ACTIONS[:1]}), "expected 2 rows .* 'dones'"),
        (Demo({"actions": ACTIONS, "a": np.array(["x", "y"], object)}), "numbers, .* object came"),
        (Demo({"actions": ACTIONS, "../x": ACTIONS}), "expected a name such as actions"),
        (Demo({"actions": ACTIONS, "other/x": ACTIONS}), "expected a name such as actions"),
        (Demo({"actions": ACTIONS}, {"a": FRAMES[:1]}), "expected 2 frames, .* but 1 came"),
        (Demo({"actions": ACTIONS}, {"a": FRAMES * 2}), "expected 2 frames of .* but frame 2"),
        (Demo({"actions": ACTIONS}, {"a": [FRAMES[0][0]]}), r"expected frames \(H, W, 3\)"),
        (
            Demo({"actions": ACTIONS}, {"a": [FRAMES[0], FRAMES[0].astype(float)]}),
            "uint8 for 'obs/a' .* float64 came",
        ),
    ],
)
def test_demos_that_do_not_fit_leave_nothing_behind(
    tmp_path: Path, demo: Demo, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        write_robomimic(tmp_path / "a.hdf5", demos=[demo], env_args={}, splits={})
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_and_splits_must_name_demos(path: Path, tmp_path: Path) -> None:
    before = path.read_bytes()
    demo = Demo({"actions": ACTIONS})
    with pytest.raises(ValueError, match=f"{path} exists already; remove it"):
        write_robomimic(path, demos=[demo], env_args={}, splits={})
    assert path.read_bytes() == before
    new = tmp_path / "new.hdf5"
    with pytest.raises(ValueError, match=r"places from 0 to 0 in split 'train'.* but \[1\] came"):
        write_robomimic(new, demos=[demo], env_args={}, splits={"train": (1,)})
    with pytest.raises(ValueError, match="at least one demo"):
        write_robomimic(new, demos=[], env_args={}, splits={})
    new.with_name("new.hdf5.writing").write_bytes(b"left by a killed writer")
    write_robomimic(new, demos=[demo], env_args={}, splits={"train": (0,), "valid": ()})
    assert RobomimicSource(new).info.splits == {"train": (0,), "valid": ()}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["image.hdf5", "new.hdf5"]
