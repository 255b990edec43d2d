import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_qsft.datasets.features import Camera
from robot_qsft.datasets.field_map import FieldMap, Part, field_map_text, read_field_map
from robot_qsft.datasets.formats.detect import open_source
from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.mapped import MappedSource
from robot_qsft.datasets.outcomes import NO_EVIDENCE
from robot_qsft.datasets.source import Column, Recording, SourceInfo
from robot_qsft.datasets.suggest_map import suggest, suggestion_text

SHARED = Path(__file__).parent.parent.parent / "shared"

needs_fixtures = pytest.mark.skipif(
    not (SHARED / "fixtures").exists(), reason="the fixtures of ../shared are not here"
)

ROBOSUITE_ACTION = (
    Part("actions", entries=(0, 1, 2), names=("x", "y", "z"), kind="delta"),
    Part(
        "actions", entries=(3, 4, 5), names=("rx", "ry", "rz"), rotation="axis_angle", kind="delta"
    ),
    Part("actions", entries=(6,), names=("gripper",), kind="absolute"),
)


@dataclass
class NamedSource:
    """Columns and cameras of some names, and one episode of two steps."""

    columns: Mapping[str, np.ndarray]
    format: str = "made up"
    cameras: tuple[str, ...] = ()
    damaged: int = 0
    path: Path = Path("named")
    info: SourceInfo = field(init=False)

    def __post_init__(self) -> None:
        self.info = SourceInfo(
            self.format,
            {
                name: Column(
                    "string" if values.dtype == object else values.dtype.name, values.shape[1:]
                )
                for name, values in self.columns.items()
            },
            {name: Camera(8, 8, "image") for name in self.cameras},
            fps=10.0,
        )

    def __len__(self) -> int:
        return self.damaged + 1

    def recording(self, index: int) -> Recording:
        if index < self.damaged:
            raise ValueError("damaged")
        return Recording("one", self.columns, "", NO_EVIDENCE)

    def frames(self, index: int, camera: str) -> Iterator[Image]:
        raise AssertionError("no frame is looked at")

    def files(self) -> tuple[Path, ...]:
        return ()


def zeros(**sizes: int) -> dict[str, np.ndarray]:
    """Columns of two rows; "__" in a name stands for "/"."""
    return {name.replace("__", "/"): np.zeros((2, size)) for name, size in sizes.items()}


def columns_of(parts: tuple[Part, ...]) -> list[str]:
    return [part.column for part in parts]


def suggested_from_file(path: Path, tmp_path: Path) -> FieldMap:
    """The suggestion for a file, written, read again, and seen to fit its source."""
    source = open_source(path)
    suggested = suggest(source)
    file = tmp_path / "map.yaml"
    file.write_text(suggestion_text(source, suggested), encoding="utf-8")
    assert read_field_map(file) == suggested
    MappedSource(source, suggested if source.info.fps else FieldMap(**vars(suggested) | {"fps": 1}))
    return suggested


def write_demos(path: Path, demos: list[dict[str, Any]], **attributes: Any) -> Path:
    """An HDF5 file of groups data/demo_0, data/demo_1 ..., each with these data sets."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for name, value in attributes.items():
            data.attrs[name] = value
        for index, demo in enumerate(demos):
            group = data.create_group(f"demo_{index}")
            group.attrs["num_samples"] = len(demo["actions"])
            for name, values in demo.items():
                group[name] = values
    return path


@needs_fixtures
@pytest.mark.parametrize(
    ("version", "kept"),
    [
        ("lerobot_v21", ("next.reward", "next.done")),
        ("lerobot_v30", ("next.reward", "next.done", "next.success", "observation.force")),
    ],
)
def test_lerobot_is_left_as_it_is(version: str, kept: tuple[str, ...], tmp_path: Path) -> None:
    suggested = suggested_from_file(SHARED / "fixtures" / version, tmp_path)
    assert suggested == FieldMap(
        action=(Part("action"),),
        state=(Part("observation.state"),),
        cameras={"front": "front", "wrist": "wrist"},
        reward="next.reward",
        end_at_success=False,
        keep=kept,
    )


@pytest.mark.parametrize(
    ("rewards", "reward"),
    [
        ([0.5, 0.5], "next.reward"),
        ([0.0, 0.0], "next.reward"),
        ([1.0, 1.0], "success"),
        ([-1.0, 1.0], "success"),
        ([np.nan, 0.0], "success"),
    ],
)
def test_lerobot_rewards_are_taken_where_training_can(rewards: list[float], reward: str) -> None:
    columns = zeros(action=3) | {"next.reward": np.array(rewards)}
    # Two damaged episodes before it tell nothing.
    assert suggest(NamedSource(columns, "LeRobotDataset v3.0", damaged=2)).reward == reward


def test_robomimic(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    images = np.zeros((4, 84, 84, 3), np.uint8)
    demo = {
        "actions": np.zeros((4, 7)),
        "states": np.zeros((4, 32)),
        "rewards": np.zeros(4),
        "dones": np.zeros(4, np.int64),
        "obs/object": np.zeros((4, 10)),
        "obs/robot0_eef_pos": np.zeros((4, 3)),
        "obs/robot0_eef_quat": np.tile([0.0, 0.6, 0.8, 0.0], (4, 1)),
        "obs/robot0_gripper_qpos": np.zeros((4, 2)),
        "obs/robot0_joint_pos": np.zeros((4, 7)),
        "obs/agentview_image": images,
        "obs/robot0_eye_in_hand_image": images,
    }
    env_args = json.dumps({"type": 1, "env_name": "Lift", "env_kwargs": {"control_freq": 20}})
    path = write_demos(tmp_path / "image.hdf5", [demo], env_args=env_args)
    assert suggested_from_file(path, tmp_path) == FieldMap(
        action=ROBOSUITE_ACTION,
        state=(
            Part("obs/robot0_eef_pos"),
            Part("obs/robot0_eef_quat", rotation="quaternion_xyzw"),
            Part("obs/robot0_gripper_qpos"),
        ),
        environment_state=(Part("obs/object"),),
        cameras={
            "agentview": "agentview_image",
            "robot0_eye_in_hand": "robot0_eye_in_hand_image",
        },
    )


def test_four_numbers_that_are_no_rotation_are_none() -> None:
    columns = zeros(actions=7, obs__robot0_eef_pos=3, obs__robot0_eef_quat=4)
    suggested = suggest(NamedSource(columns, "robomimic HDF5"))
    assert suggested.state == (Part("obs/robot0_eef_pos"), Part("obs/robot0_eef_quat"))


def test_two_robots_and_another_action_space() -> None:
    columns = zeros(
        actions=14, obs__robot1_eef_pos=3, obs__robot0_gripper_qpos=2, obs__robot0_eef_pos=3
    )
    suggested = suggest(NamedSource(columns, "robomimic HDF5"))
    assert columns_of(suggested.state) == [
        "obs/robot0_eef_pos",
        "obs/robot0_gripper_qpos",
        "obs/robot1_eef_pos",
    ]
    assert suggested.action == (Part("actions"),)


def test_robosuite_without_observations(tmp_path: Path) -> None:
    path = write_demos(
        tmp_path / "demo.hdf5",
        [{"actions": np.zeros((4, 7)), "states": np.zeros((4, 32))}],
        env="Lift",
        env_info=json.dumps({"control_freq": 20}),
        date="1-1-2025",
        repository_version="1.5.1",
    )
    suggested = suggested_from_file(path, tmp_path)
    assert suggested.action == ROBOSUITE_ACTION
    assert (suggested.state, suggested.environment_state) == ((), (Part("states"),))


LIBERO = zeros(
    actions=7, obs__ee_ori=3, obs__ee_states=6, obs__gripper_states=2, obs__joint_states=7
)


def test_libero_poses_in_two_columns_or_one() -> None:
    rest = (Part("obs/gripper_states"), Part("obs/joint_states"))
    cameras = ("agentview_rgb", "eye_in_hand_rgb")
    two = suggest(NamedSource(LIBERO | zeros(obs__ee_pos=3), "LIBERO HDF5", cameras))
    assert two.action == ROBOSUITE_ACTION
    assert two.state == (Part("obs/ee_pos"), Part("obs/ee_ori", rotation="axis_angle"), *rest)
    assert two.cameras == {"agentview": "agentview_rgb", "eye_in_hand": "eye_in_hand_rgb"}
    one = suggest(NamedSource(LIBERO, "LIBERO HDF5"))
    assert one.state == (
        Part("obs/ee_states", entries=(0, 1, 2)),
        Part("obs/ee_states", entries=(3, 4, 5), rotation="axis_angle"),
        *rest,
    )


@needs_fixtures
def test_rlds(tmp_path: Path) -> None:
    suggested = suggested_from_file(SHARED / "fixtures/rlds/1.0.0", tmp_path)
    assert suggested == FieldMap(
        action=(Part("action"),),
        state=(Part("observation/state"),),
        cameras={"image": "observation/image"},
    )


def test_rlds_of_parts() -> None:
    columns = zeros(
        action__terminate_episode=3,
        action__world_vector=3,
        action__rotation_delta=3,
        observation__joint_position=7,
        observation__natural_language_embedding=512,
        observation__gripper_position=1,
        observation__wrist_depth=1,
    ) | {"observation/natural_language_instruction": np.array(["a", "b"], object)}
    suggested = suggest(NamedSource(columns, "RLDS / TFDS"))
    assert columns_of(suggested.action) == ["action/world_vector", "action/rotation_delta"]
    assert columns_of(suggested.state) == [
        "observation/joint_position",
        "observation/gripper_position",
    ]


def test_d4rl(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "hopper.hdf5"
    with h5py.File(path, "w") as file:
        # More numbers than a group's member may have: by its own name it is the state.
        file["observations"] = np.zeros((4, 348), np.float32)
        file["actions"] = np.zeros((4, 3), np.float32)
        file["rewards"] = np.zeros(4, np.float32)
        file["terminals"] = np.array([False, True, False, False])
        file["timeouts"] = np.array([False, False, False, True])
    assert suggested_from_file(path, tmp_path) == FieldMap(
        action=(Part("actions"),), state=(Part("observations"),), terminated="terminals"
    )


def test_minari_with_goals() -> None:
    columns = zeros(
        actions=2,
        observations__achieved_goal=2,
        observations__desired_goal=2,
        observations__observation=4,
        infos__qpos=9,
    ) | {"terminations": np.zeros(2, np.bool_)}
    suggested = suggest(NamedSource(columns, "Minari (hdf5)"))
    assert columns_of(suggested.state) == [
        "observations/achieved_goal",
        "observations/desired_goal",
        "observations/observation",
    ]
    assert suggested.terminated == "terminations"


def test_diffusion_policy(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    root = zarr.open_group(str(tmp_path / "pusht.zarr"), mode="w", zarr_format=2)
    for name, shape in (("img", (5, 96, 96, 3)), ("state", (5, 5)), ("action", (5, 2))):
        root.create_array(f"data/{name}", data=np.ones(shape, np.float32))
    root.create_array("meta/episode_ends", data=np.array([2, 5]))
    assert suggested_from_file(tmp_path / "pusht.zarr", tmp_path) == FieldMap(
        action=(Part("action"),), state=(Part("state"),), cameras={"img": "img"}
    )


@pytest.mark.parametrize(
    ("rows", "rotation"),
    [([1, 0, 0, 0, 1, 0], True), ([1, 0, 0, 1, 0, 0], False), ([2, 0, 0, 0, 1, 0], False)],
)
def test_a_pose_of_ten_numbers_holds_a_rotation_if_the_data_says_so(
    rows: list[float], rotation: bool
) -> None:
    action = np.tile([0.1, 0.2, 0.3, *rows, 1.0], (2, 1))
    suggested = suggest(NamedSource({"action": action}, "diffusion-policy zarr"))
    if not rotation:
        assert suggested.action == (Part("action"),)
        return
    position, turned, gripper = suggested.action
    assert (position.entries, position.names) == ((0, 1, 2), ("x", "y", "z"))
    assert (turned.entries, turned.rotation) == ((3, 4, 5, 6, 7, 8), "rotation_6d")
    assert (gripper.entries, gripper.kind) == ((9,), "absolute")


def test_two_arms_have_names_of_their_own() -> None:
    arm = [0.1, 0.2, 0.3, 1, 0, 0, 0, 1, 0, 1.0]
    source = NamedSource({"action": np.array([arm + arm] * 2)}, "diffusion-policy zarr")
    parts = suggest(source).action
    assert [part.entries[0] for part in parts] == [0, 3, 9, 10, 13, 19]
    names = [name for part in parts for name in part.names]
    assert len(set(names)) == 20
    MappedSource(source, FieldMap(action=parts))


@pytest.mark.parametrize("separator", ["/", ".", "_"])
def test_columns_of_single_numbers(separator: str) -> None:
    names = ["state", "action"]
    columns = {f"{name}{separator}{axis}": np.zeros(2) for name in names for axis in "zx"}
    suggested = suggest(NamedSource(columns, "folder of videos"))
    assert columns_of(suggested.action) == [f"action{separator}z", f"action{separator}x"]
    assert columns_of(suggested.state) == [f"state{separator}z", f"state{separator}x"]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (("observation/image_primary", "wrist_rgb"), ("image_primary", "wrist")),
        (("observation.images.top", "videos/0"), ("top", "0")),
        # The same when shortened: the long names, made fit for a path.
        (("left/cam_rgb", "right/cam_rgb"), ("left_cam_rgb", "right_cam_rgb")),
        (("front_image", "front_rgb"), ("front_image", "front_rgb")),
        (("a/b", "a_b", "x/a_b"), ("camera_0", "camera_1", "camera_2")),
        (("../../etc/passwd",), ("passwd",)),
        (("кухня", ".."), ("_____", "camera")),
        (("rgb",), ("rgb",)),
    ],
)
def test_cameras_have_short_names_fit_for_a_path(
    theirs: tuple[str, ...], ours: tuple[str, ...]
) -> None:
    suggested = suggest(NamedSource(zeros(action=2), cameras=theirs))
    assert suggested.cameras == dict(zip(ours, theirs, strict=True))


@pytest.mark.parametrize("kind", ["made up", "LeRobotDataset v3.0"])
def test_without_actions_the_columns_are_listed(kind: str) -> None:
    columns = zeros(torque=7) | {"action": np.array(["up", "down"], object)}
    with pytest.raises(ValueError, match="named like an action") as refused:
        suggest(NamedSource(columns, kind))
    assert "action (string), torque (float64 (7,))" in str(refused.value)
    with pytest.raises(ValueError, match="there are none"):
        suggest(NamedSource({}, kind))


def test_the_text_explains_and_lists_the_other_columns() -> None:
    source = NamedSource(
        zeros(actions=7, torque=3) | {"note": np.array(["a", "b"], object)}, "LIBERO HDF5"
    )
    text = suggestion_text(source, suggest(source))
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert "#   torque: float64 (3,)" in comments
    assert "#   note: string" in comments
    assert not any("actions:" in line for line in comments)
    assert any("--map" in line for line in comments)
    assert not any(line != line.rstrip() for line in comments)


def test_a_name_cannot_end_a_comment(tmp_path: Path) -> None:
    evil = "x\nassume: success\u2028assume: success\x85assume: success\r\x00\ud800"
    source = NamedSource(zeros(action=2) | {evil: np.zeros(2)})
    suggested = suggest(source)
    text = suggestion_text(source, suggested)
    file = tmp_path / "map.yaml"
    file.write_text(text, encoding="utf-8")
    assert read_field_map(file) == suggested
    assert suggested.assume is None
    assert text.endswith(field_map_text(suggested))
