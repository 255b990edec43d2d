"""openpi's websocket messages: MessagePack with arrays, read by a whitelist.

An array travels as a map `{b"__ndarray__": True, b"data": bytes in C order, b"dtype": "<f4",
b"shape": [2, 3]}`, a NumPy scalar as `{b"__npgeneric__": True, b"data": 1.5, b"dtype": "<f8"}`;
everything else is plain MessagePack. Source: openpi-client 0.1.2, `msgpack_numpy.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

DTYPES = frozenset({"|b1", "|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<i8", "<f2", "<f4", "<f8"})
"""Numbers; with any other a peer could name memory, as with "|O"."""

Message = dict[str, Any]


class FrameError(ValueError):
    """A frame that no well-meaning peer sends; the sentence says what is wrong with it."""


@dataclass(frozen=True)
class FrameLimits:
    """What a frame may hold, so that a peer cannot fill the memory.

    Attributes:
        max_bytes: of the frame; two cameras of 1280x720 take 5.5 MB.
        max_depth: of maps and lists within each other.
        max_items: of all maps and lists together; an array is one.
        max_text_bytes: of one text.
        max_dimensions: of an array.
    """

    max_bytes: int = 16 * 2**20
    max_depth: int = 8
    max_items: int = 20_000
    max_text_bytes: int = 65_536
    max_dimensions: int = 5


DEFAULT_LIMITS = FrameLimits()


def pack(message: Mapping[str, Any]) -> bytes:
    """The frame of a message.

    >>> unpack(pack({"actions": np.ones((1, 2), np.float32)}))["actions"].tolist()
    [[1.0, 1.0]]

    Raises:
        ValueError: when an array is none of numbers.
    """
    frame: bytes = msgpack.packb(message, default=_wrap)
    return frame


def unpack(frame: bytes, limits: FrameLimits = DEFAULT_LIMITS) -> Message:
    """The message of a frame; its arrays are read-only views of the frame.

    Raises:
        FrameError: when the frame is cut off, too large, or holds anything that is not allowed.
    """
    if len(frame) > limits.max_bytes:
        raise FrameError(f"the frame has {len(frame)} bytes, more than {limits.max_bytes}")
    reader = _Reader(limits)
    try:
        message = msgpack.unpackb(
            frame,
            object_hook=reader.take_map,
            list_hook=reader.take_list,
            ext_hook=_refuse_extension,
            max_str_len=limits.max_text_bytes,
            max_bin_len=limits.max_bytes,
            max_array_len=limits.max_items,
            max_map_len=limits.max_items,
            max_ext_len=0,
        )
    except FrameError:
        raise
    # A text that is no UTF-8 is a ValueError as well; only nesting beyond msgpack's stack is not.
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise FrameError(f"the frame is no MessagePack ({error})") from error
    if not isinstance(message, dict):
        raise FrameError(f"the frame holds a {type(message).__name__} instead of a map")
    _check_tree(message, limits.max_depth)
    return message


class _Reader:
    """Unpacks one frame, counting what it makes."""

    def __init__(self, limits: FrameLimits):
        self._limits = limits
        self._items = 0

    def take_list(self, items: list[Any]) -> list[Any]:
        self._count(len(items))
        return items

    def take_map(self, items: dict[Any, Any]) -> Any:
        self._count(len(items))
        if b"__ndarray__" in items:
            return _array(items, self._limits.max_dimensions)
        if b"__npgeneric__" in items:
            return _scalar(items)
        return items

    def _count(self, items: int) -> None:
        self._items += items + 1
        if self._items > self._limits.max_items:
            raise FrameError(f"the frame holds more than {self._limits.max_items} items")


def _wrap(value: Any) -> dict[bytes, Any]:
    if not isinstance(value, np.ndarray | np.generic):
        raise TypeError(f"a {type(value).__name__} cannot travel; send numbers, text or arrays")
    dtype = value.dtype.newbyteorder("<").str
    if dtype not in DTYPES:
        raise ValueError(f"an array of {value.dtype} cannot travel; send one of {sorted(DTYPES)}")
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": dtype}
    data = value.astype(dtype, copy=False).tobytes()
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": list(value.shape)}


def _array(items: dict[Any, Any], max_dimensions: int) -> np.ndarray[Any, Any]:
    data, shape = items.get(b"data"), items.get(b"shape")
    dtype = _dtype(items)
    if not isinstance(data, bytes) or not isinstance(shape, list):
        raise FrameError("an array needs its bytes and its shape")
    # bool is an int to Python, but no length.
    if len(shape) > max_dimensions or not all(type(n) is int and n >= 0 for n in shape):
        raise FrameError(f"an array's shape must be up to {max_dimensions} lengths, got {shape}")
    expected = math.prod(shape) * dtype.itemsize
    if expected != len(data):
        raise FrameError(f"an array of shape {shape} needs {expected} bytes, got {len(data)}")
    return np.frombuffer(data, dtype).reshape(shape)


def _scalar(items: dict[Any, Any]) -> np.generic:
    dtype, value = _dtype(items), items.get(b"data")
    if not isinstance(value, bool | int | float):
        raise FrameError(f"a number was announced, a {type(value).__name__} came")
    try:
        number: np.generic = dtype.type(value)
    except (OverflowError, ValueError) as error:
        raise FrameError(f"{value} is no {dtype.name}") from error
    return number


def _dtype(items: dict[Any, Any]) -> np.dtype[Any]:
    name = items.get(b"dtype")
    if not isinstance(name, str) or name not in DTYPES:
        raise FrameError(f"numbers must be one of {sorted(DTYPES)}")
    return np.dtype(name)


def _refuse_extension(code: int, data: bytes) -> None:
    raise FrameError(f"extension type {code} is not part of the protocol")


_LEAVES = (str, bytes, bool, int, float, np.ndarray, np.generic, type(None))


def _check_tree(message: Message, max_depth: int) -> None:
    """Refuse a message nested too deeply, or with keys or values of other kinds."""
    level: list[Any] = [message]
    for _ in range(max_depth):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                if not all(isinstance(key, str) for key in item):
                    raise FrameError("a map's keys must be text")
                below += item.values()
            elif isinstance(item, list):
                below += item
            elif not isinstance(item, _LEAVES):
                raise FrameError(f"a {type(item).__name__} is not part of the protocol")
        level = below
        if not level:
            return
    raise FrameError(f"the frame is nested more than {max_depth} deep")
