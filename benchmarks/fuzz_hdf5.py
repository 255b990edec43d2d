"""Changes within HDF5 files, made by h5py."""

import json
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from fuzz_mutations import (
    Mutation,
    choose,
    damage_tree,
    harm,
    hostile_name,
    hostile_value,
    outside,
    rewrite,
)


def change_hdf5(file: Path, rng: np.random.Generator) -> Mutation:
    """Change a dataset, group or attribute, or put one that means harm in its place.

    Args:
        file: to be changed.
        rng: to draw from.
    """
    rewrite(file, file.read_bytes())
    with h5py.File(file, "r+") as opened:
        nodes: list[str] = []
        opened.visit(nodes.append)
        name = choose(rng, nodes)
        node = opened[name]
        if node.attrs and rng.random() < 0.3:
            what = _change_attribute(node, rng)
        elif isinstance(node, h5py.Dataset):
            what = _change_dataset(opened, name, rng)
        else:
            what = _change_group(opened, name, rng)
    return Mutation(f"{file.name}: {what} {name}", (file,))


def _change_attribute(node: Any, rng: np.random.Generator) -> str:
    name = choose(rng, sorted(node.attrs))
    stored = node.attrs[name]
    try:
        what, value = damage_tree(json.loads(stored), rng)
        text = json.dumps(value).encode("utf-8", "replace").decode()
    except (ValueError, TypeError, RecursionError):
        what, text = "JSON", str(hostile_value(rng)).encode("utf-8", "replace").decode()
    value = choose(rng, (text, text, np.int64(-1), np.float64("nan"), [1, 2], np.bytes_(b"\xff")))
    try:
        node.attrs[name] = value
    except (ValueError, TypeError, OSError, RuntimeError):
        del node.attrs[name]
    return f"attribute {name} ({what}) of"


def _change_dataset(opened: Any, name: str, rng: np.random.Generator) -> str:
    old = opened[name]
    shape, dtype = old.shape, old.dtype
    secret = str(outside() / "secret")
    kinds = (
        *("values", "values", "shape", "type", "huge", "huge chunks", "drop", "raw outside"),
        *("virtual", "objects", "references", "strings", "scalar", "empty", "compound"),
    )
    what = choose(rng, (*kinds, "name"))
    if what == "name":
        opened.move(name, f"{name.rpartition('/')[0]}/{hostile_name(rng)}")
        return "name of"
    if what == "values" and dtype.kind in "iufb" and old.size:
        values = old[...]
        place = tuple(int(rng.integers(side)) for side in shape)
        with np.errstate(all="ignore"):
            values[place] = np.float64(choose(rng, (-1, 0, 1, 2, 255, np.nan, np.inf))).astype(
                dtype
            )
        old[...] = values
        return "values of"
    del opened[name]
    if what == "shape":
        wanted = choose(rng, ((0,), (1,), (*shape, 1), shape[:-1], (shape or (1,))[1:], (3, 3, 3)))
        opened.create_dataset(name, wanted, dtype if dtype.kind in "iufb" else "f4")
        opened[name][...] = 0
    elif what == "type":
        kind = choose(rng, ("f2", "f8", "i1", "u8", ">f4", ">i2", "S5", "?", "c8", "f4"))
        opened.create_dataset(name, shape, kind)
        opened[name][...] = np.zeros(shape, kind)
    elif what == "huge":
        wide = choose(rng, ((2**40,), (2**33, 7), (2**20, 2**12, 2**12, 3)))
        opened.create_dataset(name, wide, "u1", chunks=(1, *(min(s, 4) for s in wide[1:])))
    elif what == "huge chunks":
        made = opened.create_dataset(name, (2**29,), "f4", chunks=(2**28,), compression="gzip")
        made.id.write_direct_chunk((0,), zlib.compress(bytes(2**20)))
    elif what == "raw outside":
        opened.create_dataset(name, shape or (4,), "f8", external=[(secret, 0, 4096)])
    elif what == "virtual":
        layout = h5py.VirtualLayout(shape or (4,), "f8")
        layout[...] = h5py.VirtualSource(secret + ".hdf5", "x", shape or (4,))
        opened.create_virtual_dataset(name, layout)
    elif what == "objects":
        opened.create_dataset(name, (4,), h5py.vlen_dtype(np.uint8))
        opened[name][0] = np.frombuffer(harm(), np.uint8)
    elif what == "references":
        opened.create_dataset(name, (2,), h5py.ref_dtype)
        opened[name][0] = opened.ref
    elif what == "strings":
        values = [str(hostile_value(rng))[:50].encode("utf-8", "replace") for _ in range(4)]
        opened.create_dataset(name, data=values, dtype=h5py.string_dtype())
    elif what == "scalar":
        opened[name] = 5
    elif what == "empty":
        opened[name] = h5py.Empty("f4")
    elif what == "compound":
        opened.create_dataset(name, (3,), [("a", "f4"), ("b", "S3")])
    return f"{what} of"


def _change_group(opened: Any, name: str, rng: np.random.Generator) -> str:
    secret = str(outside() / "secret.hdf5")
    what = choose(rng, ("drop", "rename", "soft", "circle", "external", "hard", "dataset", "many"))
    parent = opened[name].parent
    last = name.split("/")[-1]
    if what == "circle":
        opened[f"{name}/within"] = opened[name]
    elif what == "many":
        for number in range(300):
            opened.create_group(f"{name}/demo_{number + 50}")
    elif what == "rename":
        numbered = choose(rng, ("demo_007", "demo_x", "episode_9", "demo_1000000"))
        parent.move(last, choose(rng, (numbered, hostile_name(rng))))
    else:
        del parent[last]
        if what == "soft":
            parent[last] = h5py.SoftLink(choose(rng, ("/", "/nowhere", f"/{name}")))
        elif what == "external":
            parent[last] = h5py.ExternalLink(secret, "/")
        elif what == "hard":
            parent[last] = opened["/"]
        elif what == "dataset":
            parent[last] = np.zeros(3)
    return what
