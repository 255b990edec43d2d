"""Stretches of videos put end to end as they are, without coding them anew.

Works for AV1 whose stretches begin with a key frame, as LeRobot and we write it.
"""

import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

_CODEC = "av1"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class VideoSegment:
    """The frames of an episode in a video file.

    Attributes:
        path: of the file.
        start_s: time of the first frame.
        frames: how many, 1 / fps apart.
    """

    path: Path
    start_s: float
    frames: int


def copy_segments(out: Path, segments: Sequence[VideoSegment], *, fps: int) -> bool:
    """Write a video of the segments, frame i at i / fps seconds.

    Args:
        out: file to be written; there is none afterwards where copying is impossible.
        segments: at least one.
        fps: frames per second.

    Returns:
        Whether it could be done: not where a segment is of another codec or size than the first,
        begins with no key frame, or lacks a frame.

    Raises:
        OSError: when the disk is full.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    whole = False
    try:
        whole = _copy(out, segments, fps=fps)
    except (av.error.FFmpegError, IndexError) as error:
        # Reading the frames later tells what is wrong with a file.
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise
    finally:
        if not whole:
            out.unlink(missing_ok=True)
    return whole


def _copy(out: Path, segments: Sequence[VideoSegment], *, fps: int) -> bool:
    described: tuple[object, ...] | None = None
    written = 0
    with av.open(str(out), "w") as output:
        stream: Any = None
        for segment in segments:
            with av.open(str(segment.path), format="mp4", metadata_errors="replace") as source:
                theirs = source.streams.video[0]
                about = _described(theirs)
                if about is None or (described is not None and about != described):
                    return False
                if stream is None:
                    described = about
                    stream = output.add_stream_from_template(theirs, opaque=True)
                    stream.time_base = Fraction(1, fps)
                count = 0
                for packet in _packets(source, theirs, segment, fps=fps):
                    packet.stream = stream
                    packet.pts = packet.dts = written
                    packet.duration = 1
                    packet.time_base = Fraction(1, fps)
                    output.mux(packet)
                    written += 1
                    count += 1
                if count != segment.frames:
                    return False
    return True


def _described(stream: Any) -> tuple[object, ...] | None:
    """What must be the same in all segments; None for what cannot be copied."""
    context = stream.codec_context
    if context is None or stream.time_base is None or context.codec.canonical_name != _CODEC:
        return None
    return context.width, context.height, context.pix_fmt, bytes(context.extradata or b"")


def _packets(source: Any, stream: Any, segment: VideoSegment, *, fps: int) -> Iterator[Any]:
    """The packets of a segment, as far as they are as they should be."""
    tolerance_s = 0.5 / fps
    position = int(max(0.0, segment.start_s - tolerance_s) / stream.time_base)
    source.seek(position, stream=stream, backward=True)
    count = 0
    for packet in source.demux(stream):
        if packet.pts is None or count == segment.frames:
            return
        time_s = float(packet.pts * stream.time_base)
        if count == 0 and time_s < segment.start_s - tolerance_s:
            continue
        on_time = abs(time_s - segment.start_s - count / fps) < tolerance_s
        if not on_time or packet.pts != packet.dts or (count == 0 and not packet.is_keyframe):
            return
        yield packet
        count += 1
