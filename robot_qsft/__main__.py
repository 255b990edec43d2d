"""`python -m robot_qsft` is `robot-qsft`."""


def main() -> None:
    """Run the command line.

    It is imported here and not above, so that worker processes, which load this file again, start
    with no more than their work needs.
    """
    from robot_qsft.cli import main as run

    run()


if __name__ == "__main__":
    main()
