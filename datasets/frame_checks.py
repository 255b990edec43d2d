"""What may be wrong with the frames of one camera in one episode.

Two frames differ by as much as their blocks of 8×8 pixels do where they differ most. Compressed
video never repeats a frame exactly: key frames and those between them are drawn differently, and a
small change may wait for the next frame. So a video's picture counts as the same within a
tolerance, and as one of the two before; an image that is stored whole repeats to the bit.

Shape legend: D dimensions of the motion, H height, T steps, W width.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.checks import Finding, Severity
from robot_qsft.datasets.features import Camera
from robot_qsft.datasets.interface import Image

_BLOCK = 8
_TOLERANCE = {"video": 8.0, "image": 0.0}
_DRIFT = {"video": 16.0, "image": 0.0}
"""Grey levels by which a block may differ from the frame before, and from where a run began."""
_FROZEN_STEPS = 5
_FROZEN_S = 0.5
_MOVED = 0.1
_USUAL = 0.9
_AROUND = 0.5
_VISIBLE = {"video": 60.0, "image": 4.0}
"""Usual change from which on a repeat is not the encoder's: AV1 puts off moves of a pixel."""
_LONGEST_REPEAT = 3
_MANY_REPEATS = 3
_VIDEO_REPEATS = 5
_VIDEO_SHARE = 0.3


@dataclass(frozen=True, eq=False)
class Motion:
    """What moves in front of a camera: the robot's state, or its commands where it tells no state.

    Attributes:
        values: one row per step, (T, D).
        ranges: from least to greatest over the whole set, (D,); a still robot's noise is small
            against them.
    """

    values: NDArray[Any]
    ranges: NDArray[Any]

    def moved(self, start: int, stop: int) -> bool:
        """Whether the robot moves visibly in the rows from `start` up to `stop`.

        Two dimensions have to (where there are two), since a gripper alone may be out of sight.
        """
        rows = self.values[start:stop]
        covered = (rows.max(axis=0) - rows.min(axis=0))[self.ranges > 0]
        moving = (covered >= _MOVED * self.ranges[self.ranges > 0]).sum()
        return bool(moving >= min(2, len(self.ranges)))

    def speeds(self) -> NDArray[np.float64]:
        """Distance from the row before, (T,), as a share of the ranges; 0 in the first row."""
        ranges = np.where(self.ranges > 0, self.ranges, np.inf)
        steps = np.abs(np.diff(self.values, axis=0, prepend=self.values[:1])) / ranges
        fastest: NDArray[np.float64] = steps.max(axis=1, initial=0.0)
        return fastest


@dataclass(eq=False)
class _Watched:
    """What is remembered of frames gone by.

    Attributes:
        frames: how many.
        sizes: (H, W) to the first frame of it.
        changes: from the frame before, in grey levels of the block that changed most.
        runs: half-open ranges of frames that look the same.
    """

    frames: int = 0
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)
    changes: list[float] = field(default_factory=list)
    runs: list[tuple[int, int]] = field(default_factory=list)


def check_frames(
    images: Iterable[Image],
    *,
    steps: int,
    camera: str,
    stored: Camera,
    motion: Motion | None,
    fps: float | None,
    episode: int,
) -> list[Finding]:
    """Look at every frame once: readable, as many as steps, of one size, and alive.

    Args:
        images: frames in order; only three are held at a time. A ValueError or OSError that they
            raise becomes a finding.
        steps: T.
        camera: its name, for the findings.
        stored: its size and storage.
        motion: of the robot, without NaN; None where nothing tells: then frames may stand still.
        fps: steps per second; None where it is not known.
        episode: for the findings.
    """
    watched = _Watched()
    findings = []
    mend = "restore the file, or drop the episode"
    try:
        _watch(images, watched, storage=stored.storage)
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        message = f"camera {camera!r} cannot be read: {reason}"
        findings.append(
            Finding("error", "frames-unreadable", message, mend, episode, watched.frames)
        )
    else:
        if watched.frames != steps:
            message = f"camera {camera!r} has {watched.frames} frames for {steps} steps"
            step = min(watched.frames, steps)
            findings.append(Finding("error", "frames-missing", message, mend, episode, step))
    wrong = {
        size: at for size, at in watched.sizes.items() if size != (stored.height, stored.width)
    }
    if wrong:
        told = ", ".join(f"{height}x{width}" for height, width in wrong)
        message = (
            f"frames of camera {camera!r} should be {stored.height}x{stored.width}, but {told} came"
        )
        findings.append(Finding("error", "frame-size", message, mend, episode, min(wrong.values())))
    if motion is not None and watched.frames <= steps and not wrong:
        findings += _still(watched, camera, stored.storage, motion, fps, episode)
    return findings


def _watch(images: Iterable[Image], watched: _Watched, *, storage: str) -> None:
    tolerance, drift = _TOLERANCE[storage], _DRIFT[storage]
    before: list[Image] = []
    first: Image | None = None
    start = 0
    for frame, image in enumerate(images):
        height, width = image.shape[:2]
        watched.sizes.setdefault((height, width), frame)
        watched.frames = frame + 1
        if before and image.shape != before[0].shape:
            before, first = [], None
        changes = [_difference(image, one) for one in before]
        watched.changes.append(changes[0] if changes else np.inf)
        # Only video has two ways to draw one picture.
        compared = changes if storage == "video" else changes[:1]
        same = bool(compared) and min(compared) <= tolerance
        if first is None or not same or _difference(image, first) > drift:
            if frame > start:
                watched.runs.append((start, frame))
            start, first = frame, image
        before = [image, *before[:1]]
    if watched.frames > start:
        watched.runs.append((start, watched.frames))


def _difference(one: Image, other: Image) -> float:
    """Mean difference of the block that differs most, in grey levels."""
    height, width = one.shape[:2]
    size = (-(-width // _BLOCK), -(-height // _BLOCK))
    pixels = cv2.absdiff(one, other).astype(np.float32)
    return float(np.max(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)))


def _still(
    watched: _Watched, camera: str, storage: str, motion: Motion, fps: float | None, episode: int
) -> list[Finding]:
    """Findings about frames that stand still while the robot moves."""
    shortest = max(_FROZEN_STEPS, int(np.ceil(_FROZEN_S * (fps or 0))))
    frozen = [
        (start, stop)
        for start, stop in watched.runs
        if stop - start >= shortest and motion.moved(start, stop)
    ]
    findings = []
    mend = "drop the episode, and look at the camera's cable and driver"
    if frozen:
        start, stop = max(frozen, key=lambda run: run[1] - run[0])
        lost = sum(stop - start for start, stop in frozen)
        message = (
            f"camera {camera!r} stands still in {lost} of {watched.frames} frames while the robot "
            f"moves, for up to {stop - start} in a row"
        )
        findings.append(Finding("warning", "camera-frozen", message, mend, episode, frozen[0][0]))
    elsewhere = np.ones(watched.frames, np.bool_)
    for start, stop in frozen:
        elsewhere[start:stop] = False
    repeated = _repeated(watched, storage, motion.speeds()[: watched.frames], elsewhere)
    if len(repeated):
        message = (
            f"camera {camera!r} repeats the frame before in {len(repeated)} of {watched.frames} "
            "steps although the robot moves"
        )
        mend = "record frames at the rate of the steps, or resample to the camera's"
        severity: Severity = "warning" if len(repeated) >= _MANY_REPEATS else "note"
        findings.append(
            Finding(severity, "frames-repeated", message, mend, episode, int(repeated[0]))
        )
    return findings


def _repeated(
    watched: _Watched,
    storage: str,
    speeds_T: NDArray[np.float64],
    elsewhere_T: NDArray[np.bool_],
) -> NDArray[np.intp]:
    """Steps whose frame is that before although the robot moves as fast as it usually does."""
    changes_T = np.array(watched.changes)
    changes_T[:1] = np.inf
    tolerance = _TOLERANCE[storage]
    if not (speeds_T > 0).any():
        return np.zeros(0, np.intp)
    usual = np.median(speeds_T[speeds_T > 0])
    # The rows around move too, or a camera that is one step late would seem to repeat itself.
    around_T = np.minimum(np.append(speeds_T[1:], np.inf), np.append(np.inf, speeds_T[:-1]))
    moving_T = (speeds_T >= _USUAL * usual) & (around_T >= _AROUND * usual)
    same_T = changes_T <= tolerance
    seen = changes_T[moving_T & ~same_T & np.isfinite(changes_T)]
    if len(seen) == 0 or np.median(seen) < _VISIBLE[storage]:
        return np.zeros(0, np.intp)
    repeated_T = same_T & moving_T & elsewhere_T
    if storage == "image":
        # A robot out of the camera's sight changes nothing for long: only short runs count.
        for start, stop in watched.runs:
            if stop - start > _LONGEST_REPEAT:
                repeated_T[start:stop] = False
    elif repeated_T.sum() < max(_VIDEO_REPEATS, _VIDEO_SHARE * moving_T.sum()):
        return np.zeros(0, np.intp)
    return np.flatnonzero(repeated_T)
