"""The policy server, asked by an unmodified openpi-client and by clients that mean harm."""

import asyncio
import contextlib
import json
import subprocess
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from robot_qsft.datasets.interface import ActionChunk, Observation, Policy
from robot_qsft.hardware.access import Access, AccessConfig, ServerConfig, client_tls
from robot_qsft.hardware.inference import InferenceWorker
from robot_qsft.hardware.observations import ObservationSpec

pytest.importorskip("openpi_client", reason="openpi-client is not installed")
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import connect

from robot_qsft.hardware.protocol import pack, unpack
from robot_qsft.hardware.server import PolicyServer

SPEC = ObservationSpec(
    cameras=("wrist",),
    image_size=(8, 8),
    state_size=3,
    environment_state_size=0,
    action_size=2,
)
TOKEN = "a-token-of-24-characters"


class Counting:
    """A policy that answers with how often it was asked, and keeps what it saw."""

    def __init__(self) -> None:
        self.seen: list[Observation] = []
        self.committed: list[np.ndarray] = []
        self.wait = threading.Event()
        self.wait.set()
        self.error: Exception | None = None
        self.threads: set[str] = set()
        self.begun = threading.Semaphore(0)

    def reset(self, *, seed: int) -> None:
        self.seen.clear()

    def act(self, observation: Observation) -> ActionChunk:
        self.begun.release()
        self.wait.wait(10)
        self.threads.add(threading.current_thread().name)
        self.seen.append(observation)
        if self.error is not None:
            raise self.error
        actions = np.arange(8, dtype=np.float32).reshape(4, 2) + 10 * observation.state[0]
        return ActionChunk(actions, value=0.25, behaviour_log_probability=-1.5)

    def act_after(self, observation: Observation, committed: np.ndarray) -> ActionChunk:
        self.committed.append(committed)
        return self.act(observation)


class Served:
    """A server on a thread of its own."""

    def __init__(
        self,
        policy: Policy,
        config: ServerConfig,
        access: AccessConfig,
        spec: ObservationSpec = SPEC,
    ):
        self.worker = InferenceWorker(lambda: policy, warm_up=spec.blank())
        self.worker.wait_until_ready()
        server = PolicyServer(
            self.worker,
            spec,
            config=config,
            access=Access(access, config.host),
            metadata={"reset_pose": [0.5, 1.0], "action_horizon": 10},
            model_hash="abc",
        )
        listening = threading.Event()
        self.loop = asyncio.new_event_loop()
        self.stop = asyncio.Event()

        def heard(port: int) -> None:
            self.port = port
            listening.set()

        def run() -> None:
            self.loop.run_until_complete(server.run(listening=heard, stop=self.stop))
            self.loop.close()

        self.thread = threading.Thread(target=run)
        self.thread.start()
        assert listening.wait(10)

    def close(self) -> None:
        if self.thread.is_alive():
            self.loop.call_soon_threadsafe(self.stop.set)
            self.thread.join()
            self.worker.close()

    def http(self, path: str, **headers: str) -> tuple[int, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


Serve = Callable[..., Served]


@pytest.fixture
def policy() -> Counting:
    return Counting()


@pytest.fixture
def serve(policy: Counting) -> Iterator[Serve]:
    with contextlib.ExitStack() as running:

        def start(access: AccessConfig | None = None, **config: object) -> Served:
            served = Served(policy, ServerConfig(port=0, **config), access or AccessConfig())
            running.callback(served.close)
            policy.seen.clear()  # of the warm-up
            policy.begun.acquire()
            return served

        yield start


def client(port: int, **options: str) -> WebsocketClientPolicy:
    with warnings.catch_warnings():  # websockets 17 warns of the very call that the client makes
        warnings.simplefilter("ignore", DeprecationWarning)
        return WebsocketClientPolicy("127.0.0.1", port, **options)


def observation(number: int = 0) -> dict:
    return {
        "observation/wrist_image": np.full((8, 8, 3), number, np.uint8),
        "observation/state": np.array([number, 0, 0], np.float64),
        "prompt": "lift",
    }


def test_an_unmodified_client_is_served(serve: Serve, policy: Counting) -> None:
    asked = client(serve().port)
    assert asked.get_server_metadata() == {
        "reset_pose": [0.5, 1.0],
        "action_horizon": 10,
        "_meta": 1,
    }
    first, second = asked.infer(observation(1)), asked.infer(observation(2))
    np.testing.assert_array_equal(first["actions"], np.arange(8).reshape(4, 2) + 10)
    np.testing.assert_array_equal(second["actions"], np.arange(8).reshape(4, 2) + 20)
    assert set(first) == {"actions", "policy_timing", "server_timing"}
    assert set(first["server_timing"]) == {"infer_ms"}
    assert set(second["server_timing"]) == {"infer_ms", "prev_total_ms"}
    seen = policy.seen[-1]
    assert (seen.instruction, seen.state.tolist()) == ("lift", [2, 0, 0])
    np.testing.assert_array_equal(seen.images["wrist"], np.full((8, 8, 3), 2))
    assert policy.threads == {"inference"}


def test_a_chunk_is_brokered_step_by_step(serve: Serve, policy: Counting) -> None:
    broker = ActionChunkBroker(client(serve().port), action_horizon=4)
    taken = [broker.infer(observation(number))["actions"].tolist() for number in range(5)]
    assert taken == [[0, 1], [2, 3], [4, 5], [6, 7], [40, 41]]
    assert [seen.state[0] for seen in policy.seen] == [0, 4]


def test_a_bad_observation_is_told_as_openpi_does(serve: Serve) -> None:
    asked = client(serve().port)
    with pytest.raises(RuntimeError, match=r"the observation lacks 'images/wrist'; it has prompt"):
        asked.infer({"prompt": "lift"})
    with pytest.raises(ConnectionClosed) as closed:
        asked.infer(observation())
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1011


def test_an_error_of_the_policy_is_not_shown_to_strangers(
    serve: Serve, policy: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    served = serve()
    policy.error = RuntimeError("secret path /home")
    with pytest.raises(RuntimeError, match="the policy failed; the server's log says why") as told:
        client(served.port).infer(observation())
    assert "secret" not in str(told.value)
    assert "secret path" in caplog.text
    policy.error = None
    assert client(served.port).infer(observation())["actions"].shape == (4, 2)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"observation/state": np.zeros(4)}, "must be 3 numbers, got float64 of shape"),
        ({"observation/state": np.array([np.nan, 0, 0])}, "holds NaN or infinity"),
        ({"observation/state": np.array([1e300, 0, 0])}, "a number beyond float32"),
        ({"observation/state": "abc"}, "must be 3 numbers"),
        ({"observation/wrist_image": np.zeros((8, 8, 4), np.uint8)}, "must be"),
        ({"observation/wrist_image": np.zeros((8, 8, 3), np.float32)}, "must be a uint8 image"),
        ({"observation/wrist_image": np.zeros((0, 8, 3), np.uint8)}, "must be"),
        ({"prompt": 3}, "prompt must be text"),
        ({"_meta": {"v": 1}}, "_meta.sid must be a whole number"),
        ({"_meta": {"v": 2}}, "_meta must be a map of version 1"),
        ({"_meta": {"v": 1, "sid": 0, "seq": 0, "t_obs_ns": 0, "deadline_ms": -1}}, "above 0"),
        (
            {"_meta": {"v": 1, "sid": 0, "seq": 0, "t_obs_ns": 0, "committed": [[1]]}},
            "committed must be rows of 2 numbers",
        ),
    ],
)
def test_what_does_not_fit_is_named(serve: Serve, change: dict, complaint: str) -> None:
    with pytest.raises(RuntimeError, match=complaint):
        client(serve().port).infer(observation() | change)


def test_images_of_other_layouts_and_sizes(serve: Serve, policy: Counting) -> None:
    asked = client(serve().port)
    image = np.random.default_rng(0).integers(0, 255, (16, 32, 3), np.uint8)
    asked.infer(observation() | {"observation/wrist_image": image})
    asked.infer({"images": {"wrist": image.transpose(2, 0, 1)}, "state": [0.0, 1.0, 2.0]})
    one, other = (seen.images["wrist"] for seen in policy.seen[-2:])
    assert one.shape == (8, 8, 3)
    np.testing.assert_array_equal(one, other)
    assert policy.seen[-1].state.tolist() == [0, 1, 2]


def test_health_and_metrics(serve: Serve) -> None:
    served = serve()
    assert served.http("/healthz") == (200, "OK\n")
    client(served.port).infer(observation())
    status, page = served.http("/metrics")
    assert status == 200
    assert 'qsft_requests_total{outcome="chunk"} 1.0' in page
    assert "qsft_answer_seconds_count 1.0" in page


def about(seq: int, **more: object) -> dict:
    return {"_meta": {"v": 1, "sid": 7, "seq": seq, "t_obs_ns": 123, **more}}


def test_meta_is_answered(serve: Serve, policy: Counting) -> None:
    before_ns = time.monotonic_ns()
    committed = [[1.0, 2.0], [3.0, 4.0]]
    answer = client(serve().port).infer(observation() | about(5, committed=committed))
    told = answer["_meta"]
    assert {name: told[name] for name in ("v", "sid", "seq", "model_hash", "value")} == {
        "v": 1,
        "sid": 7,
        "seq": 5,
        "model_hash": "abc",
        "value": 0.25,
    }
    assert before_ns < told["t_recv_ns"] < told["t_send_ns"] < time.monotonic_ns()
    assert all(isinstance(value, int | float | str) for value in told.values())
    assert [one.tolist() for one in policy.committed] == [committed]


def test_the_newest_observation_wins(serve: Serve, policy: Counting) -> None:
    with connect(f"ws://127.0.0.1:{serve().port}", compression=None) as socket:
        socket.recv()
        policy.wait.clear()
        socket.send(pack(observation(0) | about(0)))
        assert policy.begun.acquire(timeout=5)
        for number in range(1, 5):
            socket.send(pack(observation(number) | about(number)))
        answers = {}
        while len(answers) < 5:
            told = unpack(socket.recv(timeout=5))["_meta"]
            answers[told["seq"]] = told.get("dropped")
            if len(answers) == 3:
                policy.wait.set()
    superseded = dict.fromkeys((1, 2, 3), "superseded")
    assert answers == {**superseded, 0: None, 4: None}
    assert [seen.state[0] for seen in policy.seen] == [0, 4]


def test_what_comes_too_late_is_dropped(serve: Serve, policy: Counting) -> None:
    served = serve()
    policy.wait.clear()
    with (
        connect(f"ws://127.0.0.1:{served.port}", compression=None) as first,
        connect(f"ws://127.0.0.1:{served.port}", compression=None) as second,
    ):
        first.recv(), second.recv()
        first.send(pack(observation(1) | about(1)))
        assert policy.begun.acquire(timeout=5)
        second.send(pack(observation(2) | about(2, deadline_ms=20.0)))
        time.sleep(0.2)
        policy.wait.set()
        assert unpack(first.recv(timeout=5))["_meta"].get("dropped") is None
        assert unpack(second.recv(timeout=5))["_meta"]["dropped"] == "late"
    assert [seen.state[0] for seen in policy.seen] == [1]


def test_flooding_ends_the_connection(serve: Serve, policy: Counting) -> None:
    served = serve()
    policy.wait.clear()
    with connect(f"ws://127.0.0.1:{served.port}", compression=None) as socket:
        socket.recv()
        with pytest.raises(ConnectionClosed):
            for number in range(10_000):
                socket.send(pack(observation(number % 9) | about(number)))
    policy.wait.set()
    assert client(served.port).infer(observation())["actions"].shape == (4, 2)


def test_the_token(serve: Serve, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    token.chmod(0o600)
    served = serve(AccessConfig(token_file=token))
    assert client(served.port, api_key=TOKEN).infer(observation())["actions"].shape == (4, 2)
    for wrong in ({}, {"api_key": TOKEN[:-1]}, {"api_key": TOKEN + "x"}, {"api_key": ""}):
        with pytest.raises(InvalidStatus) as refused:
            client(served.port, **wrong)
        assert refused.value.response.status_code == 401
    assert served.http("/metrics")[0] == 401
    assert served.http("/healthz")[0] == 200
    assert served.http("/metrics", Authorization=f"Api-Key {TOKEN}")[0] == 200


def test_no_more_clients_than_agreed(serve: Serve) -> None:
    served = serve(max_clients=2)
    clients = [client(served.port) for _ in range(2)]
    with pytest.raises(InvalidStatus) as refused:
        client(served.port)
    assert refused.value.response.status_code == 503
    clients[0]._ws.close()
    end_s = time.monotonic() + 5
    while time.monotonic() < end_s:
        with contextlib.suppress(InvalidStatus):
            client(served.port)
            break
    assert time.monotonic() < end_s


def test_an_idle_client_is_sent_away(serve: Serve) -> None:
    with connect(f"ws://127.0.0.1:{serve(idle_s=0.2).port}", compression=None) as socket:
        socket.recv()
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=5)


def certificate(folder: Path) -> tuple[Path, Path]:
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


def test_tls_with_a_private_authority_and_an_unmodified_client(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public, key = certificate(tmp_path)
    served = serve(AccessConfig(certificate=public, key=key))
    monkeypatch.setenv("SSL_CERT_FILE", str(public))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        asked = WebsocketClientPolicy(f"wss://127.0.0.1:{served.port}", port=None)
    assert asked.infer(observation())["actions"].shape == (4, 2)


def test_mutual_tls(serve: Serve, tmp_path: Path) -> None:
    public, key = certificate(tmp_path)
    served = serve(AccessConfig(certificate=public, key=key, client_authority=public))
    address = f"wss://127.0.0.1:{served.port}"
    with connect(address, ssl=client_tls(public, public, key)) as socket:
        assert unpack(socket.recv())["_meta"] == 1
    with (
        pytest.raises((OSError, EOFError, WebSocketException)),
        connect(address, ssl=client_tls(public, None, None)) as socket,
    ):
        socket.recv(timeout=5)


def test_strangers_need_tls_and_a_token(tmp_path: Path) -> None:
    public, key = certificate(tmp_path)
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    for open_door in (
        AccessConfig(),
        AccessConfig(token_file=token),
        AccessConfig(certificate=public, key=key),
    ):
        with pytest.raises(ValueError, match=r"listening on 0\.0\.0\.0 needs --certificate"):
            Access(open_door, "0.0.0.0")
        Access(open_door, "127.0.0.1")
    Access(AccessConfig(certificate=public, key=key, token_file=token), "0.0.0.0")
    Access(AccessConfig(certificate=public, key=key, client_authority=public), "::")
    Access(AccessConfig(insecure=True), "0.0.0.0")


@pytest.mark.parametrize(
    ("contents", "mode", "complaint"),
    [
        ("short", 0o600, "must have 16 characters or more, got 5"),
        (TOKEN, 0o644, "others may read the token"),
        (None, 0o600, "the token cannot be read"),
    ],
)
def test_a_token_file_that_is_none(
    tmp_path: Path, contents: str | None, mode: int, complaint: str
) -> None:
    token = tmp_path / "token"
    if contents is not None:
        token.write_text(contents)
        token.chmod(mode)
    with pytest.raises(ValueError, match=complaint):
        Access(AccessConfig(token_file=token), "127.0.0.1")


def test_a_port_in_use_is_one_sentence(serve: Serve, policy: Counting) -> None:
    port = serve().port
    worker = InferenceWorker(lambda: policy, warm_up=SPEC.blank())
    server = PolicyServer(
        worker,
        SPEC,
        config=ServerConfig(port=port),
        access=Access(AccessConfig(), "127.0.0.1"),
        metadata={},
        model_hash="",
    )
    with pytest.raises(ValueError, match=rf"127\.0\.0\.1:{port} cannot be listened on .*--port"):
        asyncio.run(server.run(listening=lambda port: None, stop=asyncio.Event()))
    worker.close()


def test_a_policy_that_does_not_start_says_so() -> None:
    def broken() -> Policy:
        raise ValueError("the checkpoint is damaged")

    worker = InferenceWorker(broken, warm_up=SPEC.blank())
    with pytest.raises(ValueError, match="the checkpoint is damaged"):
        worker.wait_until_ready()


def test_hostile_clients_do_not_disturb_others(serve: Serve) -> None:
    from test_bridge_protocol import HOSTILE

    served = serve()
    asked = client(served.port)
    for hostile in HOSTILE.values():
        with connect(f"ws://127.0.0.1:{served.port}", compression=None) as socket:
            socket.recv()
            socket.send(hostile)
            told = socket.recv(timeout=5)
            assert isinstance(told, str)
            assert "Traceback" not in told
            with pytest.raises(ConnectionClosed):
                socket.recv(timeout=5)
    with connect(f"ws://127.0.0.1:{served.port}", compression=None) as socket:
        socket.recv()
        socket.send(json.dumps({"prompt": "text"}))
        assert "binary frames" in socket.recv(timeout=5)
    assert asked.infer(observation())["actions"].shape == (4, 2)
