"""The robot's side of the network, with servers of other kinds than ours."""

import contextlib
import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openpi_client", reason="openpi-client is not installed")
from emulators.waiting import wait_until
from websockets.sync.server import ServerConnection, serve

from robot_qsft.datasets.interface import Observation
from robot_qsft.hardware.config import LinkConfig
from robot_qsft.hardware.meta import RequestMeta
from robot_qsft.hardware.policy_link import PolicyLink, Reply
from robot_qsft.hardware.protocol import pack, unpack


class Stock:
    """openpi's own server in short: no `_meta`, one thing after the other."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []
        self.pipelined = False
        self.says: str | bytes | None = None

    def answer(self, connection: ServerConnection) -> None:
        connection.send(pack({}))
        for frame in connection:
            assert isinstance(frame, bytes)
            self.heard.append(unpack(frame))
            time.sleep(0.1)
            with contextlib.suppress(TimeoutError):
                connection.recv(timeout=0)
                self.pipelined = True
            seen = self.heard[-1]["state"][0]
            actions = np.full((2, 3), seen, np.float32)
            connection.send(self.says or pack({"actions": actions}))


@pytest.fixture
def stock() -> Stock:
    return Stock()


@pytest.fixture
def address(stock: Stock) -> Iterator[str]:
    with serve(stock.answer, "127.0.0.1", 0, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def replies() -> list[Reply]:
    return []


@pytest.fixture
def link(address: str, replies: list[Reply]) -> Iterator[PolicyLink]:
    link = PolicyLink(LinkConfig(server=address), answered=replies.append)
    yield link
    link.close()


def offer(link: PolicyLink, seq: int) -> None:
    about = RequestMeta(1, seq, 0, math.inf, [])
    link.offer(about, Observation(np.array([seq], np.float32), "go"))


def test_a_stock_server_is_asked_one_thing_at_a_time_and_the_newest(
    stock: Stock, link: PolicyLink, replies: list[Reply]
) -> None:
    wait_until(lambda: not link.trouble)
    for seq in range(1, 13):
        offer(link, seq)
        time.sleep(0.03)
    wait_until(lambda: bool(replies) and replies[-1].about.seq == 12)
    assert not stock.pipelined
    assert 2 <= len(replies) < 12
    for reply in replies:
        np.testing.assert_array_equal(reply.actions_CA, np.full((2, 3), reply.about.seq))
        assert math.isnan(reply.value)
        assert reply.latency_s >= 0.1
    assert all(set(heard) == {"state", "prompt", "images"} for heard in stock.heard)


@pytest.mark.parametrize(
    ("says", "told"),
    [
        ("Traceback: it broke", "the server says: Traceback: it broke"),
        (pack({"action": 1}), "the server's answer holds no actions"),
        (b"\xc1", "the frame is no MessagePack"),
    ],
)
def test_an_answer_that_is_none_is_told(
    stock: Stock, link: PolicyLink, replies: list[Reply], says: str | bytes, told: str
) -> None:
    stock.says = says
    wait_until(lambda: not link.trouble)
    offer(link, 1)
    wait_until(lambda: told in link.trouble)
    assert not replies
    stock.says = None
    wait_until(lambda: not link.trouble)
    offer(link, 2)
    wait_until(lambda: bool(replies))


def test_a_server_that_is_not_there_is_told() -> None:
    link = PolicyLink(LinkConfig(server="ws://127.0.0.1:9"), answered=lambda reply: None)
    wait_until(lambda: "no connection to ws://127.0.0.1:9" in link.trouble)
    link.close()
