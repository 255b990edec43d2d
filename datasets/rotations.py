"""Rotations from one representation into another, by SciPy.

Shape legend: R numbers of a representation, T steps.
"""

import warnings
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.formats.optional import optional_import

Representation: TypeAlias = Literal[
    "quaternion_xyzw", "quaternion_wxyz", "axis_angle", "euler_xyz", "rotation_6d", "matrix"
]
REPRESENTATIONS: tuple[str, ...] = get_args(Representation)
SIZES = MappingProxyType(
    {
        "quaternion_xyzw": 4,
        "quaternion_wxyz": 4,
        "axis_angle": 3,
        "euler_xyz": 3,
        "rotation_6d": 6,
        "matrix": 9,
    }
)
"""Numbers of each representation."""
ANGLES: Final = ("axis_angle", "euler_xyz")
"""Representations whose numbers are angles."""
_SHORTEST = 1e-6


def to_rotation(values_TR: NDArray[Any], representation: Representation) -> Any:
    """T rotations (`scipy.spatial.transform.Rotation`).

    Args:
        values_TR: (T, R); angles in radians. "euler_xyz" turns about the fixed x, then y, then z
            axis; "rotation_6d" is the first two rows of the matrix (Zhou et al. 2019,
            arXiv 1812.07035), "matrix" all three, row by row.
        representation: of the values.

    Raises:
        ValueError: when the values are of another size, or no rotations (a quaternion of zeros, a
            mirror image).
    """
    rotation = optional_import("scipy.spatial.transform", purpose="converting rotations").Rotation
    size = SIZES[representation]
    values = np.asarray(values_TR, np.float64)
    if values.ndim != 2 or values.shape[1] != size:
        raise ValueError(
            f"{representation} needs {size} numbers, but {values.shape[1:]} came; "
            "choose the entries that hold the rotation"
        )
    sound_T = np.isfinite(values).all(axis=1)
    parts = values.reshape(len(values), -1, {4: 4}.get(size, 3))
    if representation not in ANGLES:
        with np.errstate(over="ignore", invalid="ignore"):
            lengths = np.linalg.norm(parts, axis=2)
        sound_T &= (np.isfinite(lengths) & (lengths > _SHORTEST)).all(axis=1)
    if not sound_T.all():
        raise _no_rotation(values, int(sound_T.argmin()), representation)
    if representation == "axis_angle":
        return rotation.from_rotvec(values)
    if representation == "euler_xyz":
        return rotation.from_euler("xyz", values)
    if size == 4:
        return rotation.from_quat(values if representation.endswith("xyzw") else _wxyz(values, -1))
    directions = parts / lengths[..., None]
    sound_T = np.linalg.norm(np.cross(directions[:, 0], directions[:, 1]), axis=1) > _SHORTEST
    matrices = _orthonormal(directions[sound_T])
    if size == 9:
        sound_T[sound_T] = (matrices[:, 2] * directions[sound_T, 2]).sum(axis=1) > 0
    if not sound_T.all():
        raise _no_rotation(values, int(sound_T.argmin()), representation)
    return rotation.from_matrix(matrices)


def from_rotation(rotations: Any, representation: Representation) -> NDArray[np.float64]:
    """The reverse of `to_rotation`, (T, R); quaternions with w of at least 0."""
    values: NDArray[np.float64]
    if representation == "axis_angle":
        values = rotations.as_rotvec()
    elif representation == "euler_xyz":
        with warnings.catch_warnings():
            # Where the y angle is a right one, x and z are one turn: SciPy picks a z of 0.
            warnings.simplefilter("ignore", UserWarning)
            values = rotations.as_euler("xyz")
    elif representation == "quaternion_xyzw":
        values = rotations.as_quat(canonical=True)
    elif representation == "quaternion_wxyz":
        values = _wxyz(rotations.as_quat(canonical=True), 1)
    else:
        values = rotations.as_matrix().reshape(len(rotations), 9)[:, : SIZES[representation]]
    return values


def _wxyz(quaternions: NDArray[np.float64], shift: int) -> NDArray[np.float64]:
    """The scalar part moved from the end to the front (shift 1), or back (-1)."""
    return np.roll(quaternions, shift, axis=1)


def _orthonormal(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Right-handed orthonormal matrices from two rows of length 1 (Gram-Schmidt)."""
    first = rows[:, 0]
    second = rows[:, 1] - (first * rows[:, 1]).sum(axis=1, keepdims=True) * first
    second = second / np.linalg.norm(second, axis=1, keepdims=True)
    return np.stack([first, second, np.cross(first, second)], axis=1)


def _no_rotation(
    values: NDArray[np.float64], step: int, representation: Representation
) -> ValueError:
    return ValueError(
        f"{representation} holds no rotation at step {step}, but {values[step].tolist()}; check "
        "the entries and the representation, or drop the episode"
    )
