"""Policy servers of the bridge's benchmarks, each a process of its own with a policy of nothing."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from robot_qsft.datasets.interface import ActionChunk, Observation
from robot_qsft.hardware.access import Access, AccessConfig, ServerConfig
from robot_qsft.hardware.inference import InferenceWorker
from robot_qsft.hardware.observations import ObservationSpec
from robot_qsft.hardware.protocol import pack, unpack
from robot_qsft.hardware.server import PolicyServer

SPEC = ObservationSpec(("exterior", "wrist"), (224, 224), 8, 0, 7)
CHUNK = np.zeros((10, 7), np.float32)


class NullPolicy:
    """Answers at once."""

    def reset(self, *, seed: int) -> None:
        """Nothing."""

    def act(self, observation: Observation) -> ActionChunk:
        """The same chunk."""
        return ActionChunk(CHUNK)


def observation(rng: np.random.Generator) -> dict[str, object]:
    """Two cameras and a state, by the names of openpi's DROID example."""
    return {
        "observation/exterior_image": rng.integers(0, 255, (224, 224, 3), np.uint8),
        "observation/wrist_image": rng.integers(0, 255, (224, 224, 3), np.uint8),
        "observation/state": rng.normal(size=8),
        "prompt": "pick up the can",
    }


@contextmanager
def running(kind: str) -> Iterator[int]:
    """A server, "ours" or "minimal"; gives its port."""
    with subprocess.Popen(
        [sys.executable, __file__, kind], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
        process.terminate()


def _listening(port: int) -> None:
    print(json.dumps(port), flush=True)


async def _ours() -> None:
    worker = InferenceWorker(NullPolicy, warm_up=SPEC.blank())
    worker.wait_until_ready()
    server = PolicyServer(
        worker,
        SPEC,
        config=ServerConfig(port=0),
        access=Access(AccessConfig(), "127.0.0.1"),
        metadata={},
        model_hash="",
    )
    await server.run(listening=_listening, stop=asyncio.Event())


async def _minimal() -> None:
    """The protocol and nothing else: the policy is called where the frame arrives."""
    from websockets.asyncio.server import ServerConnection, serve

    policy = NullPolicy()

    async def answer(connection: ServerConnection) -> None:
        await connection.send(pack({}))
        async for frame in connection:
            assert isinstance(frame, bytes)
            unpack(frame)
            chunk = policy.act(SPEC.blank())
            await connection.send(pack({"actions": chunk.actions, "server_timing": {}}))

    async with serve(answer, "127.0.0.1", 0, compression=None, max_size=None) as server:
        _listening(next(iter(server.sockets)).getsockname()[1])
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run({"ours": _ours, "minimal": _minimal}[sys.argv[1]]())
