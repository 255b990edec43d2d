"""`robot-qsft serve`: a trained policy answers robots by openpi's websocket protocol."""

import asyncio
import hashlib
import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import tyro

from robot_qsft.console import console
from robot_qsft.hardware.access import Access, AccessConfig, ServerConfig
from robot_qsft.hardware.inference import InferenceWorker
from robot_qsft.hardware.observations import ObservationSpec
from robot_qsft.policies.checkpoint import WEIGHTS, load_policy
from robot_qsft.policies.rt import PolicySpec
from robot_qsft.policies.token_policy import DecodingConfig, TokenPolicy
from robot_qsft.train import choose_device
from robot_qsft.training_state import latest_checkpoint

if TYPE_CHECKING:
    from robot_qsft.hardware.server import PolicyServer


@dataclass(frozen=True)
class Serve:
    """Serve a trained policy to robots; any openpi-client can ask it.

    It listens to this machine only, unless other machines are kept out by TLS and a token.

    Attributes:
        run_folder: folder of the training run, whose last checkpoint is served.
        device: that thinks: "cpu", "cuda", or "auto".
        decoding: how actions are chosen; beta 0 is behaviour cloning.
        server: where to listen.
        access: who may come in.
    """

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    device: str = "auto"
    decoding: Annotated[DecodingConfig, tyro.conf.arg(name="")] = field(
        default_factory=DecodingConfig
    )
    server: Annotated[ServerConfig, tyro.conf.arg(name="")] = field(default_factory=ServerConfig)
    access: Annotated[AccessConfig, tyro.conf.arg(name="")] = field(default_factory=AccessConfig)

    def run(self) -> int:
        """Serve until interrupted."""
        try:
            from robot_qsft.hardware.server import PolicyServer
        except ImportError as error:
            raise ValueError(
                f"serving needs more packages ({error}); pip install 'robot-qsft[bridge]'"
            ) from error
        logging.basicConfig(level=logging.WARNING)
        access = Access(self.access, self.server.host)
        device = choose_device(self.device)
        checkpoint = latest_checkpoint(self.run_folder)
        network, tokenizer, method = load_policy(checkpoint)
        spec = observation_spec(network.spec)

        if spec.environment_state_size:
            console.print(
                f"note: this policy reads environment_state, {spec.environment_state_size} numbers "
                "that only a simulator knows; for an arm, train one from cameras",
                soft_wrap=True,
            )

        def make_policy() -> TokenPolicy:
            torch.set_num_threads(max(1, torch.get_num_threads() - 1))  # one is the event loop's
            has_values = method == "qsft"
            return TokenPolicy(network.to(device), tokenizer, self.decoding, has_values=has_values)

        worker = InferenceWorker(make_policy, warm_up=spec.blank())
        worker.wait_until_ready()
        server = PolicyServer(
            worker,
            spec,
            config=self.server,
            access=access,
            metadata={
                "cameras": list(spec.cameras),
                "image_size": list(spec.image_size),
                "state_size": spec.state_size,
                "action_size": spec.action_size,
                "action_horizon": network.spec.chunk,
                "checkpoint": checkpoint.name,
            },
            model_hash=model_hash(checkpoint),
        )
        scheme = "ws" if access.tls is None else "wss"

        def listening(port: int) -> None:
            console.print(
                f"{checkpoint} answers at {scheme}://{self.server.host}:{port}, "
                f"health at /healthz, metrics at /metrics",
                soft_wrap=True,
            )

        try:
            asyncio.run(_until_interrupted(server, listening))
        finally:
            worker.close()
        return 0


async def _until_interrupted(server: "PolicyServer", listening: Callable[[int], None]) -> None:
    stop = asyncio.Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signal_number, stop.set)
    await server.run(listening=listening, stop=stop)


def observation_spec(spec: PolicySpec) -> ObservationSpec:
    """What robots have to send to a policy."""
    return ObservationSpec(
        cameras=spec.cameras,
        image_size=(spec.image_size, spec.image_size),
        state_size=spec.state_size,
        environment_state_size=spec.environment_state_size,
        action_size=len(spec.bins) // spec.chunk,
    )


def model_hash(checkpoint: Path) -> str:
    """The first 16 hexadecimal digits of the weights' SHA-256, which tells models apart."""
    with (checkpoint / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
