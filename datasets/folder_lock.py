"""One process at a time in a folder; the lock dies with the process that holds it."""

import fcntl
import os
from pathlib import Path


class FolderLock:
    """An advisory lock on a folder, held from construction to `release`."""

    def __init__(self, folder: Path, *, wait: bool) -> None:
        """Take the lock.

        Args:
            folder: an existing folder.
            wait: whether to wait for another holder.

        Raises:
            BlockingIOError: when another process holds the lock and `wait` is false.
        """
        self._descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BaseException:
            os.close(self._descriptor)
            raise

    def release(self) -> None:
        """Let others in, children forked meanwhile included."""
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        os.close(self._descriptor)
