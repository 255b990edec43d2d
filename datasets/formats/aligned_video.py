"""Frames of a video that was recorded beside a table, by time or one per row.

Only MP4 is opened: other containers may name further files.

Shape legend: H height, T rows, W width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from robot_qsft.datasets.interface import Image

_MOST_PIXELS = 1 << 26


@dataclass(frozen=True)
class VideoInfo:
    """What a video's head and first frame tell.

    Attributes:
        height: of an upright frame, in pixels.
        width: of an upright frame, in pixels.
        rate_hz: frames per second on average.
        frames: how many there are; 0 where the file does not tell.
    """

    height: int
    width: int
    rate_hz: float
    frames: int


def read_video_info(path: Path) -> VideoInfo:
    """Size and rate of a video.

    Raises:
        ValueError: when the file is missing or damaged.
    """
    try:
        with _open(path) as container:
            stream = container.streams.video[0]
            rate_hz, frames = float(stream.average_rate or 0), stream.frames
    except (av.error.FFmpegError, IndexError) as error:
        raise _damaged(path, error) from error
    first = next(_decoded(path), None)
    if first is None or rate_hz <= 0:
        raise ValueError(f"expected frames in {path}, but it has none; record again")
    height, width = _upright(first[1]).shape[:2]
    return VideoInfo(height=height, width=width, rate_hz=rate_hz, frames=frames)


def frames_at(path: Path, *, times_s: NDArray[np.float64], period_s: float) -> Iterator[Image]:
    """Yield the frame nearest to each time, whatever the rate of the video and however it varies.

    Args:
        path: of the video.
        times_s: (T,), not descending, counted from the first frame.
        period_s: how long before the first or after the last frame a time may lie; a time may lie
            as long as an average frame lasts in any case.

    Yields:
        T upright RGB frames, uint8 (H, W, 3).

    Raises:
        ValueError: when the video is missing or damaged, a time is outside of it, or they descend.
    """
    if not np.isfinite(times_s).all() or (np.diff(times_s) < 0).any():
        raise ValueError(
            f"expected times that do not descend for the frames of {path}, but others came; "
            "sort the rows by time"
        )
    slack_s = max(period_s, 1 / read_video_info(path).rate_hz)
    frames = _decoded(path)
    current = next(frames)
    following = next(frames, None)
    image = _upright(current[1])
    for time_s in times_s.tolist():
        chosen = current
        while following is not None and (
            following[0] <= time_s or following[0] - time_s < time_s - current[0]
        ):
            current, following = following, next(frames, None)
        if time_s < -slack_s or (time_s > current[0] + slack_s and following is None):
            raise ValueError(
                f"{path} has no frame at {time_s:.3f} s, its last being at {current[0]:.3f} s: the "
                "table goes on longer than the video; restore the file or drop the episode"
            )
        if current is not chosen:
            image = _upright(current[1])
        yield image


def frames_in_order(path: Path, *, count: int) -> Iterator[Image]:
    """Yield all frames of a video that has one for each row.

    Args:
        path: of the video.
        count: of rows, T.

    Yields:
        T upright RGB frames, uint8 (H, W, 3).

    Raises:
        ValueError: when the video is missing or damaged, or has more or fewer frames.
    """
    info = read_video_info(path)
    if info.frames not in (0, count):
        raise ValueError(_wrong_count(path, info.frames, count))
    found = 0
    for found, (_, frame) in enumerate(_decoded(path), start=1):
        if found > count:
            raise ValueError(_wrong_count(path, found, count))
        yield _upright(frame)
    if found < count:
        raise ValueError(_wrong_count(path, found, count))


def _open(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"expected a readable MP4 at {path}, but no file is there; restore it")
    # Whatever text the file holds about itself is of no use here, and need not be UTF-8.
    return av.open(str(path), format="mp4", metadata_errors="replace")


def _decoded(path: Path) -> Iterator[tuple[float, av.VideoFrame]]:
    """Frames and their times in seconds from the first on."""
    try:
        with _open(path) as container:
            stream: Any = container.streams.video[0]
            if stream.codec_context is None:
                raise ValueError(
                    f"expected a video that can be decoded at {path}, but its codec is not known "
                    "here; restore the file or convert it to H.264"
                )
            if stream.width * stream.height > _MOST_PIXELS:
                raise ValueError(
                    f"expected frames of at most {_MOST_PIXELS} pixels in {path}, but "
                    f"{stream.height}x{stream.width} came; restore the file or store smaller ones"
                )
            stream.thread_type = "AUTO"
            start_s: float | None = None
            for frame in container.decode(stream):
                if frame.time is None or frame.is_corrupt:
                    raise ValueError(
                        f"expected whole frames with times in {path}, but one is damaged; restore "
                        "the file or record again"
                    )
                start_s = frame.time if start_s is None else start_s
                yield frame.time - start_s, frame
    except (av.error.FFmpegError, IndexError) as error:
        raise _damaged(path, error) from error


def _upright(frame: av.VideoFrame) -> Image:
    """RGB of a frame, turned as the file says that players should turn it; phones do so."""
    image: NDArray[Any] = VideoReformatter().reformat(frame, format="rgb24").to_ndarray()
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = str(error).split("\n")[0]
    return ValueError(
        f"expected a readable MP4 at {path}, but opening or decoding it failed ({reason}); "
        "restore the file or record again"
    )


def _wrong_count(path: Path, frames: int, rows: int) -> str:
    return (
        f"expected one frame per row in {path}, but it has {frames} frames and the table {rows} "
        "rows; name the column of the table that tells the time, or drop the episode"
    )
