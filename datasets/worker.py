"""A process that calls one function on task after task, and is replaced when it dies."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class WorkerDiedError(RuntimeError):
    """A worker process ended on the way, by a crash or because it was killed."""


class Worker(Generic[T, R]):
    """A process of its own that calls `function`; to be used from one thread at a time.

    It is started when first needed, and after a death when next needed.
    """

    def __init__(self, function: Callable[[T], R]):
        """Nothing is started yet; `function` is importable."""
        self._function = function
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None

    def __call__(self, task: T) -> R:
        """`function(task)`, whose errors come with the process's traceback as a note.

        Raises:
            WorkerDiedError: when the process ended before it answered.
        """
        if self._connection is None:
            self._connection = self._start()
        try:
            self._connection.send(task)
            result, error = self._connection.recv()
        except (EOFError, OSError) as broken:  # OSError: amid the task's or the answer's bytes
            self.dismiss()
            self.join()
            raise WorkerDiedError("a worker process died") from broken
        if error is not None:
            raise error
        answer: R = result
        return answer

    def dismiss(self) -> None:
        """Let the process end once its task is done."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def join(self) -> None:
        """Wait until a dismissed process has ended."""
        if self._process is not None:
            self._process.join()

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        # A daemon, lest Python wait for it for ever when the program ends without a dismissal.
        process = context.Process(target=_serve, args=(there, self._function), daemon=True)
        with there:  # once only the process holds its end, its death closes the connection
            process.start()
        self._process = process
        return here


def _serve(connection: Connection, function: Callable[[T], R]) -> None:
    """Answer tasks with (result, None) or (None, error) until dismissed."""
    start_worker()
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            connection.send((function(task), None))
        except Exception as error:
            error.add_note(f"in a worker process:\n{traceback.format_exc()}")
            connection.send((None, error))


def start_worker() -> None:
    """Begin a worker process: Ctrl-C is left to the parent, and when that dies the worker ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "only worker processes have a parent"
    parent.join()
    os._exit(1)
