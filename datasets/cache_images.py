"""Writes the frames of a training cache, several workers decoding at a time.

Shape legend: H height, N frames, W width.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.jpeg_cache import JpegWriter, write_jpegs
from robot_qsft.datasets.store import Dataset
from robot_qsft.datasets.stored_frames import StoredFrames

Progress = Callable[[int, int], None]

# Each task opens its file anew, which takes as long as decoding tens of frames of a large one.
_FRAMES_PER_TASK: Final = 1024


@dataclass(frozen=True)
class _Task:
    """Consecutive episodes of one camera, decoded by one worker.

    Attributes:
        camera: its name.
        first: number of the first episode.
        last: number of the episode after the last.
        start: number of the first frame, counted over the whole set.
        frames: how many.
    """

    camera: str
    first: int
    last: int
    start: int
    frames: int


def write_images(
    files: Mapping[str, Path],
    dataset: Dataset,
    *,
    image_size: tuple[int, int],
    jpeg: bool,
    workers: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the frames of some cameras, `image_size` (H, W), the same bytes with any `workers`.

    Memory holds a frame or two per worker. Decoders let other threads run, so threads do.

    Args:
        files: camera to the file to write: an array (N, H, W, 3), or JPEGs.
        dataset: to be decoded.
        image_size: (H, W), in pixels; frames of other sizes are resized.
        jpeg: whether to write JPEGs.
        workers: threads that decode; one for each core if None.
        progress: called with frames done and frames in all.

    Raises:
        ValueError: when the data set is damaged or has no such camera.
        OSError: when the disk is full.
    """
    workers = workers or os.cpu_count() or 1
    tasks = [task for camera in files for task in _tasks(dataset, camera)]
    total = sum(task.frames for task in tasks)
    stop = threading.Event()
    source = StoredFrames(
        dataset.path,
        index=dataset.index,
        features=dataset.stored_info["features"],
        fps=dataset.info.fps,
    )
    writers = {camera: JpegWriter(file) for camera, file in files.items() if jpeg}
    if not jpeg:
        for file in files.values():
            _write_header(file, (dataset.frame_count, *image_size, 3))

    def part_of(task: _Task) -> Path:
        return files[task.camera].with_suffix(f".part-{task.first}")

    def work(task: _Task) -> NDArray[np.int64] | None:
        """Sizes of the JPEGs, if any."""
        frames = _fitting(source, task, image_size=image_size, stop=stop)
        if jpeg:
            return write_jpegs(part_of(task), frames)
        _write_raw(files[task.camera], frames, start=task.start)
        return None

    waiting: deque[tuple[_Task, Future[NDArray[np.int64] | None]]] = deque()
    done = 0

    def finish_first() -> None:
        nonlocal done
        task, future = waiting.popleft()
        sizes = future.result()
        if sizes is not None:
            writers[task.camera].append(part_of(task), sizes)
        done += task.frames
        if progress is not None:
            progress(done, total)

    with ThreadPoolExecutor(workers) as pool:
        try:
            for task in tasks:
                waiting.append((task, pool.submit(work, task)))
                if len(waiting) > 2 * workers:
                    finish_first()
            while waiting:
                finish_first()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    for writer in writers.values():
        writer.close()


def _tasks(dataset: Dataset, camera: str) -> Iterator[_Task]:
    """All episodes of a camera, some in each task that worker and progress are told of."""
    lengths = dataset.tables().episode_lengths.tolist()
    first = start = frames = 0
    for last, length in enumerate(lengths, start=1):
        frames += length
        if frames >= _FRAMES_PER_TASK or last == len(lengths):
            yield _Task(camera, first, last, start, frames)
            first, start, frames = last, start + frames, 0


def _fitting(
    source: StoredFrames, task: _Task, *, image_size: tuple[int, int], stop: threading.Event
) -> Iterator[Image]:
    """Decoded and resized frames of a task, fewer when told to stop."""
    height, width = image_size
    count = 0
    for frame in source.of_episodes(task.camera, task.first, task.last):
        if stop.is_set():
            return
        count += 1
        yield np.ascontiguousarray(
            frame
            if frame.shape[:2] == image_size
            else cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
        )
    if count != task.frames:
        raise ValueError(
            f"expected {task.frames} frames of camera {task.camera!r} in episodes {task.first} to "
            f"{task.last - 1}, but {count} are stored; restore the files or record again"
        )


def _write_header(file: Path, shape: tuple[int, ...]) -> None:
    with file.open("wb") as opened:
        np.lib.format.write_array_header_1_0(
            opened,
            {
                "descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)),
                "fortran_order": False,
                "shape": shape,
            },
        )


def _write_raw(file: Path, frames: Iterator[Image], *, start: int) -> None:
    """Write frames to their places, which fails cleanly on a full disk; a mapping would not."""
    with file.open("r+b") as opened:
        np.lib.format.read_magic(opened)
        np.lib.format.read_array_header_1_0(opened)
        header = opened.tell()
        for number, frame in enumerate(frames, start=start):
            if number == start:
                opened.seek(header + start * frame.nbytes)
            opened.write(frame.data)
