"""Episodes as somebody recorded them, column by column, before anything is interpreted.

A format (`formats/`) is one class with the methods of `EpisodeSource`. A field map says which of
its columns are state, action and reward.

Shape legend: H height, T steps, W width.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.features import Camera
from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.outcomes import Evidence
from robot_qsft.datasets.video_copy import VideoSegment
from robot_qsft.datasets.wording import listed

Columns: TypeAlias = Mapping[str, NDArray[Any]]

_LONGEST_NAME = 200


@dataclass(frozen=True)
class Column:
    """What one step holds under one name.

    Attributes:
        dtype: numpy's name of it, such as "float32" or "bool"; "string" for text.
        shape: of one step; () for a single number.
        names: of the entries of a vector; () when the source has none.
    """

    dtype: str
    shape: tuple[int, ...] = ()
    names: tuple[str, ...] = ()


def _nothing() -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class SourceInfo:
    """What every episode of a source has in common, told without reading the episodes.

    Attributes:
        format: name and version, such as "LeRobotDataset v2.1" or "robomimic HDF5".
        columns: name to what a step holds, in the source's own names; cameras are not among them.
        cameras: the source's name of a colour camera to size and storage ("video" where frames are
            compressed with loss, else "image").
        fps: steps per second; None where the source does not tell.
        robot_type: such as "panda"; None where the source does not tell.
        splits: name to episode indices, such as "train" and "valid".
        tasks: instructions in the order that the source numbers them; () where it does not.
        notes: what the user should know, one sentence each.
    """

    format: str
    columns: Mapping[str, Column]
    cameras: Mapping[str, Camera] = field(default_factory=_nothing)
    fps: float | None = None
    robot_type: str | None = None
    splits: Mapping[str, tuple[int, ...]] = field(default_factory=_nothing)
    tasks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse names that no sentence or table could show.

        Raises:
            ValueError: telling how such a name begins.
        """
        for name in (*self.columns, *self.cameras):
            if len(name) > _LONGEST_NAME:
                raise ValueError(
                    f"expected columns and cameras with names of at most {_LONGEST_NAME} letters, "
                    f"but one of {len(name)} came, which begins with {name[:40]!r}; rename it or "
                    "restore the file"
                )


@dataclass(frozen=True, eq=False)
class Recording:
    """One episode without its images.

    Row t of every column belongs to step t: what was observed before action t, action t itself,
    and the reward that followed it. A format that stores them otherwise is put right by its reader.

    Attributes:
        name: what the source calls the episode, such as "demo_3".
        columns: name to (T, *shape), of the dtype and shape that `SourceInfo.columns` tells; text
            is an object array of str.
        instruction: what was asked for; "" where the source does not tell.
        evidence: of how it ended.
        demonstrator: who acted; "" where the source does not tell.
    """

    name: str
    columns: Columns
    instruction: str
    evidence: Evidence
    demonstrator: str = ""

    def __post_init__(self) -> None:
        """Refuse columns of different lengths, and an episode without a step.

        Raises:
            ValueError: naming the column and both lengths.
        """
        lengths = {name: len(column) for name, column in self.columns.items()}
        if not lengths or min(lengths.values()) == 0:
            raise ValueError(f"{self.name} should have at least one step, but it has none; drop it")
        first, steps = next(iter(lengths.items()))
        for name, length in lengths.items():
            if length != steps:
                raise ValueError(
                    f"{self.name} has {steps} rows of {first!r} but {length} of {name!r}; "
                    "mend or drop the episode"
                )

    def __len__(self) -> int:
        """Number of steps, T."""
        return len(next(iter(self.columns.values())))


class EpisodeSource(Protocol):
    """Demonstrations in some format; reading one episode leaves the others on disk.

    Attributes:
        path: the folder or file.
        info: what all episodes have in common.
    """

    path: Path
    info: SourceInfo

    def __len__(self) -> int:
        """Number of episodes."""

    def recording(self, index: int) -> Recording:
        """One episode without its images.

        Raises:
            IndexError: when there is no such episode.
            ValueError: when it is damaged, in one sentence that names file and episode.
        """

    def frames(self, index: int, camera: str) -> Iterator[Image]:
        """Yield the T frames of a camera, upright RGB uint8 (H, W, 3), few in memory at a time.

        Raises:
            IndexError: when there is no such episode.
            ValueError: when there is no such camera, or a frame is missing or damaged.
        """

    def files(self) -> tuple[Path, ...]:
        """Every file that the content depends on, sorted."""


@runtime_checkable
class EncodedFrames(Protocol):
    """A source that also gives frames as they are stored, so that a copy is exact to the byte."""

    def encoded_frames(self, index: int, camera: str) -> Iterator[tuple[Image, bytes]] | None:
        """Yield the T frames of a camera, each with its PNG or JPEG; None where it has none.

        Raises:
            IndexError: when there is no such episode.
            ValueError: as `EpisodeSource.frames` does.
        """


@runtime_checkable
class VideoSegments(Protocol):
    """A source that also tells where in a video the frames of an episode are, to be copied."""

    def video_segment(self, index: int, camera: str) -> VideoSegment | None:
        """The frames of a camera in its video; None where they are in none.

        Raises:
            IndexError: when there is no such episode.
            ValueError: when there is no such camera.
        """


@runtime_checkable
class KeepsFilesOpen(Protocol):
    """A source that keeps files open between reads."""

    def close(self) -> None:
        """Let go of the files that this thread has open; the next read opens them again."""


def check_index(source: EpisodeSource, index: int) -> None:
    """Refuse an episode that is not there.

    Raises:
        IndexError: naming it and how many there are.
    """
    if not 0 <= index < len(source):
        raise IndexError(f"episode {index} asked for, but {source.path} has {len(source)}")


def check_camera(source: EpisodeSource, camera: str) -> None:
    """Refuse a camera that is not there.

    Raises:
        ValueError: naming those that are.
    """
    if camera not in source.info.cameras:
        raise ValueError(
            f"camera {camera!r} asked for, but {source.path} has "
            f"{listed(source.info.cameras)}; choose one of these"
        )


def string_column(values: list[str]) -> NDArray[Any]:
    """Text as a column, an object array of str (T,)."""
    column = np.empty(len(values), object)
    column[:] = values
    return column
