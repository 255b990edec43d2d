"""The policy server: openpi's websocket protocol, so that an unmodified openpi-client works.

The server speaks first (its metadata), then each observation is answered by a chunk. Decoding and
sending happen on the event loop, thinking never does: see `inference.py`. What goes wrong is told
in a text frame, a sentence without a traceback, and closes the connection, as in openpi.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from robot_qsft.datasets.interface import ActionChunk
from robot_qsft.hardware import meta
from robot_qsft.hardware.access import Access, ServerConfig
from robot_qsft.hardware.inference import Dropped, InferenceWorker, Request
from robot_qsft.hardware.metrics import Metrics
from robot_qsft.hardware.observations import ObservationSpec, committed_from, observation_from
from robot_qsft.hardware.protocol import (
    DEFAULT_LIMITS,
    FrameError,
    FrameLimits,
    Message,
    pack,
    unpack,
)

_LOG = logging.getLogger(__name__)
_ERROR_CODE = 1011
_ERROR_REASON = "Internal server error. Traceback included in previous frame."
"""openpi's; there is no traceback in ours."""
_PIPELINED = 8
"""Requests of a connection that may wait for their answer to be sent."""

_Outcome = tuple[ActionChunk | Dropped | Exception, float]
"""What the worker answers, and the seconds that the policy took."""


class PolicyServer:
    """Serves one policy to many robots."""

    def __init__(
        self,
        worker: InferenceWorker,
        spec: ObservationSpec,
        *,
        config: ServerConfig,
        access: Access,
        metadata: Mapping[str, Any],
        model_hash: str,
        limits: FrameLimits = DEFAULT_LIMITS,
    ):
        """A server that is not listening yet.

        Args:
            worker: warmed up.
            spec: of its policy.
            config: where to listen.
            access: who may come in.
            metadata: of the policy, told first.
            model_hash: told with each chunk.
            limits: of frames.
        """
        self._worker = worker
        self._spec = spec
        self._config = config
        self._access = access
        self._metadata = pack({**metadata, meta.KEY: meta.VERSION})
        self._model_hash = model_hash
        self._limits = limits
        self._epoch = time.time_ns()
        self._sessions = 0
        self._open = 0
        self._metrics = Metrics()

    async def run(self, *, listening: Callable[[int], None], stop: asyncio.Event) -> None:
        """Listen until `stop` is set.

        Args:
            listening: called with the port once clients can connect.
            stop: ends the server; clients are told that it goes away.

        Raises:
            ValueError: when the address is not this machine's, or in use.
        """
        config = self._config
        try:
            server = await serve(
                self._serve_client,
                config.host,
                config.port,
                ssl=self._access.tls,
                compression=None,
                max_size=self._limits.max_bytes,
                max_queue=2,
                process_request=self._admit,
                server_header=None,
            )
        except OSError as error:
            raise ValueError(
                f"{config.host}:{config.port} cannot be listened on ({error.strerror}); "
                "choose another --port"
            ) from error
        async with server:
            listening(next(iter(server.sockets)).getsockname()[1])
            await stop.wait()

    def _admit(self, connection: ServerConnection, request: HttpRequest) -> Response | None:
        """Answer plain HTTP, and refuse who may not come in; None lets a websocket open."""
        if request.path == "/healthz":
            return connection.respond(HTTPStatus.OK, "OK\n")
        if not self._access.admits(request.headers.get("Authorization")):
            self._metrics.refused()
            return connection.respond(HTTPStatus.UNAUTHORIZED, "a valid Api-Key is needed\n")
        if request.path == "/metrics":
            response = connection.respond(HTTPStatus.OK, "")
            response.body, kind = self._metrics.page()
            del response.headers["Content-Type"], response.headers["Content-Length"]
            response.headers["Content-Type"] = kind
            response.headers["Content-Length"] = str(len(response.body))
            return response
        if self._open >= self._config.max_clients:
            self._metrics.refused()
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "too many clients\n")
        return None

    async def _serve_client(self, connection: ServerConnection) -> None:
        self._sessions += 1
        self._open += 1
        self._metrics.clients(self._open)
        session = _Session(self._sessions, connection, self)
        try:
            await session.run()
        except ConnectionClosed:
            pass
        except TimeoutError:
            await connection.close(1001, "idle")
        finally:
            self._open -= 1
            self._metrics.clients(self._open)
            self._worker.withdraw(session.number)


class _Session:
    """One connection."""

    def __init__(self, number: int, connection: ServerConnection, server: PolicyServer):
        self.number = number
        self._connection = connection
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._answers: set[asyncio.Task[None]] = set()
        self._total_s: float | None = None

    async def run(self) -> None:
        """Answer until the client goes or errs."""
        server = self._server
        await self._send(server._metadata)
        try:
            while True:
                async with asyncio.timeout(server._config.idle_s):
                    frame = await self._connection.recv()
                try:
                    task = self._take(frame, time.monotonic())
                except Exception as error:
                    await self._complain(error)
                    return
                if task is not None:
                    await task
        finally:
            for answer in self._answers:
                answer.cancel()

    def _take(self, frame: str | bytes, received_s: float) -> asyncio.Task[None] | None:
        """Hand an observation to the worker; gives the answering to wait for, if any.

        Raises:
            ValueError: when the frame is no observation.
        """
        server = self._server
        if isinstance(frame, str):
            raise FrameError("a text frame came, but observations are binary frames")
        message = unpack(frame, server._limits)
        about = meta.request_meta(message)
        message.pop(meta.KEY, None)
        outcome: asyncio.Future[_Outcome] = self._loop.create_future()

        def answered(value: ActionChunk | Dropped | Exception, infer_s: float) -> None:
            self._loop.call_soon_threadsafe(_settle, outcome, (value, infer_s))

        server._worker.submit(
            Request(
                session=self.number,
                observation=observation_from(message, server._spec),
                committed_CA=committed_from(about and about.committed, server._spec),
                deadline_s=received_s + (math.inf if about is None else about.deadline_s),
                answer=answered,
            )
        )
        answer = self._loop.create_task(self._answer(outcome, about, received_s))
        if about is None:
            return answer  # openpi's clients ask one thing at a time
        self._answers.add(answer)
        answer.add_done_callback(self._answers.discard)
        if len(self._answers) > _PIPELINED:
            raise FrameError(f"more than {_PIPELINED} observations wait for an answer")
        return None

    async def _answer(
        self,
        outcome: "asyncio.Future[_Outcome]",
        about: meta.RequestMeta | None,
        received_s: float,
    ) -> None:
        value, infer_s = await outcome
        metrics = self._server._metrics
        with suppress(ConnectionClosed, TimeoutError):  # nobody is left to answer
            if isinstance(value, Exception):
                metrics.answered("error", time.monotonic() - received_s)
                await self._complain(value)
                return
            await self._send(pack(self._reply(value, infer_s, about, received_s)))
            self._total_s = time.monotonic() - received_s
            metrics.answered("chunk" if isinstance(value, ActionChunk) else value, self._total_s)

    async def _send(self, frame: str | bytes) -> None:
        """Send, or give up a client that does not take what it is sent.

        Raises:
            ConnectionClosed: when the client is gone.
            TimeoutError: when it was given up.
        """
        try:
            async with asyncio.timeout(self._server._config.send_s):
                await self._connection.send(frame)
        except TimeoutError:
            self._connection.transport.abort()
            raise

    def _reply(
        self,
        value: ActionChunk | Dropped,
        infer_s: float,
        about: meta.RequestMeta | None,
        received_s: float,
    ) -> Message:
        server = self._server
        reply: Message = {}
        told: Message = {}
        if isinstance(value, ActionChunk):
            timing = {"infer_ms": infer_s * 1e3}
            reply = {"actions": value.actions, "policy_timing": timing, "server_timing": timing}
            if self._total_s is not None:
                reply["server_timing"] = {**timing, "prev_total_ms": self._total_s * 1e3}
            if value.value is not None:
                told["value"] = float(value.value)
            if value.behaviour_log_probability is not None:
                told["behaviour_log_probability"] = float(value.behaviour_log_probability)
        else:
            told["dropped"] = value
        if about is not None:
            reply[meta.KEY] = {
                **told,
                "v": meta.VERSION,
                "sid": about.stream,
                "seq": about.seq,
                "epoch": server._epoch,
                "model_hash": server._model_hash,
                "t_recv_ns": int(received_s * 1e9),
                "t_send_ns": time.monotonic_ns(),
            }
        return reply

    async def _complain(self, error: Exception) -> None:
        """Say what is wrong and close."""
        if isinstance(error, ValueError):
            sentence = str(error)
        else:
            sentence = "the policy failed; the server's log says why"
            _LOG.error(sentence, exc_info=error)
        self._server._metrics.complained()
        await self._send(sentence)
        await self._connection.close(_ERROR_CODE, _ERROR_REASON)


def _settle(outcome: "asyncio.Future[_Outcome]", value: _Outcome) -> None:
    if not outcome.done():  # the client may have gone
        outcome.set_result(value)
