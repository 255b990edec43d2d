"""Whether damaged and hostile data sets end in a sentence: no crash, hang, traceback, wrong data.

A case is a small real data set of some format (`small_sets.py`) with something wrong: bytes are
flipped, cut, blanked, mixed; JSON, YAML and CSV say something else; containers are sound but hold
what they should not; in place of a file lies something that means harm. It is opened and read to
the end, seen through the field map that is suggested, and every so often ingested, in a child
process with a limit to its time and memory. All that may come of it is data, or a ValueError of one
sentence. Where a checksum covers what was changed, the data must be those of the whole set.

Case N is the same in every run: `python benchmarks/fuzz_readers.py --case N` shows what it does.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_containers import change_container
from fuzz_mutations import MARK, TEXTS, Mutation, choose, damage_bytes, damage_text, plant
from report import Figure, at_least, at_most, publish
from rich.progress import Progress
from small_sets import SMALL_SETS, SmallSet

from robot_qsft.datasets.formats.detect import open_source
from robot_qsft.datasets.ingest import IngestConfig, ingest
from robot_qsft.datasets.mapped import MappedSource
from robot_qsft.datasets.source import EpisodeSource
from robot_qsft.datasets.suggest_map import suggest

SEED = int(os.environ.get("FUZZ_SEED", "0"))
CASES, QUICK_CASES = 12_000, 400
WORKERS = 2
CPU_LIMIT_S = 10.0
WALL_LIMIT_S = 60.0
"""Of one case; the latter is for what waits instead of working, on a machine with other work."""
MEMORY_LIMIT = 4 << 30
"""Bytes of address space that a case may take beyond what the libraries take."""
MEMORY_BAR_MIB = 1536
BATCH = 100
"""Cases that a child process works off, unless it dies before."""
INGEST_EVERY = 4
_MOST_EPISODES = 20
_LONGEST_SENTENCE = 2000


@dataclass(frozen=True)
class Found:
    """What came of a case.

    Attributes:
        case: its number.
        name: of the small set.
        what: was done to it.
        end: "read" or "refused" as it should be; "differs" where data without a checksum came out
            changed; else what went wrong: "crash", "hang", "traceback", "wrong data", "outside".
        detail: the error, or a traceback.
        memory_mib: most that the process held during the case, beyond what it held before.
    """

    case: int
    name: str
    what: str
    end: str
    detail: str = ""
    memory_mib: float = 0.0


def main() -> int:
    """Run, print and write; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute, nothing is recorded")
    parser.add_argument("--case", type=int, help="run this one alone, here, and tell all of it")
    parser.add_argument("--cases", type=int, help="run so many")
    parser.add_argument("--first", type=int, default=0, help="begin with this one")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        sets = _write_sets(root)
        if asked.case is not None:
            return _replay(root, sets, asked.case)
        count = asked.cases or (QUICK_CASES if asked.quick else CASES)
        found = list(_run(root, sets, range(asked.first, asked.first + count)))
    partly = asked.quick or asked.cases is not None
    return 0 if _publish(found, len(sets), quick=partly) else 1


def _write_sets(root: Path) -> list[int]:
    """Write the small sets that can be, and what they hold; their numbers."""
    outside = root / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(MARK * 1000)
    os.environ["FUZZ_OUTSIDE"] = str(outside)
    sets = []
    for number, small in enumerate(SMALL_SETS):
        (root / "sets" / str(number)).mkdir(parents=True)
        try:
            path = small.write(root / "sets" / str(number))
        except FileNotFoundError as error:
            print(f"{small.name} is left out: {error}")
            continue
        source = open_source(path)
        told = {
            "path": str(path.relative_to(root / "sets" / str(number))),
            "files": [
                str(file.relative_to(root / "sets" / str(number))) for file in source.files()
            ],
            "holds": _held(source),
        }
        (root / f"{number}.json").write_text(json.dumps(told))
        sets.append(number)
    return sets


def _run(root: Path, sets: Sequence[int], cases: range) -> Iterator[Found]:
    """All cases, shared out among processes."""
    context = multiprocessing.get_context("spawn")
    links: dict[Connection, Any] = {}
    for worker in range(WORKERS):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=_work, args=(root, sets, list(cases[worker::WORKERS]), theirs), daemon=True
        )
        process.start()
        theirs.close()
        links[ours] = process
    with Progress() as progress:
        bar = progress.add_task("cases", total=len(cases))
        while links:
            for link in multiprocessing.connection.wait(list(links)):
                assert isinstance(link, Connection)
                try:
                    found: Found = link.recv()
                except EOFError:
                    links.pop(link).join()
                    continue
                progress.advance(bar)
                if found.end not in ("read", "refused", "differs"):
                    last = found.detail.strip().splitlines()[-1:] or [""]
                    progress.console.print(
                        f"case {found.case} of seed {SEED}: {found.end} of {found.name} "
                        f"({found.what:.100}): {last[0]:.200}; replay it with --case {found.case}",
                        markup=False,
                        highlight=False,
                        soft_wrap=True,
                    )
                yield found


def _work(root: Path, sets: Sequence[int], cases: list[int], link: Connection) -> None:
    """Work off cases in children of this process, which has all that readers need imported."""
    for package in ("numcodecs", "scipy.spatial.transform"):
        import_module(package)
    folder = Path(tempfile.mkdtemp(dir=root))
    while cases:
        done = 0
        for found in _in_child(root, sets, cases[:BATCH], folder):
            link.send(found)
            done += 1
        cases = cases[done:]
    link.close()


def _in_child(
    root: Path, sets: Sequence[int], cases: Sequence[int], folder: Path
) -> Iterator[Found]:
    """Yield what came of the cases, up to the first one that the child does not survive."""
    errors = folder / "stderr"
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _be_child(root, sets, cases, folder, writer, errors)
    os.close(writer)
    case, begun_s, used_s = cases[0], time.monotonic(), 0.0
    pending = b""
    ended = ""
    done = 0
    while not ended:
        ready, _, _ = select.select([reader], [], [], 0.5)
        if ready:
            piece = os.read(reader, 1 << 16)
            if not piece:
                break
            *lines, pending = (pending + piece).split(b"\n")
            for line in lines:
                yield Found(**json.loads(line))
                done += 1
            if done < len(cases):
                case, begun_s, used_s = cases[done], time.monotonic(), _cpu_s(child)
        elif _cpu_s(child) - used_s > CPU_LIMIT_S or time.monotonic() - begun_s > WALL_LIMIT_S:
            ended = "hang"
            os.kill(child, signal.SIGKILL)
    os.close(reader)
    _, status = os.waitpid(child, 0)
    if done < len(cases):
        tail = errors.read_bytes()[-2000:].decode(errors="replace") if errors.exists() else ""
        small, what = _named(sets, case), "see --case"
        how = f"ended by status {status}" if not ended else "no end in sight"
        yield Found(case, small.name, what, ended or "crash", f"{tail}\n{how}")


def _be_child(
    root: Path, sets: Sequence[int], cases: Sequence[int], folder: Path, link: int, errors: Path
) -> None:
    """Run cases, write what came of each to a pipe, and end."""
    status = 1
    try:
        noise = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(noise, 2)
        limit = _status_kib("VmSize") * 1024 + MEMORY_LIMIT
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for case in cases:
            os.ftruncate(noise, 0)
            found = run_case(root, sets, case, folder)
            os.write(link, json.dumps(asdict(found)).encode() + b"\n")
        status = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode(errors="replace"))
    finally:
        os._exit(status)


def run_case(root: Path, sets: Sequence[int], case: int, folder: Path) -> Found:
    """Make the data set of a case, read it, and judge what came of it."""
    rng = np.random.default_rng((SEED, case))
    number = sets[case % len(sets)]
    small = SMALL_SETS[number]
    told = json.loads((root / f"{number}.json").read_text())
    place, outside = folder / "set", root / "outside"
    shutil.rmtree(place, ignore_errors=True)
    shutil.rmtree(folder / "out", ignore_errors=True)
    shutil.copytree(root / "sets" / str(number), place)
    read = [place / file for file in told["files"]]
    mutation = mutate(place, rng, read=read, outside=outside)
    before_kib = _reset_peak()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            held, detail = read_all(
                place / told["path"], folder / "out" if case % INGEST_EVERY == 0 else None
            )
        end = _judged(held, told["holds"], small, mutation, detail)
    except Exception:
        end, detail = "traceback", traceback.format_exc()
    memory_mib = max(0.0, (_status_kib("VmHWM") - before_kib) / 1024)
    if (outside / "pwned").exists():
        (outside / "pwned").unlink()
        end, detail = "outside", "code in the data set was run"
    return Found(case, small.name, mutation.what, end, detail, memory_mib)


def mutate(
    place: Path, rng: np.random.Generator, *, read: Sequence[Path], outside: Path
) -> Mutation:
    """Damage one file of a set, or two.

    Args:
        place: folder of the set.
        rng: to draw from.
        read: files that the source reads; most often it is one of these.
        outside: folder that nothing in a data set may lead to.
    """
    every = sorted(file for file in place.rglob("*") if file.is_file())
    file = choose(rng, every if rng.random() < 0.1 else read)
    how = rng.random()
    if how < 0.05:
        return plant(file, rng, outside=outside)
    if how < 0.5:
        with suppress(Exception):  # of the libraries that write what they would rather not
            if file.name.endswith(TEXTS):
                return damage_text(file, rng)
            changed = change_container(file, rng, outside=outside)
            if changed is not None:
                return changed
        if not file.is_file():
            return Mutation(f"{file.name}: gone", (file,))
    first = damage_bytes(file, rng, others=every)
    if how < 0.95:
        # What could not be written whole may be changed in part.
        return first if how >= 0.5 else replace(first, plain=False)
    second = damage_bytes(choose(rng, read), rng, others=every)
    what, both = f"{first.what}; {second.what}", (*first.files, *second.files)
    return Mutation(what, both, plain=True)


def read_all(path: Path, out: Path | None) -> tuple[list[Any] | None, str]:
    """Read a set to the end as all commands do together.

    Args:
        path: of the set.
        out: where to ingest to; None not to.

    Returns:
        What it holds, None where it was not even opened, and the last refusal.
    """
    try:
        source = open_source(path)
    except ValueError as error:
        return None, _sentence(error)
    refusals = [""]
    held = _held(source, refusals)
    try:
        field_map = suggest(source)
        fps = field_map.fps if source.info.fps else 10.0
        mapped = MappedSource(source, replace(field_map, fps=fps))
        for index in range(min(len(mapped), _MOST_EPISODES)):
            with suppress(ValueError):
                recording = source.recording(index)
                mapped.episode(recording, mapped.evidence(recording))
        if out is not None:
            ingest(mapped, out, IngestConfig(workers=1))
    except ValueError as error:
        refusals.append(_sentence(error))
    return held, refusals[-1]


def _held(source: EpisodeSource, refusals: list[str] | None = None) -> list[Any]:
    """A digest of every episode and of each of its cameras; None for what is refused."""
    held: list[Any] = []
    for file in source.files():
        assert isinstance(file, Path)
    for index in range(min(len(source), _MOST_EPISODES)):
        one: dict[str, str | None] = {}
        held.append(one)
        try:
            recording = source.recording(index)
            columns = [recording.columns[name] for name in sorted(recording.columns)]
            one["columns"] = _digest(columns)
            one["about"] = repr((recording.name, recording.instruction, recording.evidence))
        except ValueError as error:
            one["columns"] = one["about"] = None
            _note(error, refusals)
        for camera in source.info.cameras:
            try:
                one[f"camera {camera}"] = _digest(source.frames(index, camera))
            except ValueError as error:
                one[f"camera {camera}"] = None
                _note(error, refusals)
    return held


def _note(error: ValueError, refusals: list[str] | None) -> None:
    if refusals is None:
        raise error
    refusals.append(_sentence(error))


def _digest(arrays: Any) -> str:
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
    held: list[Any] | None, whole: list[Any], small: SmallSet, mutation: Mutation, detail: str
) -> str:
    """How a case ended that raised nothing but sentences."""
    if held is None:
        return "refused"
    differs = len(held) != len(whole) or any(
        value is not None and value != other.get(key)
        for one, other in zip(held, whole, strict=True)
        for key, value in one.items()
    )
    if differs:
        covered = mutation.checked or (
            mutation.plain and all(str(file).endswith(small.checked) for file in mutation.files)
        )
        return "wrong data" if covered else "differs"
    return "refused" if detail else "read"


def _named(sets: Sequence[int], case: int) -> SmallSet:
    return SMALL_SETS[sets[case % len(sets)]]


def _replay(root: Path, sets: Sequence[int], case: int) -> int:
    """Run one case in this process and keep what it reads."""
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz_{case}_"))
    print(f"{_named(sets, case).name}, in {folder}", flush=True)
    found = run_case(root, sets, case, folder)
    print(f"{found.what}\n{found.end}: {found.detail}\n{found.memory_mib:.0f} MiB")
    return 0


def _cpu_s(process: int) -> float:
    """Seconds that a process has worked so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _status_kib(name: str) -> int:
    """A line of this process's memory status, such as VmHWM, the most it has held so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _reset_peak() -> int:
    """Begin anew to watch for the most memory held; what is held now, in KiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status_kib("VmRSS")


def _publish(found: Sequence[Found], sets: int, *, quick: bool) -> bool:
    ends = Counter(one.end for one in found)
    count = len(found)

    def parts(figure: str, value: float) -> dict[str, Any]:
        exact = {"low": value, "high": value, "n": count, "seeds": (SEED,)}
        return {"figure": figure, "value": value, **exact}

    most = max((one.memory_mib for one in found), default=0.0)
    figures = [
        at_least(10_000, **parts("cases run", count))
        if not quick
        else Figure(**parts("cases run", count)),
        at_most(0, **parts("crashes", ends["crash"])),
        at_most(0, **parts("hangs", ends["hang"])),
        at_most(0, **parts("tracebacks", ends["traceback"])),
        at_most(0, **parts("data from outside, or code run", ends["outside"])),
        at_most(0, **parts("wrong data in spite of a checksum", ends["wrong data"])),
        at_most(MEMORY_BAR_MIB, **parts("most memory of a case, MiB", most)),
        Figure(**parts("refused in one sentence, share of cases", ends["refused"] / count)),
        Figure(**parts("changed data that no checksum covers, cases", ends["differs"])),
        Figure(**parts("small data sets", sets)),
    ]
    by_set: dict[str, Mapping[str, int]] = {}
    for small in SMALL_SETS:
        counted = Counter(one.end for one in found if one.name == small.name)
        by_set[small.name] = dict(sorted(counted.items()))
    return publish("fuzz_readers", figures, {"ends": by_set}, quick=quick)


if __name__ == "__main__":
    sys.exit(main())
