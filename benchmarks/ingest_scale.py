"""Ingestion of many episodes: time to open, frames per second by worker, memory, same bytes.

The source is a LeRobot data set of random walks with one 64x64 AV1 camera, made once and kept under
`runs/benchmarks/ingest_scale`. Memory is that of all processes together. Where it is measured of
ten times as many episodes, they have no camera, and lie as LeRobot records them, which takes the
most memory to read: a row group per episode, in files of up to 100 MB.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from report import Figure, at_least, at_most, mean_interval, publish, quick_from_command_line
from rich.progress import track

from robot_qsft.datasets.episode import Episode
from robot_qsft.datasets.features import Camera, DatasetInfo
from robot_qsft.datasets.formats.detect import open_source
from robot_qsft.datasets.source import EpisodeSource
from robot_qsft.datasets.store import Dataset
from robot_qsft.datasets.writer import DatasetWriter

FOLDER = Path(__file__).parent.parent / "runs" / "benchmarks" / "ingest_scale"
STEPS = 20
_EPISODES_PER_FILE = 20_000
_EPISODE_NUMBERS = {"episode_index": 1, "dataset_from_index": STEPS, "dataset_to_index": STEPS}
GIGABYTE = 1e9


@dataclass
class Peak:
    """Largest resident memory of a process and its children while the block ran, in bytes."""

    process: subprocess.Popen[bytes]
    bytes: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Peak":
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            try:
                root = psutil.Process(self.process.pid)
                family = [root, *root.children(recursive=True)]
                self.bytes = max(self.bytes, sum(one.memory_info().rss for one in family))
            except psutil.NoSuchProcess:
                continue


def main() -> int:
    """Measure, print and write; 1 when a bar is missed."""
    quick = quick_from_command_line(__doc__ or "")
    small, large = (50, 300) if quick else (1_000, 10_000)
    repeats = 2 if quick else 10
    source, part = _source(large), _source(small)
    out = FOLDER / "out"

    opened = [_seconds_to_open(source) for _ in range(repeats)]
    many_files = [_seconds_to_open(_one_file_per_episode(large)) for _ in range(repeats)]
    rates: dict[int, list[float]] = {1: [], 2: []}
    peaks: dict[int, list[float]] = {small: [], large: []}
    for _ in range(1 if quick else 3):
        for workers, samples in rates.items():
            seconds, peak = _ingest(part, out, workers=workers)
            samples.append(small * STEPS / seconds)
            if workers == 2:
                peaks[small].append(peak / GIGABYTE)
    _, peak = _ingest(source, out, workers=2)
    peaks[large].append(peak / GIGABYTE)
    whole = _digest(out)
    killed = _ingest_killed_midway(source, out)
    same = float(_digest(out) == whole)
    many = 10 * large
    _, peak = _ingest(_row_group_per_episode(many), out, workers=2)
    peaks[many] = [peak / GIGABYTE]

    def parts(figure: str, samples: list[float], n: int) -> dict[str, object]:
        value, low, high = mean_interval(samples) if len(samples) > 1 else (samples[0],) * 3
        return {"figure": figure, "value": value, "low": low, "high": high, "n": n, "seeds": (0,)}

    figures = [
        at_most(2, **parts(f"seconds to open {large} episodes, v3.0", opened, repeats)),
        at_most(2, **parts(f"seconds to open {large} episodes, v2.1", many_files, repeats)),
        at_most(1.5, **parts(f"peak memory in GB, {large} episodes, 2 workers", peaks[large], 1)),
        at_most(1.5, **parts(f"peak memory in GB, {many} episodes, 2 workers", peaks[many], 1)),
        Figure(**parts(f"peak memory in GB, {small} episodes, 2 workers", peaks[small], 3)),
        at_least(1, **parts(f"same bytes after a kill at {killed:.0%} of the frames", [same], 1)),
        Figure(**parts("frames/s, 1 worker", rates[1], len(rates[1]))),
        Figure(**parts("frames/s, 2 workers", rates[2], len(rates[2]))),
    ]
    shutil.rmtree(out)
    return 0 if publish("ingest_scale", figures, {"steps": STEPS}, quick=quick) else 1


def _source(episodes: int, *, camera: bool = True) -> Path:
    """A data set of so many episodes; 1 in 4 succeeds."""
    path = FOLDER / f"source{'' if camera else '-numbers'}-{episodes}"
    if (path / "meta/info.json").exists():
        return path
    info = DatasetInfo(
        fps=10,
        action_names=tuple("xyzrpyg"),
        state_names=tuple(f"joint_{number}" for number in range(7)),
        cameras={"front": Camera(64, 64, "video")} if camera else {},
    )
    with DatasetWriter(path, info=info) as writer:
        for episode in track(_walks(episodes), f"{episodes} episodes", total=episodes):
            writer.add_episode(episode if camera else replace(episode, images={}))
    return path


def _row_group_per_episode(episodes: int) -> Path:
    """Episodes without a camera, those of a small set over and over, in LeRobot's layout."""
    path = FOLDER / f"source-row-groups-{episodes}"
    if (path / "meta/info.json").exists():
        return path
    small = _source(min(episodes, 1_000), camera=False)
    data, meta = (next((small / part).rglob("*.parquet")) for part in ("data", "meta/episodes"))
    rows, about = pq.read_table(data), pq.read_table(meta)
    each = len(about)
    for file, first in enumerate(range(0, episodes, _EPISODES_PER_FILE)):
        repeats = range(first, min(episodes, first + _EPISODES_PER_FILE), each)
        places = {"data/file_index": file, "meta/episodes/file_index": file}
        for part, table, per_episode, per_file, size in (
            (data, rows, {"episode_index": 1, "index": STEPS}, {}, STEPS),
            (meta, about, _EPISODE_NUMBERS, places, 100),
        ):
            copies = [
                _raised(
                    table, {name: step * begin for name, step in per_episode.items()} | per_file
                )
                for begin in repeats
            ]
            target = path / part.relative_to(small).with_name(f"file-{file:03d}.parquet")
            target.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.concat_tables(copies), target, row_group_size=size)
    shutil.copy(small / "meta/tasks.parquet", path / "meta")
    shutil.copy(small / "meta/stats.json", path / "meta")
    info = json.loads((small / "meta/info.json").read_text())
    info |= {"total_episodes": episodes, "total_frames": episodes * STEPS, "splits": {}}
    (path / "meta/info.json").write_text(json.dumps(info))
    return path


def _raised(table: pa.Table, by: Mapping[str, int]) -> pa.Table:
    """A table with something added to some of its columns of whole numbers."""
    for name, value in by.items():
        column = pc.add(table.column(name), value).cast(table.schema.field(name).type)
        table = table.set_column(table.column_names.index(name), table.schema.field(name), column)
    return table


def _walks(episodes: int) -> Iterator[Episode]:
    rng = np.random.default_rng(0)
    ramp = np.add.outer(np.arange(64), np.arange(64))[None, :, :, None]
    for number in range(episodes):
        actions = rng.normal(size=(STEPS, 7)).astype(np.float32)
        success = number % 4 == 0
        rewards = np.zeros(STEPS, np.float32)
        rewards[-1] = success
        shift = np.arange(STEPS)[:, None, None, None] * 3 + number
        yield Episode(
            states=actions.cumsum(axis=0),
            actions=actions,
            rewards=rewards,
            successes=rewards > 0,
            terminated=success,
            truncated=not success,
            instruction=f"task {number % 7}",
            images={
                "front": np.broadcast_to((ramp + shift) % 256, (STEPS, 64, 64, 3)).astype("u1")
            },
            environment_states=np.zeros((STEPS, 0), np.float32),
        )


def _one_file_per_episode(episodes: int) -> Path:
    """The same many episodes as v2.1 lays them out; the contents of all files are those of one."""
    path = FOLDER / f"source-v21-{episodes}"
    if (path / "meta/info.json").exists():
        return path
    whole = Dataset.open(_source(episodes))
    info = {
        **whole.stored_info,
        "codebase_version": "v2.1",
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/{video_key}/{episode_chunk:03d}/{episode_index:06d}.mp4",
    }
    first = pq.read_table(whole.path / whole.index.data_files[0]).slice(0, STEPS)
    video = whole.path / next(iter(whole.index.video_files.values()))[0]
    for episode in range(episodes):
        names = {"episode_chunk": episode // 1000, "episode_index": episode}
        file = path / info["data_path"].format(**names)
        file.parent.mkdir(parents=True, exist_ok=True)
        number = first.column_names.index("episode_index")
        column = pa.array([episode] * STEPS, pa.int64())
        pq.write_table(first.set_column(number, "episode_index", column), file)
        film = path / info["video_path"].format(video_key="observation.images.front", **names)
        film.parent.mkdir(parents=True, exist_ok=True)
        if not film.exists():
            os.link(video, film)
    meta = path / "meta"
    meta.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"episode_index": episode, "tasks": ["task 0"], "length": STEPS})
        for episode in range(episodes)
    ]
    (meta / "episodes.jsonl").write_text("\n".join(lines))
    (meta / "tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "task 0"}))
    (meta / "info.json").write_text(json.dumps(info))
    return path


def _seconds_to_open(path: Path) -> float:
    begin = time.perf_counter()
    source: EpisodeSource = open_source(path)
    seconds = time.perf_counter() - begin
    assert len(source) > 0
    return seconds


def _command(source: Path, out: Path, *, workers: int) -> list[str]:
    command = [sys.executable, "-m", "robot_qsft", "ingest", str(source), "--out", str(out)]
    return [*command, "--workers", str(workers)]


def _ingest(source: Path, out: Path, *, workers: int) -> tuple[float, int]:
    """Seconds that the whole command took, and its peak memory in bytes."""
    shutil.rmtree(out, ignore_errors=True)
    begin = time.perf_counter()
    process = subprocess.Popen(_command(source, out, workers=workers), stdout=subprocess.DEVNULL)
    with Peak(process) as peak:
        status = process.wait()
    assert status == 0, f"ingest ended with status {status}"
    return time.perf_counter() - begin, peak.bytes


def _ingest_killed_midway(source: Path, out: Path) -> float:
    """Kill the command once half of the shards are there, then let it go on; the share done."""
    total = len(list((out / "data").rglob("*.parquet")))
    shutil.rmtree(out)
    command = _command(source, out, workers=2)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    shards = out / ".writing" / "shards"
    while process.poll() is None and len(list(shards.glob("*.json"))) < total / 2:
        time.sleep(0.02)
    done = len(list(shards.glob("*.json")))
    assert process.poll() is None, "it ended before it was killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return done / total


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            digest.update(file.relative_to(folder).as_posix().encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
