"""One camera's episodes end to end in mp4 files, a new file when one is full.

Shape legend: H height, T frames, W width.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.parquet import next_position
from robot_qsft.datasets.video import VideoWriter


@dataclass(frozen=True)
class VideoPlace:
    """Where the frames of an episode are.

    Attributes:
        chunk_index: of the file's folder.
        file_index: in that folder.
        from_timestamp: time of the first frame in the file, in seconds.
        to_timestamp: time of the frame after the last.
    """

    chunk_index: int
    file_index: int
    from_timestamp: float
    to_timestamp: float


class VideoShardWriter:
    """Appends whole episodes to the video files of one camera."""

    def __init__(
        self,
        root: Path,
        *,
        template: str,
        key: str,
        position: tuple[int, int],
        chunk_size: int,
        limit: int,
        fps: int,
        encoder: str,
    ) -> None:
        """Prepare to write; files are opened when frames come.

        Args:
            root: folder that paths are relative to.
            template: of paths, with `video_key`, `chunk_index` and `file_index`.
            key: feature of the camera.
            position: chunk and file to begin with.
            chunk_size: files per chunk.
            limit: bytes, beyond which the next file is begun.
            fps: frames per second.
            encoder: one that `choose_encoder` gave.
        """
        self._root = root
        self._template = template
        self._key = key
        self._position = position
        self._chunk_size = chunk_size
        self._limit = limit
        self._fps = fps
        self._encoder = encoder
        self._video: VideoWriter | None = None

    def write(self, frames: Iterable[Image], *, count: int, height: int, width: int) -> VideoPlace:
        """Append the frames of an episode, `count` in all, uint8 (H, W, 3) each."""
        video = self._video
        if video is not None:
            share = count / video.frames_written
            if video.bytes_written * (1 + share) >= self._limit:
                self.close()
                self._position = next_position(self._position, chunk_size=self._chunk_size)
                video = None
        if video is None:
            video = self._video = self._open(height=height, width=width)
        first = video.frames_written
        video.write(frames)
        return VideoPlace(
            chunk_index=self._position[0],
            file_index=self._position[1],
            from_timestamp=first / self._fps,
            to_timestamp=video.frames_written / self._fps,
        )

    def close(self) -> None:
        """Finish the file, which cannot be read before."""
        if self._video is not None:
            self._video.close()
            self._video = None

    def abandon(self) -> None:
        """Let go of the file without finishing it."""
        if self._video is not None:
            self._video.abandon()
            self._video = None

    def _open(self, *, height: int, width: int) -> VideoWriter:
        chunk, file = self._position
        path = self._root / self._template.format(
            video_key=self._key, chunk_index=chunk, file_index=file
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        return VideoWriter(path, fps=self._fps, height=height, width=width, encoder=self._encoder)
