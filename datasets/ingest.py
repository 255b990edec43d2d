"""Demonstrations of any format into a data set that training reads, by all cores.

Two passes: the first looks at every episode's length, instruction and outcome, so that the second
can write any shard without knowing the others. Shards do not depend on the number of workers, nor
on whether the work was interrupted: the files come out the same.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, Literal, TypeVar

from robot_qsft.datasets.episode_columns import EpisodePlace
from robot_qsft.datasets.features import (
    ACTION,
    ENVIRONMENT_STATE,
    STATE,
    Camera,
    Feature,
    with_cameras_and_places,
)
from robot_qsft.datasets.field_map import field_map_text
from robot_qsft.datasets.freed_memory import give_back_freed_memory
from robot_qsft.datasets.labels import Labels, apply_labels
from robot_qsft.datasets.mapped import MappedSource, settle
from robot_qsft.datasets.merged import paths_of
from robot_qsft.datasets.meta_files import new_info, write_meta
from robot_qsft.datasets.outcomes import Evidence
from robot_qsft.datasets.parallel import in_processes, on_ray
from robot_qsft.datasets.shards import (
    Job,
    Planned,
    Shard,
    cut_into_shards,
    data_files,
    mapped_source,
    marker,
    read_marker,
    write_shard,
)
from robot_qsft.datasets.source import Column, KeepsFilesOpen
from robot_qsft.datasets.staging import Staging
from robot_qsft.datasets.statistics import FeatureStatistics, combine
from robot_qsft.datasets.store import Dataset
from robot_qsft.datasets.video import codec_of
from robot_qsft.datasets.wording import listed
from robot_qsft.datasets.writer import encoder_for

T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is, and how much there is."""

_VERSION = 1
_SETTINGS = "ingest.json"
_EPISODES_PER_TASK = 64


@dataclass(frozen=True)
class IngestConfig:
    """What becomes of the demonstrations.

    Attributes:
        storage: "source" keeps frames as exactly as the source does; "video" is small (AV1,
            slightly lossy), "image" exact (PNG).
        leave_out: episodes of the source that are not taken, by their number.
        only: episodes that are; () for all.
        split: take this split of the source, such as a robomimic mask; "" for all.
        workers: processes; 0 for one per core.
        ray: address of a Ray cluster that does the work instead; "" for none.
    """

    storage: Literal["source", "video", "image"] = "source"
    leave_out: tuple[int, ...] = ()
    only: tuple[int, ...] = ()
    split: str = ""
    workers: int = 0
    ray: str = ""


@dataclass(frozen=True)
class Look:
    """What the first pass sees of an episode.

    Attributes:
        name: what the source calls it.
        length: steps recorded.
        instruction: what was asked for.
        evidence: of how it ended.
    """

    name: str
    length: int
    instruction: str
    evidence: Evidence


def ingest(
    mapped: MappedSource,
    out: Path,
    config: IngestConfig,
    *,
    labels: Labels | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Dataset:
    """Write a data set; one that was interrupted is gone on with.

    Args:
        mapped: what is read, and how.
        out: folder of the new data set.
        config: what becomes of it.
        labels: of people, which count more than what the source tells; None for none.
        progress: told of episodes looked at and frames written.

    Raises:
        ValueError: when something else lies at `out`, or an episode is damaged.
        OSError: when the disk is full; the same command goes on once there is room.
    """
    if (out / "meta/info.json").exists():
        raise ValueError(
            f"there is a data set at {out} already; choose another folder or delete it"
        )
    chosen = _chosen(mapped, config)
    settings = _settings(mapped, config, labels)
    staging = Staging(out)
    try:
        if not _goes_on(staging, settings):
            staging.begin(())
            (staging.folder / _SETTINGS).write_text(settings, encoding="utf-8")
        job = _job(mapped, config, staging.folder)
        # From here on the workers read, each with files of its own.
        if isinstance(mapped.source, KeepsFilesOpen):
            mapped.source.close()
        give_back_freed_memory()
        looks = list(_looks(job, chosen, config, progress))
        evidences = [look.evidence for look in looks]
        if labels is not None:
            here = {episode: number for number, episode in enumerate(chosen)}
            evidences = apply_labels(
                evidences,
                {here[episode]: label for episode, label in labels.items() if episode in here},
                names=[look.name for look in looks],
                lengths=[look.length for look in looks],
            )
        planned = _plan(mapped, chosen, looks, evidences)
        pixels = sum(camera.height * camera.width for camera in mapped.cameras.values())
        shards = cut_into_shards(job, planned, pixels_per_frame=pixels)
        frames = sum(one.length for one in planned)
        done = 0
        progress("frames", 0, frames)
        for written in _each(write_shard, shards, config):
            done += written
            progress("frames", done, frames)
        _finish(staging.folder, job, planned, shards)
    except OSError as error:
        staging.release()
        raise OSError(
            error.errno,
            f"the data set at {out} cannot be written ({error.strerror or error}); free some space "
            "or mend the folder's rights, and run the same command again: it goes on",
        ) from error
    except BaseException:
        staging.release()
        raise
    staging.commit()
    return Dataset.open(out)


def outline(
    mapped: MappedSource, config: IngestConfig, *, progress: Progress = lambda *_: None
) -> list[Look]:
    """Length, instruction and evidence of every episode."""
    job = Job(_sources(mapped), mapped.field_map, "", {}, "")
    return list(_looks(job, range(len(mapped)), config, progress))


def _each(function: Callable[[T], R], tasks: Iterable[T], config: IngestConfig) -> Iterator[R]:
    if config.ray:
        return on_ray(function, tasks, address=config.ray)
    return in_processes(function, tasks, workers=config.workers)


def _looks(
    job: Job, episodes: Sequence[int], config: IngestConfig, progress: Progress
) -> Iterator[Look]:
    tasks = [
        (job, tuple(episodes[first : first + _EPISODES_PER_TASK]))
        for first in range(0, len(episodes), _EPISODES_PER_TASK)
    ]
    one_process = config.workers == 1 or len(tasks) == 1
    done = 0
    progress("episodes", 0, len(episodes))
    here = replace(config, workers=1, ray="") if one_process else config
    for looks in _each(_look_at, tasks, here):
        yield from looks
        done += len(looks)
        progress("episodes", done, len(episodes))


def _look_at(task: tuple[Job, tuple[int, ...]]) -> list[Look]:
    job, episodes = task
    mapped = mapped_source(job)
    looks = []
    for index in episodes:
        recording = mapped.source.recording(index)
        instruction = mapped.field_map.instruction
        looks.append(
            Look(
                name=recording.name,
                length=len(recording),
                instruction=recording.instruction if instruction is None else instruction,
                evidence=mapped.evidence(recording),
            )
        )
    return looks


def _chosen(mapped: MappedSource, config: IngestConfig) -> tuple[int, ...]:
    for episode in (*config.leave_out, *config.only):
        if not 0 <= episode < len(mapped):
            raise ValueError(
                f"episode {episode} is named, but {mapped.source.path} has {len(mapped)}, counted "
                "from 0; mend the number"
            )
    splits = mapped.source.info.splits
    if config.split and config.split not in splits:
        raise ValueError(
            f"split {config.split!r} asked for, but {mapped.source.path} has "
            f"{listed(splits)}; choose one of these"
        )
    left_out = set(config.leave_out)
    if config.split:
        left_out |= set(range(len(mapped))) - set(splits[config.split])
    wanted = config.only or range(len(mapped))
    chosen = tuple(episode for episode in wanted if episode not in left_out)
    if not chosen:
        raise ValueError("no episode is left to write; leave out fewer")
    return chosen


def _plan(
    mapped: MappedSource,
    chosen: Sequence[int],
    looks: Sequence[Look],
    evidences: Sequence[Evidence],
) -> list[Planned]:
    tasks: dict[str, int] = {task: number for number, task in enumerate(mapped.source.info.tasks)}
    used = {look.instruction for look in looks}
    if not used.issuperset(tasks):
        tasks = {}
    planned, first = [], 0
    settled = settle(evidences, assume=mapped.field_map.assume)
    for number, (index, look, (evidence, outcome)) in enumerate(
        zip(chosen, looks, settled, strict=True)
    ):
        length = len(mapped.kept_steps(look.length, evidence))
        task = tasks.setdefault(look.instruction, len(tasks))
        place = EpisodePlace(episode_index=number, first_index=first, task_index=task)
        planned.append(Planned(index, place, look.instruction, evidence, outcome, length))
        first += length
    return planned


def _job(mapped: MappedSource, config: IngestConfig, folder: Path) -> Job:
    if mapped.fps != int(mapped.fps):
        raise ValueError(
            f"a data set has whole steps per second, but {mapped.source.path} has {mapped.fps:g}; "
            "set 'fps' in the field map to the whole number nearest to it, or 'resample_fps'"
        )
    cameras = {
        name: camera if config.storage == "source" else replace(camera, storage=config.storage)
        for name, camera in mapped.cameras.items()
    }
    encoder = encoder_for(cameras)
    features = _features(mapped, cameras, codec=codec_of(encoder) if encoder else "")
    stored_info = new_info(features, fps=int(mapped.fps), robot_type=mapped.source.info.robot_type)
    return Job(
        sources=_sources(mapped),
        field_map=mapped.field_map,
        folder=str(folder),
        stored_info=stored_info,
        encoder=encoder,
    )


def _sources(mapped: MappedSource) -> tuple[str, ...]:
    return tuple(str(path.resolve()) for path in paths_of(mapped.source))


def _features(
    mapped: MappedSource, cameras: dict[str, Camera], *, codec: str
) -> dict[str, Feature]:
    def feature(name: str, column: Column) -> Feature:
        names: list[str] | None = list(column.names) or None
        # A single number has no axis to name, except where it is a vector of one.
        if not names and name in (STATE, ENVIRONMENT_STATE, ACTION):
            names = [f"{name.split('.')[-1]}_{entry}" for entry in range(column.shape[0])]
        return {"dtype": column.dtype, "shape": list(column.shape) or [1], "names": names}

    numbers = {name: feature(name, column) for name, column in mapped.columns.items()}
    places = with_cameras_and_places(numbers, cameras=cameras, fps=int(mapped.fps), codec=codec)
    return places


def _settings(mapped: MappedSource, config: IngestConfig, labels: Labels | None) -> str:
    """What the files depend on; not how many workers write them."""
    digest = hashlib.sha256()
    for file in mapped.source.files():
        stat = file.stat()
        digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    settings: dict[str, Any] = {
        "version": _VERSION,
        "sources": _sources(mapped),
        "files": digest.hexdigest(),
        "map": field_map_text(mapped.field_map),
        "storage": config.storage,
        "leave_out": config.leave_out,
        "only": config.only,
        "split": config.split,
        "labels": [] if labels is None else [asdict(label) for label in labels.values()],
    }
    return json.dumps(settings)


def _goes_on(staging: Staging, settings: str) -> bool:
    """Whether an interrupted run of the same settings is there."""
    file = staging.folder / _SETTINGS
    return file.is_file() and file.read_text(encoding="utf-8") == settings


def _finish(folder: Path, job: Job, planned: Sequence[Planned], shards: Sequence[Shard]) -> None:
    """Write `meta/` and remove what only the ingestion itself needed."""
    markers = [read_marker(marker(folder, shard.number)) for shard in shards]
    cameras = markers[0].keys()
    image_statistics: dict[str, FeatureStatistics] = {
        key: reduce(combine, (one[key] for one in markers)) for key in cameras
    }
    tasks = {one.place.task_index: one.task for one in planned}
    write_meta(
        folder / "meta",
        stored_info=job.stored_info,
        tasks=[tasks[index] for index in sorted(tasks)],
        episodes=len(planned),
        frames=sum(one.length for one in planned),
        data_files=data_files(folder, shards),
        image_statistics=image_statistics,
    )
    for file in (folder / "shards").iterdir():
        file.unlink()
    (folder / "shards").rmdir()
    (folder / _SETTINGS).unlink()
