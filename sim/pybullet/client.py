"""One PyBullet physics server, without the lines that PyBullet prints by itself."""

import ctypes
import functools
import inspect
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def silence() -> Iterator[None]:
    """Discard what native code writes to this process's standard output and error."""
    flush = ctypes.CDLL(None).fflush
    flush(None)
    kept = [os.dup(1), os.dup(2)]
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        yield
    finally:
        flush(None)
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        for descriptor in (*kept, sink):
            os.close(descriptor)


with silence():
    import pybullet


class PhysicsClient:
    """PyBullet's functions and constants, the functions bound to a server of their own.

    Does what `pybullet_utils.bullet_client.BulletClient` does, but prints nothing and looks each
    function up once.
    """

    def __init__(self) -> None:
        self._server: int = pybullet.connect(pybullet.DIRECT)
        self._disconnect = weakref.finalize(self, _disconnect, self._server)

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(pybullet, name)
        if inspect.isbuiltin(attribute):
            attribute = functools.partial(attribute, physicsClientId=self._server)
        setattr(self, name, attribute)
        return attribute

    @property
    def connected(self) -> bool:
        """Whether the server is still there."""
        return self._disconnect.alive

    def close(self) -> None:
        """End the server; a second time does nothing."""
        self._disconnect()


def _disconnect(server: int) -> None:
    pybullet.disconnect(physicsClientId=server)
