"""Damage to the bytes of files, to their JSON, YAML and CSV, and files that mean harm.

Every function draws from a generator that it is given, so that a case can be made again.
"""

import copy
import csv
import io
import json
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

_NAMES = (
    *("", "x", "..", "../x", "a/b", "a\nb", "\u2028", "\ud800", "é", "x" * 5000, "%s{}", "[red]"),
    *("action", "observation.state", "observation.images.front", "next.reward", "timestamp"),
)
TEXTS = (".json", ".jsonl", ".yaml", ".csv", ".zarray", ".zgroup", ".zattrs")
OUTSIDE = "FUZZ_OUTSIDE"
"""Environment variable that names a folder beside all data sets."""
MARK = b"\xd5QsFt\xd5\x7f\xab"
"""Eight bytes that stand in files outside of the data set only, over and over."""


@dataclass(frozen=True)
class Mutation:
    """What was done to a data set.

    Attributes:
        what: in words.
        files: that were changed.
        plain: whether bytes of files were changed and nothing else: where these carry checksums,
            data must be refused or come out as they were.
        checked: whether data must be, whatever the files.
    """

    what: str
    files: tuple[Path, ...]
    plain: bool = False
    checked: bool = False


def rewrite(file: Path, content: bytes) -> None:
    """Put a new file in the place of an old one: HDF5 remembers files that were opened before."""
    file.unlink()
    file.write_bytes(content)


def choose(rng: np.random.Generator, choices: Sequence[Any]) -> Any:
    """One of them, whatever they are."""
    return choices[int(rng.integers(len(choices)))]


def damage_bytes(file: Path, rng: np.random.Generator, *, others: Sequence[Path]) -> Mutation:
    """Flip, cut, blank or mix the bytes of a file."""
    content = bytearray(file.read_bytes())
    what = choose(rng, ("flip", "flip", "number", "cut", "zeros", "noise", "splice", "mix", "grow"))
    if not content:
        what = "grow"
    at = _place(rng, len(content))
    size = int(min(2 ** rng.uniform(0, 12), max(1, len(content) - at)))
    if what == "flip":
        count = int(choose(rng, (1, 1, 1, 2, 4, 16, 64)))
        for _ in range(count):
            content[_place(rng, len(content))] ^= 1 << int(rng.integers(8))
        what = f"{count} bits flipped"
    elif what == "number":
        value = choose(
            rng, (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63, 2**64 - 1)
        )
        width = int(choose(rng, (1, 2, 4, 8)))
        order = choose(rng, ("little", "big"))
        number = (int(value) & (256**width - 1)).to_bytes(width, order)
        content[at : at + width] = number[: len(content) - at]
        what = f"{number.hex()} at {at}"
    elif what == "cut":
        del content[at:]
        what = f"cut off at {at}"
    elif what in ("zeros", "noise"):
        content[at : at + size] = bytes(size) if what == "zeros" else rng.bytes(size)
        what = f"{size} bytes of {what} at {at}"
    elif what == "splice":
        start = int(rng.integers(len(content)))
        piece = content[start : start + size]
        how = choose(rng, ("over", "in", "out"))
        if how == "over":
            content[at : at + len(piece)] = piece
        elif how == "in":
            content[at:at] = piece
        else:
            del content[at : at + size]
        what = f"{len(piece)} bytes from {start} put {how} at {at}"
    elif what == "mix":
        other = choose(rng, others).read_bytes()
        piece = other[at : at + size] if rng.random() < 0.5 else other[-size:]
        content[at : at + len(piece)] = piece
        what = f"{len(piece)} bytes of another file at {at}"
    else:
        content += rng.bytes(size)
        what = f"{size} bytes added"
    rewrite(file, bytes(content))
    return Mutation(f"{file.name}: {what}", (file,), plain=True)


def _place(rng: np.random.Generator, size: int) -> int:
    """Anywhere, but more often near either end, where formats keep what the rest means."""
    if size == 0:
        return 0
    where = rng.random()
    if where < 0.5:
        return int(rng.integers(size))
    near = int(rng.integers(min(size, 400)))
    return near if where < 0.75 else size - 1 - near


_HOSTILE_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 255, 256, 10**9, 2**31, 2**63, -(2**63), 2**64, 10**400),
    *(0.5, -0.5, 1e-9, 1e308, float("nan"), float("inf"), -float("inf")),
    *("", "x", "0", "../../secret", "/etc/passwd", "..", "a/b", "\0", "\ud800", "é" * 300),
    *("{", "{x}", "{0.__class__}", "{episode_index:999999999d}", "y" * 100_000),
    *("float32", "float16", "bool", "string", "|O", "object", "video", "image", "v3.0", "1e999"),
    *([], {}, [[]], [0], [-1], [2**40, 2**40], [None, {}], list(range(2000))),
    *({"a": {"a": {"a": 1}}}, [[[[[[[[[[1]]]]]]]]]]),
)


def hostile_value(rng: np.random.Generator) -> Any:
    """Something that is not expected in most places."""
    return copy.deepcopy(choose(rng, _HOSTILE_VALUES))


def hostile_name(rng: np.random.Generator) -> str:
    """What a column, camera or file may be called, if only to confuse."""
    name: str = choose(rng, _NAMES)
    return name


def damage_text(file: Path, rng: np.random.Generator) -> Mutation:
    """Change what a file of JSON, YAML or CSV says, so that it still is one."""
    text = file.read_text(encoding="utf-8")
    if rng.random() < 0.05:
        return _text_bomb(file, rng)
    if file.suffix == ".csv":
        return _damage_csv(file, text, rng)
    if file.suffix == ".jsonl":
        lines = text.splitlines()
        number = int(rng.integers(len(lines)))
        what, value = damage_tree(json.loads(lines[number]), rng)
        lines[number] = json.dumps(value)
        if rng.random() < 0.1:
            lines = choose(rng, (lines * 2, lines[::-1], lines[:1], []))
        rewrite(file, "\n".join(lines).encode("utf-8", "surrogatepass"))
        return Mutation(f"{file.name}, line {number}: {what}", (file,))
    is_yaml = file.suffix == ".yaml"
    what, value = damage_tree(yaml.safe_load(text) if is_yaml else json.loads(text), rng)
    for _ in range(int(choose(rng, (0, 0, 0, 1, 3)))):
        more, value = damage_tree(value, rng)
        what = f"{what}, {more}"
    try:
        changed = yaml.safe_dump(value, allow_unicode=True) if is_yaml else json.dumps(value)
    except (RecursionError, yaml.YAMLError):
        changed = "[" * 5000
    rewrite(file, changed.encode("utf-8", "surrogatepass"))
    return Mutation(f"{file.name}: {what}", (file,))


def damage_tree(tree: Any, rng: np.random.Generator) -> tuple[str, Any]:
    """A tree of dicts and lists with one of its nodes changed."""
    places: list[tuple[Any, Any, str]] = []

    def walk(node: Any, path: str) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, below in list(items):
            places.append((node, key, f"{path}/{key}"[:100]))
            if isinstance(below, dict | list):
                walk(below, f"{path}/{key}")

    if isinstance(tree, dict | list):
        walk(tree, "")
    value = hostile_value(rng)
    if not places or rng.random() < 0.02:
        return f"all became {value!r:.40}", value
    node, key, path = choose(rng, places)
    how = choose(rng, ("value", "value", "value", "drop", "swap", "double", "near", "key"))
    if how == "drop":
        del node[key]
    elif how == "key" and isinstance(node, dict):
        node[hostile_name(rng)] = node.pop(key)
    elif how == "swap":
        other, place, _ = choose(rng, places)
        try:
            node[key], other[place] = other[place], node[key]
        except (KeyError, IndexError):
            node[key] = value
        if _is_circular(tree):
            node[key] = value
    elif how == "double" and isinstance(node, list):
        node.append(node[key])
    elif how == "double":
        node[f"{key}_2"] = node[key]
    elif how == "near" and isinstance(node[key], int | float) and not isinstance(node[key], bool):
        node[key] = node[key] + choose(rng, (-1, 1, 0.5, -1000, 1000, 1 << 40))
    elif how == "near" and isinstance(node[key], str) and node[key]:
        at = int(rng.integers(len(node[key])))
        letter = choose(rng, ("", "/", "..", "\n", "0", "{", "\0", "\u2028"))
        node[key] = node[key][:at] + letter + node[key][at + 1 :]
    else:
        node[key] = value
    return f"{path}: {how} {value!r:.40}", tree


def _is_circular(tree: Any) -> bool:
    try:
        json.dumps(tree)
    except (ValueError, RecursionError):
        return True
    return False


def _damage_csv(file: Path, text: str, rng: np.random.Generator) -> Mutation:
    rows = list(csv.reader(io.StringIO(text)))
    row = choose(rng, rows)
    what = choose(rng, ("cell", "cell", "drop row", "drop cell", "add cell", "names", "quote"))
    value = str(hostile_value(rng)).encode("utf-8", "replace").decode()
    if what == "cell":
        row[int(rng.integers(len(row)))] = value
    elif what == "drop row":
        rows.remove(row)
    elif what == "drop cell":
        row.pop()
    elif what == "add cell":
        row.append(value)
    elif what == "names":
        rows[0][int(rng.integers(len(rows[0])))] = choose(rng, (rows[0][0], value))
    stream = io.StringIO()
    csv.writer(stream, quoting=csv.QUOTE_MINIMAL, escapechar="\\").writerows(rows)
    changed = stream.getvalue() + ('"never closed' if what == "quote" else "")
    rewrite(file, changed.encode("utf-8", "replace"))
    return Mutation(f"{file.name}: {what} {value!r:.40}", (file,))


def _text_bomb(file: Path, rng: np.random.Generator) -> Mutation:
    """Text that is small until it is read."""
    bombs = {
        "deep": "[" * 200_000,
        "deep objects": '{"a":' * 50_000,
        "a long number": '{"fps": ' + "9" * 200_000 + "}",
        "a long number alone": "9" * 6000,
        "aliases": _aliases(),
        "a call": f"!!python/object/apply:os.system ['touch {pwned()}']",
        "a call within": f"fps: !!python/object/apply:os.system ['touch {pwned()}']",
        "tags": "fps: !!int x\ntable: !!binary '*'\ncameras: !!set {? a}\n",
        "dates": "fps: 2001-01-01\ntable: 99999-99-99\n",
        "merges": "a: &a {b: 1}\nc: {<<: [*a, *a]}\n<<: *a\n",
        "documents": "--- 1\n--- 2\n",
        "not UTF-8": "\udcff\udcfe",
        "nothing": "",
        "blanks": " \n" * 100_000,
    }
    name = choose(rng, sorted(bombs))
    rewrite(file, bombs[name].encode("utf-8", "surrogateescape"))
    return Mutation(f"{file.name}: {name}", (file,))


def _aliases() -> str:
    """A billion entries in ten lines."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 10):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]")
    return "\n".join([*lines, "fps: 10", "table: *a9"])


class _Harm:
    """What runs a command where it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {pwned()}",)


def outside() -> Path:
    """The folder that nothing in a data set may lead to."""
    return Path(os.environ[OUTSIDE])


def pwned() -> Path:
    """The file that is there once something out of a data set was run."""
    return outside() / "pwned"


def harm() -> bytes:
    """A pickle that must not be opened."""
    return pickle.dumps(_Harm())


def plant(file: Path, rng: np.random.Generator) -> Mutation:
    """Put something that means harm, or is no file at all, in the place of a file."""
    kinds = (
        *("nothing", "name", "empty", "folder", "fifo", "loop", "endless", "secret", "sparse"),
        *("pickle", "npy", "playlist", "list of files", "script"),
    )
    what = choose(rng, kinds)
    if what == "name":
        renamed = file.with_name(choose(rng, ("a\nb", "x" * 200, "é", "[red]", "0", ".hidden")))
        moved = file if rng.random() < 0.5 else file.parent
        moved.rename(moved.with_name(renamed.name))
        return Mutation(f"{moved.name}: renamed to {renamed.name!r:.40}", (file,))
    file.unlink()
    if what == "empty":
        file.touch()
    elif what == "folder":
        file.mkdir()
    elif what == "fifo":
        os.mkfifo(file)
    elif what == "loop":
        file.symlink_to(file.name)
    elif what == "endless":
        file.symlink_to("/dev/zero")
    elif what == "secret":
        file.symlink_to(outside() / "secret")
    elif what == "sparse":
        file.touch()
        os.truncate(file, 1 << 36)
    elif what == "pickle":
        file.write_bytes(harm())
    elif what == "npy":
        stream = io.BytesIO()
        np.save(stream, np.array([_Harm()], object), allow_pickle=True)
        file.write_bytes(stream.getvalue())
    elif what == "playlist":
        file.write_text(f"#EXTM3U\n#EXTINF:1,\nfile://{outside() / 'secret.mp4'}\n")
    elif what == "list of files":
        file.write_text(f"ffconcat version 1.0\nfile '{outside() / 'secret.mp4'}'\n")
    elif what == "script":
        file.write_text(f"import os; os.system('touch {pwned()}')\n")
    return Mutation(f"{file.name}: replaced by {what}", (file,))
