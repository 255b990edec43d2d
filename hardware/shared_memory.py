"""Memory that two processes share without waiting for each other.

One process writes, one reads. Both sides are NumPy records; a sequence number tells the reader
whether the writer was at work meanwhile (a sequence lock, Lameter 2005), which on processors that
keep the order of stores, as x86 and CPython's own locks on others do, needs nothing else.
"""

import contextlib
from multiprocessing import resource_tracker, shared_memory
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HEADER = np.dtype([("written", "<u8"), ("read", "<u8")])


class SharedRecords:
    """A ring of records, the newest of which can be had at any time."""

    def __init__(self, dtype: np.dtype[Any], size: int, *, name: str | None = None):
        """Make it, or open the one called `name`.

        Args:
            dtype: of a record.
            size: places, two at least: a writer may die in the middle of one.
            name: of the memory to open; None makes new memory.
        """
        assert size >= 2, "the newest record must outlive a writer that dies in the next"
        places = np.dtype([("before", "<u8"), ("record", dtype), ("after", "<u8")])
        length = _HEADER.itemsize + size * places.itemsize
        self._memory = shared_memory.SharedMemory(name, create=name is None, size=length)
        if name is not None:
            # Python 3.11 would remove the memory when this process ends, though it is not its own.
            resource_tracker.unregister(self._memory._name, "shared_memory")  # type: ignore[attr-defined]
        self._owns = name is None
        self._size = size
        self._header: NDArray[Any] = np.ndarray((), _HEADER, self._memory.buf)
        self._places: NDArray[Any] = np.ndarray(
            (size,), places, self._memory.buf, offset=_HEADER.itemsize
        )
        if name is None:
            self._header["written"] = self._header["read"] = 0
            self._places["before"] = self._places["after"] = 0

    @property
    def name(self) -> str:
        """To open it by in the other process."""
        return self._memory.name

    def write(self, record: Any) -> None:
        """Write the next record, over the oldest one."""
        number = int(self._header["written"]) + 1
        place = self._places[(number - 1) % self._size]
        place["after"] = 0
        place["before"] = number
        place["record"] = record
        place["after"] = number
        self._header["written"] = number

    def newest(self) -> Any | None:
        """A copy of the newest record; None before the first."""
        while True:
            number = int(self._header["written"])
            if number == 0:
                return None
            record = self._copy(number)
            if record is not None:
                return record

    def unread(self) -> tuple[list[Any], int]:
        """Copies of the records since the last call, and how many were written over meanwhile."""
        written, read = int(self._header["written"]), int(self._header["read"])
        records = []
        for number in range(max(read, written - self._size) + 1, written + 1):
            record = self._copy(number)
            if record is not None:
                records.append(record)
        self._header["read"] = written
        return records, written - read - len(records)

    def close(self) -> None:
        """Let go of the memory; whoever made it also removes it."""
        del self._header, self._places
        self._memory.close()
        if self._owns:
            with contextlib.suppress(FileNotFoundError):
                self._memory.unlink()

    def _copy(self, number: int) -> Any | None:
        """Record `number`, unless it was written over before or while it was read."""
        place = self._places[(number - 1) % self._size]
        if place["after"] != number:
            return None
        record = place["record"].copy()
        return record if place["before"] == number else None
