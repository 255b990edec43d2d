"""A URDF of an arm, drawn from its description: rods between joints."""

import math
from xml.etree.ElementTree import Element, SubElement, tostring

import numpy as np

from robot_qsft.hardware.description import RobotDescription, Triple

_RADIUS_M = 0.035
_COLOUR = "0.8 0.8 0.83 1"


def rods_urdf(description: RobotDescription) -> str:
    """URDF text with the description's joints, a rod for each link."""
    robot = Element("robot", name=description.name)
    ends = [joint.origin_m for joint in description.joints] + [description.tool.origin_m]
    for index, end_m in enumerate(ends):
        link = SubElement(robot, "link", name=f"link{index}")
        _draw_rod(link, end_m)
    for index, joint in enumerate(description.joints):
        one = SubElement(robot, "joint", name=joint.name, type="revolute")
        SubElement(one, "parent", link=f"link{index}")
        SubElement(one, "child", link=f"link{index + 1}")
        SubElement(one, "origin", xyz=_text(joint.origin_m), rpy=_text(joint.origin_rpy_rad))
        SubElement(one, "axis", xyz=_text(joint.axis))
        limits = {
            "lower": joint.low_rad,
            "upper": joint.high_rad,
            "velocity": joint.velocity_rad_s,
            "effort": 1.0,
        }
        SubElement(one, "limit", {name: str(value) for name, value in limits.items()})
    return tostring(robot, encoding="unicode")


def _draw_rod(link: Element, end_m: Triple) -> None:
    """A rod from a link's frame to the next joint, and a ball where it begins."""
    _shape(link, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)).append(
        Element("sphere", radius=str(1.2 * _RADIUS_M))
    )
    x, y, z = end_m
    length_m = math.hypot(x, y, z)
    if length_m > _RADIUS_M:
        turn = (0.0, math.atan2(math.hypot(x, y), z), math.atan2(y, x))
        middle = (x / 2, y / 2, z / 2)
        rod = Element("cylinder", radius=str(_RADIUS_M), length=str(length_m))
        _shape(link, middle, turn).append(rod)


def _shape(link: Element, origin_m: Triple, rpy_rad: Triple) -> Element:
    visual = SubElement(link, "visual")
    SubElement(visual, "origin", xyz=_text(origin_m), rpy=_text(rpy_rad))
    material = SubElement(visual, "material", name="rod")
    SubElement(material, "color", rgba=_COLOUR)
    return SubElement(visual, "geometry")


def _text(values: Triple) -> str:
    return " ".join(str(float(value)) for value in np.asarray(values))
