"""Batches made ready in the background, and how long the training loop waited for them."""

import queue
import threading
import time
from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Prefetcher(Generic[Item]):
    """Runs an endless iterator in a thread, a few items ahead.

    Attributes:
        waited_s: total time that `next` has blocked.
    """

    def __init__(self, items: Iterator[Item], *, ahead: int = 4):
        """Start at once."""
        self.waited_s = 0.0
        self._items = items
        self._queue: queue.Queue[Item | BaseException] = queue.Queue(ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, daemon=True)
        self._thread.start()

    def __next__(self) -> Item:
        """The next item; whatever the iterator raised is raised here."""
        start = time.perf_counter()
        item = self._queue.get()
        self.waited_s += time.perf_counter() - start
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Stop the thread."""
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(0.01)

    def _fill(self) -> None:
        try:
            for item in self._items:
                self._queue.put(item)
                if self._stop.is_set():
                    return
        except BaseException as error:
            self._queue.put(error)
