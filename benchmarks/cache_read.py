"""How fast training reads frames: the cache against the AV1 videos it was decoded from.

A batch is 64 random windows of consecutive frames (8 or 16) from each of 2 cameras, as 224x224
uint8 in memory. Read are the demonstrations of `collect`, stored as LeRobot v3.0 with AV1 video

- at 480x640, the usual size of a robot's cameras (the rendered 224x224 frames enlarged), and
- at 224x224, where nothing has to be resized and little decoded: the hardest rival.

The reader of videos keeps every container and decoder open, seeks once per window to the keyframe
(every second frame is one) and decodes on; FFmpeg resizes while it converts colours. All variants
write into memory that was used before, and read the same windows from a warm page cache, taking
turns block by block. Seconds are CPU seconds of this process, those of the decoder's and JPEG
threads included, so rates are those of one core and other programs do not count.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from report import Figure, at_least, mean_interval, publish, quick_from_command_line

from robot_qsft.collect import CollectConfig, collect
from robot_qsft.datasets.batches import gather_frames
from robot_qsft.datasets.cache import TrainingCache
from robot_qsft.datasets.features import IMAGES, Camera
from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.recycled_memory import RecycledMemory
from robot_qsft.datasets.store import Dataset
from robot_qsft.datasets.writer import DatasetWriter
from robot_qsft.sim.pybullet.config import PyBulletConfig

CAMERAS = ("front", "wrist")
SIZE = 224
SOURCES = {"480x640": Camera(480, 640), "224x224": Camera(SIZE, SIZE)}
WINDOWS = 64
LENGTHS = (8, 16)
SEED = 0


@dataclass(frozen=True, eq=False)
class Windows:
    """What a batch consists of; each (WINDOWS,) but for the last.

    Attributes:
        episodes: int64, where each window lies.
        steps: int64, its first step there.
        starts: int64, its first frame in the whole set.
        length: frames of each.
    """

    episodes: NDArray[np.int64]
    steps: NDArray[np.int64]
    starts: NDArray[np.int64]
    length: int

    @property
    def rows(self) -> NDArray[np.int64]:
        """Frames of all windows, one window after another."""
        return (self.starts[:, None] + np.arange(self.length)).reshape(-1)


def draw(dataset: Dataset, length: int, rng: np.random.Generator) -> Windows:
    """Windows that lie within an episode, all equally likely."""
    index = dataset.index
    choices = np.maximum(index.lengths - length + 1, 0)
    firsts = np.cumsum(choices) - choices
    picks = rng.integers(int(choices.sum()), size=WINDOWS)
    episodes = np.searchsorted(firsts + choices, picks, side="right")
    steps = picks - firsts[episodes]
    return Windows(episodes, steps, index.starts[episodes] + steps, length)


class VideoReader:
    """Random access into the videos of one camera."""

    def __init__(self, dataset: Dataset, camera: str) -> None:
        """Open every file."""
        index, key = dataset.index, IMAGES + camera
        self._files = index.video_files[key]
        self._starts_s = index.video_starts_s[key]
        self._fps = dataset.info.fps
        self._containers: dict[str, Any] = {}
        for file in dict.fromkeys(self._files):
            container = av.open(str(dataset.path / file))
            # For a single core: a decoder with threads costs more CPU seconds per frame.
            container.streams.video[0].codec_context.thread_count = 1
            self._containers[file] = container
        self._reformatter = VideoReformatter()

    def read(self, windows: Windows, out: Image) -> None:
        """Decode a batch into `out`, uint8 (WINDOWS * length, SIZE, SIZE, 3)."""
        places = zip(windows.episodes.tolist(), windows.steps.tolist(), strict=True)
        for number, (episode, step) in enumerate(places):
            first = number * windows.length
            self._read_window(episode, step, out[first : first + windows.length])

    def _read_window(self, episode: int, step: int, out: Image) -> None:
        container = self._containers[self._files[episode]]
        stream = container.streams.video[0]
        # Half a frame early, for times that were rounded.
        begin_s = float(self._starts_s[episode]) + (step - 0.5) / self._fps
        container.seek(max(0, int(begin_s / stream.time_base)), stream=stream, backward=True)
        found = 0
        for frame in container.decode(stream):
            if frame.time >= begin_s:
                fitting = self._reformatter.reformat(
                    frame, width=SIZE, height=SIZE, format="rgb24", interpolation="FAST_BILINEAR"
                )
                out[found] = fitting.to_ndarray()
                found += 1
                if found == len(out):
                    return
        raise AssertionError(f"{found} of {len(out)} frames found")


def main() -> int:
    """Measure, print and write; 1 when a bar is missed."""
    quick = quick_from_command_line(__doc__ or "")
    with tempfile.TemporaryDirectory() as folder:
        figures = _measure(Path(folder), episodes=16 if quick else 160, blocks=3 if quick else 20)
    return 0 if publish("cache_read", figures, quick=quick) else 1


def _measure(folder: Path, *, episodes: int, blocks: int) -> list[Figure]:
    sources = _write_sources(folder, episodes=episodes)
    small = sources["224x224"]
    caches = {
        storage: TrainingCache.open_or_build(
            small, image_size=(SIZE, SIZE), cameras=CAMERAS, storage=storage
        )
        for storage in ("raw", "jpeg")
    }
    rng = np.random.default_rng(SEED)
    figures: list[Figure] = []
    for length in LENGTHS:
        readers = _readers(sources, caches, length=length)
        rates: dict[str, list[float]] = {name: [] for name in readers}
        _check(readers, draw(small, length, rng))
        for _ in range(blocks):
            windows = draw(small, length, rng)
            for name, read in readers.items():
                begin_s = time.process_time()
                read(windows)
                frames = len(CAMERAS) * WINDOWS * length
                rates[name].append(frames / (time.process_time() - begin_s))
        figures += _figures(f"windows of {length}", rates)
    jpeg_bytes = sum((caches["jpeg"].path / f"images-{n}.jpegs").stat().st_size for n in (0, 1))
    frames = len(CAMERAS) * small.frame_count
    per_frame = jpeg_bytes / frames
    figures.append(
        Figure("bytes per frame, JPEG", per_frame, per_frame, per_frame, frames, (SEED,))
    )
    return figures


def _write_sources(folder: Path, *, episodes: int) -> Mapping[str, Dataset]:
    """The same demonstrations, stored at the sizes of `SOURCES`."""
    environment = PyBulletConfig("Stitch", cameras=CAMERAS, image_size=SIZE)
    rendered = collect(
        CollectConfig("stitch", episodes, environment),
        folder / "rendered",
        workers=0,
        resume=False,
        progress=lambda rollout: None,
    )
    written = {}
    for name, camera in SOURCES.items():
        info = replace(rendered.info, cameras=dict.fromkeys(CAMERAS, camera))
        with DatasetWriter(folder / name, info=info) as writer:
            for number in range(len(rendered)):
                episode = rendered.episode(number)
                images = {
                    which: np.stack([_resized(frame, camera) for frame in frames])
                    for which, frames in episode.images.items()
                }
                writer.add_episode(replace(episode, images=images))
        written[name] = Dataset.open(folder / name)
    return written


def _resized(frame: Image, camera: Camera) -> Image:
    return cv2.resize(frame, (camera.width, camera.height), interpolation=cv2.INTER_CUBIC)


Reader = Callable[[Windows], Image]


def _readers(
    sources: Mapping[str, Dataset], caches: Mapping[str, TrainingCache], *, length: int
) -> dict[str, Reader]:
    """Ways to read a batch; each gives the frames of the last camera."""
    kept = np.zeros((len(CAMERAS), WINDOWS * length, SIZE, SIZE, 3), np.uint8)
    memory = RecycledMemory()

    def from_cache(storage: str) -> Reader:
        images = caches[storage].images

        def read(windows: Windows) -> Image:
            rows = windows.rows
            return [gather_frames(images[camera], rows, memory=memory) for camera in CAMERAS][-1]

        return read

    def from_video(source: str) -> Reader:
        videos = [VideoReader(sources[source], camera) for camera in CAMERAS]

        def read(windows: Windows) -> Image:
            for video, out in zip(videos, kept, strict=True):
                video.read(windows, out)
            return kept[-1]

        return read

    plain = [np.load(caches["raw"].path / f"images-{n}.npy", mmap_mode="r") for n in (0, 1)]

    def by_slices(windows: Windows) -> Image:
        for stack, out in zip(plain, kept, strict=True):
            for number, start in enumerate(windows.starts.tolist()):
                out[number * length : (number + 1) * length] = stack[start : start + length]
        return kept[-1]

    def by_rows(windows: Windows) -> Image:
        rows = windows.rows
        return [stack[rows] for stack in plain][-1]

    return {
        "cache": from_cache("raw"),
        "slices": by_slices,
        "rows": by_rows,
        "jpeg": from_cache("jpeg"),
        **{f"AV1 {source}": from_video(source) for source in sources},
    }


def _check(readers: Mapping[str, Reader], windows: Windows) -> None:
    """All must read the same frames, the first time, which warms up too."""
    exact = readers["slices"](windows).copy()
    for name in ("cache", "rows", "AV1 224x224"):
        assert np.array_equal(readers[name](windows), exact), name
    for name in ("jpeg", "AV1 480x640"):
        error = np.abs(readers[name](windows).astype(np.int16) - exact).mean()
        assert error < 4, f"{name}: {error:.2f} grey levels off"


def _figures(about: str, rates: Mapping[str, list[float]]) -> list[Figure]:
    samples = {name: np.array(values) for name, values in rates.items()}
    cache = samples["cache"]

    def parts(figure: str, values: NDArray[np.float64]) -> dict[str, Any]:
        value, low, high = mean_interval(values.tolist())
        return {
            "figure": f"{figure}, {about}",
            "value": value,
            "low": low,
            "high": high,
            "n": len(values),
            "seeds": (SEED,),
        }

    return [
        at_least(20, **parts("cache ÷ AV1 video at 480x640", cache / samples["AV1 480x640"])),
        at_least(20, **parts("cache ÷ AV1 video at 224x224", cache / samples["AV1 224x224"])),
        at_least(0.7, **parts("cache ÷ slices of a plain memmap", cache / samples["slices"])),
        at_least(0.7, **parts("cache ÷ rows of a plain memmap", cache / samples["rows"])),
        *(
            Figure(**parts(f"frames/s per core, {name}", samples[name]))
            for name in ("cache", "jpeg", "AV1 480x640", "AV1 224x224")
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
