"""`robot-qsft simulate`: an arm for who has none at hand."""

import signal
import threading
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from robot_qsft.console import console
from robot_qsft.sim.pybullet.config import PyBulletConfig


@dataclass(frozen=True)
class Simulate:
    """Run a simulated Panda in real time, which `robot-qsft run --robot panda` drives.

    Attributes:
        host: address to listen on.
        port: to listen on; 0 for any that is free.
        environment: what is on its table, and how large its cameras' images are.
    """

    host: str = "127.0.0.1"
    port: int = 7700
    environment: Annotated[PyBulletConfig, tyro.conf.arg(name="")] = field(
        default_factory=PyBulletConfig
    )

    def run(self) -> int:
        """Simulate until interrupted."""
        try:
            from robot_qsft.simulated_arm import SimulatedArm
        except ImportError as error:
            raise ValueError(
                f"the simulated arm needs more packages ({error}); pip install 'robot-qsft[bridge]'"
            ) from error
        arm = SimulatedArm(self.environment, host=self.host, port=self.port)
        console.print(f"a simulated Panda answers at {arm.address}", soft_wrap=True)
        ended = threading.Event()
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signal_number, lambda number, frame: ended.set())
        threading.Thread(target=arm.serve, daemon=True).start()
        ended.wait()
        arm.close()
        return 0
