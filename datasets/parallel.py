"""The same function over many tasks, in processes or on a Ray cluster, results in order."""

import logging
import multiprocessing
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_CONNECT_TIMEOUT_S = 5.0
_AHEAD = 2
"""Tasks per worker that are handed out before their turn, so that no worker waits."""


def in_processes(function: Callable[[T], R], tasks: Iterable[T], *, workers: int) -> Iterator[R]:
    """Yield `function(task)` for every task, in order; memory stays flat however many there are.

    Args:
        function: importable, as processes call it.
        tasks: picklable.
        workers: processes; 1 runs in this one.

    Raises:
        RuntimeError: when a process died.
    """
    if workers <= 1:
        yield from map(function, tasks)
        return
    waiting: deque[Future[R]] = deque()
    queue = iter(tasks)
    with (
        _single_threaded_children(),
        ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), initializer=start_worker
        ) as pool,
    ):
        try:
            for task in islice(queue, _AHEAD * workers):
                waiting.append(pool.submit(function, task))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, task) for task in islice(queue, 1))
                yield result
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker process died, perhaps for lack of memory; run the same command again, "
                "with fewer workers if it dies again"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def on_ray(function: Callable[[T], R], tasks: Iterable[T], *, address: str) -> Iterator[R]:
    """Yield `function(task)` for every task, in order, from the workers of a Ray cluster.

    Every worker must see the same files under the same paths. A task whose worker dies is done
    again elsewhere.

    Args:
        function: importable on the workers.
        tasks: picklable.
        address: of the cluster, such as "10.0.0.1:6379" or "auto".

    Raises:
        ValueError: when Ray is not installed or the cluster cannot be reached.
    """
    try:
        import ray
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
        remote: Callable[..., Any] = ray.remote(max_retries=-1)(_quietly).remote
        cpus = ray.cluster_resources().get("CPU", 1)  # type: ignore[no-untyped-call]
        queue = iter(tasks)
        ahead = islice(queue, _AHEAD * max(1, int(cpus)))
        waiting: deque[Any] = deque(remote(function, task) for task in ahead)
        while waiting:
            result = ray.get(waiting.popleft())
            waiting.extend(remote(function, task) for task in islice(queue, 1))
            if isinstance(result, ValueError):
                raise result
            yield result
    finally:
        ray.shutdown()


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


def _quietly(function: Callable[[T], R], task: T) -> R | ValueError:
    """A user's error comes back as it is, not wrapped in a remote traceback."""
    try:
        return function(task)
    except ValueError as error:
        return ValueError(str(error))


def start_worker() -> None:
    """Begin a worker process: Ctrl-C is left to the parent, and when that dies the worker ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "only worker processes have a parent"
    parent.join()
    os._exit(1)


@contextmanager
def _single_threaded_children() -> Iterator[None]:
    """Parallelism comes from processes; numerics threads on top would only contend."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
