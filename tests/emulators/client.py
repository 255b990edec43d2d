"""An arm's client in a process of its own, which can be killed."""

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from robot_qsft.hardware.description import RobotDescription, description_text

_STREAMS = """
import sys, time
from robot_qsft.hardware.arms.make import make_robot
from robot_qsft.hardware.description import read_description

robot = make_robot(read_description(sys.argv[1]))
robot.connect()
target_rad = robot.read().positions_rad
while True:
    target_rad[0] += float(sys.argv[2])
    robot.command(target_rad, 0.0)
    print("sent", flush=True)
    time.sleep(robot.description.period_s)
"""
_FIRST = 20


@contextmanager
def streaming_client(
    description: RobotDescription, *, step_rad: float
) -> Iterator[subprocess.Popen[str]]:
    """A client that turns the first joint until it is killed; 20 commands have been sent.

    It leads a process group of its own, which dies with the block at the latest.
    """
    command = [sys.executable, "-c", _STREAMS, description_text(description), str(step_rad)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as client:
        try:
            assert client.stdout is not None
            # A library may greet first.
            sent = (line for line in client.stdout if line == "sent\n")
            assert len(list(itertools.islice(sent, _FIRST))) == _FIRST
            yield client
        finally:
            kill_group(client)


def kill_group(client: subprocess.Popen[str]) -> None:
    """Kill a client, and the processes that it started."""
    with suppress(ProcessLookupError):
        os.killpg(client.pid, signal.SIGKILL)
    client.wait()
