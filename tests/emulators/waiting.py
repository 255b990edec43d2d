"""Waiting for what is to come, on a machine that may be busy."""

import time
from collections.abc import Callable


def wait_until(reached: Callable[[], bool], *, seconds: float = 10.0) -> None:
    """Return once `reached()` holds; fail where it does not within `seconds`."""
    end_s = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end_s, "it never came to that"
        time.sleep(0.01)
