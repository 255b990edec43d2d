"""Descriptions of arms: what comes with the package is fit to drive by, the rest is refused."""

from pathlib import Path

import numpy as np
import pybullet
import pybullet_data
import pytest
import yaml

from robot_qsft.hardware.description import (
    FOLDER,
    description_text,
    find_description,
    known_robots,
    read_description,
)
from robot_qsft.hardware.kinematics import Chain, transform
from robot_qsft.hardware.limits import objection_to_place

PANDA = yaml.safe_load((FOLDER / "panda.yaml").read_text())


@pytest.mark.parametrize("name", known_robots())
def test_every_description_can_be_driven_by(name: str) -> None:
    description = find_description(name)
    assert description.name == name
    assert read_description(description_text(description)) == description
    tool_m = Chain(description).tool(np.array(description.home_rad))[:3, 3]
    assert objection_to_place(tool_m, description.workspace) == "", "home lies in the workspace"


def test_an_address_given_by_hand_counts() -> None:
    assert find_description("panda", "10.0.0.7").address == "10.0.0.7"
    assert find_description("panda").address == "127.0.0.1:7700"


def changed(path: str, value) -> str:
    """The Panda's description with one entry changed; ... removes it."""
    document = yaml.safe_load(yaml.safe_dump(PANDA))
    *above, last = path.split("/")
    at = document
    for name in above:
        at = at[int(name) if isinstance(at, list) else name]
    if value is ...:
        del at[last]
    else:
        at[int(last) if isinstance(at, list) else last] = value
    return yaml.safe_dump(document)


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("joints", ..., "robot lacks joints"),
        ("joints", [], "joints is empty"),
        ("joints", 3, "robot.joints must be a list, got 3"),
        ("joints/2/velocity_rad_s", ..., r"robot.joints\[2\] lacks velocity_rad_s"),
        ("joints/2/velocity_rad_s", 0, "velocity_rad_s of panda_joint3 must be above 0, got 0"),
        ("joints/2/jerk_rad_s3", float("inf"), "must be a finite number, got inf"),
        ("joints/2/low_rad", float("nan"), "must be a finite number, got nan"),
        ("joints/2/low_rad", "-1", "must be a finite number, got '-1'"),
        ("joints/2/low_rad", True, "must be a finite number, got True"),
        ("joints/2/low_rad", 2.88, "panda_joint3 has no room between 2.88 and 2.8973"),
        ("joints/2/axis", [0, 0, 2], "axis of panda_joint3 must have length 1"),
        ("joints/2/axis", [0, 0], r"robot.joints\[2\].axis must be a list of 3"),
        ("joints/2/name", "panda_joint1", "two joints have one name"),
        ("home_rad", [0.0], "home_rad must be 7 numbers"),
        ("home_rad/3", 0.0, r"home_rad of panda_joint4 must lie in \[-3.0518, -0.0898\], got 0"),
        ("workspace", ..., "robot lacks workspace"),
        ("workspace/inside/low_m", [0, 0, 1], "a box's low_m must lie below its high_m"),
        ("control_hz", -1, "control_hz must be above 0"),
        ("watchdog_s", 0, "watchdog_s must be above 0"),
        ("gripper/speed_per_s", 0, "gripper.speed_per_s must be above 0"),
        ("limits", "off", "robot does not know 'limits'; it has name, driver"),
        ("options", {"gain": [1]}, "robot.options.gain must be a number or text"),
    ],
)
def test_what_is_not_fit_is_named(path: str, value, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        read_description(changed(path, value))


@pytest.mark.parametrize("text", ["", "3", "[1]", "{", "a: !!python/object:os.system {}"])
def test_what_is_no_description(text: str) -> None:
    with pytest.raises(ValueError, match=r"not YAML|must have named entries|does not know"):
        read_description(text)


def test_a_robot_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no robot 'r2d2'; .*panda"):
        find_description("r2d2")
    with pytest.raises(ValueError, match=r"absent.yaml cannot be read .*panda"):
        find_description(str(tmp_path / "absent.yaml"))
    mine = tmp_path / "mine.yaml"
    mine.write_text("name: mine")
    with pytest.raises(ValueError, match=r"mine.yaml: robot lacks driver"):
        find_description(str(mine))


def test_forward_kinematics_are_pybullets() -> None:
    client = pybullet.connect(pybullet.DIRECT)
    try:
        urdf = Path(pybullet_data.getDataPath()) / "franka_panda" / "panda.urdf"
        robot = pybullet.loadURDF(str(urdf), useFixedBase=True, physicsClientId=client)
        chain = Chain(find_description("panda"))
        rng = np.random.default_rng(0)
        for _ in range(20):
            positions_rad = rng.uniform(-2, 2, 7)
            for joint, position_rad in enumerate(positions_rad):
                pybullet.resetJointState(robot, joint, position_rad, physicsClientId=client)
            link = pybullet.getLinkState(
                robot, 11, computeForwardKinematics=1, physicsClientId=client
            )
            tool = chain.tool(positions_rad)
            np.testing.assert_allclose(tool[:3, 3], link[4], atol=1e-6)
            rotation = np.array(pybullet.getMatrixFromQuaternion(link[5])).reshape(3, 3)
            np.testing.assert_allclose(tool[:3, :3], rotation, atol=1e-6)
    finally:
        pybullet.disconnect(client)


def test_the_jacobian_is_the_derivative() -> None:
    chain = Chain(find_description("panda"))
    positions_rad = np.array([0.3, 0.4, -0.2, -1.9, 0.5, 2.2, 0.1])
    jacobian = chain.jacobian(positions_rad)
    step_rad = 1e-6
    for joint in range(7):
        moved_rad = positions_rad.copy()
        moved_rad[joint] += step_rad
        before, after = chain.tool(positions_rad), chain.tool(moved_rad)
        np.testing.assert_allclose(
            (after[:3, 3] - before[:3, 3]) / step_rad, jacobian[:3, joint], atol=1e-5
        )
        turn = (after[:3, :3] @ before[:3, :3].T - np.eye(3)) / step_rad
        np.testing.assert_allclose(
            [turn[2, 1], turn[0, 2], turn[1, 0]], jacobian[3:, joint], atol=1e-5
        )


def test_angles_are_a_urdfs() -> None:
    rotation = transform((1.0, 2.0, 3.0), (0.1, 0.2, 0.3))
    quaternion = pybullet.getQuaternionFromEuler((0.1, 0.2, 0.3))
    expected = np.array(pybullet.getMatrixFromQuaternion(quaternion)).reshape(3, 3)
    np.testing.assert_allclose(rotation[:3, :3], expected, atol=1e-9)
    np.testing.assert_array_equal(rotation[:3, 3], [1, 2, 3])
