"""What `meta/` says of a LeRobot v2.0 or v2.1 data set, whose episodes have files of their own."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from robot_qsft.datasets.index import EpisodeIndex, checked_lengths, file_path, video_keys

_EPISODES = "meta/episodes.jsonl"
_TASKS = "meta/tasks.jsonl"
_LARGEST_FILE = 1 << 30


def read_index_v2(path: Path, stored: Mapping[str, Any]) -> EpisodeIndex:
    """Read `meta/episodes.jsonl` and `meta/tasks.jsonl`.

    Raises:
        ValueError: when a file is missing or damaged, or episodes are missing.
    """
    total = int(stored["total_episodes"])
    episodes = _read_lines(path / _EPISODES, {"episode_index": int, "length": int})
    # An interrupted append may have left episodes that info.json does not count.
    episodes = [episode for episode in episodes if episode["episode_index"] < total]
    episodes.sort(key=lambda episode: episode["episode_index"])
    if total < 1 or len(episodes) != total:
        raise ValueError(
            f"expected the {total} episodes that info.json counts in {path / _EPISODES}, at least "
            f"one, but {len(episodes)} came; restore that file or record again"
        )
    lengths = checked_lengths(
        np.array([episode["length"] for episode in episodes]),
        np.array([episode["episode_index"] for episode in episodes]),
        path=path,
    )
    chunk_size = stored.get("chunks_size", 1000)
    if not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(
            f"'chunks_size' in {path}/meta/info.json cannot be {chunk_size!r}; restore the file"
        )

    def paths(template: str, **more: str) -> tuple[str, ...]:
        return tuple(
            file_path(
                template,
                episode_chunk=episode // chunk_size,
                episode_index=episode,
                **more,
            )
            for episode in range(total)
        )

    videos = video_keys(stored)
    return EpisodeIndex(
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        data_files=paths(stored["data_path"]),
        video_files={key: paths(stored["video_path"], video_key=key) for key in videos},
        video_starts_s={key: np.zeros(total) for key in videos},
        tasks=_read_tasks(path / _TASKS),
        demonstrators=("",) * total,
        recorded=None,
        meta_files=(_EPISODES,),
        task_file=_TASKS,
    )


def _read_tasks(file: Path) -> tuple[str, ...]:
    tasks = _read_lines(file, {"task_index": int, "task": str})
    tasks.sort(key=lambda task: task["task_index"])
    if [task["task_index"] for task in tasks] != list(range(len(tasks))):
        raise ValueError(f"{file} should number its tasks from 0 without gaps; mend task_index")
    return tuple(task["task"] for task in tasks)


def _read_lines(file: Path, kinds: Mapping[str, type]) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, each of which must have entries of these kinds."""
    if not file.is_file():
        raise ValueError(f"expected the file {file}, but it is missing; restore it or record again")
    rows = []
    try:
        if file.stat().st_size > _LARGEST_FILE:
            raise ValueError(f"it has more than {_LARGEST_FILE} bytes")
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                for key, kind in kinds.items():
                    if not isinstance(row, dict) or not isinstance(row.get(key), kind):
                        raise ValueError(f"line {number} has no {key!r}")
                rows.append(row)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error}); restore it or record again") from error
    return rows
