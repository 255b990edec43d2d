"""Memory that was freed goes back to the system."""

import ctypes
import sys


def give_back_freed_memory() -> None:
    """Hand freed memory back, which the C library of Linux otherwise keeps for itself.

    The footer of a parquet file takes a kilobyte per row group and column while it is read, and
    each of several processes reads it.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl has not
        if trim is not None:
            trim(0)
