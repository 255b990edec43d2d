"""One case of `fuzz_readers.py`: a small data set made wrong, read to the end, and judged."""

import hashlib
import json
import os
import shutil
import traceback
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from fuzz_containers import change_container
from fuzz_mutations import (
    MARK,
    OUTSIDE,
    TEXTS,
    Mutation,
    choose,
    damage_bytes,
    damage_text,
    plant,
    pwned,
)
from numpy.typing import NDArray
from small_sets import SMALL_SETS, SmallSet

from robot_qsft.datasets.formats.detect import open_source
from robot_qsft.datasets.ingest import IngestConfig, ingest
from robot_qsft.datasets.mapped import MappedSource
from robot_qsft.datasets.source import EpisodeSource
from robot_qsft.datasets.suggest_map import suggest

_INGEST_EVERY = 4
_MOST_EPISODES = 20
_LONGEST_SENTENCE = 2000

Held = list[dict[str, str | None]]
"""Of each episode a digest of its columns and of each camera; None for what is refused."""


@dataclass(frozen=True)
class Found:
    """What came of a case.

    Attributes:
        case: its number.
        name: of the small set.
        what: was done to it.
        end: "read" or "refused" as it should be; "differs" where data came out changed that no
            checksum covers; else what went wrong: "crash", "hang", "traceback", "wrong data",
            "outside".
        detail: the last refusal, or a traceback.
        memory_mib: most that the process held during the case, beyond what it held before.
    """

    case: int
    name: str
    what: str
    end: str
    detail: str = ""
    memory_mib: float = 0.0


@dataclass(frozen=True)
class Ground:
    """What cases start from.

    Attributes:
        root: folder of all.
        sets: numbers of the small sets that could be written.
        seed: of all cases.
    """

    root: Path
    sets: tuple[int, ...]
    seed: int

    def small(self, case: int) -> SmallSet:
        """The set that a case damages."""
        return SMALL_SETS[self.sets[case % len(self.sets)]]


def prepare(root: Path, *, seed: int) -> Ground:
    """Write the small sets, note what they hold, and lay out what nothing in them may lead to."""
    outside = root / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(MARK * 1000)
    with h5py.File(outside / "secret.hdf5", "w") as file:
        file["x"] = np.frombuffer(MARK * 1000, np.float64)
    os.environ[OUTSIDE] = str(outside)
    sets = []
    for number, small in enumerate(SMALL_SETS):
        place = root / "sets" / str(number)
        place.mkdir(parents=True)
        try:
            path = small.write(place)
        except FileNotFoundError as error:
            print(f"{small.name} is left out: {error}")
            continue
        source = open_source(path)
        told = {
            "path": str(path.relative_to(place)),
            "files": [str(file.relative_to(place)) for file in source.files()],
            "holds": _held(source),
        }
        (root / f"{number}.json").write_text(json.dumps(told))
        sets.append(number)
    return Ground(root, tuple(sets), seed)


def run_case(ground: Ground, case: int, folder: Path) -> Found:
    """Make the data set of a case in a folder, read it, and judge what came of it."""
    rng = np.random.default_rng((ground.seed, case))
    number = ground.sets[case % len(ground.sets)]
    told = json.loads((ground.root / f"{number}.json").read_text())
    scratch = folder / "case"
    shutil.rmtree(scratch, ignore_errors=True)  # whatever the last case named its files
    place, out = scratch / "set", scratch / "out"
    shutil.copytree(ground.root / "sets" / str(number), place)
    mutation = mutate(place, rng, read=[place / file for file in told["files"]])
    before_kib = _reset_peak()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            held, detail = read_all(place / told["path"], None if case % _INGEST_EVERY else out)
        end = _judged(held, told["holds"], ground.small(case), mutation, refused=bool(detail))
    except Exception:
        end, detail = "traceback", traceback.format_exc()
    memory_mib = max(0.0, (_status_kib("VmHWM") - before_kib) / 1024)
    if pwned().exists():
        pwned().unlink()
        end, detail = "outside", "code in the data set was run"
    return Found(case, ground.small(case).name, mutation.what, end, detail, memory_mib)


def mutate(place: Path, rng: np.random.Generator, *, read: Sequence[Path]) -> Mutation:
    """Damage one file of a set, or two.

    Args:
        place: folder of the set.
        rng: to draw from.
        read: files that the source reads; most often it is one of these.
    """
    every = sorted(file for file in place.rglob("*") if file.is_file())
    file = choose(rng, every if rng.random() < 0.1 else read)
    how = rng.random()
    if how < 0.05:
        return plant(file, rng)
    if how < 0.5:
        with suppress(Exception):  # of the libraries that write what they would rather not
            if file.name.endswith(TEXTS):
                return damage_text(file, rng)
            changed = change_container(file, rng)
            if changed is not None:
                return changed
        if not file.is_file():
            return Mutation(f"{file.name}: gone", (file,))
        # What could not be changed to the end may be changed in part.
        return replace(damage_bytes(file, rng, others=every), plain=False)
    first = damage_bytes(file, rng, others=every)
    if how < 0.95:
        return first
    second = damage_bytes(choose(rng, read), rng, others=every)
    both = (*first.files, *second.files)
    return Mutation(f"{first.what}; {second.what}", both, plain=True)


def read_all(path: Path, out: Path | None) -> tuple[Held | None, str]:
    """Read a set to the end, as all commands together do.

    Args:
        path: of the set.
        out: where to ingest to; None not to.

    Returns:
        What it holds, None where it is not even opened, and the last refusal.
    """
    refusals = [""]
    try:
        source = open_source(path)
    except ValueError as error:
        return None, _sentence(error)
    held = _held(source, refusals)
    try:
        field_map = suggest(source)
        fps = field_map.fps if source.info.fps else 10.0
        mapped = MappedSource(source, replace(field_map, fps=fps))
        for index in range(min(len(mapped), _MOST_EPISODES)):
            try:
                recording = source.recording(index)
                mapped.episode(recording, mapped.evidence(recording))
            except ValueError as error:
                refusals.append(_sentence(error))
        if out is not None:
            ingest(mapped, out, IngestConfig(workers=1))
    except ValueError as error:
        refusals.append(_sentence(error))
    return held, refusals[-1]


def _held(source: EpisodeSource, refusals: list[str] | None = None) -> Held:
    """What a source holds; where refusals are not gathered, there must be none."""
    held: Held = []
    assert source.files()
    for index in range(min(len(source), _MOST_EPISODES)):
        one: dict[str, str | None] = dict.fromkeys(("columns", *source.info.cameras))
        held.append(one)
        try:
            recording = source.recording(index)
            about = (recording.name, recording.instruction, recording.evidence)
            columns = [recording.columns[name] for name in sorted(recording.columns)]
            one["columns"] = f"{about} {_digest(columns)}"
        except ValueError as error:
            _note(error, refusals)
        for camera in source.info.cameras:
            try:
                one[camera] = _digest(source.frames(index, camera))
            except ValueError as error:
                _note(error, refusals)
    return held


def _note(error: ValueError, refusals: list[str] | None) -> None:
    if refusals is None:
        raise error
    refusals.append(_sentence(error))


def _digest(arrays: Iterable[NDArray[Any]]) -> str:
    """A checksum of arrays.

    Raises:
        PermissionError: when they hold what lies outside of the data set.
    """
    digest = hashlib.sha256()
    for array in arrays:
        content = "\0".join(array).encode() if array.dtype == object else array.tobytes()
        if MARK in content:
            raise PermissionError("the data hold what lies outside of the data set")
        digest.update(f"{array.shape} {array.dtype} ".encode() + content)
    return digest.hexdigest()


def _sentence(error: ValueError) -> str:
    """What a refusal says.

    Raises:
        TypeError: when that is no single sentence.
    """
    text = str(error)
    if not text.strip() or "\n" in text or len(text) > _LONGEST_SENTENCE:
        raise TypeError(f"the refusal is not one sentence: {text[:3000]!r}") from error
    return text


def _judged(
    held: Held | None, whole: Held, small: SmallSet, mutation: Mutation, *, refused: bool
) -> str:
    """How a case ended that raised nothing but sentences."""
    if held is None:
        return "refused"
    differs = len(held) != len(whole) or any(
        value is not None and value != other.get(key)
        for one, other in zip(held, whole, strict=True)
        for key, value in one.items()
    )
    if not differs:
        return "refused" if refused else "read"
    in_checked = all(file.as_posix().endswith(small.checked) for file in mutation.files)
    return "wrong data" if mutation.checked or (mutation.plain and in_checked) else "differs"


def _status_kib(name: str) -> int:
    """A line of this process's memory status, such as VmHWM, the most it has held so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _reset_peak() -> int:
    """Begin anew to watch for the most memory held; what is held now, in KiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status_kib("VmRSS")
