"""How every command is run: options parsed, complaints in one sentence, exit status."""

import sys
from collections.abc import Sequence
from typing import Any, Protocol

import tyro
from rich.markup import escape

from robot_qsft.console import complaints
from robot_qsft.datasets.worker import WorkerDiedError

_DESCRIPTION = "`robot-qsft COMMAND --help` lists every option with its default."


class Command(Protocol):
    """Options of a command, and what it does."""

    def run(self) -> int:
        """Do it; gives the exit status."""


def parse(commands: Any, arguments: Sequence[str] | None = None) -> Command:
    """The command that `arguments` spell, those of the process if None.

    Args:
        commands: a union of dataclasses to choose from.
        arguments: without the program's name.

    Raises:
        ValueError: when an option is out of range.
    """
    command: Command = tyro.cli(
        commands, prog="robot-qsft", description=_DESCRIPTION, args=arguments
    )
    return command


def run(commands: Any, arguments: Sequence[str] | None = None) -> None:
    """Run a command; what a user can mend ends in one sentence and exit status 1.

    Args:
        commands: a union of dataclasses to choose from.
        arguments: those of the process if None.
    """
    try:
        sys.exit(parse(commands, arguments).run())
    except (ValueError, OSError, WorkerDiedError) as error:
        complaints.print(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(1)
    except KeyboardInterrupt:
        complaints.print(
            "interrupted; the same command (collect and train: with --resume) goes on from here"
        )
        sys.exit(130)
