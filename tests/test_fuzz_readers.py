"""A few hundred damaged and hostile data sets; `benchmarks/fuzz_readers.py` runs thousands."""

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

for package in ("h5py", "minari", "zarr", "google_crc32c", "google.protobuf"):
    pytest.importorskip(package)
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
fuzz: Any = importlib.import_module("fuzz_readers")
cases: Any = importlib.import_module("fuzz_case")
mutations: Any = importlib.import_module("fuzz_mutations")
CHECKED = next(one for one in cases.SMALL_SETS if one.name == "RLDS / TFDS")
RECORDS = (Path("my_ds-val.tfrecord-00000-of-00001"),)


def test_whatever_is_wrong_ends_in_a_sentence(process_environment: dict[str, str]) -> None:
    # Other cases than those of the benchmark, whose seed is 0.
    command = [sys.executable, str(BENCHMARKS / "fuzz_readers.py"), "--cases", "400", "--seed", "1"]
    ended = subprocess.run(command, env=process_environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "missed" not in ended.stdout and "met" in ended.stdout


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_crash_and_a_hang_are_put_down_to_their_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_case(ground: Any, case: int, folder: Path) -> Any:
        if case == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        while case == 15:
            pass
        return cases.Found(case, "set", "nothing", "read")

    class Link:
        def __init__(self) -> None:
            self.sent: list[Any] = []

        send = property(lambda self: self.sent.append)

        def close(self) -> None:
            self.sent.append(None)

    monkeypatch.setattr(fuzz, "run_case", run_case)
    monkeypatch.setattr(fuzz, "CPU_LIMIT_S", 0.2)
    link = Link()
    fuzz._work(cases.Ground(tmp_path, (0,), seed=0), [11, 13, 15, 17], link)
    assert link.sent.pop() is None
    assert [(one.case, one.end) for one in link.sent] == [
        (11, "read"),
        (13, "crash"),
        (15, "hang"),
        (17, "read"),
    ]


@pytest.mark.parametrize(
    ("held", "mutation", "end"),
    [
        ([{"columns": "a", "front": "b"}], {"plain": True}, "read"),
        ([{"columns": "a", "front": None}], {"plain": True}, "refused"),
        (None, {"plain": True}, "refused"),
        ([{"columns": "x", "front": "b"}], {"plain": True}, "wrong data"),
        ([{"columns": "x", "front": "b"}], {"plain": False}, "differs"),
        ([{"columns": "x", "front": "b"}], {"plain": False, "checked": True}, "wrong data"),
        ([], {"plain": True}, "wrong data"),
        ([{"columns": "a"}], {"plain": True}, "read"),
    ],
)
def test_what_comes_of_a_case_is_judged_by_its_checksums(
    held: Any, mutation: dict[str, bool], end: str
) -> None:
    whole = [{"columns": "a", "front": "b"}]
    refused = held is not None and None in held[0].values() if held else False
    changed = mutations.Mutation("a bit", RECORDS, **mutation)
    assert cases._judged(held, whole, CHECKED, changed, refused=refused) == end


def test_refusals_of_several_lines_are_none() -> None:
    assert cases._sentence(ValueError("expected this, but that came; mend it")).endswith("mend it")
    for text in ("two\nlines", "", "x" * 5000):
        with pytest.raises(TypeError, match="not one sentence"):
            cases._sentence(ValueError(text))
