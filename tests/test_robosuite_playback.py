"""Recorded demonstrations played again: by state, by action, ours and those of robosuite's own."""

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_qsft.datasets.formats.detect import open_source
from robot_qsft.datasets.formats.robomimic import RobomimicSource
from robot_qsft.datasets.outcomes import judge
from robot_qsft.sim.robosuite.config import RobosuiteConfig
from robot_qsft.sim.robosuite.demonstrators import Script

if importlib.util.find_spec("robosuite") is None:
    pytest.skip("robosuite is not installed", allow_module_level=True)

from robot_qsft.collect import CollectConfig, record
from robot_qsft.sim.robosuite.engine import import_robosuite
from robot_qsft.sim.robosuite.env_args import read_env_args
from robot_qsft.sim.robosuite.playback import Playback
from robot_qsft.sim.robosuite.recording import write_recordings
from robot_qsft.sim.robosuite.tasks import RobosuiteEnvironment
from robot_qsft.sim.rollouts import Attempt, Rollout, run_attempt

h5py = pytest.importorskip("h5py")
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
collector: Any = importlib.import_module("robosuite_collector")

SEEN = RobosuiteConfig("Lift", cameras=("agentview",), image_size=32, max_steps=45)


@pytest.fixture(scope="module", params=["Lift", "Can", "Door"])
def recorded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Rollout]]:
    """A file of two demonstrations of ours, and what they were."""
    config = replace(SEEN, task=request.param, rendering="exact")
    environment, script = RobosuiteEnvironment(config), Script(request.param)
    made = [
        run_attempt(Attempt(config, script, seed, keep_simulation=True), environment, script())
        for seed in (3, 4)
    ]
    path = tmp_path_factory.mktemp("recorded") / "demos.hdf5"
    pairs = [(one.episode, one.simulation) for one in made if one.simulation is not None]
    write_recordings(path, pairs, environment)
    environment.close()
    return path, made


@pytest.fixture
def playback(recorded: tuple[Path, list[Rollout]]) -> Iterator[Playback]:
    one = Playback(recorded[0], replace(SEEN, rendering="exact"))
    yield one
    one.environment.close()


def test_states_give_the_recorded_observations_and_images(
    recorded: tuple[Path, list[Rollout]], playback: Playback
) -> None:
    """In whichever order: nothing of another episode stays behind."""
    for index in (1, 0, 1):
        before, after = recorded[1][index].episode, playback.by_state(playback.demonstration(index))
        np.testing.assert_allclose(after.states, before.states, atol=1e-6)
        np.testing.assert_allclose(after.environment_states, before.environment_states, atol=1e-6)
        np.testing.assert_array_equal(after.images["agentview"], before.images["agentview"])
        np.testing.assert_array_equal(after.actions, before.actions)
        assert after.success == before.success and after.instruction == before.instruction


def test_actions_alone_lead_through_the_recorded_states(
    recorded: tuple[Path, list[Rollout]], playback: Playback
) -> None:
    for index in (1, 0):
        simulation = recorded[1][index].simulation
        assert simulation is not None and len(simulation.states) > 20
        np.testing.assert_allclose(
            playback.by_action(playback.demonstration(index)), simulation.states, atol=1e-6
        )


def test_file_is_read_as_robomimic_s(recorded: tuple[Path, list[Rollout]]) -> None:
    path, made = recorded
    source = open_source(path)
    assert source.info.format == "robomimic HDF5" and source.info.robot_type == "panda"
    assert source.info.fps == 20 and list(source.info.cameras) == ["agentview_image"]
    evidence = [source.recording(index).evidence for index in range(2)]
    outcomes = list(judge(evidence))
    assert [one == "success" for one in outcomes] == [one.episode.success for one in made]
    columns = source.recording(0).columns
    np.testing.assert_array_equal(columns["obs/object"], made[0].episode.environment_states)
    np.testing.assert_array_equal(columns["obs/robot0_eef_pos"], made[0].episode.states[:, :3])
    np.testing.assert_array_equal(columns["obs/robot0_gripper_qpos"], made[0].episode.states[:, 7:])
    np.testing.assert_array_equal(
        next(iter(source.frames(0, "agentview_image"))), made[0].episode.images["agentview"][0]
    )
    with h5py.File(path) as file:
        env_args = json.loads(file["data"].attrs["env_args"])
        assert env_args["type"] == 1 and env_args["env_kwargs"]["robots"] == ["Panda"]
        assert file["data/demo_0/states"].dtype == np.float64


def test_file_holds_no_path_of_this_machine(recorded: tuple[Path, list[Rollout]]) -> None:
    import robosuite

    home = str(Path(robosuite.__file__).parent.parent)
    with h5py.File(recorded[0]) as file:
        assert home not in file["data/demo_0"].attrs["model_file"]
        assert home not in file["data"].attrs["env_args"]


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A file of robosuite's own collector, and the observations that robosuite gave meanwhile."""
    rng = np.random.default_rng(0)
    seen = []

    def wander(environment: Any) -> Iterator[Any]:
        for _ in range(40):
            environment.sim.forward()
            observation = environment._get_observations(force_update=True)
            seen.append({key: np.copy(value) for key, value in observation.items()})
            # Forwarding was ours: the collector's own next step starts where the last one ended.
            yield rng.uniform(-1, 1, environment.action_dim) * [1, 1, 1, 0.2, 0.2, 0.2, 1]

    import_robosuite(log=False)
    folder = tmp_path_factory.mktemp("collected")
    return collector.collect_by_robosuite(folder, wander, demos=1, seed=11), seen


def test_robosuite_s_own_file_shows_what_robosuite_saw(
    collected: tuple[Path, list[dict[str, Any]]],
) -> None:
    path, seen = collected
    playback = Playback(path, replace(SEEN, cameras=()))
    assert playback.environment.env_args.env_name == "Lift"
    episode = playback.by_state(playback.demonstration(0))
    assert len(episode) == len(seen) == 40
    for step, observation in enumerate(seen):
        names = ("eef_pos", "eef_quat", "gripper_qpos")
        proprioception = np.concatenate([observation[f"robot0_{name}"] for name in names])
        np.testing.assert_allclose(episode.states[step], proprioception, atol=1e-6)
        np.testing.assert_allclose(
            episode.environment_states[step], observation["object-state"], atol=1e-6
        )
    assert not episode.success and episode.instruction == "lift the red cube"


def test_robosuite_s_own_actions_lead_to_its_states(
    collected: tuple[Path, list[dict[str, Any]]],
) -> None:
    """Until contacts amplify what forwarding between the steps changed in the last digits."""
    playback = Playback(collected[0], replace(SEEN, cameras=()))
    recorded_states = playback.demonstration(0).simulation.states
    np.testing.assert_allclose(
        playback.by_action(playback.demonstration(0)), recorded_states, atol=1e-5
    )


def test_images_are_regenerated_for_a_file_without_any(
    collected: tuple[Path, list[dict[str, Any]]], command_line: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "images.hdf5"
    status, printed = command_line(
        *("replay", collected[0], "--out", out, "--cameras", "agentview", "wrist"),
        *("--image-size", "24"),
    )
    assert status == 0, printed
    source = open_source(out)
    assert set(source.info.cameras) == {"agentview_image", "robot0_eye_in_hand_image"}
    frames = np.stack(list(source.frames(0, "agentview_image")))
    assert frames.shape == (40, 24, 24, 3) and frames.std() > 10
    status, printed = command_line("replay", out)
    assert status == 0, printed
    assert "1 of 1 demonstrations come out the same" in printed
    status, printed = command_line("replay", collected[0], "--out", out)
    assert status == 1 and "exists already" in printed


def test_collect_writes_a_file_of_its_own(tmp_path: Path) -> None:
    environment = replace(SEEN, cameras=(), max_steps=12)
    config = CollectConfig("mixed", episodes=3, environment=environment)
    told: list[Rollout] = []
    for name, workers in (("one", 1), ("two", 2)):
        record(config, tmp_path / f"{name}.hdf5", workers=workers, progress=told.append)
    assert len(told) == 6
    one, two = (RobomimicSource(tmp_path / f"{name}.hdf5") for name in ("one", "two"))
    for index in range(3):
        for column, values in one.recording(index).columns.items():
            np.testing.assert_array_equal(values, two.recording(index).columns[column])
        assert one.model_xml(index) == two.model_xml(index) != ""
    with pytest.raises(ValueError, match="exists already"):
        record(config, tmp_path / "one.hdf5", workers=1, progress=told.append)


def altered(path: Path, to: Path, change: Callable[[Any], None]) -> Path:
    to.write_bytes(path.read_bytes())
    with h5py.File(to, "r+") as file:
        change(file)
    return to


OLD_CONTROLLER = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150,
    "damping": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_limits": [0, 10],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "control_delta": True,
    "interpolation": None,
    "ramp_ratio": 0.2,
}


def test_file_of_an_older_robosuite_is_rebuilt(
    recorded: tuple[Path, list[Rollout]], tmp_path: Path
) -> None:
    """Controllers in the form of robosuite 1.4, windows and cameras of whoever recorded."""
    kwargs = {
        "robots": ["Panda"],
        "controller_configs": OLD_CONTROLLER,
        "control_freq": 20,
        "has_renderer": True,
        "has_offscreen_renderer": True,
        "use_camera_obs": True,
        "camera_names": ["agentview"],
        "camera_heights": 84,
        "reward_shaping": True,
        "horizon": 1000,
        "render_gpu_device_id": 0,
    }
    old = {"env_name": "Lift", "env_version": "1.4.1", "type": 1, "env_kwargs": kwargs}

    def change(file: Any) -> None:
        file["data"].attrs["env_args"] = json.dumps(old)

    path = altered(recorded[0], tmp_path / "old.hdf5", change)
    name, kept = read_env_args(RobomimicSource(path))
    assert name == "Lift" and kept["lite_physics"] is False
    arm = kept["controller_configs"]["body_parts"]["right"]
    assert arm["type"] == "OSC_POSE" and arm["gripper"] == {"type": "GRIP"}
    environment = RobosuiteEnvironment(RobosuiteConfig(cameras=(), demos=str(path)))
    start = environment.reset(seed=0)[0]["state"]
    for _ in range(5):
        after = environment.step(np.array([0, 0, 1, 0, 0, 0, -1], np.float32))[0]["state"]
    assert after[2] > start[2] + 0.02
    environment.close()


@pytest.mark.parametrize(
    ("attribute", "value", "sentence"),
    [
        ("env_args", {"env_name": "Lift", "type": 2, "env_kwargs": {}}, "of another simulator"),
        ("env_args", {"type": 1}, "does not tell how its environment is made"),
        ("env_args", {"env_name": "Liift", "type": 1, "env_kwargs": {}}, "cannot make Liift"),
        (
            "env_args",
            {"env_name": "Lift", "type": 1, "env_kwargs": {"robots": "Panda", "colour": 1}},
            "cannot make Lift with .*colour",
        ),
    ],
)
def test_environment_that_cannot_be_rebuilt(
    recorded: tuple[Path, list[Rollout]], tmp_path: Path, attribute: str, value: Any, sentence: str
) -> None:
    def change(file: Any) -> None:
        file["data"].attrs[attribute] = json.dumps(value)

    path = altered(recorded[0], tmp_path / "odd.hdf5", change)
    with pytest.raises(ValueError, match=sentence):
        Playback(path, SEEN)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("no xml", "recorded model of .* cannot be loaded"),
        ("<mujoco><worldbody/></mujoco>", "recorded model of .* cannot be loaded"),
    ],
)
def test_damaged_model(
    recorded: tuple[Path, list[Rollout]], tmp_path: Path, model: str, sentence: str
) -> None:
    def change(file: Any) -> None:
        file["data/demo_0"].attrs["model_file"] = model

    playback = Playback(
        altered(recorded[0], tmp_path / "odd.hdf5", change), replace(SEEN, cameras=())
    )
    with pytest.raises(ValueError, match=sentence):
        playback.by_state(playback.demonstration(0))


def test_states_that_do_not_fit(recorded: tuple[Path, list[Rollout]], tmp_path: Path) -> None:
    def narrower(file: Any) -> None:
        for demo in file["data"].values():
            states = demo["states"][:, :-1]
            del demo["states"]
            demo["states"] = states

    def without(file: Any) -> None:
        for demo in file["data"].values():
            del demo["states"]

    playback = Playback(
        altered(recorded[0], tmp_path / "narrow.hdf5", narrower), replace(SEEN, cameras=())
    )
    with pytest.raises(ValueError, match="finite numbers, got shape"):
        playback.by_state(playback.demonstration(0))
    path = altered(recorded[0], tmp_path / "without.hdf5", without)
    with pytest.raises(ValueError, match="has no simulator states"):
        Playback(path, SEEN)


@pytest.mark.parametrize("column", ["states", "actions"])
@pytest.mark.parametrize("arguments", [(), ("--out", "new.hdf5")])
def test_nan_is_no_demonstration_that_comes_out_the_same(
    recorded: tuple[Path, list[Rollout]],
    command_line: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    column: str,
    arguments: tuple[str, ...],
) -> None:
    def change(file: Any) -> None:
        file[f"data/demo_1/{column}"][3, 4] = np.nan

    monkeypatch.chdir(tmp_path)
    path = altered(recorded[0], tmp_path / "odd.hdf5", change)
    status, printed = command_line("replay", path, *arguments)
    assert status == 1
    assert f"{column} of demo_1 of {path} hold NaN or infinity at step 3" in printed
    assert list(tmp_path.iterdir()) == [path]


def test_actions_of_another_robot(recorded: tuple[Path, list[Rollout]], tmp_path: Path) -> None:
    def wider(file: Any) -> None:
        for demo in file["data"].values():
            actions = np.pad(demo["actions"][:], ((0, 0), (0, 2)))
            del demo["actions"]
            demo["actions"] = actions

    path = altered(recorded[0], tmp_path / "wide.hdf5", wider)
    with pytest.raises(ValueError, match=r"are 9 numbers, but the environment .* takes 7 "):
        Playback(path, replace(SEEN, cameras=())).demonstration(0)
