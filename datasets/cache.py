"""A data set decoded once for training: frames at training resolution, raw or as JPEGs.

Shape legend: H height, N frames, W width.
"""

import hashlib
import json
import logging
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.cache_images import Progress, write_images
from robot_qsft.datasets.folder_lock import FolderLock
from robot_qsft.datasets.interface import Image
from robot_qsft.datasets.jpeg_cache import JpegFrames
from robot_qsft.datasets.source_hash import SourceHash, source_hash
from robot_qsft.datasets.store import Dataset
from robot_qsft.datasets.tables import Tables

Storage: TypeAlias = Literal["auto", "raw", "jpeg"]
Stored: TypeAlias = Literal["raw", "jpeg"]

# Caches of another layout are removed: of another version, or without a column that training reads.
_LAYOUT: Final = ["2", *(field.name for field in fields(Tables))]
_MANIFEST: Final = "manifest.json"
_HASHES: Final = "hashes.json"
_SPARE_BYTES: Final = 1 << 30
"""Left free on the disk by a raw cache: checkpoints have to go somewhere."""


@dataclass(frozen=True, eq=False)
class TrainingCache:
    """What training reads.

    Attributes:
        tables: all numbers, in memory.
        images: camera name to frames, uint8 (N, H, W, 3): memory-mapped and read-only where stored
            raw, decoded at each reading where stored as JPEGs.
        path: folder of the cache.
        storage: how the frames are stored.
        reason: why so, in words.
    """

    tables: Tables
    images: Mapping[str, Image | JpegFrames]
    path: Path
    storage: Stored
    reason: str

    @classmethod
    def open_or_build(
        cls,
        dataset: Dataset,
        *,
        image_size: tuple[int, int],
        cameras: Sequence[str],
        directory: Path | None = None,
        storage: Storage = "auto",
        raw_budget_bytes: int | None = None,
        workers: int | None = None,
        progress: Progress | None = None,
    ) -> "TrainingCache":
        """Open the cache that fits the content of the data set, or build it.

        Processes that ask at the same time wait for the one that builds. A cache of an earlier
        state of the same data set is removed. Files that have not changed since they were last
        hashed are not read again; `source_hash` tells what that may miss.

        Args:
            dataset: to be decoded.
            image_size: (H, W) of the frames, in pixels; others are resized.
            cameras: names of the cameras to decode; none for training without images.
            directory: where caches are kept; `.cache` beside the data set if None.
            storage: "raw" is fastest; "jpeg" takes a tenth of the bytes or less, and a core decodes
                some thousand frames of 224x224 a second. "auto" opens what is there, else builds
                raw where that fits on the disk and into the budget, and JPEGs where it does not.
            raw_budget_bytes: most that "auto" may store raw; only the disk limits it if None.
            workers: threads that decode; one for each core if None. The bytes are the same.
            progress: called with frames done and frames in all.

        Raises:
            ValueError: when the data set is damaged or has no such camera, or a setting is none.
            OSError: when the disk is full; nothing is left behind.
        """
        if storage not in ("auto", "raw", "jpeg"):
            raise ValueError(f"storage must be auto, raw or jpeg, got {storage!r}")
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        directory = directory or dataset.path.resolve().parent / ".cache"
        directory.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(directory, wait=True)
        try:
            source = source_hash(dataset, _remembered(directory, dataset))
            _remove_leftovers(directory, dataset=dataset, source=source.value)
            paths: dict[Stored, Path] = {
                stored: directory / _name(dataset, source.value, image_size, cameras, stored)
                for stored in ("raw", "jpeg")
            }
            raw_bytes = dataset.frame_count * len(cameras) * math.prod(image_size) * 3
            stored, reason = _choose(
                storage,
                paths,
                raw_bytes=raw_bytes,
                free_bytes=shutil.disk_usage(directory).free,
                budget_bytes=raw_budget_bytes,
            )
            path = paths[stored]
            if not _is_complete(path):
                _log(stored, reason, wanted=storage)
                _build(
                    path,
                    dataset,
                    source=source,
                    image_size=image_size,
                    cameras=cameras,
                    stored=stored,
                    reason=reason,
                    workers=workers,
                    progress=progress,
                )
            elif _read_json(path / _HASHES) != source.files:
                # Only saves time, so a folder that may not be written to is no hindrance.
                with suppress(OSError):
                    _write_json(path / _HASHES, source.files)
        finally:
            lock.release()
        return cls._open(path)

    @classmethod
    def _open(cls, path: Path) -> "TrainingCache":
        manifest = _read_manifest(path)
        columns: dict[str, Any] = {
            name: _load(path / f"{name}.npy", mapped=False) for name in manifest["arrays"]
        }
        columns |= {name: _as_tuples(value) for name, value in manifest["words"].items()}
        stored: Stored = manifest["storage"]
        height, width = manifest["image_size"]
        images: dict[str, Image | JpegFrames] = {
            camera: (
                _load(path / file, mapped=True)
                if stored == "raw"
                else JpegFrames(path / file, (height, width))
            )
            for camera, file in manifest["images"].items()
        }
        return cls(
            tables=Tables(**columns),
            images=images,
            path=path,
            storage=stored,
            reason=manifest["reason"],
        )


def _name(
    dataset: Dataset,
    source: str,
    image_size: tuple[int, int],
    cameras: Sequence[str],
    stored: Stored,
) -> str:
    """The folder of a cache, other for everything that makes its content other."""
    kind = json.dumps([_LAYOUT, source, list(image_size), sorted(cameras), stored])
    return f"{dataset.path.resolve().name}-{hashlib.sha256(kind.encode()).hexdigest()[:16]}"


def _choose(
    storage: Storage,
    paths: Mapping[Stored, Path],
    *,
    raw_bytes: int,
    free_bytes: int,
    budget_bytes: int | None,
) -> tuple[Stored, str]:
    """How to store frames, and why."""
    if storage != "auto":
        return storage, "asked for"
    needed = f"{raw_bytes / 1e9:.3g} GB raw"
    if budget_bytes is not None and raw_bytes > budget_bytes:
        return "jpeg", f"{needed} are more than the budget of {budget_bytes / 1e9:.3g} GB"
    # What was built before stays in use: the space that it takes now speaks against itself, and
    # a run that goes on should see the same frames.
    for stored, path in paths.items():
        if _is_complete(path):
            return stored, "built before"
    if raw_bytes and raw_bytes + _SPARE_BYTES > free_bytes:
        return "jpeg", (
            f"{needed} and {_SPARE_BYTES / 1e9:.3g} GB to spare do not fit into the "
            f"{free_bytes / 1e9:.3g} GB that are free"
        )
    return "raw", f"{needed} fit"


def _log(stored: Stored, reason: str, *, wanted: Storage) -> None:
    level = logging.WARNING if wanted == "auto" and stored == "jpeg" else logging.INFO
    logging.getLogger(__name__).log(
        level, "training cache: frames stored as %s, %s", stored, reason
    )


def _is_complete(path: Path) -> bool:
    """Whether the cache is there with files of the sizes that its manifest tells."""
    manifest = _read_manifest(path)
    try:
        return bool(manifest) and all(
            (path / file).stat().st_size == size for file, size in manifest["sizes"].items()
        )
    except OSError:
        return False


def _caches(directory: Path, dataset: Dataset) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Folders and manifests of all caches of a data set, whatever its content was."""
    for cache in directory.iterdir():
        manifest = _read_manifest(cache)
        if manifest.get("path") == str(dataset.path.resolve()):
            yield cache, manifest


def _remembered(directory: Path, dataset: Dataset) -> dict[str, str]:
    """What files of the data set contained when caches were built or opened."""
    files = {}
    for cache, _ in _caches(directory, dataset):
        files.update(_read_json(cache / _HASHES))
    return files


def _remove_leftovers(directory: Path, *, dataset: Dataset, source: str) -> None:
    """Remove builds that were killed, and caches of the data set as it was before."""
    for leftover in directory.glob(".building-*"):
        shutil.rmtree(leftover)
    for cache, manifest in list(_caches(directory, dataset)):
        if manifest.get("source") != source or manifest.get("layout") != _LAYOUT:
            shutil.rmtree(cache)


def _build(
    path: Path,
    dataset: Dataset,
    *,
    source: SourceHash,
    image_size: tuple[int, int],
    cameras: Sequence[str],
    stored: Stored,
    reason: str,
    workers: int | None,
    progress: Progress | None,
) -> None:
    tables = dataset.tables()
    columns = {field.name: getattr(tables, field.name) for field in fields(Tables)}
    arrays = {name: value for name, value in columns.items() if isinstance(value, np.ndarray)}
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=path.parent))
    try:
        for name, array in arrays.items():
            np.save(building / f"{name}.npy", array, allow_pickle=False)
        ending = {"raw": "npy", "jpeg": "jpegs"}[stored]
        images = {camera: f"images-{n}.{ending}" for n, camera in enumerate(cameras)}
        write_images(
            {camera: building / file for camera, file in images.items()},
            dataset,
            image_size=image_size,
            jpeg=stored == "jpeg",
            workers=workers,
            progress=progress,
        )
        manifest: dict[str, Any] = {
            "layout": _LAYOUT,
            "path": str(dataset.path.resolve()),
            "source": source.value,
            "storage": stored,
            "reason": reason,
            "image_size": list(image_size),
            "images": images,
            "arrays": list(arrays),
            "words": {name: value for name, value in columns.items() if name not in arrays},
            "sizes": {file.name: file.stat().st_size for file in building.iterdir()},
        }
        _write_json(building / _HASHES, source.files)
        _write_json(building / _MANIFEST, manifest | {"digest": _digest(manifest)})
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


def _load(file: Path, *, mapped: bool) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(file, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"expected an array at {file}, but it cannot be read ({error}); delete the folder "
            f"{file.parent}, which is built again from the data set"
        ) from error
    return array


def _as_tuples(value: Any) -> Any:
    """JSON knows only lists; tables hold tuples."""
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _read_manifest(path: Path) -> dict[str, Any]:
    """What a cache says of itself; nothing where that is missing or damaged."""
    manifest = _read_json(path / _MANIFEST)
    digest = manifest.pop("digest", None)
    return manifest if digest == _digest(manifest) else {}


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(manifest)).encode()).hexdigest()


def _read_json(file: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object at once: readers see all of it, or what was there before."""
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps(dict(content)), encoding="utf-8")
    draft.replace(file)
