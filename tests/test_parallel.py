"""The same function over many tasks: in order, once each, whatever becomes of the workers."""

import multiprocessing
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from robot_qsft.datasets.parallel import in_processes
from robot_qsft.datasets.worker import Worker, WorkerDiedError

WORK = '''
import os, signal, struct, sys, time
from pathlib import Path

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def square(task):
    """Squares; whoever first comes to a task with a marker dies of it."""
    number, marker = task
    if marker and not Path(marker).exists():
        Path(marker).touch()
        die()
    return number**2

def die_of_5(number):
    return die() if number == 5 else number

def refuse_2(number):
    if number == 2:
        raise ValueError("2 is refused")
    return number

def count_others(task):
    """How many other tasks are being done in the meantime."""
    number, marker = task
    here = Path(__file__).with_name(f"{number}.running")
    here.touch()
    try:
        if marker and not Path(marker).exists():
            Path(marker).touch()
            here.unlink()
            die()
        time.sleep(0.2)
        return len(list(here.parent.glob("*.running"))) - 1
    finally:
        here.unlink()

def begin_to_answer(number):
    """Dies once 4 of the 1000 bytes of its answer are on their way."""
    connection = sys._getframe(1).f_locals["connection"]
    os.write(connection.fileno(), struct.pack("!i", 1000) + b"half")
    die()
'''
"""What worker processes do; they import it."""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    folder = tmp_path_factory.mktemp("work")
    (folder / "work_for_tests.py").write_text(WORK)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield import_module("work_for_tests")


@pytest.fixture(autouse=True)
def _nobody_stays() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("deadly", [[0], [4], [0, 1, 2, 3, 4, 5, 6, 7], [11]])
def test_task_whose_worker_dies_is_done_again(
    work: ModuleType, tmp_path: Path, deadly: list[int]
) -> None:
    tasks = [(n, str(tmp_path / str(n)) if n in deadly else "") for n in range(12)]
    assert list(in_processes(work.square, tasks, workers=2)) == [n**2 for n in range(12)]
    assert {int(file.name) for file in tmp_path.iterdir()} == set(deadly), "each died"


def test_task_is_done_again_with_no_other_beside_it(work: ModuleType, tmp_path: Path) -> None:
    tasks = [(n, str(tmp_path / "died") if n == 3 else "") for n in range(9)]
    others = list(in_processes(work.count_others, tasks, workers=3))
    assert (tmp_path / "died").exists()
    assert others[3] == 0
    assert max(others) > 0, "the rest is done side by side"


def test_task_that_always_kills_its_worker_is_named(work: ModuleType) -> None:
    results = in_processes(
        work.die_of_5, range(100), workers=2, describe=lambda number: f"number {number}"
    )
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    sentence = r"^3 worker processes in a row died at number 5, perhaps for lack of memory; run"
    with pytest.raises(WorkerDiedError, match=sentence):
        next(results)


def test_error_of_a_task_comes_as_it_is_and_tells_where(work: ModuleType) -> None:
    results = in_processes(work.refuse_2, range(100), workers=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError) as refused:
        next(results)
    assert str(refused.value) == "2 is refused"
    assert "in refuse_2" in refused.value.__notes__[0]


def test_nothing_is_done_after_the_results_are_left(work: ModuleType) -> None:
    drawn: list[int] = []

    def endless() -> Iterator[tuple[int, str]]:
        while True:
            drawn.append(len(drawn))
            yield drawn[-1], ""

    results = in_processes(work.square, endless(), workers=2)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert len(drawn) <= 5


@pytest.mark.parametrize("deadly", ["die_of_5", "begin_to_answer"])
def test_death_is_noticed_whenever_it_comes(work: ModuleType, deadly: str) -> None:
    worker: Worker[int, int] = Worker(getattr(work, deadly))
    for _ in range(2):
        with pytest.raises(WorkerDiedError):
            worker(5)
