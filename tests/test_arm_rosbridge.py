"""Arms behind ROS 2: the driver with roslibpy, on an emulated rosbridge server."""

import json
import math
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import pytest
from emulators.client import kill_group, streaming_client
from emulators.contract import RobotContract, state_once_it_tells, stream
from emulators.rosbridge import RosbridgeEmulator
from emulators.waiting import wait_until
from roslibpy.comm.comm_autobahn import AutobahnRosBridgeClientFactory
from twisted.python import threadable

from robot_qsft.hardware.arms import rosbridge as driver
from robot_qsft.hardware.arms.make import make_robot
from robot_qsft.hardware.arms.rosbridge import RosbridgeRobot
from robot_qsft.hardware.description import Gripper, RobotDescription, find_description
from robot_qsft.hardware.kinematics import Chain
from robot_qsft.hardware.robot import RobotError

# Franka's modified Denavit-Hartenberg parameters: turn alpha about x, move a along x, turn theta
# about z, move d along z. The last line is the flange.
DH = [
    # a m, d m, alpha rad
    (0.0, 0.333, 0.0),
    (0.0, 0.0, -math.pi / 2),
    (0.0, 0.316, math.pi / 2),
    (0.0825, 0.0, math.pi / 2),
    (-0.0825, 0.384, -math.pi / 2),
    (0.0, 0.0, math.pi / 2),
    (0.088, 0.0, math.pi / 2),
    (0.0, 0.107, 0.0),
]

EMERGENCY_STOP_TOPIC = "/emergency_stop"


def described(address: str, **options: float | str) -> RobotDescription:
    description = find_description("ros2_panda", address)
    return replace(description, options={**(description.options or {}), **options})


def threads() -> set[threading.Thread]:
    """Those of this process, without the reactor's, which stays."""
    return {each for each in threading.enumerate() if each.ident != threadable.ioThread}


def connections() -> set[Any]:
    return {each.laddr for each in psutil.Process().net_connections("tcp")}


def succeeds(call: Callable[..., object], *arguments: object) -> bool:
    try:
        call(*arguments)
    except RobotError:
        return False
    return True


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    threads_before, connections_before = threads(), connections()
    yield
    wait_until(lambda: threads() <= threads_before)
    wait_until(lambda: connections() <= connections_before)


@pytest.fixture
def emulator() -> Iterator[RosbridgeEmulator]:
    description = find_description("ros2_panda")
    with RosbridgeEmulator(description.joint_names, np.array(description.home_rad)) as emulator:
        yield emulator


@pytest.fixture
def robot(emulator: RosbridgeEmulator) -> Iterator[RosbridgeRobot]:
    options: dict[str, float | str] = {
        "emergency_stop_topic": EMERGENCY_STOP_TOPIC,
        "stale_s": 2.0,  # a busy machine may hold everything up
    }
    robot = RosbridgeRobot(described(emulator.address, **options))
    yield robot
    robot.disconnect()


@pytest.fixture
def impatient(emulator: RosbridgeEmulator) -> Iterator[RosbridgeRobot]:
    """A connected robot to whom states are soon stale."""
    robot = RosbridgeRobot(described(emulator.address, stale_s=0.2))
    wait_until(lambda: succeeds(robot.connect))
    yield robot
    robot.disconnect()


class TestRosbridge(RobotContract):
    """All of it."""


def test_a_command_is_a_trajectory_of_one_point(
    emulator: RosbridgeEmulator, robot: RosbridgeRobot
) -> None:
    robot.connect()
    assert emulator.commands == []
    target_rad = robot.read().positions_rad + 0.01
    robot.command(target_rad, 0.0)
    wait_until(lambda: bool(emulator.commands))
    assert emulator.commands == [
        {
            "header": {"stamp": {"sec": 0, "nanosec": 0}, "frame_id": ""},
            "joint_names": [f"panda_joint{number}" for number in range(1, 8)],
            "points": [
                {
                    "positions": target_rad.tolist(),
                    "velocities": [],
                    "accelerations": [],
                    "effort": [],
                    "time_from_start": {"sec": 0, "nanosec": 20_000_000},
                }
            ],
        }
    ]


def test_it_says_what_it_sends_and_wants(
    emulator: RosbridgeEmulator, robot: RosbridgeRobot
) -> None:
    robot.connect()
    robot.disconnect()
    command_topic = "/panda_arm_controller/joint_trajectory"
    wait_until(lambda: emulator.operations[-1]["op"] == "unadvertise")
    told = [
        (operation["op"], operation["topic"], operation.get("type"))
        for operation in emulator.operations
        if operation["op"] != "publish"
    ]
    assert told == [
        ("subscribe", EMERGENCY_STOP_TOPIC, "std_msgs/Bool"),
        ("subscribe", "/joint_states", "sensor_msgs/JointState"),
        ("advertise", command_topic, "trajectory_msgs/JointTrajectory"),
        ("unsubscribe", EMERGENCY_STOP_TOPIC, None),
        ("unsubscribe", "/joint_states", None),
        ("unadvertise", command_topic, None),
    ]


def test_positions_alone_are_followed(emulator: RosbridgeEmulator) -> None:
    robot = RosbridgeRobot(described(emulator.address, command_type="std_msgs/Float64MultiArray"))
    robot.connect()
    target_rad = robot.read().positions_rad + np.linspace(-0.1, 0.1, 7)
    stream(robot, target_rad, seconds=0.5)
    wait_until(lambda: np.allclose(emulator.joints.now()[0], target_rad, atol=1e-6))
    assert emulator.commands[-1] == {
        "layout": {"dim": [], "data_offset": 0},
        "data": target_rad.tolist(),
    }
    robot.disconnect()


def test_joints_are_told_apart_by_name(emulator: RosbridgeEmulator, robot: RosbridgeRobot) -> None:
    names = list(robot.description.joint_names)
    wanted = dict(zip(names, np.linspace(-0.3, 0.3, 7).tolist(), strict=True))
    order = ["other", *names[3:], *names[:3]]

    def shuffled(state: dict[str, Any]) -> str:
        positions = [wanted.get(name, 99.0) for name in order]
        velocities = [10 * position for position in positions]
        return json.dumps({"name": order, "position": positions, "velocity": velocities})

    emulator.shown = shuffled
    robot.connect()
    state = robot.read()
    np.testing.assert_array_equal(state.positions_rad, np.linspace(-0.3, 0.3, 7))
    np.testing.assert_allclose(state.velocities_rad_s, np.linspace(-3, 3, 7))
    robot.disconnect()


def test_velocities_that_are_not_told_are_differences(
    emulator: RosbridgeEmulator, robot: RosbridgeRobot
) -> None:
    emulator.shown = lambda state: json.dumps({**state, "velocity": []})
    robot.connect()
    np.testing.assert_array_equal(robot.read().velocities_rad_s, 0)
    begin_rad, begin_s = robot.read().positions_rad, time.monotonic()

    def moves() -> bool:
        moved_rad = 0.2 * (time.monotonic() - begin_s) * np.array([1, -1, 0, 0, 0, 0, 1])
        robot.command(begin_rad + moved_rad, 0.0)
        first, second, third, *_ = robot.read().velocities_rad_s
        return 0.15 < first < 0.25 and -0.25 < second < -0.15 and third == 0

    wait_until(moves)


def without(name: str) -> Callable[[dict[str, Any]], str]:
    def shown(state: dict[str, Any]) -> str:
        kept = [index for index, each in enumerate(state["name"]) if each != name]
        fields = ("name", "position", "velocity")
        return json.dumps({field: [state[field][index] for index in kept] for field in fields})

    return shown


def with_first_position(value: object) -> Callable[[dict[str, Any]], str]:
    def shown(state: dict[str, Any]) -> str:
        index = state["name"].index("panda_joint1")
        state["position"][index] = value
        return json.dumps(state)

    return shown


@pytest.mark.parametrize(
    ("shown", "reason"),
    [
        (lambda _: "{", ""),
        (lambda _: "not JSON", ""),
        (lambda _: "[" * 100_000, ""),
        (lambda _: "null", "it is None, not a sensor_msgs/JointState"),
        (lambda _: "[1, 2]", r"it is \[1, 2\], not"),
        (lambda _: "{}", "its names are None"),
        (lambda state: json.dumps({**state, "name": "panda_joint1"}), "its names are 'panda_joi"),
        (lambda state: json.dumps({**state, "name": [1, 2]}), r"its names are \[1, 2\]"),
        (lambda state: json.dumps({**state, "position": [0.0]}), r"position is \[0.0\] for 9 nam"),
        (lambda state: json.dumps({**state, "velocity": 1}), "its field velocity is 1 for 9 names"),
        (without("panda_joint3"), "it lacks panda_joint3"),
        (with_first_position(math.nan), "its position of panda_joint1 is nan"),
        (with_first_position(-math.inf), "its position of panda_joint1 is -inf"),
        (with_first_position(None), "its position of panda_joint1 is None"),
        (with_first_position(True), "its position of panda_joint1 is True"),
        (with_first_position("0.1"), "its position of panda_joint1 is '0.1'"),
        (with_first_position(10**400), "its position of panda_joint1 is "),
    ],
)
def test_a_joint_state_that_cannot_be_is_not_taken(
    emulator: RosbridgeEmulator,
    impatient: RosbridgeRobot,
    shown: Callable[[dict[str, Any]], str],
    reason: str,
) -> None:
    emulator.shown = shown
    wait_until(lambda: not succeeds(impatient.read))
    with pytest.raises(RobotError, match=r"no usable joint state came on /joint_states") as caught:
        impatient.read()
    assert re.search(reason, str(caught.value))
    assert "\n" not in str(caught.value)
    with pytest.raises(RobotError, match="no usable joint state"):
        impatient.command(np.array(impatient.description.home_rad), 0.0)
    emulator.shown = json.dumps
    wait_until(lambda: succeeds(impatient.read))


def test_stale_states_are_an_error_and_stop_publishes_none_of_them(
    emulator: RosbridgeEmulator, impatient: RosbridgeRobot
) -> None:
    home_rad = np.array(impatient.description.home_rad)
    wait_until(lambda: succeeds(impatient.command, home_rad, 0.0))
    wait_until(lambda: len(emulator.commands) == 1)
    emulator.publishing = False
    wait_until(lambda: not succeeds(impatient.read))
    impatient.stop()
    impatient.disconnect()
    assert len(emulator.commands) == 1


def test_without_joint_states_it_does_not_connect(
    emulator: RosbridgeEmulator, robot: RosbridgeRobot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "_FIRST_STATE_S", 0.2)
    emulator.publishing = False
    with pytest.raises(RobotError, match="does the joint_state_broadcaster run"):
        robot.connect()
    with pytest.raises(RobotError, match="not connected; connect first"):
        robot.read()


@pytest.mark.parametrize("how", ["stop", "disconnect"])
def test_stopping_publishes_the_present_position(
    emulator: RosbridgeEmulator, robot: RosbridgeRobot, how: str
) -> None:
    robot.connect()
    present_rad = robot.read().positions_rad
    getattr(robot, how)()
    wait_until(lambda: bool(emulator.commands))
    assert emulator.commands[-1]["points"][0]["positions"] == present_rad.tolist()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (True, "emergency stop; release it"),
        ("yes", "emergency stop unknown: its topic says {'data': 'yes'}, not a std_msgs/Bool"),
        (None, "emergency stop unknown"),
        (1, "emergency stop unknown"),
    ],
)
def test_an_emergency_stop_is_told_until_it_is_released(
    emulator: RosbridgeEmulator, robot: RosbridgeRobot, data: object, words: str
) -> None:
    robot.connect()
    emulator.emergency_stop(data)
    assert words in state_once_it_tells(robot)
    emulator.release()
    wait_until(lambda: robot.read().fault == "")


def test_it_does_not_connect_while_stopped(
    emulator: RosbridgeEmulator, robot: RosbridgeRobot
) -> None:
    emulator.emergency_stop()
    with pytest.raises(RobotError, match="emergency stop; release it"):
        robot.connect()
    emulator.release()
    robot.connect()
    assert robot.read().fault == ""


def drive(robot: RosbridgeRobot, *, steps: int) -> list[str]:
    """Command and read, whatever comes of it; gives all that was told."""
    told = []
    target_rad = np.array(robot.description.home_rad)
    for step in range(steps):
        try:
            target_rad[0] += 0.002 * (-1) ** (step // 20)
            robot.command(target_rad, 0.0)
            state = robot.read()
            assert np.isfinite(state.positions_rad).all()
            assert np.isfinite(state.velocities_rad_s).all()
            told.append(state.fault)
        except RobotError as error:
            told.append(str(error))
        time.sleep(0.01)
    return told


@pytest.mark.parametrize("what", ["drop_share", "corrupt_share"])
@pytest.mark.parametrize("share", [0.2, 1.0])
def test_a_bad_link_ends_in_a_sentence_at_worst(
    emulator: RosbridgeEmulator, robot: RosbridgeRobot, what: str, share: float
) -> None:
    robot.connect()
    setattr(emulator.link, what, share)
    told = drive(robot, steps=100)
    assert not any("\n" in sentence for sentence in told)
    if share == 0.2 and what == "drop_share":
        assert not any(told)
    setattr(emulator.link, what, 0.0)
    robot.connect()
    assert robot.read().fault == ""


def test_a_slow_link_is_no_fault(emulator: RosbridgeEmulator, robot: RosbridgeRobot) -> None:
    emulator.link.delay_s = 0.05
    robot.connect()
    assert not any(drive(robot, steps=30))


def test_a_lost_connection_stays_lost_until_it_is_connected(
    emulator: RosbridgeEmulator, robot: RosbridgeRobot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else commands from before would reach a server that has come back."""
    monkeypatch.setattr(AutobahnRosBridgeClientFactory, "initialDelay", 0.1)
    robot.connect()
    here_rad = robot.read().positions_rad
    emulator.vanish()
    wait_until(lambda: not succeeds(robot.read))
    for _ in range(3):
        with pytest.raises(RobotError, match="the connection is lost"):
            robot.command(here_rad, 0.0)
    port = int(emulator.address.split(":")[1])
    with RosbridgeEmulator(robot.description.joint_names, here_rad, port=port) as second:
        time.sleep(1.0)  # the library would try again after 0.3 s
        assert connections_to(port) == []
        with pytest.raises(RobotError, match="the connection is lost"):
            robot.read()
        robot.connect()
        assert robot.read().fault == ""
        robot.disconnect()
        assert all(
            operation["msg"]["points"][0]["positions"] == pytest.approx(here_rad.tolist())
            for operation in second.operations
            if operation["op"] == "publish"
        )


def test_what_is_no_rosbridge_server_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_CONNECT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        robot = RosbridgeRobot(described(f"127.0.0.1:{listening.getsockname()[1]}"))
        with pytest.raises(RobotError, match="what answers is no rosbridge server"):
            robot.connect()
        wait_until(lambda: connections_to(listening.getsockname()[1]) == [], seconds=3.0)


def connections_to(port: int) -> list[Any]:
    """From this process, as long as they stand."""
    return [
        each
        for each in psutil.Process().net_connections("tcp")
        if each.raddr and each.raddr.port == port and each.status == psutil.CONN_ESTABLISHED
    ]


def test_a_driver_that_is_not_connected_says_so(robot: RosbridgeRobot) -> None:
    with pytest.raises(RobotError, match="not connected; connect first"):
        robot.read()
    with pytest.raises(RobotError, match="not connected; connect first"):
        robot.command(np.zeros(7), 0.0)
    robot.stop()


def test_a_host_may_have_a_name(emulator: RosbridgeEmulator) -> None:
    robot = RosbridgeRobot(described(f"localhost:{emulator.address.split(':')[1]}"))
    robot.connect()
    assert robot.read().fault == ""
    robot.disconnect()


@pytest.mark.parametrize("host", ["host.invalid", "a" * 70])
def test_a_name_that_nobody_has_is_told(host: str) -> None:
    with pytest.raises(RobotError, match=f"{host}:9090: nobody answers") as caught:
        RosbridgeRobot(described(host)).connect()
    assert "\n" not in str(caught.value)


def test_two_arms_in_one_process(emulator: RosbridgeEmulator, robot: RosbridgeRobot) -> None:
    names = robot.description.joint_names
    with RosbridgeEmulator(names, np.zeros(7)) as other_emulator:
        other = RosbridgeRobot(described(other_emulator.address))
        robot.connect()
        other.connect()
        np.testing.assert_array_equal(other.read().positions_rad, np.zeros(7))
        np.testing.assert_array_equal(robot.read().positions_rad, robot.description.home_rad)
        other.disconnect()
        assert robot.read().fault == ""


def test_the_arm_rests_when_its_client_is_killed(emulator: RosbridgeEmulator) -> None:
    with streaming_client(
        find_description("ros2_panda", emulator.address), step_rad=0.005
    ) as client:
        kill_group(client)
    time.sleep(find_description("ros2_panda").watchdog_s or 0)
    resting_rad, _ = emulator.joints.now()
    commands = len(emulator.commands)
    assert commands >= 10
    time.sleep(0.2)
    np.testing.assert_array_equal(emulator.joints.now()[0], resting_rad)
    assert len(emulator.commands) == commands


def test_kinematics_are_frankas() -> None:
    chain = Chain(find_description("ros2_panda"))
    random = np.random.default_rng(0)
    for _ in range(20):
        positions_rad = random.uniform(-3, 3, 7)
        frame_44 = np.eye(4)
        for (a_m, d_m, alpha_rad), position_rad in zip(DH, [*positions_rad, 0.0], strict=True):
            frame_44 = frame_44 @ modified_dh(position_rad, a_m, d_m, alpha_rad)
        np.testing.assert_allclose(chain.tool(positions_rad), frame_44, atol=1e-6)


def modified_dh(theta_rad: float, a_m: float, d_m: float, alpha_rad: float) -> np.ndarray:
    st, ct, sa, ca = (
        *(math.sin(theta_rad), math.cos(theta_rad)),
        *(math.sin(alpha_rad), math.cos(alpha_rad)),
    )
    return np.array(
        [
            [ct, -st, 0, a_m],
            [st * ca, ct * ca, -sa, -d_m * sa],
            [st * sa, ct * sa, ca, d_m * ca],
            [0, 0, 0, 1],
        ]
    )


def test_home_lies_in_the_workspace() -> None:
    description = find_description("ros2_panda")
    home_m = Chain(description).tool(np.array(description.home_rad))[:3, 3]
    inside = description.workspace.inside
    assert (home_m > inside.low_m).all()
    assert (home_m < inside.high_m).all()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"control_hz": 100.0}, "control_hz over rosbridge must be at most 50, got 100"),
        ({"gripper": Gripper(open_m=0.08, speed_per_s=1.0)}, "moves no gripper"),
        ({"address": ""}, "address must be the rosbridge server's, such as"),
        ({"address": "ws://host:9090"}, "address must be the rosbridge server's"),
        ({"options": {"topic": "/x"}}, "options does not know topic; it has state_topic, comm"),
        ({"options": {"state_topic": 1}}, "options.state_topic must be text, got 1"),
        ({"options": {"stale_s": 0}}, "options.stale_s must be above 0, got 0"),
        ({"options": {"stale_s": "1"}}, "options.stale_s must be above 0, got '1'"),
        ({"options": {"command_type": "std_msgs/Bool"}}, "options.command_type must be traj"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(
    changes: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        RosbridgeRobot(replace(find_description("ros2_panda"), **changes))  # type: ignore[arg-type]


def test_make_robot_makes_it() -> None:
    assert isinstance(make_robot(find_description("ros2_panda")), RosbridgeRobot)


def test_a_missing_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "roslibpy", None)
    monkeypatch.delitem(sys.modules, driver.__name__)
    with pytest.raises(ValueError, match=r"pip install 'robot-qsft\[rosbridge\]'"):
        make_robot(find_description("ros2_panda"))
