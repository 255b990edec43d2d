"""What the README tells people to type works."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from robot_qsft.cli import Command
from robot_qsft.command_line import parse

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text().replace("\\\n", " ")


def shell_commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("robot-qsft ")]


def test_there_are_commands_for_every_user() -> None:
    spoken = {shlex.split(command)[1] for command in shell_commands()}

    ingesting = {"inspect", "validate", "label", "ingest", "view", "edit", "export"}
    deploying = {"serve", "run", "simulate"}
    assert {"collect", "train", "eval", "replay", "doctor"} | ingesting | deploying <= spoken


@pytest.mark.parametrize("command", shell_commands())
def test_command_is_understood(command: str) -> None:
    parse(Command, shlex.split(command)[1:])


def test_picture_and_files_that_are_named_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).is_file(), target


def test_python_that_makes_an_environment_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    making = next(block for block in blocks if "gymnasium.make" in block)
    script = making + "\nenvironment.reset(seed=0)\nprint(sorted(environment.reset()[0]['images']))"

    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert ran.stdout.splitlines()[-1] == "['front', 'wrist']", ran.stderr


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_simulation_section_runs_as_it_stands(tmp_path: Path) -> None:
    section = README.split("## Evaluate in simulation")[1].split("##")[0]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert block is not None
    for line in block.group(1).splitlines():
        if line.startswith("robot-qsft "):
            executable = Path(sys.executable).with_name("robot-qsft")
            command = [str(executable), *shlex.split(line)[1:]]
            subprocess.run(command, cwd=tmp_path, check=True)
