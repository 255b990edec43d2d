"""One worker per device: the newest observation of each session, oldest session first.

The event loop never waits for a policy. A session has one place for an observation; a newer one
takes it, and the older is answered as superseded. An observation whose deadline has passed before
its turn comes is answered as late.
"""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.interface import ActionChunk, Observation, Policy, PrefixPolicy

Dropped: TypeAlias = Literal["superseded", "late"]
_LATE: Dropped = "late"


@dataclass(frozen=True, eq=False)
class Request:
    """An observation to act on.

    Attributes:
        session: whose it is.
        observation: what is seen.
        committed_CA: actions that will be executed before the answer counts, float32, (0, A) for
            none; in the units of the data set.
        deadline_s: by `time.monotonic`, after which nobody wants the answer; infinite for never.
        answer: called with the chunk, why it was dropped, or the error, and the seconds that the
            policy took; on the worker's thread, or that of whoever hands in a newer one.
    """

    session: int
    observation: Observation
    committed_CA: NDArray[np.float32]
    deadline_s: float
    answer: Callable[["ActionChunk | Dropped | Exception", float], None]


class InferenceWorker:
    """A thread that owns a policy."""

    def __init__(self, make_policy: Callable[[], Policy], *, warm_up: Observation):
        """Start the thread; it makes the policy and acts on `warm_up` before it is ready.

        Args:
            make_policy: called on the thread.
            warm_up: an observation such as will come; what compiles, compiles now.
        """
        self._make_policy = make_policy
        self._warm_up = warm_up
        self._turns: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._waiting: dict[int, Request] = {}
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)
        self._thread.start()

    def wait_until_ready(self) -> None:
        """Wait for the warm-up.

        Raises:
            Exception: that the policy raised when it was made or warmed up.
        """
        self._ready.wait()
        if self._failure is not None:
            raise self._failure

    def submit(self, request: Request) -> None:
        """Hand in an observation; an older one of the session is dropped."""
        with self._lock:
            older = self._waiting.get(request.session)
            self._waiting[request.session] = request
        if older is None:
            self._turns.put(request.session)
        else:
            older.answer("superseded", 0.0)

    def withdraw(self, session: int) -> None:
        """Forget what waits for a session that is gone."""
        with self._lock:
            self._waiting.pop(session, None)

    def close(self) -> None:
        """End the thread after what it is at."""
        self._turns.put(None)
        self._thread.join()

    def _work(self) -> None:
        try:
            policy = self._make_policy()
            policy.reset(seed=0)
            policy.act(self._warm_up)
        except Exception as error:
            self._failure = error
            self._ready.set()
            return
        self._ready.set()
        while (session := self._turns.get()) is not None:
            with self._lock:
                request = self._waiting.pop(session, None)
            if request is not None:
                begin_s = time.monotonic()
                answer = self._act(policy, request) if begin_s <= request.deadline_s else _LATE
                request.answer(answer, time.monotonic() - begin_s)

    def _act(self, policy: Policy, request: Request) -> ActionChunk | Exception:
        try:
            if len(request.committed_CA) and isinstance(policy, PrefixPolicy):
                return policy.act_after(request.observation, request.committed_CA)
            return policy.act(request.observation)
        except Exception as error:
            return error
