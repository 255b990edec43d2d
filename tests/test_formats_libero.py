"""LIBERO's files: upright images, and observations beside the action that they came before."""

import json
from pathlib import Path

import numpy as np
import pytest

from robot_qsft.datasets.features import Camera
from robot_qsft.datasets.formats.libero import (
    LiberoSource,
    align,
    instruction_of,
    matches,
    observation_lag,
)
from robot_qsft.datasets.outcomes import NO_EVIDENCE

h5py = pytest.importorskip("h5py")

STEPS = 6
NAME = "KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5"


def write(path: Path, *, lag: int, official: bool = True, objects: int = 1, moves: bool = True):
    """Two demos whose world is at joint angle 0.1 k before action k, and whose frames show k.

    Written as LIBERO's create_dataset does (lag 1) or as scripts that render anew do (lag 0): the
    robot_states come from the same observation as everything in obs/.
    """
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        if official:
            data.attrs["env_name"] = "Libero_Kitchen_Tabletop_Manipulation"
            data.attrs["problem_info"] = json.dumps({"language_instruction": "turn on the stove"})
            data.attrs["macros_image_convention"] = "opengl"
            data.attrs["bddl_file_name"] = "/home/somebody/a.bddl"
            data.attrs["env_args"] = json.dumps(
                {"type": 1, "env_kwargs": {"robots": ["Panda"], "control_freq": 20}}
            )
            data.attrs["num_demos"] = 2
        for index in range(2):
            demo = data.create_group(f"demo_{index}")
            before = np.arange(STEPS)  # the world's time before action k
            seen = before + lag
            joints = 0.1 * np.outer(seen if moves else seen * 0, np.ones(7))
            time = 0.05 * before[:, None]
            positions = 0.1 * np.outer(before if moves else before * 0, np.ones(7))
            rest = np.full((STEPS, 2 + 7 * objects), 0.3)
            demo["states"] = np.hstack([time, positions, rest])
            demo["actions"] = np.outer(before, np.ones(7))
            demo["robot_states"] = np.outer(seen, np.ones(9))
            demo["obs/joint_states"] = joints
            demo["obs/ee_states"] = np.outer(seen, np.ones(6))
            demo["obs/gripper_states"] = np.outer(seen, np.ones(2))
            demo["rewards"] = np.eye(1, STEPS, STEPS - 1, dtype=np.uint8)[0]
            demo["dones"] = np.eye(1, STEPS, STEPS - 1, dtype=np.uint8)[0]
            frames = np.zeros((STEPS, 4, 5, 3), np.uint8)
            frames[:, 0] = (10 * seen + 100 * index)[:, None, None]  # the bottom row comes first
            demo["obs/agentview_rgb"] = frames
            demo["obs/eye_in_hand_rgb"] = frames
            if official:
                demo.attrs["num_samples"] = STEPS
    return path


def test_what_was_seen_after_an_action_is_put_beside_the_next(tmp_path: Path) -> None:
    path = write(tmp_path / NAME, lag=1)
    assert matches(path)
    source = LiberoSource(path)
    assert source.info.format == "LIBERO HDF5" and len(source) == 2
    assert (source.info.fps, source.info.robot_type) == (20.0, "panda")
    assert source.info.tasks == ("turn on the stove",)
    assert source.info.cameras == {
        "agentview_rgb": Camera(4, 5, "image"),
        "eye_in_hand_rgb": Camera(4, 5, "image"),
    }
    assert "observations are stored one step late, as the joints" in source.info.notes[0]
    recording = source.recording(1)
    assert (recording.name, recording.instruction) == ("demo_1", "turn on the stove")
    assert len(recording) == STEPS - 1
    columns = recording.columns
    # Action k, the state before it, and what was seen of that state.
    for name in ("actions", "obs/ee_states", "obs/gripper_states", "robot_states"):
        np.testing.assert_array_equal(columns[name][:, 0], [1, 2, 3, 4, 5])
    np.testing.assert_allclose(columns["states"][:, 1:8], columns["obs/joint_states"])
    np.testing.assert_array_equal(columns["rewards"], [0, 0, 0, 0, 1])
    frames = list(source.frames(1, "agentview_rgb"))
    assert [frame[-1, 0, 0] for frame in frames] == [110, 120, 130, 140, 150]
    assert all(not frame[:-1].any() and frame.flags.c_contiguous for frame in frames)


def test_what_was_rendered_anew_stays_where_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / NAME, lag=0, official=False)
    assert matches(path)
    source = LiberoSource(path)
    assert source.info.fps == 20.0 and source.info.robot_type is None
    assert "observations are from before the action beside them, as the joints" in "".join(
        source.info.notes
    )
    assert "instructions are taken from the names of the files" in source.info.notes
    recording = source.recording(0)
    assert recording.instruction == "turn on the stove" and len(recording) == STEPS
    for name in ("actions", "obs/ee_states", "robot_states"):
        np.testing.assert_array_equal(recording.columns[name][:, 0], [0, 1, 2, 3, 4, 5])
    assert [frame[-1, 0, 0] for frame in source.frames(0, "agentview_rgb")] == [
        *(0, 10, 20, 30, 40, 50)
    ]


def test_the_last_reward_is_no_evidence(tmp_path: Path) -> None:
    source = LiberoSource(write(tmp_path / NAME, lag=1))
    assert source.recording(0).evidence == NO_EVIDENCE
    assert source.info.notes[-1] == (
        "rewards and dones are 1 at the end of every demo, however it ended: outcomes are unknown"
    )


@pytest.mark.parametrize(("official", "steps"), [(True, STEPS - 1), (False, STEPS)])
def test_a_robot_at_rest_tells_nothing_so_the_script_decides(
    tmp_path: Path, official: bool, steps: int
) -> None:
    source = LiberoSource(write(tmp_path / NAME, lag=1, official=official, moves=False))
    assert len(source.recording(0)) == steps
    assert any("the states do not tell" in note for note in source.info.notes)


def test_images_in_the_upright_convention_are_not_turned(tmp_path: Path) -> None:
    path = write(tmp_path / NAME, lag=1)
    with h5py.File(path, "a") as file:
        file["data"].attrs["macros_image_convention"] = "opencv"
    frames = list(LiberoSource(path).frames(1, "agentview_rgb"))
    assert [frame[0, 0, 0] for frame in frames] == [110, 120, 130, 140, 150]


def test_a_folder_is_read_file_after_file(tmp_path: Path) -> None:
    for task, objects in (("open_the_drawer", 1), ("close_the_door", 2)):
        write(tmp_path / f"{task}_demo.hdf5", lag=0, official=False, objects=objects)
    assert matches(tmp_path)
    source = LiberoSource(tmp_path)
    assert len(source) == 4
    assert [file.name for file in source.files()] == [
        "close_the_door_demo.hdf5",
        "open_the_drawer_demo.hdf5",
    ]
    assert source.info.tasks == ("close the door", "open the drawer")
    # As many numbers as objects: the two files differ.
    assert "states" not in source.info.columns
    assert "states differs from file to file: left out" in source.info.notes
    names = [source.recording(index).name for index in (3, 0, 1)]
    assert names == [
        "open_the_drawer_demo/demo_1",
        "close_the_door_demo/demo_0",
        "close_the_door_demo/demo_1",
    ]
    assert source.recording(2).instruction == "open the drawer"
    # Frames may be taken from two files by turns.
    first, last = source.frames(0, "agentview_rgb"), source.frames(3, "agentview_rgb")
    pairs = zip(first, last, strict=True)
    assert [(one[-1, 0, 0], other[-1, 0, 0]) for one, other in pairs] == [
        (10 * step, 10 * step + 100) for step in range(STEPS)
    ]


def test_a_damaged_file_of_a_folder_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a_demo.hdf5", lag=1)
    (tmp_path / "b_demo.hdf5").write_bytes((tmp_path / "a_demo.hdf5").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"expected a complete HDF5 file at .*b_demo.hdf5"):
        LiberoSource(tmp_path)


def test_alignment_of_four_steps() -> None:
    columns = {"obs/x": np.array([1, 2, 3, 4]), "actions": np.array([0, 1, 2, 3])}
    aligned = align(columns, lag=1)
    assert aligned["obs/x"].tolist() == aligned["actions"].tolist() == [1, 2, 3]
    assert align(columns, lag=0)["obs/x"].tolist() == [1, 2, 3, 4]


def test_lag_is_found_in_spite_of_noise_and_a_settling_start() -> None:
    rng = np.random.default_rng(0)
    path = np.cumsum(rng.normal(size=(40, 7)), axis=0)
    states = np.hstack([np.zeros((40, 1)), path, rng.normal(size=(40, 9))])
    noise = 0.05 * rng.normal(size=(39, 7))
    assert observation_lag(path[1:] + noise, states[:39]) == 1
    settled = path[:39] + noise
    settled[0] += 100
    assert observation_lag(settled, states[:39]) == 0
    assert observation_lag(rng.normal(size=(39, 7)), states[:39]) is None
    assert observation_lag(path[:2], states[:2]) is None
    assert observation_lag(path, states[:39]) is None
    assert observation_lag(path, states[:, :5]) is None
    assert observation_lag(path[:39] * np.nan, states[:39]) is None
    assert observation_lag(path[:39], np.full_like(states[:39], np.inf)) is None


@pytest.mark.parametrize(
    ("name", "instruction"),
    [
        ("pick_up_the_black_bowl_demo.hdf5", "pick up the black bowl"),
        ("LIVING_ROOM_SCENE5_put_the_mug_away_demo.hdf5", "put the mug away"),
        ("demo.hdf5", "demo"),
    ],
)
def test_instruction_in_a_file_name(name: str, instruction: str) -> None:
    assert instruction_of(name) == instruction
