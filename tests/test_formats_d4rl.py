"""D4RL's files: episodes cut out of flat arrays."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_qsft.datasets.features import Camera
from robot_qsft.datasets.formats.d4rl import D4RLSource, matches
from robot_qsft.datasets.outcomes import Evidence, judge
from robot_qsft.datasets.source import Column

h5py = pytest.importorskip("h5py")

# Nine steps: an episode of three that terminates, one of four that runs out of time, and one of two
# that the file ends in.
TERMINALS = np.array([0, 0, 1, 0, 0, 0, 0, 0, 0], bool)
TIMEOUTS = np.array([0, 0, 0, 0, 0, 0, 1, 0, 0], bool)
REWARDS = np.array([0, 0, 1, 0, 0, 0, 0, 0, 0], np.float32)


def write(path: Path, **changes: Any) -> Path:
    """A file in which `changes` replace arrays, or remove them where None."""
    steps = np.arange(9, dtype=np.float32)
    arrays: dict[str, Any] = {
        "observations": np.outer(steps, np.ones(4, np.float32)),
        "actions": np.outer(steps, np.ones(2, np.float32)),
        "next_observations": np.outer(steps + 1, np.ones(4, np.float32)),
        "rewards": REWARDS,
        "terminals": TERMINALS,
        "timeouts": TIMEOUTS,
        "infos/qpos": np.outer(steps, np.ones(3)),
        "infos/note": np.zeros(5),
        "metadata/algorithm": np.bytes_(b"SAC"),
    }
    arrays |= {name.replace("__", "/"): array for name, array in changes.items()}
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            if array is not None:
                file[name] = array
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "halfcheetah.hdf5"


def lengths(source: D4RLSource) -> list[int]:
    return [len(source.recording(index)) for index in range(len(source))]


def test_episodes_end_at_terminals_and_timeouts(path: Path) -> None:
    source = D4RLSource(write(path))
    assert matches(path) and source.files() == (path,)
    assert source.info.format == "D4RL HDF5" and source.info.fps is None
    assert source.info.columns == {
        "actions": Column("float32", (2,)),
        "infos/qpos": Column("float64", (3,)),
        "observations": Column("float32", (4,)),
        "rewards": Column("float32"),
        "terminals": Column("bool"),
        "timeouts": Column("bool"),
    }
    assert source.info.notes == (
        "infos/note has not one row per step: left out",
        "next_observations repeats the observations of the next step: left out",
        "the last episode is cut off: the file ends before it does",
    )
    assert lengths(source) == [3, 4, 2]
    second = source.recording(1)
    assert (second.name, second.instruction) == ("episode 1", "")
    np.testing.assert_array_equal(second.columns["observations"][:, 0], [3, 4, 5, 6])
    np.testing.assert_array_equal(second.columns["infos/qpos"][:, 2], [3, 4, 5, 6])
    assert second.columns["timeouts"].tolist() == [False, False, False, True]
    with pytest.raises(IndexError, match="episode 3 asked for"):
        source.recording(3)


def test_numbers_of_shape_one_are_single_numbers(path: Path) -> None:
    source = D4RLSource(
        write(path, rewards=REWARDS[:, None], terminals=TERMINALS[:, None].astype(np.float32))
    )
    assert source.info.columns["rewards"].shape == source.info.columns["terminals"].shape == ()
    assert lengths(source) == [3, 4, 2]
    assert source.recording(0).columns["rewards"].tolist() == [0, 0, 1]


def test_outcomes_follow_sparse_rewards_or_a_success_flag(path: Path, tmp_path: Path) -> None:
    def evidences(name: str, **changes: Any) -> list[Evidence]:
        source = D4RLSource(write(tmp_path / name, **changes))
        return [source.recording(index).evidence for index in range(3)]

    sparse = evidences("sparse")
    assert sparse[0] == Evidence("rewards", True, 2)
    assert judge(sparse) == ("success", "failure", "failure")
    dense = evidences("dense", rewards=np.linspace(0, 1, 9))
    assert judge(dense) == ("unknown",) * 3
    achieved = np.array([0, 0, 0, 0, 1, 1, 0, 0, 0], bool)
    flagged = evidences("flag", rewards=np.linspace(0, 1, 9), infos__goal_achieved=achieved)
    assert flagged[1] == Evidence("infos/goal_achieved", True, 1)
    assert judge(flagged) == ("failure", "success", "failure")
    # Terminals alone say nothing: a walker that falls terminates, too.
    assert judge(evidences("zero", rewards=np.zeros(9))) == ("unknown",) * 3


def test_without_timeouts_terminals_alone_cut_unless_the_file_tells_the_limit(
    path: Path, tmp_path: Path
) -> None:
    source = D4RLSource(write(path, timeouts=None))
    assert lengths(source) == [3, 6]
    assert any("there is no array timeouts: episodes end at terminals" in note
               for note in source.info.notes)  # fmt: skip
    limited = D4RLSource(write(tmp_path / "b", timeouts=None, metadata__max_episode_steps=4))
    # Steps 3 to 6 are the most that an episode may take; 7 and 8 are the next.
    assert lengths(limited) == [3, 4, 2]
    assert any("after 4 steps, the most that the file allows" in note
               for note in limited.info.notes)  # fmt: skip
    strange = D4RLSource(write(tmp_path / "c", timeouts=None, metadata__max_episode_steps=[0.5]))
    assert lengths(strange) == [3, 6]


@pytest.mark.parametrize("channels_first", [False, True])
def test_images_become_a_camera(path: Path, channels_first: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 6, 3), np.uint8)
    stored = images.transpose(0, 3, 1, 2) if channels_first else images
    source = D4RLSource(write(path, observations=stored))
    assert source.info.cameras == {"observations": Camera(8, 6, "image")}
    assert "observations" not in source.info.columns
    frames = list(source.frames(1, "observations"))
    np.testing.assert_array_equal(frames, images[3:7])
    with pytest.raises(ValueError, match="camera 'front' asked for"):
        source.frames(0, "front")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"terminals": None}, "expected an array 'terminals' at the root"),
        ({"rewards": np.zeros(8)}, "expected 9 rows of 'rewards' .* but 8 came"),
        ({"timeouts": np.zeros(8, bool)}, "expected 9 rows of 'timeouts'"),
        ({"terminals": np.full(9, 2)}, "expected 0 or 1 per step in 'terminals'"),
        ({"terminals": np.full(9, np.nan)}, "expected 0 or 1 per step in 'terminals'"),
        ({"rewards": ["a"] * 9}, "expected numbers or images in 'rewards'"),
        ({"actions": np.zeros((0, 2))}, "expected 1 to .* steps in .* but 0 came"),
        ({"observations": np.zeros((9, 4, 4, 9))}, "expected numbers or images in 'observations'"),
    ],
)
def test_what_does_not_fit_is_named(path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        D4RLSource(write(path, **changes))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_pieces_that_point_into_other_files_are_not_opened(path: Path) -> None:
    write(path)
    with h5py.File(path, "a") as file:
        file["virtual/0/observations"] = h5py.ExternalLink("/etc/passwd", "x")
    assert lengths(D4RLSource(path)) == [3, 4, 2]
