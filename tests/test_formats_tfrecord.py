"""TFRecord framing and the messages in it, written by the test itself or by protobuf."""

import struct
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from robot_qsft.datasets.formats.tf_example import example_class, parse_example
from robot_qsft.datasets.formats.tfrecord import index_records, masked_crc32c, read_record

PAYLOADS = [b"first", b"", b"the third record"]


def framed(payload: bytes) -> bytes:
    def masked(content: bytes) -> int:
        crc = google_crc32c.value(content)
        return ((crc >> 15) | (crc << 17 & 0xFFFFFFFF)) + 0xA282EAD8 & 0xFFFFFFFF

    length = struct.pack("<Q", len(payload))
    head = length + struct.pack("<I", masked(length))
    return head + payload + struct.pack("<I", masked(payload))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "set.tfrecord-00000-of-00001"
    path.write_bytes(b"".join(map(framed, PAYLOADS)))
    return path


def read_all(path: Path) -> list[bytes]:
    return [
        read_record(path, start=start, length=length, about=f"record {number} of {path}")
        for number, (start, length) in enumerate(index_records(path).tolist())
    ]


def test_checksum_of_the_standard_vector() -> None:
    assert masked_crc32c(b"123456789") == 0xC78AB0E5


def test_places_and_payloads(file: Path) -> None:
    # 12 bytes before each payload and 4 behind it.
    assert index_records(file).tolist() == [[12, 5], [33, 0], [49, 16]]
    assert read_all(file) == PAYLOADS


def test_empty_file_has_no_record(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert index_records(tmp_path / "empty").shape == (0, 2)


def test_every_flipped_byte_is_found(file: Path) -> None:
    sound = file.read_bytes()
    for at in range(len(sound)):
        file.write_bytes(sound[:at] + bytes([sound[at] ^ 0x10]) + sound[at + 1 :])
        with pytest.raises(ValueError, match=r"record \d of .*(checksum|file ends within it)"):
            read_all(file)


def test_every_truncation_is_found(file: Path) -> None:
    sound = file.read_bytes()
    ends = {0, 21, 37, 69}
    assert max(ends) == len(sound)
    for size in set(range(len(sound))) - ends:
        file.write_bytes(sound[:size])
        number = sum(size >= end for end in ends) - 1
        with pytest.raises(ValueError, match=f"expected all of record {number} of .* restore"):
            index_records(file)


def test_claimed_length_is_bounded(file: Path) -> None:
    length = struct.pack("<Q", 2**62)
    file.write_bytes(length + struct.pack("<I", masked_crc32c(length)) + b"short")
    with pytest.raises(ValueError, match=r"the file ends within it"):
        index_records(file)


def test_file_that_changes_after_it_was_indexed(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"the file ends within it"):
        read_record(file, start=49, length=16, about="record 2")
    file.unlink()
    with pytest.raises(ValueError, match=r"expected a TFRecord file at .*No such file"):
        read_record(file, start=49, length=16, about="record 2")
    with pytest.raises(ValueError, match=r"expected a TFRecord file at .*No such file"):
        index_records(file)


def test_lists_of_an_example() -> None:
    example = example_class()()
    feature = example.features.feature
    feature["float"].float_list.value.extend([0.5, -2])
    feature["int"].int64_list.value.extend([-1, -(2**63), 2**63 - 1])
    feature["bytes"].bytes_list.value.extend([b"", b"\xff"])
    feature["nothing"].float_list.SetInParent()
    feature["unset"].SetInParent()
    values = parse_example(example.SerializeToString(), about="it")
    assert values["float"].dtype == np.float32 and values["float"].tolist() == [0.5, -2]
    assert values["int"].dtype == np.int64
    assert values["int"].tolist() == [-1, -(2**63), 2**63 - 1]
    assert values["bytes"] == [b"", b"\xff"]
    assert len(values["nothing"]) == 0 and values["unset"] == []


def test_unpacked_lists_worked_by_hand() -> None:
    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    def example(kind: int, values: bytes) -> bytes:
        entry = field(1, b"k") + field(2, field(kind, values))
        return field(1, field(1, entry))

    floats = b"\x0d\x00\x00\x80\x3f" + b"\x0d\x00\x00\x00\xc0"  # 1.0, -2.0 one by one
    assert parse_example(example(2, floats), about="it")["k"].tolist() == [1.0, -2.0]
    integers = b"\x08\x05" + b"\x08" + b"\xff" * 9 + b"\x01"  # 5, -1 one by one
    assert parse_example(example(3, integers), about="it")["k"].tolist() == [5, -1]


@pytest.mark.parametrize(
    "payload",
    [b"\xff\xff\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x05ab", b"\x0a\x05\x0a\x03\x0a\x01\xff"],
)
def test_what_is_no_example(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"expected a tf.train.Example in record 3, but"):
        parse_example(payload, about="record 3")
