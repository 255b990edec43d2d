"""Being on time: absolute sleeping, and what the system lets a process do about its rivals."""

import ctypes
import gc
import os
import time
from contextlib import suppress

PRIORITY = 80
"""Of SCHED_FIFO, above the usual drivers' 50."""
_MCL_CURRENT, _MCL_FUTURE = 1, 2


def become_realtime() -> list[str]:
    """Ask for what keeps a control loop on time; gives what was refused, in sentences.

    The loop's own process is needed as well: a Python thread beside it would hold it up for
    milliseconds.
    """
    refused = []
    gc.collect()
    gc.freeze()
    gc.disable()
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "mlockall") or library.mlockall(_MCL_CURRENT | _MCL_FUTURE):
        reason = os.strerror(ctypes.get_errno())
        refused.append(
            f"memory is not locked ({reason}); allow it by 'memlock unlimited' in "
            "/etc/security/limits.conf"
        )
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    except (AttributeError, OSError) as error:
        refused.append(
            f"no real-time priority ({error}); allow it by 'rtprio {PRIORITY}' in "
            "/etc/security/limits.conf"
        )
    return refused


class Ticker:
    """Wakes at even intervals of the monotonic clock; a late wake-up does not shift later ones."""

    def __init__(self, period_s: float):
        """Tick from now on."""
        self._period_s = period_s
        self._next_s = time.monotonic() + period_s

    def wait(self) -> float:
        """Sleep until the next tick; gives how late it is, in seconds.

        Periods that were missed altogether are left out, since two commands at once help nobody.
        """
        sleep_until(self._next_s)
        late_s = time.monotonic() - self._next_s
        missed = max(0, int(late_s / self._period_s))
        self._next_s += (1 + missed) * self._period_s
        return late_s


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_CLOCK_MONOTONIC, _TIMER_ABSTIME = 1, 1


def sleep_until(when_s: float) -> None:
    """Sleep until `time.monotonic()` is `when_s`; returns at once where that is past."""
    with suppress(AttributeError):
        request = _Timespec(int(when_s), int((when_s % 1.0) * 1e9))
        _libc.clock_nanosleep(_CLOCK_MONOTONIC, _TIMER_ABSTIME, ctypes.byref(request), None)
        return
    time.sleep(max(0.0, when_s - time.monotonic()))  # where the system has no absolute sleep


_libc = ctypes.CDLL(None)
