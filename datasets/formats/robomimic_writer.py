"""Writes robomimic's HDF5 files, all or nothing.

Shape legend: H height, T steps, W width.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from robot_qsft.datasets.formats.optional import optional_import
from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.source import Columns
from robot_qsft.datasets.wording import listed

_GROUPS = ("obs", "action_dict")
_COMPRESSION = {"compression": "gzip", "compression_opts": 4}


def _no_images() -> Mapping[str, Iterable[Image]]:
    return {}


@dataclass(frozen=True, eq=False)
class Demo:
    """One episode in robomimic's words.

    Attributes:
        columns: name to numbers (T, ...): "actions", and where there are such "rewards", "dones",
            "states", "obs/<key>" and "action_dict/<key>".
        images: observation key ("agentview_image") to T frames, upright RGB uint8 (H, W, 3).
        instruction: what was asked for; "" where nothing is known.
        model_xml: the simulator's model; "" where there is none.
    """

    columns: Columns
    images: Mapping[str, Iterable[Image]] = field(default_factory=_no_images)
    instruction: str = ""
    model_xml: str = ""


def write_robomimic(
    path: Path,
    *,
    demos: Iterable[Demo],
    env_args: Mapping[str, Any],
    splits: Mapping[str, Sequence[int]],
) -> None:
    """Write demos as `demo_0`, `demo_1` and so on, without next_obs; frames are packed by gzip.

    The file appears when it is complete; until then it grows beside its place, as NAME.writing.

    Args:
        path: of the file.
        demos: taken one by one.
        env_args: how to make the environment: `env_name`, `type` (1 robosuite, 2 gym) and
            `env_kwargs`, among them `control_freq`, the steps per second.
        splits: filter key such as "train" to places of demos.

    Raises:
        ValueError: when something is there, h5py is not installed, a demo has no actions or
            columns, frames and steps do not fit together, or a split names no demo.
    """
    h5py = optional_import("h5py", purpose="writing robomimic's HDF5 files")
    _refuse_present(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.writing")
    try:
        file = h5py.File(unfinished, "w")
    except OSError as error:
        raise ValueError(
            f"{unfinished} cannot be written ({error}); wait for who else is writing it, or write "
            "to another place"
        ) from error
    try:
        with file:
            data = file.create_group("data")
            total = count = 0
            for count, demo in enumerate(demos, 1):
                total += _write_demo(data, f"demo_{count - 1}", demo)
            if not count:
                raise ValueError(f"expected at least one demo for {path}, but none came; add some")
            data.attrs["total"] = total
            data.attrs["env_args"] = json.dumps(env_args, indent=4)
            for split, places in splits.items():
                _check_name(f"mask/{split}")
                if not all(0 <= place < count for place in places):
                    raise ValueError(
                        f"expected places from 0 to {count - 1} in split {split!r}, one per demo, "
                        f"but {list(places)} came; mend the split"
                    )
                names = [f"demo_{place}" for place in places]
                file[f"mask/{split}"] = np.array(names, f"S{len(f'demo_{count}')}")
        with unfinished.open("rb") as written:
            os.fsync(written.fileno())
        _refuse_present(path)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _write_demo(data: Any, name: str, demo: Demo) -> int:
    if "actions" not in demo.columns:
        raise ValueError(
            f"expected a column 'actions' in {name}, but {listed(demo.columns)} came; map one to it"
        )
    steps = len(demo.columns["actions"])
    if not steps:
        raise ValueError(f"expected at least one step in {name}, but none came; drop it")
    group = data.create_group(name)
    for key, column in demo.columns.items():
        _check_name(key)
        if column.dtype.kind not in "biuf" or len(column) != steps:
            raise ValueError(
                f"expected {steps} rows of numbers, one per action, in {key!r} of {name}, but "
                f"{len(column)} rows of {column.dtype} came; mend or leave out the column"
            )
        group[key] = column
    for key, frames in demo.images.items():
        _check_name(f"obs/{key}")
        _write_images(group, f"obs/{key}", frames, steps=steps)
    group.attrs["num_samples"] = steps
    if demo.instruction:
        group.attrs["ep_meta"] = json.dumps({"lang": demo.instruction})
    if demo.model_xml:
        group.attrs["model_file"] = demo.model_xml
    return steps


def _write_images(group: Any, key: str, frames: Iterable[Image], *, steps: int) -> None:
    dataset = None
    count = 0
    for frame in frames:
        if dataset is None:
            if frame.ndim != 3 or frame.shape[2] != 3 or frame.size == 0:
                raise ValueError(
                    f"expected frames (H, W, 3) for {key!r} of {group.name}, but {frame.shape} "
                    "came; convert them to RGB"
                )
            shape = frame.shape
            dataset = group.create_dataset(
                key, (steps, *shape), np.uint8, chunks=(1, *shape), **_COMPRESSION
            )
        if count == steps or frame.shape != shape or frame.dtype != np.uint8:
            raise ValueError(
                f"expected {steps} frames of {shape} and uint8 for {key!r} of {group.name}, but "
                f"frame {count} of {frame.shape} and {frame.dtype} came; mend the recording"
            )
        dataset[count] = frame
        count += 1
    if count != steps:
        raise ValueError(
            f"expected {steps} frames, one per action, for {key!r} of {group.name}, but {count} "
            "came; mend the recording"
        )


def _check_name(key: str) -> None:
    """Refuse names that lead to another place in the file, or that the reader would not find."""
    above, _, last = key.rpartition("/")
    inner = key.split("/")
    fits = all(part and part.strip(".") and "\0" not in part for part in inner)
    if not fits or not last or (above and inner[0] not in (*_GROUPS, "mask")):
        raise ValueError(
            f"expected a name such as actions, obs/<key> or action_dict/<key>, but {key!r} came; "
            "rename it"
        )


def _refuse_present(path: Path) -> None:
    if path.exists():
        raise ValueError(f"{path} exists already; remove it or write to another place")
