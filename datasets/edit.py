"""A data set written anew with a change; the old one stays, or is exchanged for it at once."""

import ctypes
import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from robot_qsft.datasets.ingest import IngestConfig, Progress, ingest
from robot_qsft.datasets.labels import Labels
from robot_qsft.datasets.mapped import MappedSource
from robot_qsft.datasets.store import Dataset

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def edit_in_place(
    mapped: MappedSource,
    config: IngestConfig,
    *,
    labels: Labels | None,
    progress: Progress = lambda what, done, total: None,
) -> Dataset:
    """Write the data set anew beside itself, then exchange the two and remove the old one.

    Until the exchange, which is one step, the old data set is whole and in its place; what was
    interrupted before is gone on with.

    Raises:
        ValueError: when the source is no folder, or as `ingest` does.
        OSError: when there is no room for both; the old data set is untouched.
    """
    path = mapped.source.path
    if not path.is_dir():
        raise ValueError(f"only a folder can be edited in place, but {path} is a file; give --out")
    beside = path.resolve().with_name(f".{path.resolve().name}.edited")
    if (beside / "meta/info.json").exists():
        # It was exchanged, or about to be, when the process died: begin anew from what is there.
        shutil.rmtree(beside)
    ingest(mapped, beside, config, labels=labels, progress=progress)
    exchange(beside, path.resolve())
    shutil.rmtree(beside)
    return Dataset.open(path)


def exchange(first: Path, second: Path) -> None:
    """Let two folders change names in one step (Linux, `renameat2` with RENAME_EXCHANGE).

    Raises:
        OSError: when the system or the file system cannot.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(
            errno.ENOSYS, "this system cannot exchange two folders in one step; give --out"
        )
    failed = libc.renameat2(
        _AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE
    )
    if failed:
        reason = os.strerror(ctypes.get_errno())
        raise OSError(
            ctypes.get_errno(),
            f"{first} and {second} cannot be exchanged in one step ({reason}); give --out",
        )


def split_episodes_by_share(
    count: int, shares: Mapping[str, float], *, seed: int
) -> dict[str, tuple[int, ...]]:
    """Episodes drawn at random for each part, ascending; each belongs to one part.

    Args:
        count: of episodes.
        shares: part to its share; in all 1.
        seed: of the draw.

    Raises:
        ValueError: when the shares are none, or a part stays empty.
    """
    if not shares or min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError(f"shares should be above 0 and 1 in all, but {dict(shares)} came")
    order = np.random.default_rng(seed).permutation(count)
    ends = np.round(np.cumsum(list(shares.values())) * count).astype(int)
    begins = [0, *ends[:-1].tolist()]
    parts = {}
    for name, begin, end in zip(shares, begins, ends.tolist(), strict=True):
        if begin == end:
            raise ValueError(f"part {name!r} of {count} episodes would be empty; raise its share")
        parts[name] = tuple(sorted(order[begin:end].tolist()))
    return parts
