"""`robot-qsft run` and `simulate`: what cannot be is one sentence, what can be runs by keys."""

import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("openpi_client", reason="openpi-client is not installed")
from emulators.waiting import wait_until
from test_policy_server import Served
from test_runtime import SPEC, Turning

from robot_qsft.datasets.labels import Labels, labels_path
from robot_qsft.datasets.store import Dataset
from robot_qsft.hardware.access import AccessConfig, ServerConfig
from robot_qsft.hardware.description import FOLDER

PANDA = (FOLDER / "panda.yaml").read_text()


@pytest.fixture(scope="module")
def address(process_environment) -> Iterator[str]:
    """Of a simulated arm."""
    command = [sys.executable, "-m", "robot_qsft", "simulate", "--port", "0", "--image-size", "16"]
    with subprocess.Popen(
        [*command, "--task", "Stitch"], env=process_environment, stdout=subprocess.PIPE, text=True
    ) as process:
        found = re.search(r"answers at (127\.0\.0\.1:\d+)", process.stdout.readline())
        assert found
        yield found.group(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--robot", "r2d2"], "there is no robot 'r2d2'; name a description file"),
        (["--robot", "absent.yaml"], "absent.yaml cannot be read"),
        (["--robot", "panda", "--address", "127.0.0.1:9"], "no simulated arm answers at"),
        (["--robot", "panda", "--address", "here:there"], "address must be the simulated arm's"),
        (["--robot", "panda", "--cameras", "front"], "a camera is told as NAME=DEVICE"),
        (["--robot", "panda", "--cameras", "front=99"], "the camera '99' cannot be opened"),
        (["--robot", "panda", "--speed", "nan"], "speed must lie in (0, 1], got nan"),
        (["--robot", "panda", "--server", "http://x"], "server must begin with ws://"),
        (["--robot", "panda", "--policy-hz", "0"], "policy_hz must be finite and above 0"),
    ],
)
def test_what_cannot_be_run_is_one_sentence(refused, arguments, sentence) -> None:
    assert sentence in refused("run", *arguments)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "robot must have named entries"),
        (PANDA[:300], "robot lacks"),
        (PANDA.replace("control_hz: 100", "control_hz: .nan"), "must be a finite number, got nan"),
    ],
    ids=["empty", "cut off", "nan"],
)
def test_a_description_that_is_none_is_one_sentence(refused, tmp_path, text, sentence) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert sentence in refused("run", "--robot", path)


def test_an_episode_goes_into_no_folder_of_something_else(refused, address, tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    sentence = refused("run", "--robot", "panda", "--address", address, "--record", tmp_path)
    assert "meta/info.json" in sentence
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_port_in_use_is_one_sentence(refused, address) -> None:
    assert "choose another --port" in refused("simulate", "--port", address.split(":")[1])


def lines_until(stream, text: str) -> None:
    for line in stream:
        if text in line:
            return
    raise AssertionError(f"it ended without {text!r}")


@pytest.mark.parametrize("ending", ["s", "interrupt"])
def test_an_episode_is_run_by_keys_and_kept(
    address: str, tmp_path: Path, process_environment, ending: str
) -> None:
    with contextlib.ExitStack() as running:
        policy = Turning()
        served = Served(policy, ServerConfig(port=0), AccessConfig(), SPEC)
        running.callback(served.close)
        command = [
            *(sys.executable, "-m", "robot_qsft", "run", "--robot", "panda"),
            *("--address", address, "--cameras", "front=simulated", "--no-realtime"),
            *("--server", f"ws://127.0.0.1:{served.port}", "--record", str(tmp_path / "kept")),
            *("--stale-s", "2", "--camera-stale-s", "5", "--late-s", "5"),
        ]
        process = running.enter_context(
            subprocess.Popen(
                command,
                env=process_environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        running.callback(process.kill)

        def type_in(keys: str) -> None:
            process.stdin.write(keys)
            process.stdin.flush()

        lines_until(process.stdout, "READY")
        type_in("n\n")
        lines_until(process.stdout, "the policy is being asked")
        wait_until(lambda: policy.asked > 5)
        type_in("a\nr\n")
        lines_until(process.stdout, "RUNNING")
        enough = policy.asked + 10
        wait_until(lambda: policy.asked > enough)
        if ending == "interrupt":
            process.send_signal(signal.SIGINT)
        else:
            type_in("\n")
            lines_until(process.stdout, "HOLD; stopped by the operator")
            type_in("s\n")
            lines_until(process.stdout, "episode 0 is kept: success")
            type_in("q\n")
        assert process.wait(20) == 0
    dataset = Dataset.open(tmp_path / "kept")
    assert len(dataset) == 1
    assert (tmp_path / "kept" / "control" / "episode-000000.parquet").is_file()
    labels = Labels.read(labels_path(dataset.path), episodes=1)
    assert len(labels) == (ending == "interrupt"), "nobody said how it ended"
