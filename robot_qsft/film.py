"""Films of episodes: H.264 videos, film strips and JPEG stills.

Shape legend: H height, K stills of a strip, T frames, W width.
"""

import os
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from robot_qsft.datasets.interface import Image

_X264 = {"crf": "23", "preset": "medium"}
_JPEG_QUALITY = 85


def write_mp4(path: Path, frames: Image, *, fps: float) -> None:
    """Write an mp4 file (H.264, 4:2:0) that every browser plays, under a temporary name first.

    H.264 halves the colour planes, so an odd height or width is made even by repeating the last
    row or column.

    Args:
        path: of the file; missing folders are made.
        frames: RGB, uint8 (T, H, W, 3).
        fps: frames per second, to a thousandth.

    Raises:
        ValueError: when there is no frame, the frames are no RGB images, or `fps` is not positive.
    """
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    _check(frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.mp4")
    try:
        _encode(temporary, frames, fps)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def encode_mp4(frames: Image, *, fps: float) -> bytes:
    """The bytes that `write_mp4` would write."""
    # Moving the index to the front needs a file that FFmpeg can open a second time.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        write_mp4(path, frames, fps=fps)
        return path.read_bytes()


def film_strip(frames: Image, *, count: int) -> Image:
    """Stills side by side, uint8 (H, K·W, 3), evenly spaced from the first frame to the last.

    Four stills of seven frames are frames 0, 2, 4 and 6. A short film repeats frames.

    Args:
        frames: RGB, uint8 (T, H, W, 3).
        count: K.

    Raises:
        ValueError: when there is no frame, the frames are no RGB images, or `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    _check(frames)
    chosen = np.linspace(0, len(frames) - 1, count).round().astype(int)
    return np.concatenate(list(frames[chosen]), axis=1)


def jpeg(image: Image) -> bytes:
    """A JPEG file of an RGB image, uint8 (H, W, 3)."""
    _check(image[None])
    encoded, buffer = cv2.imencode(
        ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    )
    assert encoded
    return buffer.tobytes()


def _check(frames: Image) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise ValueError(
            f"frames must be uint8 (T, H, W, 3) with T, H, W at least 1, got {frames.dtype} "
            f"{frames.shape}"
        )


def _encode(path: Path, frames: Image, fps: float) -> None:
    height, width = (size + size % 2 for size in frames.shape[1:3])
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream: Any = container.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(1000), options=_X264
        )
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for image in frames:
            spare = [(0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)]
            even = np.pad(image, spare, "edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        container.mux(stream.encode(None))
