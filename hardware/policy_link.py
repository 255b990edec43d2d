"""The robot's side of the network: observations out, chunks in, and nobody waits for it.

Two threads own the connection; whoever offers an observation goes on at once. Only the newest
observation is sent, to a server without the `_meta` extension when it has answered the one before,
and a server that is gone is tried again until it is back.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import connect
from websockets.sync.connection import Connection

from robot_qsft.datasets.interface import Observation
from robot_qsft.hardware import meta
from robot_qsft.hardware.access import client_tls
from robot_qsft.hardware.config import LinkConfig
from robot_qsft.hardware.observations import message_from
from robot_qsft.hardware.protocol import FrameError, Message, pack, unpack

_AGAIN_S = 0.5
_OPEN_S = 5.0
_PATIENCE_S = 10.0
"""After which an observation that was not answered counts as lost, and the connection with it."""


@dataclass(frozen=True, eq=False)
class Reply:
    """A server's answer.

    Attributes:
        about: what was asked, and with which observation.
        actions_CA: float32.
        value: that the policy predicts, NaN where it has none.
        behaviour_log_probability: of the first action, NaN likewise.
        latency_s: from offering the observation to having the answer.
        epoch: which run of the server answered; 0 where it does not say.
    """

    about: meta.RequestMeta
    actions_CA: NDArray[np.float32]
    value: float
    behaviour_log_probability: float
    latency_s: float
    epoch: int


class PolicyLink:
    """Keeps a connection to a policy server."""

    def __init__(self, config: LinkConfig, *, answered: Callable[[Reply], None]):
        """Begin to connect.

        Args:
            config: to which server.
            answered: called with each chunk, on the link's thread.

        Raises:
            ValueError: when a TLS or token file cannot be used.
        """
        self.metadata: Message = {}
        self.trouble = "not connected yet"
        """Why there is no connection; "" where there is one."""
        self._config = config
        self._answered = answered
        self._headers = _headers(config.token_file)
        encrypted = config.server.startswith("wss:")
        self._tls = (
            client_tls(config.authority, config.certificate, config.key) if encrypted else None
        )
        self._offered: tuple[meta.RequestMeta, Observation, float] | None = None
        self._asked: dict[int, tuple[meta.RequestMeta, float]] = {}
        self._news = threading.Condition()
        self._ended = False
        self._connection: Connection | None = None
        self._thread = threading.Thread(target=self._keep, name="policy link", daemon=True)
        self._thread.start()

    def offer(self, about: meta.RequestMeta, observation: Observation) -> None:
        """Send an observation as soon as can be, instead of any older one still waiting.

        Its `seq` is unlike that of any other, of earlier streams as well.
        """
        with self._news:
            self._offered = about, observation, time.monotonic()
            self._news.notify()

    def close(self) -> None:
        """Hang up."""
        with self._news:
            self._ended = True
            self._news.notify()
        if self._connection is not None:
            with suppress(WebSocketException, OSError):
                self._connection.close()
        self._thread.join()

    def _keep(self) -> None:
        """Connect, talk, and begin again."""
        while not self._ended:
            try:
                with connect(
                    self._config.server,
                    compression=None,
                    max_size=None,
                    open_timeout=_OPEN_S,
                    additional_headers=self._headers,
                    ssl=self._tls,
                ) as connection:
                    self._talk(connection)
            except InvalidStatus as error:
                self.trouble = f"the server refuses: HTTP {error.response.status_code}"
            except (WebSocketException, OSError, EOFError, TimeoutError, FrameError) as error:
                self.trouble = f"no connection to {self._config.server}: {error}"
            finally:
                self._connection = None
            with self._news:
                if not self._ended:
                    self._news.wait_for(lambda: self._ended, _AGAIN_S)

    def _talk(self, connection: Connection) -> None:
        self.metadata = unpack(_binary(connection.recv(_OPEN_S)))
        self._asked.clear()
        self._connection = connection
        self.trouble = ""
        speaker = threading.Thread(target=self._speak, args=(connection,), daemon=True)
        speaker.start()
        try:
            while not self._ended:
                try:
                    frame = connection.recv(_PATIENCE_S)
                except TimeoutError:
                    if self._asked:
                        raise
                    continue
                if isinstance(frame, str):
                    raise FrameError(f"the server says: {frame:.200}")
                self._hear(unpack(frame))
        finally:
            self._connection = None
            with self._news:
                self._news.notify()
            speaker.join()

    def _speak(self, connection: Connection) -> None:
        """Send what is offered while the connection lasts."""
        while True:
            with self._news:
                self._news.wait_for(lambda: self._ended or self._connection is None or self._turn)
                if self._ended or self._connection is None or self._offered is None:
                    return
                about, observation, offered_s = self._offered
                self._offered = None
                self._asked[about.seq] = about, offered_s
            message = message_from(observation)
            if self._extended:  # or another server would feed it to its policy
                message[meta.KEY] = about.message()
            try:
                connection.send(pack(message))
            except (WebSocketException, OSError):
                return

    @property
    def _extended(self) -> bool:
        """Whether the server knows the `_meta` extension."""
        return meta.KEY in self.metadata

    @property
    def _turn(self) -> bool:
        """Whether there is something to send that the server may have now."""
        return self._offered is not None and (self._extended or not self._asked)

    def _hear(self, message: Message) -> None:
        told: dict[str, Any] = message.get(meta.KEY, {})
        with self._news:
            # A server without the extension was asked one thing.
            seq = told.get("seq", next(iter(self._asked), -1))
            about, offered_s = self._asked.pop(seq, (None, 0.0))
            self._news.notify()
        if about is None or "dropped" in told:
            return
        actions = message.get("actions")
        if not isinstance(actions, np.ndarray):
            raise FrameError("the server's answer holds no actions")
        self._answered(
            Reply(
                about,
                np.atleast_2d(actions).astype(np.float32),
                float(told.get("value", np.nan)),
                float(told.get("behaviour_log_probability", np.nan)),
                time.monotonic() - offered_s,
                int(told.get("epoch", 0)),
            )
        )


def _binary(frame: str | bytes) -> bytes:
    if isinstance(frame, str):
        raise FrameError(f"the server says: {frame:.200}")
    return frame


def _headers(token_file: Path | None) -> dict[str, str]:
    if token_file is None:
        return {}
    try:
        token = token_file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the token cannot be read: {error}") from error
    return {"Authorization": f"Api-Key {token}"}
