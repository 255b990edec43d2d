"""The simulated Panda does what every arm does."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("ruckig", reason="the bridge's packages are not installed")
from emulators.contract import RobotContract
from emulators.joints import Link

from robot_qsft.hardware.arms.make import make_robot
from robot_qsft.hardware.arms.simulated import SimulatorClient
from robot_qsft.hardware.description import find_description
from robot_qsft.hardware.robot import Robot, RobotError
from robot_qsft.sim.pybullet.config import PyBulletConfig
from robot_qsft.simulated_arm import SimulatedArm


class Simulated:
    """A running simulated arm, as the contract sees it."""

    def __init__(self) -> None:
        config = PyBulletConfig("Stitch", image_size=16)
        self.arm = SimulatedArm(config, host="127.0.0.1", port=0)
        self.address = self.arm.address
        self.joints = self
        self.link = Link()
        threading.Thread(target=self.arm.serve, daemon=True).start()
        self._client = SimulatorClient(self.address)
        self._gone = False

    def now(self) -> tuple[np.ndarray, np.ndarray]:
        answer = self._client.ask("state")
        return answer["positions_rad"], answer["velocities_rad_s"]

    def emergency_stop(self) -> None:
        self._client.ask("emergency_stop")

    def release(self) -> None:
        self._client.ask("release")

    def vanish(self) -> None:
        if not self._gone:
            self._gone = True
            self._client.close()
            self.arm.close()


@pytest.fixture
def emulator() -> Iterator[Simulated]:
    simulated = Simulated()
    yield simulated
    simulated.vanish()


@pytest.fixture
def robot(emulator: Simulated) -> Robot:
    return make_robot(find_description("panda", emulator.address))


class TestSimulated(RobotContract):
    """All of it."""


def test_cameras_truth_and_start_states(emulator: Simulated) -> None:
    client = SimulatorClient(emulator.address)
    assert client.ask("reset", seed=3)["instruction"] == "put the red cube on the green square"
    first = client.ask("truth")
    image = client.ask("image", camera="front")["image"]
    assert image.shape == (16, 16, 3)
    assert np.ptp(image) > 50
    client.ask("reset", seed=4)
    assert not np.array_equal(client.ask("truth")["environment_state"], first["environment_state"])
    client.ask("reset", seed=3)
    again = client.ask("truth")
    np.testing.assert_allclose(
        again["environment_state"], first["environment_state"], atol=1e-3
    )  # a step or two of physics have passed
    assert again["success"] is False
    with pytest.raises(RobotError, match="no camera 'back'"):
        client.ask("image", camera="back")
    with pytest.raises(RobotError, match="does not know 'dance'"):
        client.ask("dance")
    client.close()
