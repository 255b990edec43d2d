"""Frames: the same bytes as openpi's client makes, and nothing that a stranger should not send."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

pytest.importorskip("openpi_client", reason="openpi-client is not installed")
import msgpack
from openpi_client import msgpack_numpy as openpi_msgpack

from robot_qsft.hardware.protocol import DTYPES, FrameError, FrameLimits, pack, unpack


def observation() -> dict:
    rng = np.random.default_rng(0)
    return {
        "observation/image": rng.integers(0, 255, (224, 224, 3), np.uint8),
        "observation/state": rng.normal(size=8),
        "half": np.float16(0.5),
        "flag": np.array([True, False]),
        "empty": np.zeros((0, 7), np.float32),
        "prompt": "pick up the can, süß",
        "nested": {"list": [1, 2.5, None, True, "x", b"y"]},
    }


def same(a, b) -> bool:
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_bytes_are_those_of_openpis_client() -> None:
    assert pack(observation()) == openpi_msgpack.packb(observation())


def test_both_read_what_the_other_wrote() -> None:
    assert same(unpack(openpi_msgpack.packb(observation())), observation())
    assert same(openpi_msgpack.unpackb(pack(observation())), observation())


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from(sorted(DTYPES)).map(np.dtype),
        hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4),
    )
)
def test_arrays_come_back_as_they_were(array: np.ndarray) -> None:
    back = unpack(pack({"x": array}))["x"]
    assert same(array, back)
    assert not back.flags.writeable


def test_what_is_not_contiguous_or_big_endian_travels_too() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    big = np.arange(3, dtype=">f4")
    back = unpack(pack({"flipped": image[::-1, ::2], "big": big}))
    np.testing.assert_array_equal(back["flipped"], image[::-1, ::2])
    np.testing.assert_array_equal(back["big"], big)


@pytest.mark.parametrize(
    "value",
    [np.array([None]), np.array(["a"]), np.array([1j]), np.array(["2020"], "datetime64[D]")],
    ids=["object", "text", "complex", "date"],
)
def test_what_is_no_number_does_not_travel(value: np.ndarray) -> None:
    with pytest.raises(ValueError, match="cannot travel"):
        pack({"x": value})


def array(dtype="<f4", data=b"\0" * 8, shape=(2,), **more):
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": list(shape), **more}


def frame(value) -> bytes:
    return msgpack.packb(value)


HOSTILE = {
    "object pointers": frame({"x": array("|O")}),
    "structured": frame({"x": array([["a", "<f4"]])}),
    "void": frame({"x": array("|V8")}),
    "text": frame({"x": array("<U2")}),
    "date": frame({"x": array("<M8[s]")}),
    "complex": frame({"x": array("<c8", shape=(1,))}),
    "long double": frame({"x": array("<f16", b"\0" * 16, (1,))}),
    "unsigned 64": frame({"x": array("<u8", shape=(1,))}),
    "negative length": frame({"x": array(shape=(-1,))}),
    "true as a length": frame({"x": array(shape=(True, 2))}),
    "float as a length": frame({"x": array(shape=(2.0,))}),
    "huge lengths": frame({"x": array(shape=(2**40, 2**40))}),
    "lengths that overflow to 2": frame({"x": array(shape=(2**63, 2, 2))}),
    "too few bytes": frame({"x": array(data=b"\0" * 7)}),
    "too many bytes": frame({"x": array(data=b"\0" * 9)}),
    "bytes as text": frame({"x": array(data="\0" * 8)}),
    "six dimensions": frame({"x": array(shape=(2, 1, 1, 1, 1, 1))}),
    "shape that is none": frame({"x": {b"__ndarray__": True, b"data": b"", b"dtype": "<f4"}}),
    "scalar of text": frame({"x": {b"__npgeneric__": True, b"data": "1", b"dtype": "<f4"}}),
    "scalar of an object": frame({"x": {b"__npgeneric__": True, b"data": 1, b"dtype": "|O"}}),
    "scalar out of range": frame({"x": {b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}}),
    "extension": frame({"x": msgpack.ExtType(5, b"abc")}),
    "empty extension": frame({"x": msgpack.ExtType(5, b"")}),
    "timestamp": frame({"x": msgpack.Timestamp(1, 2)}),
    "keys that are bytes": frame({b"x": 1}),
    "keys that are numbers": frame({1: 1}),
    "an array as the message": frame(array()),
    "a list": frame([1, 2]),
    "a number": frame(1),
    "nothing": b"",
    "half a frame": pack(observation())[:-3],
    "two frames": frame({"x": 1}) + frame({"y": 2}),
    "nine deep": frame({"x": [[[[[[[[1]]]]]]]]}),
    "ten thousand deep": b"\x81\xa1x" + b"\x91" * 10_000 + b"\xc0",
    "a million empty maps": frame({"x": [[{}] * 1000] * 1000}),
    "a list said to be huge": b"\x81\xa1x\xdd\xff\xff\xff\xff",
    "bytes said to be huge": b"\x81\xa1x\xc6\xff\xff\xff\xff",
    "long text": frame({"x": "a" * 70_000}),
    "text that is none": b"\x81\xa1x\xa2\xff\xff",
    "never used": b"\xc1",
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_hostile_frames_are_refused(hostile: bytes) -> None:
    with pytest.raises(FrameError) as caught:
        unpack(hostile)
    assert "\n" not in str(caught.value)


def test_too_large_a_frame_is_refused_before_it_is_read() -> None:
    with pytest.raises(FrameError, match="more than 100"):
        unpack(pack({"x": np.zeros(200, np.uint8)}), FrameLimits(max_bytes=100))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_frames_give_a_message_or_a_frame_error(data: st.DataObject) -> None:
    whole = bytearray(pack({"image": np.zeros((4, 4, 3), np.uint8), "prompt": "go", "n": [1.5]}))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        message = unpack(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    except FrameError:
        return
    for value in message.values():
        if isinstance(value, np.ndarray):
            assert value.dtype.str in DTYPES
            value.copy()
