"""Gymnasium spaces as Minari's `metadata.json` tells them, flattened to named fields.

Shape legend: H height, W width.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from robot_qsft.datasets.features import Camera

Key = str | int
_MAX_DEPTH = 16
_MAX_ENTRIES = 1 << 26
# Minari compresses a Box only if it is at least so high and wide.
_MIN_IMAGE_SIZE = 32


@dataclass(frozen=True)
class Leaf:
    """A space that is no Dict and no Tuple.

    Attributes:
        keys: on the way to it, first "observations" or "actions", then the keys of Dicts (str) and
            the places in Tuples (int).
        kind: "number", "text", or the name of a space that is not read here.
        shape: of a value.
        jpeg: whether its values are stored as JPEG files.
        colour: whether its values are colour images (H, W, 3) of uint8.
    """

    keys: tuple[Key, ...]
    kind: Literal["number", "text"] | str
    shape: tuple[int, ...] = ()
    jpeg: bool = False
    colour: bool = False

    @property
    def name(self) -> str:
        """Such as "observations/agent/0"."""
        return name_of(self.keys)

    @property
    def camera(self) -> Camera | None:
        """Size of its frames; None where it holds none."""
        if not self.colour:
            return None
        height, width = self.shape[:2]
        return Camera(height, width, "video" if self.jpeg else "image")


def name_of(keys: tuple[Key, ...]) -> str:
    """Such as "observations/agent/0"."""
    return "/".join(map(str, keys))


def flatten_space(stored: Any, *, root: str, jpeg_encoding: bool, about: str) -> tuple[Leaf, ...]:
    """The leaves of a space.

    Args:
        stored: as `metadata.json` has it, a JSON text.
        root: "observations" or "actions".
        jpeg_encoding: whether images are stored as JPEG files.
        about: the space and its file, for the message.

    Raises:
        ValueError: when it is no space.
    """
    try:
        space = json.loads(stored) if isinstance(stored, str) else stored
        return tuple(_leaves(space, (root,), jpeg_encoding))
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"expected a space of gymnasium in {about}, but it cannot be read "
            f"({type(error).__name__}: {str(error)[:100]}); restore the file"
        ) from error


def _leaves(space: Any, keys: tuple[Key, ...], jpeg_encoding: bool) -> Iterator[Leaf]:
    if len(keys) > _MAX_DEPTH:
        raise ValueError("it nests too deep")
    kind = space["type"]
    if kind == "Dict":
        for key, below in space["subspaces"].items():
            yield from _leaves(below, (*keys, key), jpeg_encoding)
    elif kind == "Tuple":
        for place, below in enumerate(space["subspaces"]):
            yield from _leaves(below, (*keys, place), jpeg_encoding)
    elif kind == "Box":
        shape = _shape(space["shape"])
        image = _is_image(space, shape)
        yield Leaf(
            keys,
            "number",
            shape,
            jpeg=image and jpeg_encoding,
            colour=space["dtype"] == "uint8" and len(shape) == 3 and shape[2] == 3,
        )
    elif kind == "Discrete":
        yield Leaf(keys, "number")
    elif kind == "MultiDiscrete":
        yield Leaf(keys, "number", _shape(np.shape(space["nvec"])))
    elif kind == "MultiBinary":
        count = space["n"]
        yield Leaf(keys, "number", _shape([count] if isinstance(count, int) else count))
    else:
        yield Leaf(keys, "text" if kind == "Text" else str(kind))


def _shape(stored: Any) -> tuple[int, ...]:
    shape = tuple(stored)
    if not all(type(length) is int and length > 0 for length in shape):
        raise ValueError(f"{shape} is no shape")
    if math.prod(shape) > _MAX_ENTRIES:
        raise ValueError(f"the shape {shape} is too large")
    return shape


def _is_image(space: Any, shape: tuple[int, ...]) -> bool:
    """Whether Minari takes it for an image, which it then stores as JPEG."""
    return (
        space["dtype"] == "uint8"
        and len(shape) in (2, 3)
        and min(shape[:2]) >= _MIN_IMAGE_SIZE
        and bool(np.all(np.asarray(space["low"]) == 0))
        and bool(np.all(np.asarray(space["high"]) == 255))
    )
