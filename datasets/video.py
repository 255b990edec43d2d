"""Frames to and from mp4 files, frame i of a file standing at i / fps seconds.

Shape legend: H height, T frames, W width.
"""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from robot_qsft.datasets.interface import Image

# LeRobot's defaults; H.264 only where PyAV was built without AV1. The names are those of
# `video.codec` in info.json. One thread (lp): with more, the encoder was seen to wait for ever on a
# busy machine, about once in 500 files; work is spread over processes instead.
_ENCODERS: dict[str, tuple[str, dict[str, str]]] = {
    "libsvtav1": ("av1", {"g": "2", "crf": "30", "preset": "12", "svtav1-params": "lp=1"}),
    "libx264": ("h264", {"g": "2", "crf": "23", "preset": "veryfast", "bf": "0"}),
}


def choose_encoder() -> str:
    """The name of the best encoder that this machine has.

    Raises:
        ValueError: when there is none.
    """
    for encoder in _ENCODERS:
        try:
            av.codec.Codec(encoder, "w")
        except av.codec.codec.UnknownCodecError:
            continue
        if encoder != "libsvtav1":
            logging.getLogger(__name__).warning(
                "PyAV has no libsvtav1 encoder here: videos are written with %s instead", encoder
            )
        return encoder
    raise ValueError(
        f"expected PyAV with one of the encoders {', '.join(_ENCODERS)}, but it has none of them; "
        "install the `av` wheel from PyPI, or store cameras as 'image'"
    )


def codec_of(encoder: str) -> str:
    """The codec that an encoder writes, as `video.codec` names it."""
    return _ENCODERS[encoder][0]


class VideoWriter:
    """Appends frames to one mp4 file."""

    def __init__(self, path: Path, *, fps: int, height: int, width: int, encoder: str) -> None:
        """Open the file.

        Args:
            path: to be written.
            fps: frames per second.
            height: of a frame, even, in pixels.
            width: of a frame, even, in pixels.
            encoder: one that `choose_encoder` gave.
        """
        # SVT-AV1 prints a page to standard error for each stream unless told to keep to errors.
        os.environ.setdefault("SVT_LOG", "1")
        self.path = path
        self.frames_written = 0
        self.bytes_written = 0
        self._time_base = Fraction(1, fps)
        self._container: Any = av.open(str(path), "w")
        stream: Any = self._container.add_stream(encoder, rate=fps, options=_ENCODERS[encoder][1])
        stream.height = height
        stream.width = width
        stream.pix_fmt = "yuv420p"
        stream.time_base = self._time_base
        with _priority_kept():
            stream.codec_context.open()
        self._stream = stream

    def write(self, frames: Iterable[Image]) -> None:
        """Append frames, uint8 (H, W, 3) each; the first one can be decoded by itself."""
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if number == 0:
                frame.pict_type = PictureType.I
            frame.pts = self.frames_written
            frame.time_base = self._time_base
            self._mux(self._stream.encode(frame))
            self.frames_written += 1

    def close(self) -> None:
        """Flush the encoder and write the index, without which the file cannot be read."""
        self._mux(self._stream.encode(None))
        self._container.close()
        with av.open(str(self.path)) as container:
            stored = container.streams.video[0].frames
        assert stored == self.frames_written, f"{stored} of {self.frames_written} frames stored"

    def abandon(self) -> None:
        """Let go of the file without finishing it."""
        self._container.close()

    def _mux(self, packets: Iterable[Any]) -> None:
        for packet in packets:
            self.bytes_written += packet.size
            self._container.mux(packet)


@contextmanager
def _priority_kept() -> Iterator[None]:
    """Undo what SVT-AV1 does where root runs it: the whole process becomes real-time, for good.

    Such a process, and every one that it starts, starves all others on the machine.
    """
    if not hasattr(os, "sched_setscheduler"):
        yield
        return
    before = _priorities()
    try:
        yield
    finally:
        ours = before[os.getpid()]
        for thread in _priorities():
            with suppress(OSError):  # it has ended meanwhile
                os.sched_setscheduler(thread, *before.get(thread, ours))


def _priorities() -> dict[int, tuple[int, Any]]:
    """Policy and parameters of this process's threads; the main one has the process's number."""
    priorities = {}
    for folder in Path("/proc/self/task").iterdir():
        thread = int(folder.name)
        with suppress(OSError):  # it has ended meanwhile
            priorities[thread] = (os.sched_getscheduler(thread), os.sched_getparam(thread))
    return priorities


def read_frames(path: Path, *, times_s: Iterable[float], fps: float) -> Iterator[Image]:
    """Decode the frames at the given times, front to back.

    Args:
        path: of a video file.
        times_s: ascending, in seconds from the start of the file.
        fps: frames per second; a frame within half a period of a time is taken for it.

    Yields:
        RGB frames, uint8 (H, W, 3), one per time.

    Raises:
        ValueError: when the file is missing or damaged, or has no frame at one of the times.
    """
    wanted_s = iter(times_s)
    wanted = next(wanted_s, None)
    if wanted is None:
        return
    if not path.is_file():
        raise ValueError(
            f"expected a video at {path}, but there is none; restore the file or record again"
        )
    tolerance_s = 0.5 / fps
    found = 0
    try:
        # The format is given: a file that is none of it, such as a list of other files, is refused.
        with av.open(str(path), format="mp4", metadata_errors="replace") as container:
            stream = container.streams.video[0]
            if stream.codec_context is None or stream.time_base is None:
                raise ValueError(
                    f"expected a readable video at {path}, but its codec is unknown; "
                    "restore the file or record again"
                )
            stream.thread_type = "AUTO"
            container.seek(
                max(0, int((wanted - tolerance_s) / stream.time_base)), stream=stream, backward=True
            )
            reformatter = VideoReformatter()
            for frame in container.decode(stream):
                assert frame.time is not None
                if frame.time < wanted - tolerance_s:
                    continue
                if frame.time >= wanted + tolerance_s:
                    break
                image: NDArray[Any] = reformatter.reformat(frame, format="rgb24").to_ndarray()
                yield image
                found += 1
                wanted = next(wanted_s, None)
                if wanted is None:
                    return
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(
            f"expected a readable video at {path}, but decoding it failed ({error}); "
            "restore the file or record again"
        ) from error
    raise ValueError(
        f"{path} has no frame at {wanted:.3f} s, after {found} that were found: the table has more "
        "steps than the video frames; restore the file or drop the episode"
    )
