"""Changes within containers that stay whole: parquet, Arrow, HDF5, TFRecord, zip and MP4."""

import io
import json
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fuzz_hdf5 import change_hdf5
from fuzz_mutations import (
    MARK,
    Mutation,
    choose,
    damage_bytes,
    damage_tree,
    harm,
    hostile_name,
    outside,
    rewrite,
)

from robot_qsft.datasets.formats.tf_example import example_class
from robot_qsft.datasets.formats.tfrecord import index_records, masked_crc32c

_PNG = b"\x89PNG\r\n\x1a\n"


def change_container(file: Path, rng: np.random.Generator) -> Mutation | None:
    """Change what a container holds, so that it stays sound itself; None where it is none.

    Args:
        file: to be changed.
        rng: to draw from.
    """
    for ending, change in _CHANGES.items():
        if ending in file.name:
            return change(file, rng)
    return None


def _change_parquet(file: Path, rng: np.random.Generator) -> Mutation:
    table = pq.read_table(file)
    if rng.random() < 0.2 and (found := _damage_pngs(table, rng)) is not None:
        table, what = found
        checked = True
    else:
        table, what = _change_table(table, rng)
        checked = False
    stream = io.BytesIO()
    rows = int(choose(rng, (1, 2, 5, max(1, len(table)))))
    pq.write_table(table, stream, row_group_size=rows)
    rewrite(file, stream.getvalue())
    return Mutation(f"{file.name}: {what}, row groups of {rows}", (file,), checked=checked)


def _change_arrow(file: Path, rng: np.random.Generator) -> Mutation:
    with pa.memory_map(str(file)) as mapped:
        table = pa.ipc.open_file(mapped).read_all()
        table, what = _change_table(table, rng)
        stream = io.BytesIO()
        try:
            with pa.ipc.new_file(stream, table.schema) as writer:
                writer.write_table(table)
        except pa.ArrowException:
            what = "nothing could be written"
    rewrite(file, stream.getvalue())
    return Mutation(f"{file.name}: {what}", (file,))


def _change_table(table: pa.Table, rng: np.random.Generator) -> tuple[pa.Table, str]:
    """A table that is sound in itself but not what it should be."""
    number = int(rng.integers(table.num_columns))
    name = table.column_names[number]
    rows = len(table)
    what = choose(
        rng,
        ("values", "values", "type", "nulls", "drop", "rows", "name", "more", "nothing", "list"),
    )
    if what == "drop":
        table = table.remove_column(number)
    elif what == "rows":
        keep = choose(
            rng, (slice(0, rows // 2), slice(1, None), slice(None, None, -1), slice(0, 0))
        )
        table = table.take(pa.array(np.arange(rows)[keep]))
    elif what == "name":
        names = table.column_names
        names[number] = choose(rng, (names[0], "\0", hostile_name(rng)))
        table = table.rename_columns(names)
    elif what == "more":
        table = pa.concat_tables([table] * int(choose(rng, (2, 50))))
    else:
        try:
            column = _column(table.column(number), what, rng)
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            column, what = pa.nulls(rows), "nothing"
        table = table.set_column(number, name, column)
    return table, f"{what} of {name!r}"


def _column(column: pa.ChunkedArray, what: str, rng: np.random.Generator) -> Any:
    rows = len(column)
    if what == "nothing":
        return pa.nulls(rows)
    if what == "type":
        kinds = (pa.float64(), pa.int8(), pa.string(), pa.binary(), pa.float16(), pa.uint64())
        kinds = (*kinds, pa.decimal128(38, 2), pa.date32(), pa.bool_(), pa.large_string())
        kind = choose(rng, kinds)
        try:
            return column.cast(kind, safe=False)
        except pa.ArrowException:
            return pa.array([None] * (rows - 1) + [pa.scalar(1).cast(kind, safe=False)], kind)
    if what == "nulls":
        values = column.to_pylist()
        values[int(rng.integers(rows))] = None
        return pa.array(values, column.type)
    if what == "list":
        return pa.array([[value] for value in column.to_pylist()])
    values = column.to_pylist()
    kind: Any = column.type
    at = int(rng.integers(rows))
    if pa.types.is_struct(kind):
        changed: Any = choose(
            rng, ({}, {"bytes": None}, {"bytes": _PNG}, {"bytes": harm()}, {"bytes": _huge_png()})
        )
        changed = {field.name: changed.get(field.name) for field in kind}
    elif pa.types.is_integer(kind):
        changed = choose(rng, (-1, 0, 1, 10**6, 2**31, 2**62, -(2**62)))
    elif pa.types.is_floating(kind):
        changed = choose(rng, (-1.0, 0.0, 1.0, float("nan"), float("inf"), 1e300, 1e9))
    elif pa.types.is_string(kind):
        changed = choose(rng, ("", "\0", "../x", "y" * 70_000, "success", "none"))
    elif pa.types.is_binary(kind):
        changed = choose(rng, (b"", _PNG, harm(), _huge_png(), b"\xff\xd8\xff\xc0"))
    elif pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type):
        changed = [choose(rng, (float("nan"), float("inf"), -1e300, 2.0))] * kind.list_size
    elif pa.types.is_list(kind):
        changed = choose(rng, ([], values[at] * 2, values[at][:1]))
    else:
        changed = values[0]
    for place in range(rows) if rng.random() < 0.3 else [at]:
        values[place] = changed
    return pa.array(values, kind)


def _damage_pngs(table: pa.Table, rng: np.random.Generator) -> tuple[pa.Table, str] | None:
    """A table with one bit of one picture flipped, which the checksums of PNG should tell."""
    for number, field in enumerate(table.schema):
        if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            values = table.column(number).to_pylist()
            at = int(rng.integers(len(values)))
            content = bytearray(values[at]["bytes"])
            byte = int(rng.integers(len(_PNG), len(content)))
            content[byte] ^= 1 << int(rng.integers(8))
            values[at] = values[at] | {"bytes": bytes(content)}
            column = pa.array(values, field.type)
            return table.set_column(number, field, column), f"a bit of PNG {at} at {byte}"
    return None


def _huge_png(side: int = 60_000) -> bytes:
    """A few bytes that claim to be a picture of ten gigabytes."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pieces = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    return _PNG + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in pieces
    )


def _change_tfrecord(file: Path, rng: np.random.Generator) -> Mutation:
    content = file.read_bytes()
    payloads = [content[at : at + size] for at, size in index_records(file).tolist()]
    number = int(rng.integers(len(payloads)))
    what = "bytes of the payload"
    if rng.random() < 0.5:
        loose = file.with_name("payload")
        loose.write_bytes(payloads[number])
        what = damage_bytes(loose, rng, others=[loose]).what
        payloads[number] = loose.read_bytes()
        loose.unlink()
    else:
        example = example_class().FromString(payloads[number])
        what = _change_example(example, rng)
        payloads[number] = example.SerializeToString()
    if rng.random() < 0.1:
        payloads = choose(rng, (payloads[:-1], payloads * 2, [], [b"", *payloads[1:]]))
    framed = b"".join(
        head + struct.pack("<I", masked_crc32c(head)) + one + struct.pack("<I", masked_crc32c(one))
        for one in payloads
        for head in [struct.pack("<Q", len(one))]
    )
    rewrite(file, framed)
    return Mutation(f"{file.name}, record {number}: {what}", (file,))


def _change_example(example: Any, rng: np.random.Generator) -> str:
    features = example.features.feature
    key = choose(rng, sorted(features))
    feature = features[key]
    kind = feature.WhichOneof("kind")
    what = choose(rng, ("drop", "empty", "longer", "shorter", "kind", "values", "values"))
    values = list(getattr(feature, kind).value)
    if what == "drop":
        del features[key]
    elif what == "kind":
        other = choose(rng, ("bytes_list", "float_list", "int64_list"))
        fill = {"bytes_list": b"x", "float_list": 0.5, "int64_list": 3}[other]
        getattr(feature, other).value.extend([fill] * len(values))
    else:
        if what == "values" and values:
            fill = {
                "bytes_list": (b"", b"x", _huge_png(), harm(), b"\xff\xfe"),
                "float_list": (float("nan"), float("inf"), -1e38),
                "int64_list": (-1, 2, 2**62),
            }[kind]
            values[int(rng.integers(len(values)))] = choose(rng, fill)
        elif what == "longer":
            values = values + values[:1]
        else:
            values = values[:-1] if what == "shorter" else []
        del getattr(feature, kind).value[:]
        getattr(feature, kind).value.extend(values)
    return f"{what} of {key}"


def _change_zip(file: Path, rng: np.random.Generator) -> Mutation:
    with zipfile.ZipFile(file) as opened:
        members = {info.filename: opened.read(info) for info in opened.infolist()}
    name = choose(rng, sorted(members))
    what = choose(
        rng, ("bytes", "text", "text", "climb", "link", "bomb", "drop", "method", "pickle")
    )
    links: list[str] = []
    method = zipfile.ZIP_STORED
    texts = sorted(member for member in members if "/." in member or member.startswith("."))
    if what in ("bytes", "text"):
        name = choose(rng, texts) if what == "text" else name
        loose = file.with_name("member" + (f"/{name.split('/')[-1]}" if what == "text" else ""))
        loose.parent.mkdir(exist_ok=True)
        loose.write_bytes(members[name])
        if what == "text":
            what, value = damage_tree(json.loads(members[name]), rng)
            loose.write_bytes(json.dumps(value).encode("utf-8", "replace"))
        else:
            what = damage_bytes(loose, rng, others=[file]).what
        members[name] = loose.read_bytes()
        loose.unlink()
        if loose.parent != file.parent:
            loose.parent.rmdir()
    elif what == "climb":
        climbing = (
            "../secret",
            "/secret",
            "data/../../secret",
            "C:\\secret",
            "data\\..\\..\\x",
            "a\0b",
        )
        members[choose(rng, climbing)] = MARK
    elif what == "link":
        links.append(name)
        members[name] = str(outside() / "secret").encode()
    elif what == "bomb":
        method = zipfile.ZIP_DEFLATED
        members[name] = bytes(1 << 26)
    elif what == "drop":
        del members[name]
    elif what == "method":
        method = int(choose(rng, (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)))
    elif what == "pickle":
        members[name] = harm()
    file.unlink()
    with zipfile.ZipFile(file, "w", method) as opened:
        for member, content in members.items():
            info = zipfile.ZipInfo(member)
            info.compress_type = method
            if member in links:
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            opened.writestr(info, content)
    return Mutation(f"{file.name}: {what} of {name}", (file,))


def _change_mp4(file: Path, rng: np.random.Generator) -> Mutation:
    """Another number in the index of a video: sizes, offsets, times, tables."""
    content = bytearray(file.read_bytes())
    start = content.find(b"moov") - 4
    if start < 0:
        start = 0
    end = min(len(content), start + max(16, int.from_bytes(content[start : start + 4], "big")))
    count = int(choose(rng, (1, 1, 2, 6)))
    for _ in range(count):
        at = int(rng.integers(start, end - 4))
        value = choose(rng, (0, 1, 2, 0xFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000))
        content[at : at + 4] = int(value).to_bytes(4, "big")
    rewrite(file, bytes(content))
    return Mutation(f"{file.name}: {count} numbers of the index", (file,))


_CHANGES: dict[str, Callable[[Path, np.random.Generator], Mutation]] = {
    ".parquet": _change_parquet,
    ".arrow": _change_arrow,
    ".hdf5": change_hdf5,
    ".tfrecord": _change_tfrecord,
    ".zip": _change_zip,
    ".mp4": _change_mp4,
}
