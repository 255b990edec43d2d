"""`robot-qsft serve`: a trained policy, asked over the network, acts as it does in this process."""

import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from robot_qsft.datasets.interface import Observation
from robot_qsft.policies.token_policy import DecodingConfig, TokenPolicy
from robot_qsft.serve_command import model_hash
from robot_qsft.train import train
from robot_qsft.training_state import latest_checkpoint

pytest.importorskip("openpi_client", reason="openpi-client is not installed")
from dataclasses import replace

from openpi_client.websocket_client_policy import WebsocketClientPolicy


@pytest.fixture(scope="module")
def run_folder(tiny, training_data, silent, tmp_path_factory) -> Path:
    """A run of chunks of three actions."""
    folder = tmp_path_factory.mktemp("run") / "chunks"
    train(replace(tiny, chunk=3), training_data, folder, progress=silent, resume=False)
    return folder


@pytest.fixture(scope="module")
def address(run_folder, process_environment) -> Iterator[str]:
    command = [sys.executable, "-m", "robot_qsft", "serve", str(run_folder)]
    with subprocess.Popen(
        [*command, "--port", "0", "--temperature", "0"],
        env=process_environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        line = process.stdout.readline()
        found = re.search(r"answers at (ws://127\.0\.0\.1:\d+)", line)
        assert found, line
        yield found.group(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0, "an interrupted server ends in peace"


def test_it_acts_as_in_this_process(run_folder, address, training_data) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        client = WebsocketClientPolicy(address, port=None)
    metadata = client.get_server_metadata()
    assert metadata["action_horizon"] == 3
    assert metadata["cameras"] == ["front"]
    folder = latest_checkpoint(run_folder)
    policy = TokenPolicy.load(folder, DecodingConfig(temperature=0))
    for row in range(0, 40, 8):
        state, image = training_data.tables.states[row], training_data.images["front"][row]
        expected = policy.act(Observation(state, "", {"front": image}))
        sent = {"state": state, "images": {"front": image}, "prompt": ""}
        np.testing.assert_array_equal(client.infer(sent)["actions"], expected.actions)
        about = {"v": 1, "sid": 1, "seq": row, "t_obs_ns": 0}
        answer = client.infer({**sent, "_meta": about})
        assert answer["_meta"]["value"] == pytest.approx(expected.value, abs=1e-5)
        assert answer["_meta"]["model_hash"] == model_hash(folder)
        committed = expected.actions[:2] * 0.5
        bound = policy.act_after(Observation(state, "", {"front": image}), committed)
        answer = client.infer({**sent, "_meta": {**about, "committed": committed.tolist()}})
        np.testing.assert_array_equal(answer["actions"], bound.actions)


def test_what_cannot_be_served_is_one_sentence(run_folder, refused, tmp_path) -> None:
    assert str(tmp_path) in refused("serve", tmp_path)
    assert "listening on 0.0.0.0 needs --certificate" in refused(
        "serve", run_folder, "--host", "0.0.0.0"
    )
