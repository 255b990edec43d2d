"""What a data set contains, as one number that is quick to find again.

Reading a data set of 100 GB takes minutes. So what a file contained is remembered by its path,
size, times of change and inode. What is lost: a change that shows in none of these (a failing disk,
a file system that does not keep times) goes unnoticed until the memory is deleted. The time of the
last change of the inode (ctime) is among them because programs that set a file's time back, such as
`cp -p` and `rsync`, cannot set that one.
"""

import hashlib
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from robot_qsft.datasets.store import Dataset

# Of two changes within one tick of the file system's clock the second leaves the time as it is.
# What was hashed that soon after a change is not remembered.
_CLOCK_TICK_NS: Final = 2_000_000_000
_THREADS: Final = 4


@dataclass(frozen=True)
class SourceHash:
    """The content of a data set.

    Attributes:
        value: SHA-256 over names and bytes of all files, in hexadecimal.
        files: stamp of a file (its path and what tells whether it changed) to the SHA-256 of its
            bytes; without those that changed just now.
    """

    value: str
    files: Mapping[str, str]


def source_hash(dataset: Dataset, remembered: Mapping[str, str]) -> SourceHash:
    """Hash a data set, reading only files whose stamps are not in `remembered`.

    Args:
        dataset: whose files are hashed.
        remembered: `SourceHash.files` of earlier calls.

    Raises:
        ValueError: when a file cannot be read.
    """
    files = {file.relative_to(dataset.path).as_posix(): file for file in dataset.source_files()}
    now_ns = time.time_ns()
    # Stamps are taken first: a change while a file is read then shows the next time.
    stamps = {name: _stamp(name, file) for name, file in files.items()}
    unread = [name for name in files if stamps[name].text not in remembered]
    with ThreadPoolExecutor(_THREADS) as pool:
        read = dict(
            zip(unread, pool.map(_hash_file, [files[name] for name in unread]), strict=True)
        )
    contents = {name: read.get(name) or remembered[stamps[name].text] for name in files}
    text = "".join(f"{name} {content}\n" for name, content in contents.items())
    return SourceHash(
        value=hashlib.sha256(text.encode()).hexdigest(),
        files={
            stamps[name].text: content
            for name, content in contents.items()
            if stamps[name].changed_ns < now_ns - _CLOCK_TICK_NS
        },
    )


@dataclass(frozen=True)
class _Stamp:
    """A file's path and what tells whether it changed, as text; and when it last did."""

    text: str
    changed_ns: int


def _stamp(name: str, file: Path) -> _Stamp:
    try:
        status = file.stat()
    except OSError as error:
        raise ValueError(_unreadable(file, error)) from error
    parts = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, name)
    return _Stamp(" ".join(map(str, parts)), max(status.st_mtime_ns, status.st_ctime_ns))


def _hash_file(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(_unreadable(file, error)) from error


def _unreadable(file: Path, error: OSError) -> str:
    return (
        f"expected a readable file at {file}, but reading it failed ({error.strerror or error}); "
        "restore it or record again"
    )
