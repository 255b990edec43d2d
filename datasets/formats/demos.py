"""HDF5 files of groups data/demo_0, data/demo_1 and so on: robomimic, robosuite and LIBERO.

Shape legend: H height, T steps, W width.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.features import Camera
from robot_qsft.datasets.formats.hdf5 import (
    Hdf5Group,
    is_hdf5,
    natural_order,
    open_hdf5,
    positive_number,
)
from robot_qsft.datasets.formats.hdf5_dataset import Hdf5Dataset, cast
from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.source import Column

Kind = Literal["robomimic", "robosuite", "libero"]

_DEMO = re.compile(r"demo_[0-9]{1,18}")
_OBSERVATIONS = "obs"
_GROUPS = (_OBSERVATIONS, "action_dict")
_PER_STEP = ("actions", "actions_abs", "dones", "rewards", "states")
_LIBERO_ATTRIBUTES = ("bddl_file_name", "problem_info")
# Without these attributes, as in sets that were rendered anew, the names of the fields tell.
_LIBERO_FIELDS = ("agentview_rgb", "ee_states")


def kind_of(path: Path) -> Kind | None:
    """Whose file it is, told by the attributes and the first demo; None where it is another's."""
    if not is_hdf5(path):
        return None
    try:
        with open_hdf5(path) as root:
            if "data" not in root:
                return None
            data = root.group("data")
            names = [name for name in data.names() if _DEMO.fullmatch(name)]
            if not names:
                return None
            demo = data.group(min(names, key=natural_order))
            if "actions" not in demo:
                return None
            if _OBSERVATIONS in demo:
                seen = demo.group(_OBSERVATIONS)
                libero = any(data.attribute(name) is not None for name in _LIBERO_ATTRIBUTES)
                by_name = "robot_states" in demo and all(name in seen for name in _LIBERO_FIELDS)
                return "libero" if libero or by_name else "robomimic"
            if data.attribute("env_args") is not None:
                return "robomimic"
            return "robosuite" if "states" in demo else None
    except ValueError:
        return None


@dataclass(frozen=True)
class DemoLayout:
    """What every demo of a file holds.

    Attributes:
        columns: name within the demo ("obs/object", "actions") to what a step holds.
        cameras: name within `obs` to size.
        notes: what was left out, one sentence each.
    """

    columns: Mapping[str, Column]
    cameras: Mapping[str, Camera]
    notes: tuple[str, ...]


class DemoFile:
    """One file of demos.

    Attributes:
        path: of the file.
        root: of the file.
        data: the group of the demos.
        names: of the demos, in the order of their numbers.
        layout: that every demo must have.
    """

    def __init__(self, path: Path, *, layout: DemoLayout | None = None) -> None:
        """Open a file.

        Args:
            path: of the file.
            layout: that every demo must have; that of the first if None.

        Raises:
            ValueError: when it is damaged or has no demo.
        """
        self.path = path
        self.root = open_hdf5(path)
        self.data = self.root.group("data")
        names = self.data.names()
        strange = [name for name in names if not _DEMO.fullmatch(name)]
        if strange or not names:
            raise ValueError(
                f"expected groups demo_0, demo_1 and so on in /data of {path}, but "
                f"{repr(strange[0]) if strange else 'none'} came; rename or remove it"
            )
        self.names = sorted(names, key=natural_order)
        self.layout = layout or _layout(self.data.group(self.names[0]))

    def close(self) -> None:
        """Let go of the file."""
        self.root.close()

    def demo(self, index: int) -> tuple[Hdf5Group, int]:
        """A demo and its number of steps, T.

        Raises:
            ValueError: when it is damaged, or its length is not what it says.
        """
        demo = self.data.group(self.names[index])
        steps = len(demo.dataset("actions"))
        claimed = demo.attribute("num_samples")
        if claimed is not None and not np.array_equal(claimed, steps):
            raise ValueError(
                f"expected {claimed!s:.40} steps in {demo.name!r} of {self.path} as num_samples "
                f"says, but it has {steps} actions; restore the file or drop the demo"
            )
        return demo, steps

    def columns(self, demo: Hdf5Group, steps: int) -> dict[str, NDArray[Any]]:
        """All columns of a demo, of `steps` rows; its cameras are checked for their size, too.

        Raises:
            ValueError: when one is missing, damaged, or unlike that of the first demo.
        """
        for name in self.layout.cameras:
            self._images(demo, name, steps)
        columns = {}
        groups = {"": demo}  # each opened once
        for name, column in self.layout.columns.items():
            above, _, last = name.rpartition("/")
            if above not in groups:
                groups[above] = demo.group(above)
            dataset = groups[above].dataset(last)
            about = f"{dataset.name!r} of {self.path}"
            if dataset.shape != (steps, *column.shape):
                raise ValueError(
                    f"expected {about} in shape {(steps, *column.shape)}, for {steps} actions and "
                    f"as in the first demo, but {dataset.shape} came; restore or drop the demo"
                )
            columns[name] = cast(dataset.numbers(), column, about=about)
        return columns

    def frames(self, index: int, camera: str, *, leave_out: int = 0) -> Iterator[Image]:
        """Yield the frames of a demo as stored, but for the last `leave_out`.

        Raises:
            ValueError: when they are missing or damaged, or of another size than in the first demo.
        """
        demo, steps = self.demo(index)
        return self._images(demo, camera, steps).images(count=steps - leave_out)

    def _images(self, demo: Hdf5Group, camera: str, steps: int) -> Hdf5Dataset:
        dataset = demo.dataset(f"{_OBSERVATIONS}/{camera}")
        if dataset.camera != self.layout.cameras[camera] or len(dataset) != steps:
            expected = self.layout.cameras[camera]
            raise ValueError(
                f"expected {dataset.name!r} of {self.path} to be {steps} colour images of "
                f"{expected.height}x{expected.width} as in the first demo, but {dataset.dtype} in "
                f"shape {dataset.shape} came; restore the file or drop the demo"
            )
        return dataset


def control_frequency_hz(env_kwargs: Any) -> float | None:
    """Steps per second, as robosuite's `control_freq` tells."""
    return positive_number(env_kwargs.get("control_freq")) if isinstance(env_kwargs, dict) else None


def robot_type(env_kwargs: Any) -> str | None:
    """The robots, as robosuite's `robots` tells: "panda", or "panda+panda" for two."""
    robots = env_kwargs.get("robots") if isinstance(env_kwargs, dict) else None
    named = [robots] if isinstance(robots, str) else robots
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        return None
    return "+".join(named).lower() or None


def _layout(demo: Hdf5Group) -> DemoLayout:
    steps = len(demo.dataset("actions"))
    columns: dict[str, Column] = {}
    cameras: dict[str, Camera] = {}
    notes: list[str] = []
    for name in demo.names():
        child = demo.child(name)
        if isinstance(child, Hdf5Dataset):
            fields = {name: child}
        elif name in _GROUPS:
            fields = {f"{name}/{key}": dataset for key, dataset in child.datasets().items()}
        else:
            notes.append(f"{name} is no field of a step that is read here: left out")
            continue
        for key, dataset in fields.items():
            column = dataset.column
            if name == _OBSERVATIONS and dataset.camera is not None:
                cameras[key.removeprefix(f"{_OBSERVATIONS}/")] = dataset.camera
            elif key.endswith("_depth"):
                notes.append(f"{key} is a depth image: left out")
            elif column is None or column.dtype == "string" or len(dataset.shape) > 3:
                notes.append(f"{key} is neither vector nor colour image: left out")
            elif child is dataset and name not in _PER_STEP and len(dataset) != steps:
                notes.append(f"{key} has not one row per step: left out")
            else:
                columns[key] = column
    return DemoLayout(columns, cameras, tuple(notes))
