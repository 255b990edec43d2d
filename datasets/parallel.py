"""The same function over many tasks, in processes or on a Ray cluster, results in order."""

import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from queue import LifoQueue
from threading import Lock
from typing import Any, Generic, TypeVar

from robot_qsft.datasets.worker import Worker, WorkerDiedError

T = TypeVar("T")
R = TypeVar("R")

_CONNECT_TIMEOUT_S = 5.0
_AHEAD = 2
"""Tasks per worker that are handed out before their turn, so that no worker waits."""
_TRIES = 3
"""Workers that may die at a task before it is given up."""


def in_processes(
    function: Callable[[T], R],
    tasks: Iterable[T],
    *,
    workers: int,
    describe: Callable[[T], str] = lambda task: "the same task",
) -> Iterator[R]:
    """Yield `function(task)` for every task, in order; memory stays flat however many there are.

    A task whose worker process dies is done again by a new one, with no other task beside it.

    Args:
        function: importable, as processes call it.
        tasks: picklable.
        workers: processes; 0 for one per core, 1 runs in this one.
        describe: names a task to people.

    Raises:
        WorkerDiedError: when three workers died at the same task.
    """
    workers = workers or os.cpu_count() or 1
    if workers == 1:
        yield from map(function, tasks)
        return
    waiting: deque[Future[R]] = deque()
    queue = iter(tasks)
    crew = _Crew(function, workers, describe)
    with _single_threaded_children(), ThreadPoolExecutor(workers) as threads:
        try:
            for task in islice(queue, _AHEAD * workers):
                waiting.append(threads.submit(crew.do, task))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(threads.submit(crew.do, task) for task in islice(queue, 1))
                yield result
        finally:
            crew.stop_retrying()
            threads.shutdown(wait=True, cancel_futures=True)
            crew.dismiss()


class _Crew(Generic[T, R]):
    """Workers for as many threads, each of which waits for the task that it gave to one."""

    def __init__(self, function: Callable[[T], R], count: int, describe: Callable[[T], str]):
        # The last to come in is the first to go out, lest more processes start than are needed.
        self._idle: LifoQueue[Worker[T, R]] = LifoQueue()
        for _ in range(count):
            self._idle.put(Worker(function))
        self._count, self._describe = count, describe
        self._taking = Lock()
        self._retrying = True

    def do(self, task: T) -> R:
        """What a worker makes of a task.

        A retry first takes all workers: alone, the task has all memory to itself, and whatever
        kills its worker again is the task's own doing.
        """
        for taken in (1, *[self._count] * (_TRIES - 1)):
            with self._taking:  # or two retries would hold half of the workers each, for ever
                workers = [self._idle.get() for _ in range(taken)]
            try:
                if taken == 1 or self._retrying:
                    return workers[0](task)
            except WorkerDiedError as error:
                died = error
            finally:
                for worker in reversed(workers):
                    self._idle.put(worker)
        raise _died_at(self._describe(task)) from died

    def stop_retrying(self) -> None:
        """From now on a task is lost with its worker: nobody waits for it."""
        self._retrying = False

    def dismiss(self) -> None:
        """End all processes, once no thread is in `do`."""
        workers = [self._idle.get() for _ in range(self._count)]
        for worker in workers:
            worker.dismiss()
        for worker in workers:
            worker.join()


def on_ray(
    function: Callable[[T], R],
    tasks: Iterable[T],
    *,
    address: str,
    describe: Callable[[T], str] = lambda task: "the same task",
) -> Iterator[R]:
    """Yield `function(task)` for every task, in order, from the workers of a Ray cluster.

    Every worker must see the same files under the same paths. A task whose worker dies is done
    again elsewhere.

    Args:
        function: importable on the workers.
        tasks: picklable.
        address: of the cluster, such as "10.0.0.1:6379" or "auto".
        describe: names a task to people.

    Raises:
        ValueError: when Ray is not installed or the cluster cannot be reached.
        WorkerDiedError: when three workers died at the same task.
    """
    try:
        import ray
        from ray import exceptions
    except ImportError as error:
        raise ValueError(
            "spreading work over a cluster needs Ray; pip install 'robot-qsft[ray]'"
        ) from error
    _check_answers(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _no_cluster(address, error) from error
    try:
        remote: Callable[[T], Any] = ray.remote(max_retries=_TRIES - 1)(function).remote
        cpus = ray.cluster_resources().get("CPU", 1)  # type: ignore[no-untyped-call]
        queue = iter(tasks)
        ahead = islice(queue, _AHEAD * max(1, int(cpus)))
        waiting = deque((task, remote(task)) for task in ahead)
        while waiting:
            task, answer = waiting.popleft()
            try:
                result = ray.get(answer)
            except exceptions.RayTaskError as error:  # a remote traceback around what was raised
                raise error.cause from error
            except (exceptions.WorkerCrashedError, exceptions.NodeDiedError) as error:
                raise _died_at(describe(task)) from error
            waiting.extend((task, remote(task)) for task in islice(queue, 1))
            yield result
    finally:
        ray.shutdown()


def _died_at(task: str) -> WorkerDiedError:
    return WorkerDiedError(
        f"{_TRIES} worker processes in a row died at {task}, perhaps for lack of memory; run the "
        "same command again, with fewer workers if it dies again"
    )


def _check_answers(address: str) -> None:
    """Ray itself would wait for minutes for a cluster that is not there."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: BaseException) -> ValueError:
    return ValueError(
        f"no Ray cluster answers at {address} ({error}); start one with 'ray start --head'"
    )


_SINGLE_THREADED = {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}
"""Of numerics, and of OpenGL in software."""


@contextmanager
def _single_threaded_children() -> Iterator[None]:
    """Parallelism comes from processes; threads on top would only contend."""
    before = {name: os.environ.get(name) for name in _SINGLE_THREADED}
    os.environ.update(_SINGLE_THREADED)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
