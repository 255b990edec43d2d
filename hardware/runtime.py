"""The robot's runtime: sees, asks the policy at its own pace, hands chunks to the control loop.

Steps of the policy lie on a grid of its period from the episode's begin on, by the robot's clock.
At each an observation goes out; whenever a chunk comes back it is handed on with the step it is
of. How long that took has no say in what is executed when. It only decides how many actions the
policy is told to be bound to, being those that will have begun before its answer counts.

Shape legend: A action dimensions, C chunk length, J joints; X = J + 1, the last entry being the
gripper's opening.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from robot_qsft.datasets.interface import Image, Observation
from robot_qsft.hardware.cameras import Cameras
from robot_qsft.hardware.chunks import JointChunk
from robot_qsft.hardware.config import LinkConfig, RuntimeConfig
from robot_qsft.hardware.controller import Request
from robot_qsft.hardware.loop_ports import Period
from robot_qsft.hardware.loop_process import LoopProcess
from robot_qsft.hardware.meta import RequestMeta
from robot_qsft.hardware.policy_io import PolicyIO
from robot_qsft.hardware.policy_link import PolicyLink, Reply
from robot_qsft.hardware.realtime import Ticker
from robot_qsft.hardware.recorder import Step
from robot_qsft.hardware.robot import RobotState
from robot_qsft.hardware.states import State

_LATENCIES = 20
"""Answers that the expected delay is taken from."""
_KEPT = 100
"""Observations that an answer may still come for."""


@dataclass(frozen=True, eq=False)
class _Seen:
    """An observation that was sent."""

    step: int
    seen_s: float
    measured: RobotState
    observation: Observation


@dataclass(eq=False)
class EpisodeLog:
    """What happened in an episode so far.

    Attributes:
        steps: executed, for training.
        periods: of the control loop.
        lost: periods that were written over before they were read.
    """

    steps: list[Step] = field(default_factory=list)
    periods: list[Period] = field(default_factory=list)
    lost: int = 0


class Runtime:
    """Runs a policy on an arm, one episode after the other."""

    def __init__(
        self,
        loop: LoopProcess,
        io: PolicyIO,
        cameras: Cameras,
        *,
        link: LinkConfig,
        config: RuntimeConfig,
    ):
        """Connect to the policy; nothing is asked before `begin`.

        Args:
            loop: connected to the arm.
            io: what its states and actions are.
            cameras: that are read.
            link: to which policy server.
            config: how the policy is asked.

        Raises:
            ValueError: when a TLS or token file cannot be used.
        """
        self._loop = loop
        self._io = io
        self._cameras = cameras
        self._config = config
        self._lock = threading.RLock()
        self._stream = 0
        self._active = False
        self._begin_s = 0.0
        self._seq = 0
        self._seen: dict[int, _Seen] = {}
        self._answers: dict[int, tuple[int, NDArray[np.float32]]] = {}
        self._did: dict[int, tuple[int, int]] = {}
        self._latencies_s: deque[float] = deque(maxlen=_LATENCIES)
        self._epoch = 0
        self._log = EpisodeLog()
        self._targets_CX = np.zeros((0, 0))
        self._targets_step = 0
        self.log_likelihood = math.nan
        """Of the newest chunk's first action under the behaviour policy, in nats."""
        self._ended = threading.Event()
        self._link = PolicyLink(link, answered=self._hear)
        self._thread = threading.Thread(target=self._run, name="policy steps", daemon=True)
        self._thread.start()

    def newest(self) -> Period:
        """What the control loop did last."""
        return self._loop.newest()

    def ahead(self) -> NDArray[np.float64]:
        """Targets of the newest chunk that are still to come, float64 (C, X)."""
        with self._lock:
            past = math.floor((time.monotonic() - self._begin_s) * self._config.policy_hz)
            return self._targets_CX[max(0, past - self._targets_step) :]

    @property
    def trouble(self) -> str:
        """Why there is no connection to the policy; "" where there is one."""
        return self._link.trouble

    @property
    def latency_s(self) -> float:
        """What an answer may take, by the last few; 0 before the first."""
        return max(self._latencies_s, default=0.0)

    def begin(self) -> None:
        """A new episode: the policy is asked from now on; the arm moves when it is armed and run.

        Raises:
            ValueError: when one is going on.
        """
        with self._lock:
            if self._active:
                raise ValueError("an episode is going on; end it first")
            self._loop.ports.periods()  # those of before are nobody's
            self._io.begin(self.newest().measured)
            self._stream += 1
            self._log = EpisodeLog()
            self._seen.clear()
            self._answers.clear()
            self._did.clear()
            self._targets_CX = self._targets_CX[:0]
            self._active = True

    def end(self) -> EpisodeLog:
        """The episode is over: the policy is asked no more, and the arm holds."""
        with self._lock:
            self._active = False
            self._loop.request(Request.STOP, "the episode has ended")
            self._collect()
            return self._log

    def request(self, request: Request) -> None:
        """Pass on what the operator asks for."""
        self._loop.request(request)

    def _hear(self, reply: Reply) -> None:
        """Take in a chunk; called by the link."""
        with self._lock:
            seen = self._seen.get(reply.about.seq)
            if not self._active or reply.about.stream != self._stream or seen is None:
                return
            self._latencies_s.append(reply.latency_s)
            if self._epoch not in (0, reply.epoch):
                self._loop.request(Request.STOP, "the policy server was started anew")
            self._epoch = reply.epoch
            try:
                targets_CX = self._io.targets(seen.measured, reply.actions_CA)
            except ValueError as error:
                self._loop.request(Request.STOP, str(error))
                return
            self._answers[reply.about.seq] = seen.step, reply.actions_CA
            self._answers.pop(reply.about.seq - _KEPT, None)
            self.log_likelihood = reply.behaviour_log_probability
            self._targets_CX, self._targets_step = targets_CX, seen.step
            chunk = JointChunk(
                self._stream,
                reply.about.seq,
                seen.step,
                seen.seen_s,
                targets_CX,
                reply.value,
            )
            self._loop.ports.send_chunk(
                chunk, begin_s=self._begin_s, period_s=1 / self._config.policy_hz
            )

    def close(self) -> None:
        """Stop asking, and hang up."""
        self._ended.set()
        self._thread.join()
        self._link.close()

    def _run(self) -> None:
        ticker = Ticker(1 / self._config.policy_hz)
        begun = 0
        while not self._ended.is_set():
            ticker.wait()
            with self._lock:
                if not self._active:
                    continue
                if self._stream != begun:  # the grid begins with the episode
                    begun = self._stream
                    ticker = Ticker(1 / self._config.policy_hz)
                    self._begin_s = time.monotonic()
                self._collect()
                self._look()

    def _look(self) -> None:
        """Send one observation."""
        now_s = time.monotonic()
        measured = self.newest().measured
        objection = self._cameras.objection(now_s, stale_s=self._config.camera_stale_s)
        if objection:
            self._loop.request(Request.STOP, objection)
            return
        images: Mapping[str, Image] = {
            name: picture.image for name, picture in self._cameras.newest().items()
        }
        observation = Observation(self._io.state(measured), self._config.instruction, images)
        step = round((now_s - self._begin_s) * self._config.policy_hz)
        self._seq += 1
        self._seen[self._seq] = _Seen(step, now_s, measured, observation)
        self._seen.pop(self._seq - _KEPT, None)
        about = RequestMeta(
            stream=self._stream,
            seq=self._seq,
            observed_ns=int(now_s * 1e9),
            deadline_s=self._config.deadline_s,
            committed=self._committed(step),
        )
        self._link.offer(about, observation)

    def _committed(self, step: int) -> list[list[float]]:
        """Actions from `step` on that will have begun before the answer counts."""
        delay = self.latency_s * self._config.policy_hz
        if not self._config.commit or delay < 0.5 or not self._answers:
            return []
        # The newest answer speaks for all steps to come, see `chunks.py`.
        first, actions_CA = self._answers[max(self._answers)]
        horizon = int(self._link.metadata.get("action_horizon", 1))
        count = min(math.ceil(delay), horizon - 1)
        return actions_CA[step - first : step - first + count].tolist() if step >= first else []

    def _collect(self) -> None:
        """Keep what the control loop did since the last time."""
        periods, lost = self._loop.ports.periods()
        self._log.periods += periods
        self._log.lost += lost
        for period in periods:
            step = math.floor((period.now_s - self._begin_s) * self._config.policy_hz)
            for done in [one for one in self._did if one < step]:
                self._note(done, *self._did.pop(done))
            if period.state is State.RUNNING and period.seq >= 0:
                self._did[step] = period.seq, period.step

    def _note(self, step: int, seq: int, of_step: int) -> None:
        """A step is over: what was seen as it began, and the action with the last word in it."""
        seen = next((one for one in self._seen.values() if one.step == step), None)
        if seen is None or seq not in self._answers:
            return
        first, actions_CA = self._answers[seq]
        observation = seen.observation
        self._log.steps.append(
            Step(observation.state, observation.images, actions_CA[of_step - first])
        )
