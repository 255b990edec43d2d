"""LIBERO's files, one per task, and folders of them.

Two things are put right here. Images are stored bottom row first. And LIBERO's own script
(`scripts/create_dataset.py`) stores beside action j the observation that `env.step(action j)`
returned, though states[j] is from before it; scripts that render anew store the one from before.

Shape legend: D numbers of a MuJoCo state, J joints, T steps.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.formats.demos import (
    DemoFile,
    DemoLayout,
    control_frequency_hz,
    kind_of,
    robot_type,
)
from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.outcomes import NO_EVIDENCE
from robot_qsft.datasets.source import (
    Column,
    Recording,
    SourceInfo,
    check_camera,
    check_index,
)

CONTROL_FREQUENCY_HZ: Final = 20.0
_JOINTS = "obs/joint_states"
_STATES = "states"
# These are filled from what `env.step` returned, as everything in obs/ is.
_OBSERVED = ("obs/", "robot_states")
_CLEARER = 3.0
_SCENE = re.compile(r".*SCENE[0-9]*_")


def matches(path: Path) -> bool:
    """Whether it is a file of LIBERO, or a folder of such files."""
    files = _files(path)
    return bool(files) and kind_of(files[0]) == "libero"


@dataclass(frozen=True)
class _Task:
    """What is known of one file.

    Attributes:
        path: of the file.
        demos: how many it holds.
        layout: of its first demo.
        instruction: what was asked for.
        lag: 1 where observations are from after the action beside them, else 0.
        upside_down: whether its images are.
        fps: steps per second.
        robot_type: such as "panda"; None where it does not tell.
        notes: what the user should know.
    """

    path: Path
    demos: int
    layout: DemoLayout
    instruction: str
    lag: int
    upside_down: bool
    fps: float
    robot_type: str | None
    notes: tuple[str, ...]


class LiberoSource:
    """LIBERO's demos as an `EpisodeSource`, images upright, observations from before the action."""

    def __init__(self, path: Path | str) -> None:
        """Open a file, or all files of a folder; of each no more than the first demo is read.

        Raises:
            ValueError: when one is damaged or none of LIBERO's, or h5py is not installed.
        """
        self.path = Path(path)
        tasks = [_inspect(file) for file in _files(self.path)]
        if not tasks:
            raise ValueError(f"expected HDF5 files of LIBERO in {self.path}, but there are none")
        self._tasks = tasks
        self._ends = list(accumulate(task.demos for task in tasks))
        self._layout, notes = _common([task.layout for task in tasks])
        if "actions" not in self._layout.columns or len({task.fps for task in tasks}) > 1:
            raise ValueError(
                f"expected one action space and one control frequency in all files of {self.path}, "
                "but they differ; name one file"
            )
        self.info = SourceInfo(
            format="LIBERO HDF5",
            columns=self._layout.columns,
            cameras=self._layout.cameras,
            fps=tasks[0].fps,
            robot_type=tasks[0].robot_type,
            tasks=tuple(dict.fromkeys(task.instruction for task in tasks)),
            notes=tuple(dict.fromkeys((*notes, *(note for task in tasks for note in task.notes)))),
        )
        self._opened: DemoFile | None = None

    def __len__(self) -> int:
        """Number of demos."""
        return self._ends[-1]

    def recording(self, index: int) -> Recording:
        """One demo without its images; see `EpisodeSource`."""
        file, task, place = self._find(index)
        demo, steps = file.demo(place)
        columns = align(file.columns(demo, steps), lag=task.lag)
        name = file.names[place]
        return Recording(
            name=name if len(self._tasks) == 1 else f"{task.path.stem}/{name}",
            columns=columns,
            instruction=task.instruction,
            evidence=NO_EVIDENCE,
        )

    def frames(self, index: int, camera: str) -> Iterator[Image]:
        """Yield the frames of a camera; see `EpisodeSource`."""
        file, task, place = self._find(index)
        check_camera(self, camera)
        images = file.frames(place, camera, leave_out=task.lag)
        return (
            np.ascontiguousarray(image[::-1]) if task.upside_down else image for image in images
        )

    def files(self) -> tuple[Path, ...]:
        """All files, sorted."""
        return tuple(task.path for task in self._tasks)

    def _find(self, index: int) -> tuple[DemoFile, _Task, int]:
        check_index(self, index)
        which = int(np.searchsorted(self._ends, index, side="right"))
        task = self._tasks[which]
        if self._opened is None or self._opened.path != task.path:
            # Not closed here: frames of an earlier demo may still be wanted.
            self._opened = DemoFile(task.path, layout=self._layout)
        return self._opened, task, index - (self._ends[which] - task.demos)


def align(columns: Mapping[str, NDArray[Any]], *, lag: int) -> dict[str, NDArray[Any]]:
    """Put what was observed before an action beside it.

    With a lag of 1, observation j stands beside action j but is what the robot saw before action
    j + 1: the first action goes, and so does the last observation. Of 4 steps, observations 0 1 2
    then stand beside actions 1 2 3.

    Args:
        columns: name to (T, ...).
        lag: steps by which observations come late.

    Returns:
        Name to (T - lag, ...).
    """
    return {
        name: column[: len(column) - lag] if name.startswith(_OBSERVED) else column[lag:]
        for name, column in columns.items()
    }


def observation_lag(joints_TJ: NDArray[Any], states_TD: NDArray[Any]) -> int | None:
    """Whether observation j is of the state before action j (0) or after it (1).

    A MuJoCo state is time, positions and velocities; the robot's joints come first among the
    positions. Those of state j are from before action j. The first step is left out, since the
    simulator may have settled after it.

    Returns:
        The lag by which the joints fit clearly better; None where neither does, as with a robot
        that stands still.
    """
    joint_count = joints_TJ.shape[-1]
    if joints_TJ.ndim != 2 or states_TD.ndim != 2 or states_TD.shape[1] < 1 + joint_count:
        return None
    if len(joints_TJ) != len(states_TD) or len(joints_TJ) < 3:
        return None
    positions_TJ = states_TD[:, 1 : 1 + joint_count].astype(np.float64)
    seen_TJ = joints_TJ[1:-1].astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # NaN and infinity fit nowhere
        before, after = (
            float(np.median(np.abs(seen_TJ - one).max(axis=1)))
            for one in (positions_TJ[1:-1], positions_TJ[2:])
        )
    if before * _CLEARER < after:
        return 0
    return 1 if after * _CLEARER < before else None


def instruction_of(file_name: str) -> str:
    """The instruction in a file's name.

    `KITCHEN_SCENE1_open_the_drawer_demo.hdf5` gives "open the drawer".
    """
    stem = file_name.rpartition(".")[0].removesuffix("_demo")
    return _SCENE.sub("", stem).replace("_", " ").strip()


def _files(path: Path) -> list[Path]:
    try:
        return sorted(path.glob("*.hdf5")) if path.is_dir() else [path] if path.is_file() else []
    except OSError:
        return []


def _inspect(path: Path) -> _Task:
    file = DemoFile(path)
    try:
        env_args = file.data.json("env_args") or {}
        env_kwargs = env_args.get("env_kwargs")
        problem = file.data.json("problem_info")
        instruction = (problem or {}).get("language_instruction")
        notes = list(file.layout.notes)
        if not isinstance(instruction, str):
            instruction = instruction_of(path.name)
            notes.append("instructions are taken from the names of the files")
        lag = None
        if {_JOINTS, _STATES} <= set(file.layout.columns):
            demo, _ = file.demo(0)
            lag = observation_lag(demo.dataset(_JOINTS).numbers(), demo.dataset(_STATES).numbers())
        found = "as the joints in the simulator's states show"
        if lag is None:
            # Only LIBERO's own script leaves these attributes.
            lag = 0 if problem is None else 1
            found = "as is usual for files of this kind; the states do not tell"
        notes.append(
            f"observations are stored one step late, {found}: observation j is put beside action "
            "j + 1, and the first action of each demo is left out"
            if lag
            else f"observations are from before the action beside them, {found}"
        )
        upside_down = file.data.attribute("macros_image_convention") != "opencv"
        if upside_down:
            notes.append("images are stored upside down and are flipped upright")
        notes.append(
            "rewards and dones are 1 at the end of every demo, however it ended: "
            "outcomes are unknown"
        )
        return _Task(
            path=path,
            demos=len(file.names),
            layout=file.layout,
            instruction=instruction,
            lag=lag,
            upside_down=upside_down,
            fps=control_frequency_hz(env_kwargs) or CONTROL_FREQUENCY_HZ,
            robot_type=robot_type(env_kwargs),
            notes=tuple(notes),
        )
    finally:
        file.close()


def _common(layouts: Sequence[DemoLayout]) -> tuple[DemoLayout, list[str]]:
    """What all files have alike, and a note for each thing that they have not."""
    first = layouts[0]
    columns: dict[str, Column] = {
        name: column
        for name, column in first.columns.items()
        if all(layout.columns.get(name) == column for layout in layouts)
    }
    cameras = {
        name: camera
        for name, camera in first.cameras.items()
        if all(layout.cameras.get(name) == camera for layout in layouts)
    }
    every = dict.fromkeys(name for layout in layouts for name in (*layout.columns, *layout.cameras))
    notes = [
        f"{name} differs from file to file: left out"
        for name in every
        if name not in columns and name not in cameras
    ]
    return DemoLayout(columns, cameras, ()), notes
