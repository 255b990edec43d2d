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
import json
import multiprocessing
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import import_module
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from fuzz_case import Found, Ground, prepare, run_case
from report import Figure, at_least, at_most, publish
from rich.progress import Progress
from small_sets import SMALL_SETS

CASES, QUICK_CASES = 24_000, 1_200
WORKERS = 2
CPU_LIMIT_S = 10.0
WALL_LIMIT_S = 60.0
"""Of one case; the latter is for what waits instead of working, on a machine with other work."""
MEMORY_LIMIT = 4 << 30
"""Bytes of address space that a child may take beyond what its parent has."""
MEMORY_BAR_MIB = 1024
BATCH = 100
"""Cases that a child process works off, unless it dies before."""
_AS_IT_SHOULD_BE = ("read", "refused", "differs")


def main() -> int:
    """Run, print and write; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute, nothing is recorded")
    parser.add_argument("--case", type=int, help="run this one alone, here, and tell all of it")
    parser.add_argument("--cases", type=int, help="run so many; nothing is recorded")
    parser.add_argument("--seed", type=int, default=0, help="of all cases")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ground = prepare(Path(folder), seed=asked.seed)
        if asked.case is not None:
            return _replay(ground, asked.case)
        count = asked.cases or (QUICK_CASES if asked.quick else CASES)
        found = list(_run(ground, count))
    assert len(found) == count, f"a worker died: only {len(found)} of {count} cases came back"
    in_part = asked.quick or asked.cases is not None or asked.seed != 0
    return 0 if _publish(found, ground, quick=in_part) else 1


def _replay(ground: Ground, case: int) -> int:
    """Run one case in this process and keep what it reads."""
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz_{case}_"))
    print(f"{ground.small(case).name}, in {folder}", flush=True)
    found = run_case(ground, case, folder)
    print(f"{found.what}\n{found.end}: {found.detail}\n{found.memory_mib:.0f} MiB")
    return int(found.end not in _AS_IT_SHOULD_BE)


def _run(ground: Ground, count: int) -> Iterator[Found]:
    """Yield what came of all cases, which are shared out among processes."""
    context = multiprocessing.get_context("spawn")
    links: dict[Any, Any] = {}
    for worker in range(WORKERS):
        ours, theirs = context.Pipe(duplex=False)
        cases = list(range(worker, count, WORKERS))
        links[ours] = context.Process(target=_work, args=(ground, cases, theirs), daemon=True)
        links[ours].start()
        theirs.close()
    with Progress() as progress:
        bar = progress.add_task("cases", total=count)
        while links:
            for link in wait(list(links)):
                assert isinstance(link, Connection)
                try:
                    found: Found = link.recv()
                except EOFError:
                    links.pop(link).join()
                    continue
                progress.advance(bar)
                if found.end not in _AS_IT_SHOULD_BE:
                    last = (found.detail.strip().splitlines() or [""])[-1]
                    progress.console.print(
                        f"case {found.case}: {found.end} of {found.name} ({found.what:.100}): "
                        f"{last:.200}; replay it with --seed {ground.seed} --case {found.case}",
                        markup=False,
                        highlight=False,
                        soft_wrap=True,
                    )
                yield found


def _work(ground: Ground, cases: list[int], link: Connection) -> None:
    """Work off cases in children of this process, which has all that readers need imported."""
    for package in ("numcodecs", "scipy.spatial.transform"):
        import_module(package)
    folder = Path(tempfile.mkdtemp(dir=ground.root))
    while cases:
        done = 0
        for found in _in_child(ground, cases[:BATCH], folder):
            link.send(found)
            done += 1
        cases = cases[done:]
    link.close()


def _in_child(ground: Ground, cases: Sequence[int], folder: Path) -> Iterator[Found]:
    """Yield what came of the cases, up to the first one that the child does not survive."""
    errors = folder / "stderr"
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _be_child(ground, cases, folder, link=writer, errors=errors)
    os.close(writer)
    done, pending, hangs = 0, b"", False
    begun_s, used_s = time.monotonic(), _cpu_s(child)
    while not hangs:
        if select.select([reader], [], [], 0.5)[0]:
            piece = os.read(reader, 1 << 16)
            if not piece:
                break
            *lines, pending = (pending + piece).split(b"\n")
            for line in lines:
                yield Found(**json.loads(line))
                done += 1
            begun_s, used_s = time.monotonic(), _cpu_s(child)
        elif _cpu_s(child) - used_s > CPU_LIMIT_S or time.monotonic() - begun_s > WALL_LIMIT_S:
            hangs = True
            os.kill(child, signal.SIGKILL)
    os.close(reader)
    _, status = os.waitpid(child, 0)
    if done < len(cases):
        case = cases[done]
        said = errors.read_bytes()[-2000:].decode(errors="replace") if errors.exists() else ""
        end, how = ("hang", "no end") if hangs else ("crash", f"ended by status {status}")
        yield Found(case, ground.small(case).name, "see --case", end, f"{said}\n{how}")


def _be_child(
    ground: Ground, cases: Sequence[int], folder: Path, *, link: int, errors: Path
) -> None:
    """Run cases, write what came of each to a pipe, and end."""
    status = 1
    try:
        noise = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(noise, 2)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY_LIMIT
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for case in cases:
            os.ftruncate(noise, 0)
            os.lseek(noise, 0, os.SEEK_SET)
            found = run_case(ground, case, folder)
            os.write(link, json.dumps(asdict(found)).encode() + b"\n")
        status = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode(errors="replace"))
    finally:
        os._exit(status)


def _cpu_s(process: int) -> float:
    """Seconds that a process has worked so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _publish(found: Sequence[Found], ground: Ground, *, quick: bool) -> bool:
    ends = Counter(one.end for one in found)
    count = len(found)

    def parts(figure: str, value: float) -> dict[str, Any]:
        exact = {"low": value, "high": value, "n": count, "seeds": (ground.seed,)}
        return {"figure": figure, "value": value, **exact}

    most = max(one.memory_mib for one in found)
    cases = parts("cases run", count)
    figures = [
        Figure(**cases) if quick else at_least(10_000, **cases),
        at_most(0, **parts("crashes", ends["crash"])),
        at_most(0, **parts("hangs", ends["hang"])),
        at_most(0, **parts("tracebacks", ends["traceback"])),
        at_most(0, **parts("data from outside, or code run", ends["outside"])),
        at_most(0, **parts("wrong data in spite of a checksum", ends["wrong data"])),
        at_most(MEMORY_BAR_MIB, **parts("most memory of a case, MiB", most)),
        Figure(**parts("refused in one sentence, share of cases", ends["refused"] / count)),
        Figure(**parts("changed data that no checksum covers, cases", ends["differs"])),
        Figure(**parts("small data sets", len(ground.sets))),
    ]
    by_set: dict[str, dict[str, int]] = {small.name: {} for small in SMALL_SETS}
    for (name, end), counted in sorted(Counter((one.name, one.end) for one in found).items()):
        by_set[name][end] = counted
    return publish("fuzz_readers", figures, {"ends": by_set}, quick=quick)


if __name__ == "__main__":
    sys.exit(main())
