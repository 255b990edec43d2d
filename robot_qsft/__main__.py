"""`python -m robot_qsft` is `robot-qsft`."""

import sys
from typing import get_args


def main() -> None:
    """Run the command line.

    Modules are imported here and not above, so that worker processes, which load this file again,
    start with no more than their work needs. Commands that only read data leave PyTorch out, which
    takes seconds and hundreds of megabytes.
    """
    from robot_qsft.command_line import run
    from robot_qsft.data_cli import BridgeCommand, DataCommand

    light = DataCommand | BridgeCommand
    if sys.argv[1:2] in [[command.__name__.lower()] for command in get_args(light)]:
        run(light)
    from robot_qsft.cli import main as run_any

    run_any()


if __name__ == "__main__":
    main()
