"""A data set decoded once for training: frames memory-mapped at training resolution.

Shape legend: H height, N frames, W width.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.folder_lock import FolderLock
from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.store import Dataset
from robot_qsft.datasets.tables import Tables

Progress = Callable[[int, int], None]

_VERSION = 1
_MANIFEST = "manifest.json"
_REPORT_EVERY = 256
_ARRAYS = (
    "states",
    "environment_states",
    "actions",
    "rewards",
    "successes",
    "episode_starts",
    "terminated",
    "truncated",
    "task_indices",
)


@dataclass(frozen=True, eq=False)
class TrainingCache:
    """What training reads.

    Attributes:
        tables: all numbers, in memory.
        images: camera name to frames, uint8 (N, H, W, 3), memory-mapped and read-only.
        path: folder of the cache.
    """

    tables: Tables
    images: Mapping[str, Image]
    path: Path

    @classmethod
    def open_or_build(
        cls,
        dataset: Dataset,
        *,
        image_size: tuple[int, int],
        cameras: Sequence[str],
        directory: Path | None = None,
        progress: Progress | None = None,
    ) -> "TrainingCache":
        """Open the cache that fits the content of the data set, or build it.

        Processes that ask at the same time wait for the one that builds. A cache of an earlier
        state of the same data set is removed.

        Args:
            dataset: to be decoded.
            image_size: (H, W) of the frames, in pixels; others are resized.
            cameras: names of the cameras to decode; none for training without images.
            directory: where caches are kept; `.cache` beside the data set if None.
            progress: called with frames done and frames in all.

        Raises:
            ValueError: when the data set is damaged or has no such camera.
            OSError: when the disk is full; nothing is left behind.
        """
        directory = directory or dataset.path.resolve().parent / ".cache"
        directory.mkdir(parents=True, exist_ok=True)
        source = source_hash(dataset)
        kind = json.dumps([_VERSION, source, list(image_size), sorted(cameras)])
        name = f"{dataset.path.resolve().name}-{hashlib.sha256(kind.encode()).hexdigest()[:16]}"
        path = directory / name
        lock = FolderLock(directory, wait=True)
        try:
            if not _is_complete(path):
                _remove_leftovers(directory, dataset=dataset, source=source)
                _build(
                    path,
                    dataset,
                    source=source,
                    image_size=image_size,
                    cameras=cameras,
                    progress=progress,
                )
        finally:
            lock.release()
        return cls._open(path)

    @classmethod
    def _open(cls, path: Path) -> "TrainingCache":
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        arrays = {name: _load(path / f"{name}.npy", mapped=False) for name in _ARRAYS}
        words = manifest["tables"]
        tables = Tables(
            **arrays,
            tasks=tuple(words["tasks"]),
            demonstrators=tuple(words["demonstrators"]),
            reward_source=words["reward_source"],
            success_source=words["success_source"],
        )
        images = {
            camera: _load(path / file, mapped=True) for camera, file in manifest["images"].items()
        }
        return cls(tables=tables, images=images, path=path)


def source_hash(dataset: Dataset) -> str:
    """SHA-256 over names and bytes of all files of a data set, in hexadecimal."""
    digest = hashlib.sha256()
    for file in dataset.source_files():
        with file.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        digest.update(f"{file.relative_to(dataset.path).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def _is_complete(path: Path) -> bool:
    """Whether the cache is there with files of the sizes that its manifest tells."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        return all((path / file).stat().st_size == size for file, size in manifest["sizes"].items())
    except (OSError, ValueError):
        return False


def _remove_leftovers(directory: Path, *, dataset: Dataset, source: str) -> None:
    """Remove builds that were killed, and caches of the data set as it was before."""
    for leftover in directory.glob(".building-*"):
        shutil.rmtree(leftover)
    for cache in directory.iterdir():
        if _is_complete(cache):
            manifest = json.loads((cache / _MANIFEST).read_text(encoding="utf-8"))
            if manifest["path"] == str(dataset.path.resolve()) and manifest["source"] != source:
                shutil.rmtree(cache)


def _build(
    path: Path,
    dataset: Dataset,
    *,
    source: str,
    image_size: tuple[int, int],
    cameras: Sequence[str],
    progress: Progress | None,
) -> None:
    tables = dataset.tables()
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=path.parent))
    try:
        for name in _ARRAYS:
            np.save(building / f"{name}.npy", getattr(tables, name), allow_pickle=False)
        total = dataset.frame_count * len(cameras)
        for number, camera in enumerate(cameras):
            file = building / f"images-{number}.npy"
            for frames in _write_frames(file, dataset, camera=camera, image_size=image_size):
                if progress is not None:
                    progress(number * dataset.frame_count + frames, total)
        manifest: dict[str, Any] = {
            "path": str(dataset.path.resolve()),
            "source": source,
            "images": {camera: f"images-{n}.npy" for n, camera in enumerate(cameras)},
            "tables": {
                field.name: getattr(tables, field.name)
                for field in fields(Tables)
                if field.name not in _ARRAYS
            },
            "sizes": {file.name: file.stat().st_size for file in building.iterdir()},
        }
        (building / _MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        if path.exists():
            shutil.rmtree(path)
        building.rename(path)
    except OSError as error:
        raise OSError(
            error.errno,
            f"the cache of {dataset.path} cannot be written below {path.parent} "
            f"({error.strerror or error}); free some space or choose another folder",
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write_frames(
    file: Path, dataset: Dataset, *, camera: str, image_size: tuple[int, int]
) -> Iterator[int]:
    """Write frames one after another, which fails cleanly on a full disk; a mapping would not.

    Yields:
        Now and then and at the end, how many have been written.
    """
    height, width = image_size
    with file.open("wb") as opened:
        np.lib.format.write_array_header_1_0(
            opened,
            {
                "descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)),
                "fortran_order": False,
                "shape": (dataset.frame_count, height, width, 3),
            },
        )
        for number, frame in enumerate(dataset.frames(camera), start=1):
            fitting = (
                frame
                if frame.shape[:2] == image_size
                else cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
            )
            opened.write(np.ascontiguousarray(fitting).data)
            if number % _REPORT_EVERY == 0:
                yield number
    yield dataset.frame_count


def _load(file: Path, *, mapped: bool) -> NDArray[Any]:
    array: NDArray[Any] = np.load(file, mmap_mode="r" if mapped else None, allow_pickle=False)
    return array
