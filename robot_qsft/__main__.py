"""`python -m robot_qsft` is `robot-qsft`."""

from robot_qsft.cli import main

if __name__ == "__main__":
    main()
