"""The index of a LeRobot data set of whichever version, and the files that it names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robot_qsft.datasets.index import EpisodeIndex, read_index, version_of
from robot_qsft.datasets.index_v2 import read_index_v2


def open_index(path: Path, stored: Mapping[str, Any]) -> EpisodeIndex:
    """Read the index, and see that every file it names is there.

    Args:
        path: of the data set.
        stored: its `meta/info.json`, as `read_info` gives it.

    Raises:
        ValueError: when a file is missing or damaged, or episodes are missing.
    """
    read = read_index if version_of(stored).startswith("v3") else read_index_v2
    try:
        index = read(path, stored)
    except (UnicodeDecodeError, TypeError) as error:
        # PyArrow's words for names that are no text, and ours for numbers that are null.
        raise ValueError(f"the files of {path}/meta are damaged ({error}); restore them") from error
    for file in source_files(path, index):
        if not file.is_file():
            raise ValueError(
                f"expected the file {file.relative_to(path)} of the data set {path}, but it is "
                "missing; restore it or record again"
            )
    return index


def source_files(path: Path, index: EpisodeIndex) -> tuple[Path, ...]:
    """Every file that the content of the data set depends on, sorted."""
    videos = (file for files in index.video_files.values() for file in files)
    files = {"meta/info.json", index.task_file, *index.meta_files, *index.data_files}
    return tuple(path / file for file in sorted({*files, *videos}))
