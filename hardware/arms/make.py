"""Which driver drives an arm."""

from importlib import import_module

from robot_qsft.datasets.wording import listed
from robot_qsft.hardware.description import RobotDescription
from robot_qsft.hardware.robot import Robot

_DRIVERS = {
    "ur": ("ur", "URRobot"),
    "franka": ("franka", "FrankaRobot"),
    "feetech": ("feetech", "FeetechRobot"),
    "dynamixel": ("dynamixel", "DynamixelRobot"),
    "xarm": ("xarm", "XArmRobot"),
    "rosbridge": ("rosbridge", "RosbridgeRobot"),
    "simulated": ("simulated", "SimulatedRobot"),
}
"""Name in a description to module and class; loaded when asked for, with the vendor's library."""


def make_robot(description: RobotDescription) -> Robot:
    """The driver of the described arm, not connected.

    Raises:
        ValueError: when there is no such driver, its library is not installed, or the description
            does not fit it.
    """
    if description.driver not in _DRIVERS:
        raise ValueError(
            f"there is no driver {description.driver!r}; choose one of {listed(_DRIVERS)}"
        )
    module, name = _DRIVERS[description.driver]
    try:
        driver = getattr(import_module(f"robot_qsft.hardware.arms.{module}"), name)
    except ImportError as error:
        raise ValueError(
            f"the driver {description.driver!r} needs its library ({error}); "
            f"pip install 'robot-qsft[{description.driver}]'"
        ) from error
    robot: Robot = driver(description)
    return robot
