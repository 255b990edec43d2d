"""Several sources of the same kind, one after the other."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from robot_qsft.datasets.formats.detect import open_source
from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.source import (
    EncodedFrames,
    EpisodeSource,
    KeepsFilesOpen,
    Recording,
    VideoSegments,
    check_index,
)
from robot_qsft.datasets.video_copy import VideoSegment


class MergedSource:
    """The episodes of several sources as an `EpisodeSource`; its path is that of the first."""

    def __init__(self, sources: Sequence[EpisodeSource]) -> None:
        """See that the sources fit together; no episode is read.

        Args:
            sources: at least one.

        Raises:
            ValueError: when they differ in columns, cameras or steps per second.
        """
        self._sources = tuple(sources)
        first = self._sources[0]
        self.path = first.path
        self.paths = tuple(one.path for one in self._sources)
        for other in self._sources[1:]:
            for name in ("columns", "cameras", "fps"):
                ours, theirs = getattr(first.info, name), getattr(other.info, name)
                if ours != theirs:
                    raise ValueError(
                        f"{other.path} has other {name} than {first.path} ({theirs} and {ours}); "
                        "bring them into line with a field map and 'robot-qsft ingest' first"
                    )
        tasks = dict.fromkeys(task for one in self._sources for task in one.info.tasks)
        self.info = replace(first.info, tasks=tuple(tasks), splits={})
        self._ends = np.cumsum([len(one) for one in self._sources])

    def __len__(self) -> int:
        """Number of episodes."""
        return int(self._ends[-1])

    def recording(self, index: int) -> Recording:
        """One episode without its images; see `EpisodeSource`."""
        source, index = self._place(index)
        return source.recording(index)

    def frames(self, index: int, camera: str) -> Iterator[Image]:
        """Yield the frames of a camera; see `EpisodeSource`."""
        source, index = self._place(index)
        return source.frames(index, camera)

    def encoded_frames(self, index: int, camera: str) -> Iterator[tuple[Image, bytes]] | None:
        """Frames with the bytes that they are stored as; see `EncodedFrames`."""
        source, index = self._place(index)
        return source.encoded_frames(index, camera) if isinstance(source, EncodedFrames) else None

    def video_segment(self, index: int, camera: str) -> VideoSegment | None:
        """Where in a video the frames are; see `VideoSegments`."""
        source, index = self._place(index)
        return source.video_segment(index, camera) if isinstance(source, VideoSegments) else None

    def files(self) -> tuple[Path, ...]:
        """Every file that the content depends on."""
        return tuple(file for one in self._sources for file in one.files())

    def close(self) -> None:
        """Let go of open files; see `KeepsFilesOpen`."""
        for source in self._sources:
            if isinstance(source, KeepsFilesOpen):
                source.close()

    def _place(self, index: int) -> tuple[EpisodeSource, int]:
        check_index(self, index)
        number = int(np.searchsorted(self._ends, index, side="right"))
        before = int(self._ends[number - 1]) if number else 0
        return self._sources[number], index - before


def paths_of(source: EpisodeSource) -> tuple[Path, ...]:
    """What `open_sources` opens again as the same source."""
    return source.paths if isinstance(source, MergedSource) else (source.path,)


def open_sources(paths: Sequence[Path | str]) -> EpisodeSource:
    """Open one source, or several as one.

    Raises:
        ValueError: when one is damaged, or they do not fit together.
    """
    sources = [open_source(path) for path in paths]
    return sources[0] if len(sources) == 1 else MergedSource(sources)
