"""Several training runs side by side, one process each.

Small networks gain little from a second thread, so on a CPU two runs at once finish far earlier
than one after the other.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from robot_qsft.datasets.batches import TrainingData
from robot_qsft.datasets.worker import start_worker
from robot_qsft.train import TrainConfig, train
from robot_qsft.training_display import TrainingDisplay

DataLoader = Callable[[], TrainingData]


@dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        name: shown beside its bar.
        config: what to train.
        run: its folder.
        data: loads what it is trained on; picklable, as the worker process calls it.
    """

    name: str
    config: TrainConfig
    run: Path
    data: DataLoader


_Message = tuple[int, str, tuple[Any, ...]]
"""Of which job, the method of its `TrainingDisplay` to call, and with what."""


def train_many(jobs: Sequence[Job], *, workers: int, progress: Progress) -> list[Path]:
    """Train every job, resuming those that were interrupted; the last checkpoint of each, in order.

    Args:
        jobs: what to train.
        workers: how many at once; each gets its share of the cores.
        progress: shows a bar per job.

    Raises:
        ValueError: what `train` raises; the other jobs stop then, ready to be resumed.
    """
    context = multiprocessing.get_context("spawn")
    messages: SimpleQueue[_Message | None] = context.SimpleQueue()
    stop = context.Event()
    displays = [TrainingDisplay(progress, job.name, job.config.steps, job.run) for job in jobs]
    listener = threading.Thread(target=_listen, args=(messages, displays), daemon=True)
    listener.start()
    threads = max(1, (os.cpu_count() or 1) // workers)
    try:
        with ProcessPoolExecutor(
            workers, context, initializer=_start_worker, initargs=(messages, stop, threads)
        ) as pool:
            futures = [pool.submit(_train, index, job) for index, job in enumerate(jobs)]
            try:
                for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                    future.result()
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
            return [future.result() for future in futures]
    finally:
        messages.put(None)
        listener.join()
        for display in displays:
            display.close()


_messages: "SimpleQueue[_Message | None] | None" = None
"""In a worker process: where it reports to."""
_stop: Event | None = None
"""In a worker process: whether the parent has no more use for it."""


class _StoppedError(Exception):
    """The parent asked this worker to stop."""


def _start_worker(messages: "SimpleQueue[_Message | None]", stop: Event, threads: int) -> None:
    global _messages, _stop
    start_worker()
    _messages, _stop = messages, stop
    torch.set_num_threads(threads)


def _train(index: int, job: Job) -> Path:
    return train(job.config, job.data(), job.run, progress=_Reporter(index), resume=True)


class _Reporter:
    """Sends progress to the parent process."""

    _EVERY = 10

    def __init__(self, index: int):
        self._index = index

    def started(self, step: int) -> None:
        self._send("started", step)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        assert _stop is not None, "only worker processes report"
        if _stop.is_set():
            raise _StoppedError
        if step % self._EVERY == 0:
            self._send("step", step, dict(metrics))

    def validated(self, step: int, metrics: Mapping[str, float]) -> None:
        self._send("validated", step, dict(metrics))

    def _send(self, kind: str, *arguments: Any) -> None:
        assert _messages is not None, "only worker processes report"
        _messages.put((self._index, kind, arguments))


def _listen(messages: "SimpleQueue[_Message | None]", displays: Sequence[TrainingDisplay]) -> None:
    while (message := messages.get()) is not None:
        index, kind, arguments = message
        getattr(displays[index], kind)(*arguments)
