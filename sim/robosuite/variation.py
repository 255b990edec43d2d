"""What robosuite changes of a model from episode to episode, without compiling it again.

Where things stand is mostly in the state; but a door, a bin or a picture of an object has its pose
in the model, and the cube of Lift has a size of its own in every episode.

Shape legend: B bodies.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

CUBE_HALF_LOW_M, CUBE_HALF_HIGH_M = 0.020, 0.022
_CUBE_BODY = "cube_main"
_CUBE_DENSITY_KG_M3 = 1000.0


@dataclass(frozen=True, eq=False)
class Variation:
    """One episode's model.

    Attributes:
        body_positions_m: float64 (B, 3), in the parent's frame.
        body_quaternions: float64 (B, 4), wxyz.
        cube_half_m: half of the cube's edges, float64 (3,); None where the task has none of its own
            size.
    """

    body_positions_m: NDArray[np.float64]
    body_quaternions: NDArray[np.float64]
    cube_half_m: NDArray[np.float64] | None

    @classmethod
    def of(cls, model: Any, *, cube: bool) -> "Variation":
        """What a `mujoco.MjModel` is at present."""
        return cls(
            model.body_pos.copy(),
            model.body_quat.copy(),
            model.geom_size[_cube_geoms(model)[0]].copy() if cube else None,
        )

    def apply(self, model: Any) -> None:
        """Make the model so."""
        model.body_pos[:] = self.body_positions_m
        model.body_quat[:] = self.body_quaternions
        if self.cube_half_m is not None:
            resize_cube(model, self.cube_half_m)


def resize_cube(model: Any, half_m: NDArray[np.float64]) -> None:
    """Give the cube of Lift other edges, float64 (3,), with the mass that its density makes."""
    import mujoco

    body = model.body(_CUBE_BODY).id
    for geom in _cube_geoms(model):
        model.geom_size[geom] = half_m
        model.geom_aabb[geom, 3:] = half_m
        model.geom_rbound[geom] = np.sqrt((half_m**2).sum())
    for node in range(model.body_bvhadr[body], model.body_bvhadr[body] + model.body_bvhnum[body]):
        model.bvh_aabb[node, 3:] = half_m
    x, y, z = half_m**2
    model.body_mass[body] = 8 * half_m.prod() * _CUBE_DENSITY_KG_M3
    # In this order of operations it is what the compiler computes, to the last bit.
    model.body_inertia[body] = model.body_mass[body] * np.array([y + z, x + z, x + y]) / 3
    mujoco.mj_setConst(model, mujoco.MjData(model))


def model_xml(compiled_from: str, model: Any, *, before: Variation, cube: bool) -> str:
    """The XML of a model that was changed since it was compiled.

    Args:
        compiled_from: XML of the unchanged model.
        model: the `mujoco.MjModel` as it is now.
        before: as it was compiled.
        cube: whether it holds the cube of Lift.
    """
    root = ElementTree.fromstring(compiled_from)
    for element in root.iter("body"):
        body = model.body(element.get("name"))
        if not np.array_equal(body.pos, before.body_positions_m[body.id]):
            element.set("pos", _numbers(body.pos))
        if not np.array_equal(body.quat, before.body_quaternions[body.id]):
            element.set("quat", _numbers(body.quat))
    if cube:
        size = _numbers(model.geom_size[_cube_geoms(model)[0]])
        for element in root.iter("geom"):
            if element.get("name", "").startswith("cube_g0"):
                element.set("size", size)
    for element in root.iter():
        if file := element.get("file"):
            element.set("file", _below_robosuite(file))
    return ElementTree.tostring(root, encoding="unicode")


def _below_robosuite(file: str) -> str:
    """A path without the folder that robosuite is installed in, which `edit_model_xml` puts in."""
    parts = Path(file).parts
    installed = [place for place, part in enumerate(parts) if part == "robosuite"]
    return str(Path(*parts[installed[-1] :])) if installed else file


def _cube_geoms(model: Any) -> list[int]:
    return [int(geom) for geom in np.flatnonzero(model.geom_bodyid == model.body(_CUBE_BODY).id)]


def _numbers(values: NDArray[np.float64]) -> str:
    return " ".join(repr(float(value)) for value in values)
