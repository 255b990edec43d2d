"""Camera frames of a LeRobot data set, from its videos or from the PNGs in its tables.

Shape legend: H height, W width.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from robot_qsft.datasets.features import (
    Camera,
    Feature,
    camera_from_feature,
    camera_keys,
)
from robot_qsft.datasets.formats.encoded_image import decode_image
from robot_qsft.datasets.index import EpisodeIndex
from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.parquet import RowReader
from robot_qsft.datasets.video import read_frames
from robot_qsft.datasets.video_copy import VideoSegment
from robot_qsft.datasets.wording import listed


class StoredFrames:
    """Reads frames of consecutive episodes, decoding each file once.

    Attributes:
        cameras: name to size and storage.
    """

    def __init__(
        self, path: Path, *, index: EpisodeIndex, features: Mapping[str, Feature], fps: float
    ) -> None:
        """Prepare to read; files are opened when frames are asked for.

        Raises:
            ValueError: when a camera has no readable shape.
        """
        self._path = path
        self._index = index
        self._fps = fps
        self._keys = camera_keys(features)
        self.cameras: Mapping[str, Camera] = {
            name: camera_from_feature(key, features[key]) for name, key in self._keys.items()
        }
        self._rows = RowReader()
        # Many episodes may share a file: rows are counted from the first of them.
        self._first_rows: dict[str, int] = {}
        for file, start in zip(index.data_files, index.starts.tolist(), strict=True):
            self._first_rows.setdefault(file, start)

    def close(self) -> None:
        """Let go of the file that this thread has open; the next read opens it again."""
        self._rows.close()

    def of_episodes(self, camera: str, first: int, last: int) -> Iterator[Image]:
        """Yield the frames of episodes `first` to `last`, half open, RGB uint8 (H, W, 3).

        Raises:
            ValueError: when there is no such camera, or a file is missing, damaged or too short.
        """
        if camera not in self._keys:
            raise ValueError(
                f"camera {camera!r} asked for, but {self._path} has "
                f"{listed(self._keys)}; choose one of these"
            )
        files = self._index.video_files.get(self._keys[camera], self._index.data_files)
        cuts = [i for i in range(first + 1, last) if files[i] != files[i - 1]]
        return (
            image
            for begin, end in pairwise([first, *cuts, last])
            for image in self._of_one_file(camera, begin, end)
        )

    def video_segment(self, camera: str, index: int) -> VideoSegment | None:
        """Where in a video the frames of an episode are; None for images in tables."""
        key = self._keys[camera]
        if key not in self._index.video_files:
            return None
        return VideoSegment(
            path=self._path / self._index.video_files[key][index],
            start_s=float(self._index.video_starts_s[key][index]),
            frames=int(self._index.lengths[index]),
        )

    def stored_of_episode(self, camera: str, index: int) -> Iterator[tuple[Image, bytes]] | None:
        """Frames of one episode, each with the PNG or JPEG that holds it; None for a video.

        Raises:
            ValueError: as `of_episodes` does.
        """
        key = self._keys[camera]
        if key in self._index.video_files:
            return None
        return self._decoded(camera, index, index + 1)

    def _of_one_file(self, camera: str, first: int, last: int) -> Iterator[Image]:
        key, index = self._keys[camera], self._index
        if key not in index.video_files:
            for image, _ in self._decoded(camera, first, last):
                yield image
            return
        file = self._path / index.video_files[key][first]
        times_s = (
            float(start_s) + step / self._fps
            for start_s, length in zip(
                index.video_starts_s[key][first:last], index.lengths[first:last], strict=True
            )
            for step in range(length)
        )
        expected = self.cameras[camera]
        for image in read_frames(file, times_s=times_s, fps=self._fps):
            if image.shape != (expected.height, expected.width, 3):
                raise ValueError(
                    f"expected frames of {expected.height}x{expected.width} for camera {camera!r}, "
                    f"but {image.shape[0]}x{image.shape[1]} came from {file}; mend meta/info.json"
                )
            yield image

    def _decoded(self, camera: str, first: int, last: int) -> Iterator[tuple[Image, bytes]]:
        """Frames in the tables, each with the bytes that hold it."""
        index, expected, key = self._index, self.cameras[camera], self._keys[camera]
        file = self._path / index.data_files[first]
        before = self._first_rows[index.data_files[first]]
        about = f"camera {camera!r} in {file}"
        for episode in range(first, last):
            length = int(index.lengths[episode])
            try:
                rows = self._rows.read(
                    file, [key], first=int(index.starts[episode]) - before, count=length
                )
                if len(rows) != length:
                    raise ValueError(
                        f"expected {length} images for {about}, but {len(rows)} came; restore it"
                    )
                for stored in rows.column(key):
                    yield self._decode(stored.as_py(), expected, about=about)
            except UnicodeDecodeError as error:
                raise ValueError(f"the text beside {about} is damaged; restore it") from error

    def _decode(self, stored: Any, expected: Camera, *, about: str) -> tuple[Image, bytes]:
        content = stored.get("bytes") if isinstance(stored, dict) else None
        if not isinstance(content, bytes):
            raise ValueError(f"expected image bytes for {about}, but none came; record again")
        image = decode_image(content, height=expected.height, width=expected.width, about=about)
        return image, content
