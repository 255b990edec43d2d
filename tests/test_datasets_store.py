"""Reading data sets: LeRobot's own, foreign variants of it, and damaged ones."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robot_qsft.datasets.episode import Episode
from robot_qsft.datasets.features import Camera, DatasetInfo
from robot_qsft.datasets.outcomes import check_rewards, infer_outcomes
from robot_qsft.datasets.store import Dataset
from robot_qsft.datasets.writer import DatasetWriter

FIXTURES = Path(__file__).parents[1].parent / "shared" / "fixtures"
needs_fixtures = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason="the format fixtures lie outside the repository"
)
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
VIDEO = "videos/observation.images.front/chunk-000/file-000.mp4"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Three episodes of 4, 5 and 6 steps; the first and the last succeed."""
    info = DatasetInfo(
        fps=10,
        action_names=("x", "y"),
        state_names=("p",),
        cameras={"front": Camera(64, 64), "wrist": Camera(8, 6, "image")},
    )
    rng = np.random.default_rng(0)
    with DatasetWriter(tmp_path / "set", info=info) as writer:
        for episode, steps in enumerate((4, 5, 6)):
            rewards = np.zeros(steps, np.float32)
            rewards[-1] = episode != 1
            grey = np.arange(steps, dtype=np.uint8)[:, None, None, None] * 20
            writer.add_episode(
                Episode(
                    states=rng.normal(size=(steps, 1)).astype(np.float32),
                    actions=rng.normal(size=(steps, 2)).astype(np.float32),
                    rewards=rewards,
                    successes=rewards > 0,
                    terminated=episode != 1,
                    truncated=episode == 1,
                    instruction="lift",
                    images={
                        "front": np.broadcast_to(grey, (steps, 64, 64, 3)),
                        "wrist": np.broadcast_to(grey, (steps, 8, 6, 3)),
                    },
                    environment_states=np.zeros((steps, 0), np.float32),
                )
            )
    return tmp_path / "set"


def edit_info(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    info = json.loads((path / "meta/info.json").read_text())
    edit(info)
    (path / "meta/info.json").write_text(json.dumps(info))


def edit_table(file: Path, edit: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(edit(pq.read_table(file)), file)


def drop_feature(path: Path, *keys: str) -> None:
    edit_info(path, lambda info: [info["features"].pop(key) for key in keys])
    edit_table(path / DATA, lambda table: table.drop_columns(list(keys)))


def set_column(path: Path, key: str, values: list[Any]) -> None:
    def edit(table: pa.Table) -> pa.Table:
        at = table.column_names.index(key)
        return table.set_column(at, key, pa.array(values, table.schema.field(key).type))

    edit_table(path / DATA, edit)


@needs_fixtures
def test_fixture_of_lerobot_is_read_as_is() -> None:
    dataset = Dataset.open(FIXTURES / "lerobot_v30")
    names = ("x", "y", "z", "rx", "ry", "rz", "g")
    assert dataset.info == DatasetInfo(
        fps=10,
        action_names=names,
        state_names=names,
        cameras={"front": Camera(64, 64), "wrist": Camera(32, 32, "image")},
        robot_type="panda",
    )
    tables = dataset.tables()
    assert tables.instructions == ("pick cube", "pick cube", "place cube")
    assert tables.environment_states.shape == (39, 0) and tables.states.shape == (39, 7)
    np.testing.assert_array_equal(tables.episode_starts, [0, 12, 25])
    np.testing.assert_array_equal(tables.episode_returns, [1, 1, 1])
    np.testing.assert_array_equal(tables.terminated, [True] * 3)
    raw = pq.read_table(FIXTURES / "lerobot_v30" / DATA)
    np.testing.assert_array_equal(tables.actions, raw.column("action").to_pylist())
    for index in range(3):
        episode = dataset.episode(index)
        grey = (40 * index + 5 * np.arange(len(episode))) % 255
        assert np.abs(episode.images["front"] - grey[:, None, None, None]).max() <= 1
        assert (episode.images["wrist"] == grey[:, None, None, None]).all()
    assert infer_outcomes(tables).counts == {"success": 3, "failure": 0, "unknown": 0}
    with pytest.raises(ValueError, match="one outcome only"):
        check_rewards(tables)


@needs_fixtures
def test_fixture_of_v21_is_read_alike() -> None:
    old, new = Dataset.open(FIXTURES / "lerobot_v21"), Dataset.open(FIXTURES / "lerobot_v30")
    np.testing.assert_array_equal(old.index.lengths, new.index.lengths)
    assert old.tables().tasks == new.tables().tasks
    for index in range(len(old)):
        grey = (40 * index + 5 * np.arange(12 + index)) % 255
        episode = old.episode(index)
        assert episode.success and episode.instruction == new.episode(index).instruction
        assert np.abs(episode.images["front"] - grey[:, None, None, None]).max() <= 1
        assert (episode.images["wrist"] == grey[:, None, None, None]).all()


def test_missing_names_and_channels_first(path: Path) -> None:
    def edit(info: dict[str, Any]) -> None:
        info["features"]["action"]["names"] = None
        info["features"]["observation.state"]["names"] = {"motors": ["elbow"]}
        wrist = info["features"]["observation.images.wrist"]
        wrist["shape"], wrist["names"] = [3, 8, 6], ["channel", "height", "width"]
        front = info["features"]["observation.images.front"]
        front["shape"], front["names"] = [3, 64, 64], None

    edit_info(path, edit)
    dataset = Dataset.open(path)
    assert dataset.info.action_names == ("action_0", "action_1")
    assert dataset.info.state_names == ("elbow",)
    assert dataset.info.cameras == {"front": Camera(64, 64), "wrist": Camera(8, 6, "image")}
    assert dataset.episode(2).images["wrist"][:, 0, 0, 0].tolist() == [0, 20, 40, 60, 80, 100]


def test_depth_cameras_are_left_out(path: Path) -> None:
    def edit(info: dict[str, Any]) -> None:
        info["features"]["observation.images.front"]["info"]["video.is_depth_map"] = True

    edit_info(path, edit)
    assert set(Dataset.open(path).info.cameras) == {"wrist"}


def test_row_groups_need_not_be_episodes(path: Path) -> None:
    before = list(Dataset.open(path).frames("wrist"))
    pq.write_table(pq.read_table(path / DATA), path / DATA, row_group_size=7)
    dataset = Dataset.open(path)
    np.testing.assert_array_equal(list(dataset.frames("wrist")), before)
    np.testing.assert_array_equal(dataset.episode(1).images["wrist"], before[4:9])


def test_reward_from_success(path: Path) -> None:
    drop_feature(path, "next.reward")
    last = [False, True, True, False, True, True]
    set_column(path, "next.success", [False] * 9 + last)
    tables = Dataset.open(path).tables()
    assert tables.reward_source == tables.success_source == "next.success"
    assert np.flatnonzero(tables.rewards).tolist() == [10]


def test_success_from_sparse_reward(path: Path) -> None:
    drop_feature(path, "next.success")
    tables = Dataset.open(path).tables()
    assert tables.success_source == "next.reward"
    assert np.flatnonzero(tables.successes).tolist() == [3, 14]
    set_column(path, "next.reward", [0.3] * 15)
    tables = Dataset.open(path).tables()
    assert tables.success_source == "none" and not tables.successes.any()
    assert infer_outcomes(tables).counts["unknown"] == 3


def test_is_success_counts_as_success(path: Path) -> None:
    def rename(info: dict[str, Any]) -> None:
        info["features"]["is_success"] = info["features"].pop("next.success")

    edit_info(path, rename)
    edit_table(
        path / DATA,
        lambda table: table.rename_columns(
            ["is_success" if name == "next.success" else name for name in table.column_names]
        ),
    )
    assert Dataset.open(path).tables().success_source == "is_success"


def test_no_reward_is_not_a_reward_of_zero(path: Path) -> None:
    drop_feature(path, "next.reward", "next.success")
    tables = Dataset.open(path).tables()
    assert tables.reward_source == "none" and not tables.rewards.any()
    assert infer_outcomes(tables).source == "none"
    with pytest.raises(ValueError, match=r"neither next.reward nor next.success; label"):
        check_rewards(tables)


def test_end_marker_alone_is_a_time_out_unless_solved(path: Path) -> None:
    drop_feature(path, "next.truncated")
    tables = Dataset.open(path).tables()
    assert tables.terminated.tolist() == [True, False, True]
    assert tables.truncated.tolist() == [False, True, False]


def test_failure_that_terminates(path: Path) -> None:
    set_column(path, "next.truncated", [False] * 15)
    tables = Dataset.open(path).tables()
    assert tables.terminated.tolist() == [True, True, True] and not tables.truncated.any()


def test_unknown_camera_and_episode(path: Path) -> None:
    dataset = Dataset.open(path)
    with pytest.raises(ValueError, match=r"camera 'left' asked for, but .* has front, wrist"):
        next(dataset.frames("left"))
    with pytest.raises(IndexError, match="episode 3 asked for, but there are 3"):
        dataset.episode(3)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def all_of(dataset: Dataset) -> None:
    dataset.tables()
    for camera in dataset.info.cameras:
        list(dataset.frames(camera))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no such folder"),
        (lambda path: (path / "meta/info.json").unlink(), "no meta/info.json"),
        (lambda path: truncate(path / "meta/info.json"), "is not JSON"),
        (lambda path: edit_info(path, lambda i: i.pop("fps")), "expected 'fps' in"),
        (lambda path: edit_info(path, lambda i: i.update(fps=0)), "fps must be a whole number"),
        (
            lambda path: edit_info(path, lambda i: i.update(codebase_version="v1.6")),
            "expected codebase_version v2.0, v2.1 or v3.0 .* v1.6 came",
        ),
        (
            lambda path: edit_info(path, lambda i: i["features"].pop("action")),
            "expected a feature named 'action'",
        ),
        (
            lambda path: edit_info(path, lambda i: i.update(total_episodes=4)),
            "the 4 episodes that info.json counts .* but 3 came",
        ),
        (lambda path: (path / DATA).unlink(), "expected the file .*data.* it is missing"),
        (lambda path: truncate(path / DATA), "expected a complete parquet file"),
        (lambda path: truncate(path / EPISODES), "expected a complete parquet file"),
        (lambda path: (path / EPISODES).unlink(), "the 3 episodes .* but 0 came"),
        (
            lambda path: (path / "meta/tasks.parquet").unlink(),
            "meta/tasks.parquet, but there is none",
        ),
        (lambda path: (path / VIDEO).unlink(), "expected the file videos/.* is missing"),
        (lambda path: truncate(path / VIDEO), "expected a readable video"),
        (
            lambda path: edit_table(path / DATA, lambda t: t.drop_columns(["action"])),
            "expected a column 'action'",
        ),
        (lambda path: edit_table(path / DATA, lambda t: t.slice(0, 14)), "expected 15 rows"),
        (
            lambda path: set_column(path, "action", [[0, 0]] * 6 + [[0, np.nan]] + [[0, 0]] * 8),
            "'action' holds NaN or infinity in episode 1 at step 2",
        ),
        (
            lambda path: set_column(path, "observation.state", [0.0] * 14 + [np.inf]),
            "'observation.state' holds NaN or infinity in episode 2 at step 5",
        ),
        (
            lambda path: set_column(path, "action", [[0, 0]] * 14 + [None]),
            "expected 2 numbers in each of the 15 rows of 'action'",
        ),
        (
            lambda path: edit_info(path, lambda i: i["features"]["action"].update(shape=[3])),
            "expected 3 numbers in each of the 15 rows of 'action'",
        ),
        (
            lambda path: set_column(path, "task_index", [1] * 15),
            "expected task_index below 1, .* but 1 came",
        ),
        (
            lambda path: set_column(
                path, "observation.images.wrist", [{"bytes": b"GIF", "path": ""}] * 15
            ),
            "a PNG or JPEG for camera 'wrist'",
        ),
        (
            lambda path: set_column(
                path, "observation.images.wrist", [{"bytes": None, "path": "a.png"}] * 15
            ),
            "expected image bytes for camera 'wrist'",
        ),
        (
            lambda path: edit_info(
                path, lambda i: i["features"]["observation.images.front"].update(shape=[32, 64, 3])
            ),
            "expected frames of 32x64 for camera 'front', but 64x64 came",
        ),
        (
            lambda path: edit_info(
                path, lambda i: i["features"]["observation.images.front"].update(shape=[64, 64])
            ),
            "should be height x width x channels",
        ),
    ],
)
def test_damage_is_told_in_one_sentence(
    path: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(path)
    with pytest.raises(ValueError, match=message) as caught:
        all_of(Dataset.open(path))
    assert "\n" not in str(caught.value)


def test_video_with_fewer_frames_than_the_table(path: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    info = Dataset.open(path).info
    with DatasetWriter(short, info=info) as writer:
        for index in range(2):
            writer.add_episode(Dataset.open(path).episode(index))
    shutil.copy(short / VIDEO, path / VIDEO)
    dataset = Dataset.open(path)
    assert len(dataset.episode(1).images["front"]) == 5
    with pytest.raises(ValueError, match=r"no frame at 0.900 s, after 9 that were found"):
        list(dataset.frames("front"))
    with pytest.raises(ValueError, match=r"no frame at 0.900 s, after 0 that were found"):
        dataset.episode(2)
