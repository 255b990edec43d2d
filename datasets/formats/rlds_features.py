"""What a step of an RLDS record holds, and how its lists become columns.

`features.json` tells it. Some old sets lack that file; then the first record does: a float list is
float32, an integer list int64 (the flags `is_first`, `is_last`, `is_terminal` bool), a bytes list
pictures where it begins with one and text otherwise, and a step holds as many numbers as fall to
it, one being a number by itself and more a vector.

Shape legend: H height, T steps, W width.
"""

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.formats.encoded_image import sniff_image
from robot_qsft.datasets.formats.tf_example import Values
from robot_qsft.datasets.source import string_column

Record: TypeAlias = Mapping[str, Values]

STEPS = "steps/"
FLAGS = ("is_first", "is_last", "is_terminal")
_NUMBERS = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)
_TEXTS = ("string", "str", "object", "bytes")
_DEEPEST = 32
_LARGEST_ROW = 1 << 16
"""Numbers of one step that still make a column; what has more is no vector but a picture."""
_LARGEST_IMAGE = 1 << 26
_SMALLEST_SIDE = 8
"""Pixels; three axes of numbers with a shorter side are taken for no picture."""


@dataclass(frozen=True)
class StepFeature:
    """One key of a step.

    Attributes:
        name: of the column or camera: the key without `steps/`.
        kind: "number" and "text" become columns, "encoded" (PNG or JPEG) and "pixels" cameras.
        dtype: numpy's name of it; "string" for text.
        shape: of one step; a side of 0 is one that only the pictures tell.
        encoding: "none" where the numbers of all steps lie in one list; "bytes" or "zlib" where
            each step has a buffer.
    """

    name: str
    kind: Literal["number", "text", "encoded", "pixels"]
    dtype: str
    shape: tuple[int, ...] = ()
    encoding: Literal["none", "bytes", "zlib"] = "none"

    @property
    def key(self) -> str:
        """In the record."""
        return STEPS + self.name


@dataclass(frozen=True)
class Layout:
    """What the records of a set hold.

    Attributes:
        features: of a step.
        left_out: names of what is in a step but cannot be read here.
    """

    features: tuple[StepFeature, ...]
    left_out: tuple[str, ...]


def layout_from_json(stored: Mapping[str, Any], *, file: Path) -> Layout:
    """Read `features.json`.

    Raises:
        ValueError: when it is damaged, or its records are no episodes.
    """
    leaves = dict(_leaves(stored, "", 0, file))
    features, left_out = [], []
    for key, leaf in leaves.items():
        if key.startswith(STEPS):
            feature = _feature_from_json(key.removeprefix(STEPS), leaf)
            if feature is None:
                left_out.append(key.removeprefix(STEPS))
            else:
                features.append(feature)
    if not features:
        raise ValueError(
            f"expected 'steps' in {file}, one record being one episode, but it has "
            f"{', '.join(f'{key!r:.40}' for key in list(leaves)[:10])}; this is no RLDS data set"
        )
    return Layout(tuple(features), tuple(left_out))


def layout_from_record(record: Record, *, about: str) -> Layout:
    """Infer from a record what the module's head says.

    Raises:
        ValueError: when its number of steps is not told.
    """
    features, left_out = [], []
    flags = [STEPS + flag for flag in FLAGS if record.get(STEPS + flag) is not None]
    if not flags or not len(record[flags[0]]):
        raise ValueError(
            f"expected one of the keys {', '.join(STEPS + flag for flag in FLAGS)} in {about}, but "
            "it has none and there is no features.json; restore that file"
        )
    steps = len(record[flags[0]])
    for key, values in sorted(record.items()):
        if not key.startswith(STEPS):
            continue
        name, width = key.removeprefix(STEPS), len(values) // steps
        if not len(values) or len(values) % steps:
            left_out.append(name)
        elif isinstance(values, list):
            if width != 1:
                left_out.append(name)
            elif sniff_image(values[0]) is not None:
                features.append(StepFeature(name, "encoded", "uint8", (0, 0, 3)))
            elif _is_text(values[0]):
                features.append(StepFeature(name, "text", "string"))
            else:
                left_out.append(name)
        else:
            dtype = "bool" if name in FLAGS else values.dtype.name
            features.append(StepFeature(name, "number", dtype, () if width == 1 else (width,)))
    return Layout(tuple(features), tuple(left_out))


def count_steps(record: Record, layout: Layout, *, about: str) -> int:
    """T of an episode.

    Raises:
        ValueError: when the record does not tell it.
    """
    for flag in FLAGS:
        values = record.get(STEPS + flag)
        if values is not None:
            return len(values)
    for feature in layout.features:
        values = record.get(feature.key)
        if values is not None:
            one_each = feature.encoding != "none" or feature.kind in ("text", "encoded")
            return len(values) if one_each else len(values) // math.prod(feature.shape)
    raise ValueError(f"expected steps in {about}, but it has none; restore the file")


def values_of(record: Record, feature: StepFeature, *, steps: int, about: str) -> NDArray[Any]:
    """All steps of a feature that is number, text or pixels: (T, *shape), of its dtype.

    Raises:
        ValueError: when there are not so many values, or they are of another kind.
    """
    about = f"{feature.key!r} in {about}"
    values = record.get(feature.key)
    if values is None:
        raise ValueError(f"expected {about}, but it is missing; restore the file")
    if feature.kind == "text" or feature.encoding != "none":
        buffers = buffers_of(record, feature, steps=steps, about=about)
        if feature.kind == "text":
            # Most sets repeat one sentence in every step.
            text = {one: one.decode("utf-8", errors="replace") for one in set(buffers)}
            return string_column([text[one] for one in buffers])
        return np.stack([from_buffer(one, feature, about=about) for one in buffers])
    size = math.prod(feature.shape)
    if len(values) != steps * size:
        raise ValueError(
            f"expected {size} numbers in each of the {steps} steps of {about}, but {len(values)} "
            "came in all; restore the file"
        )
    stored = np.asarray(values)
    if stored.dtype.kind != ("f" if feature.dtype.startswith("float") else "i"):
        raise ValueError(
            f"expected numbers of {feature.dtype} for {about}, but {_kind(values)} came; mend "
            "features.json"
        )
    # TFDS stores the bits of a uint64 as an int64, and any float as a float32.
    with np.errstate(over="ignore"):
        typed = stored.view(np.uint64 if feature.dtype == "uint64" else stored.dtype)
        typed = typed.astype(feature.dtype)
    if feature.dtype != "uint64" and stored.dtype.kind == "i" and (typed != stored).any():
        raise ValueError(
            f"expected numbers of {feature.dtype} for {about}, but "
            f"{stored[typed != stored][0]} came; mend features.json"
        )
    column: NDArray[Any] = typed.reshape(steps, *feature.shape)
    return column


def buffers_of(record: Record, feature: StepFeature, *, steps: int, about: str) -> list[bytes]:
    """The bytes of every step, T in all.

    Raises:
        ValueError: when there are not so many, or numbers came.
    """
    values = record.get(feature.key)
    if not isinstance(values, list) or len(values) != steps:
        came = "nothing" if values is None else f"{len(values)} {_kind(values)}"
        raise ValueError(
            f"expected bytes for each of the {steps} steps of {about}, but {came} came; "
            "restore the file"
        )
    return values


def from_buffer(content: bytes, feature: StepFeature, *, about: str) -> NDArray[Any]:
    """One step of a feature that has a buffer for each: (*shape), of its dtype.

    Raises:
        ValueError: when the buffer is damaged, or holds more or less than that.
    """
    dtype = np.dtype(feature.dtype).newbyteorder("<")
    expected = math.prod(feature.shape) * dtype.itemsize
    if feature.encoding == "zlib":
        unpacker = zlib.decompressobj()
        try:
            # One byte more than expected is enough to see that there are too many.
            content = unpacker.decompress(content, expected + 1)
        except zlib.error as error:
            raise ValueError(
                f"expected {about} as zlib wrote it, but it cannot be unpacked; restore the file"
            ) from error
        if len(content) == expected and not unpacker.eof:
            raise ValueError(f"expected all of {about}, but its end is missing; restore the file")
    if len(content) != expected:
        raise ValueError(
            f"expected {expected} bytes in every step of {about}, but {len(content)} came; "
            "mend features.json or restore the file"
        )
    if dtype == np.bool_:
        values: NDArray[Any] = np.frombuffer(content, np.uint8) != 0
    else:
        values = np.frombuffer(content, dtype).astype(feature.dtype)
    row: NDArray[Any] = values.reshape(feature.shape)
    return row


def _leaves(node: Any, key: str, depth: int, file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not isinstance(node, dict) or depth > _DEEPEST:
        raise ValueError(f"expected a tree of features in {file}, but {key!r} is none; restore it")
    group, sequence = node.get("featuresDict"), node.get("sequence")
    if group is not None:
        below = group.get("features") if isinstance(group, dict) else None
        if not isinstance(below, dict):
            raise ValueError(f"expected features below {key!r} in {file}; restore the file")
        for name, one in below.items():
            yield from _leaves(one, f"{key}/{name}" if key else name, depth + 1, file)
    elif sequence is not None and key == STEPS.rstrip("/"):
        steps = sequence.get("feature") if isinstance(sequence, dict) else None
        yield from _leaves(steps, key, depth + 1, file)
    else:
        yield key, node


def _feature_from_json(name: str, leaf: Mapping[str, Any]) -> StepFeature | None:
    """What a leaf holds; None where it cannot be read here."""
    if "text" in leaf:
        return StepFeature(name, "text", "string")
    if "classLabel" in leaf:
        return StepFeature(name, "number", "int64")
    if isinstance(image := leaf.get("image"), dict):
        shape = _shape(image)
        if image.get("dtype", "uint8") != "uint8" or (shape and (len(shape) != 3 or shape[2] != 3)):
            return None
        return StepFeature(name, "encoded", "uint8", shape or (0, 0, 3))
    tensor = leaf.get("tensor")
    if not isinstance(tensor, dict):
        return None
    shape, dtype = _shape(tensor), tensor.get("dtype")
    encoding = tensor.get("encoding", "none")
    if dtype in _TEXTS and shape == () and encoding == "none":
        return StepFeature(name, "text", "string")
    if dtype == "bfloat16" and encoding == "none":
        dtype = "float32"
    if dtype not in _NUMBERS or shape is None or encoding not in ("none", "bytes", "zlib"):
        return None
    if dtype == "uint8" and len(shape) == 3 and shape[2] == 3 and min(shape[:2]) >= _SMALLEST_SIDE:
        return StepFeature(name, "pixels", dtype, shape, encoding)
    if math.prod(shape) > _LARGEST_ROW:
        return None
    return StepFeature(name, "number", dtype, shape, encoding)


def _shape(leaf: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The shape of a leaf; None where a side of it is not told."""
    stored = leaf.get("shape")
    dimensions = stored.get("dimensions", []) if isinstance(stored, dict) else None
    if not isinstance(dimensions, list) or len(dimensions) > 8:
        return None
    try:
        shape = tuple(int(size) for size in dimensions)
    except (TypeError, ValueError, OverflowError):
        return None
    return shape if all(size > 0 for size in shape) and math.prod(shape) <= _LARGEST_IMAGE else None


def _is_text(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return b"\0" not in content


def _kind(values: Values) -> str:
    return "bytes" if isinstance(values, list) else f"numbers of {values.dtype}"
