"""The bridge, whole: policy server, network, runtime, control loop, simulated arm."""

import contextlib
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("openpi_client", reason="openpi-client is not installed")
from emulators.waiting import wait_until
from test_arm_simulated import Simulated
from test_policy_server import Served

from robot_qsft.datasets.features import Camera, DatasetInfo
from robot_qsft.datasets.interface import ActionChunk, Observation
from robot_qsft.datasets.labels import Labels, labels_path
from robot_qsft.datasets.outcomes import infer_outcomes
from robot_qsft.datasets.store import Dataset
from robot_qsft.hardware.access import AccessConfig, ServerConfig
from robot_qsft.hardware.cameras import Cameras, SimulatedCamera
from robot_qsft.hardware.config import ControlConfig, LinkConfig, RuntimeConfig
from robot_qsft.hardware.controller import Request
from robot_qsft.hardware.description import find_description
from robot_qsft.hardware.loop_process import LoopProcess
from robot_qsft.hardware.observations import ObservationSpec
from robot_qsft.hardware.policy_io import PolicyIO, PolicyIOConfig
from robot_qsft.hardware.recorder import Recorder
from robot_qsft.hardware.robot import RobotError
from robot_qsft.hardware.runtime import Runtime
from robot_qsft.hardware.states import State

PANDA = find_description("panda")
SPEC = ObservationSpec(("front",), (16, 16), 8, 0, 8)


class Turning:
    """A policy that turns joint 1 evenly, in chunks of ten joint positions."""

    def __init__(self) -> None:
        self.speed_rad = 0.02
        self.seen: list[Observation] = []
        self.committed: list[np.ndarray] = []
        self.wait_s = 0.0
        self.nan = False
        self.asked = 0
        self.permits: threading.Semaphore | None = None

    def reset(self, *, seed: int) -> None:
        pass

    def act(self, observation: Observation) -> ActionChunk:
        self.asked += 1
        if self.permits is not None:
            self.permits.acquire(timeout=30)
        time.sleep(self.wait_s)
        self.seen.append(observation)
        actions = np.tile(observation.state, (10, 1)).astype(np.float32)
        actions[:, 0] += self.speed_rad * np.arange(1, 11)
        if self.nan:
            actions[3] = np.nan
        return ActionChunk(actions, value=0.5, behaviour_log_probability=-1.0)

    def act_after(self, observation: Observation, committed: np.ndarray) -> ActionChunk:
        self.committed.append(committed)
        chunk = self.act(observation)
        chunk.actions[: len(committed)] = committed
        return chunk


class Bridge:
    """Everything, running."""

    def __init__(
        self,
        running: contextlib.ExitStack,
        config: RuntimeConfig,
        control: ControlConfig | None = None,
    ):
        self.simulated = Simulated()
        running.callback(self.simulated.vanish)
        self.policy = Turning()
        self.running = running
        self.served = self.serve(0)
        description = replace(PANDA, address=self.simulated.address)
        self.loop = running.enter_context(
            LoopProcess(description, control or ControlConfig(stale_s=0.6), realtime=False)
        )
        self.camera = SimulatedCamera(self.simulated.address, "front")
        self.cameras = Cameras({"front": self.camera}, hz=20)
        running.callback(self.cameras.close)
        self.runtime = Runtime(
            self.loop,
            PolicyIO(description, PolicyIOConfig()),
            self.cameras,
            link=LinkConfig(server=f"ws://127.0.0.1:{self.served.port}"),
            config=config,
        )
        running.callback(self.runtime.close)

    def serve(self, port: int) -> Served:
        served = Served(self.policy, ServerConfig(port=port), AccessConfig(), SPEC)
        self.running.callback(served.close)
        return served

    def wait_for(self, wanted, *, seconds: float = 10.0):
        """The newest period once `wanted(period)` holds."""
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            period = self.loop.ports.newest()
            if period is not None and wanted(period):
                return period
            time.sleep(0.01)
        raise AssertionError(f"waited in vain; the last period: {period}")

    def start(self) -> None:
        """Until the policy moves the arm."""
        self.wait_for(lambda period: period.state is State.READY)
        self.runtime.begin()
        self.runtime.request(Request.ARM)
        end_s = time.monotonic() + 10
        while self.loop.ports.newest().state is not State.RUNNING:
            assert time.monotonic() < end_s, self.loop.ports.newest()
            self.runtime.request(Request.RUN)
            time.sleep(0.02)

    def rest(self) -> np.ndarray:
        """Where the arm has come to rest."""
        self.wait_for(lambda period: np.abs(period.commanded_rad_s).max() == 0)
        time.sleep(0.5)
        return self.simulated.now()[0]


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    with contextlib.ExitStack() as running:
        yield Bridge(running, RuntimeConfig(policy_hz=10, instruction="turn"))


def test_the_policy_turns_the_arm_and_stop_stops_it(bridge: Bridge, tmp_path) -> None:
    before_rad = bridge.simulated.now()[0]
    bridge.start()
    bridge.wait_for(lambda period: period.measured.positions_rad[0] > before_rad[0] + 0.15)
    bridge.runtime.request(Request.STOP)
    period = bridge.wait_for(lambda period: period.state is State.HOLD)
    assert period.reason == "stopped by the operator"
    there_rad = bridge.rest()
    assert there_rad[0] > before_rad[0] + 0.15
    np.testing.assert_allclose(there_rad[1:], before_rad[1:], atol=0.05)
    time.sleep(0.3)
    np.testing.assert_allclose(bridge.simulated.now()[0], there_rad, atol=1e-3)
    assert bridge.policy.seen[-1].instruction == "turn"
    assert bridge.policy.seen[-1].images["front"].shape == (16, 16, 3)
    assert {one.shape for one in bridge.policy.committed} <= {(1, 8), (2, 8), (3, 8)}

    log = bridge.runtime.end()
    info = DatasetInfo(
        fps=10,
        action_names=(*PANDA.joint_names, "gripper"),
        state_names=(*PANDA.joint_names, "gripper"),
        cameras={"front": Camera(16, 16, "image")},
        robot_type="panda",
    )
    assert len(log.steps) >= 5
    assert log.lost == 0
    endings = ("success", "unclear", "failure")
    recorder = Recorder(tmp_path / "deployed", info)
    for index, ending in enumerate(endings):
        written = recorder.write(
            log.steps, log.periods, instruction="turn", ending=ending, by="a test"
        )
        assert written == index
    dataset = Dataset.open(tmp_path / "deployed")
    assert len(dataset) == 3
    assert infer_outcomes(dataset.tables()).outcomes == ("success", "failure", "failure")
    labels = Labels.read(labels_path(dataset.path), episodes=3)
    assert {index: label.outcome for index, label in labels.items()} == {1: "unclear"}
    control = pq.read_table(tmp_path / "deployed" / "control" / "episode-000000.parquet")
    assert "HOLD" in control["state"].to_pylist()
    assert control["reason"].to_pylist()[-1] == "stopped by the operator"


def test_a_server_that_dies_holds_the_arm_and_its_return_moves_nothing(bridge: Bridge) -> None:
    bridge.start()
    port = bridge.served.port
    bridge.served.close()
    period = bridge.wait_for(lambda period: period.state is State.HOLD)
    assert period.reason == "no action by an observation of the last 0.6 s"
    assert bridge.runtime.trouble
    there_rad = bridge.rest()
    bridge.serve(port)
    end_s = time.monotonic() + 10
    while bridge.runtime.trouble and time.monotonic() < end_s:
        time.sleep(0.05)
    time.sleep(0.5)
    assert bridge.loop.ports.newest().state is State.HOLD
    np.testing.assert_allclose(bridge.simulated.now()[0], there_rad, atol=2e-3)
    bridge.runtime.request(Request.RUN)
    bridge.wait_for(lambda period: period.state is State.RUNNING)


def test_an_answer_to_an_earlier_episode_is_not_for_this_one() -> None:
    with contextlib.ExitStack() as running:
        slowly = RuntimeConfig(policy_hz=1, instruction="turn", deadline_s=60)
        bridge = Bridge(running, slowly)
        bridge.wait_for(lambda period: period.state is State.READY)
        bridge.policy.permits = permits = threading.Semaphore(0)
        before = bridge.policy.asked
        bridge.runtime.begin()
        wait_until(lambda: bridge.policy.asked == before + 1)
        bridge.runtime.end()
        bridge.runtime.begin()
        wait_until(lambda: bool(bridge.runtime._seen))
        time.sleep(0.2)  # the new episode's first observation waits for the worker
        permits.release()
        wait_until(lambda: bridge.policy.asked == before + 2)  # the old one is answered by now
        time.sleep(0.2)
        assert len(bridge.runtime.ahead()) == 0
        permits.release(1000)
        wait_until(lambda: len(bridge.runtime.ahead()) > 0)


def test_a_policy_that_gives_nan_moves_nothing(bridge: Bridge) -> None:
    bridge.start()
    bridge.policy.nan = True
    period = bridge.wait_for(lambda period: period.state is State.HOLD)
    assert period.objection == "a chunk holds NaN or infinity"


def test_a_slow_policy_is_told_what_it_is_bound_to(bridge: Bridge) -> None:
    bridge.policy.wait_s = 0.15
    bridge.start()
    end_s = time.monotonic() + 10
    while not bridge.policy.committed and time.monotonic() < end_s:
        time.sleep(0.05)
    bridge.wait_for(lambda period: period.age_s > 0.15)
    assert bridge.policy.committed
    assert bridge.runtime.latency_s > 0.15
    steps = math.ceil(bridge.runtime.latency_s * 10)
    assert len(bridge.policy.committed[-1]) <= steps + 1


def test_a_camera_that_freezes_holds_the_arm(bridge: Bridge) -> None:
    bridge.start()
    bridge.camera.close()
    period = bridge.wait_for(lambda period: period.state is State.HOLD)
    assert period.reason.startswith("the camera 'front' has frozen: ")


def test_an_emergency_stop_is_latched(bridge: Bridge) -> None:
    bridge.start()
    bridge.simulated.emergency_stop()
    period = bridge.wait_for(lambda period: period.state is State.FAULT)
    assert period.reason == "emergency stop: release the button and reset"
    bridge.runtime.request(Request.RUN | Request.ARM)
    time.sleep(0.2)
    assert bridge.loop.ports.newest().state is State.FAULT
    bridge.simulated.release()
    bridge.runtime.request(Request.RESET)
    bridge.wait_for(lambda period: period.state is State.READY)


@pytest.mark.parametrize("how", ["ended", "killed"])
def test_when_the_loop_ends_the_arm_is_at_rest(bridge: Bridge, how: str) -> None:
    bridge.start()
    if how == "ended":
        bridge.runtime.close()
        bridge.loop.close()
    else:
        bridge.loop._process.kill()
    time.sleep(PANDA.watchdog_s + 0.5)
    assert not bridge.loop.running
    there_rad = bridge.simulated.now()[0]
    time.sleep(0.3)
    np.testing.assert_allclose(bridge.simulated.now()[0], there_rad, atol=1e-3)


def test_an_arm_that_is_not_there_is_one_sentence() -> None:
    description = replace(PANDA, address="127.0.0.1:9")
    with pytest.raises(RobotError, match=r"no simulated arm answers at 127\.0\.0\.1:9"):
        LoopProcess(description, ControlConfig(), realtime=False)
