"""A folder that changes at once: files grow below `.writing/` and are renamed at the end."""

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from robot_qsft.datasets.folder_lock import FolderLock

# Renamed in this order; readers start from info.json, so before it comes they see the old state.
_ORDER = (
    "meta/episodes/*/*",
    "meta/tasks.parquet",
    "meta/stats.json",
    "meta/info.json",
)
_ENTRIES = ("data", "videos", "meta")


class Staging:
    """The files of a data set that is being written, and the right to write it."""

    def __init__(self, target: Path) -> None:
        """Make the target folder where it is missing, and keep other writers out.

        Raises:
            ValueError: when another process is writing there.
        """
        self.target = target
        self.folder = target / ".writing"
        target.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = FolderLock(target, wait=False)
        except BlockingIOError as error:
            raise ValueError(
                f"another process is writing to {target}; wait for it or choose another folder"
            ) from error
        self.interrupted = self.folder.exists()

    def begin(self, kept: Collection[Path]) -> None:
        """Remove what an interrupted writer left, and begin.

        Args:
            kept: the files of the data set that is there; none for a new one.

        Raises:
            ValueError: when a new data set finds a folder that is not empty.
        """
        if self.interrupted:
            for entry in _ENTRIES:
                for file in (self.target / entry).rglob("*.*"):
                    if file.is_file() and file not in kept and (not kept or "file-" in file.name):
                        file.unlink()
            shutil.rmtree(self.folder)
        if not kept:
            self._remove_empty_folders()
            if any(self.target.iterdir()):
                raise ValueError(
                    f"expected an empty folder for a new data set, but {self.target} holds other "
                    "files; choose another folder"
                )
        self.folder.mkdir()

    def commit(self) -> None:
        """Rename every file into place and let go.

        Where this fails half way, the next `begin` clears up.
        """
        try:
            files = sorted(
                (file for file in self.folder.rglob("*") if file.is_file()), key=self._rank
            )
            for file in files:
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
            for file in files:
                place = self.target / file.relative_to(self.folder)
                place.parent.mkdir(parents=True, exist_ok=True)
                file.replace(place)
            shutil.rmtree(self.folder)
        finally:
            self._lock.release()

    def discard(self) -> None:
        """Remove what was written here, the folder too if it is empty then, and let go."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Let others write."""
        if not any(self.target.iterdir()):
            self.target.rmdir()
        self._lock.release()

    def _rank(self, file: Path) -> int:
        path = file.relative_to(self.folder)
        return next((rank for rank, name in enumerate(_ORDER, 1) if path.match(name)), 0)

    def _remove_empty_folders(self) -> None:
        for entry in _ENTRIES:
            folders = [folder for folder in (self.target / entry).rglob("*") if folder.is_dir()]
            for folder in [*sorted(folders, reverse=True), self.target / entry]:
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
