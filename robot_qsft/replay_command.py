"""`robot-qsft replay`: recorded robosuite demonstrations, played again in the simulator."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.table import Table

from robot_qsft.console import Counter, console, progress_bar
from robot_qsft.datasets.episode import Episode
from robot_qsft.sim.robosuite.config import Rendering, Reward, RobosuiteConfig
from robot_qsft.sim.robosuite.playback import Playback
from robot_qsft.sim.robosuite.recording import write_recordings
from robot_qsft.sim.rollouts import Simulation

_SAME = 1e-6
"""Largest difference of two simulator states that counts as none."""


@dataclass(frozen=True)
class Replay:
    """Play a robomimic or robosuite HDF5 file again in the environment that it tells of.

    With --out, observations, images, rewards and outcomes of every recorded state are written as a
    robomimic HDF5 file; without, the actions are taken open-loop, which tells whether the rebuilt
    environment is the recorded one.

    Attributes:
        demos: the HDF5 file.
        out: the new file; nothing may be there.
        cameras: of "agentview", "wrist", "front", "side" and "bird"; none for low-dimensional data.
        image_size: height and width of the images in pixels.
        reward: "sparse" pays 1 in every solved state, "shaped" robosuite's dense reward.
        rendering: "exact" draws the pixels that robosuite draws, "fast" nearly those.
    """

    demos: Annotated[Path, tyro.conf.Positional]
    out: Path | None = None
    cameras: tuple[str, ...] = ()
    image_size: int = RobosuiteConfig.image_size
    reward: Reward = "sparse"
    rendering: Rendering = "exact"

    def run(self) -> int:
        """Play; without --out the exit status is 1 when a demonstration strays."""
        config = RobosuiteConfig(
            cameras=self.cameras,
            image_size=self.image_size,
            reward=self.reward,
            rendering=self.rendering,
        )
        if self.out is not None and self.out.exists():
            raise ValueError(f"{self.out} exists already; remove it or write to another place")
        playback = Playback(self.demos, config)
        return self._by_action(playback) if self.out is None else self._by_state(playback, self.out)

    def _by_state(self, playback: Playback, out: Path) -> int:
        with progress_bar() as progress:
            counter = Counter(progress, "demonstrations", len(playback))

            def episodes() -> Iterator[tuple[Episode, Simulation]]:
                for index in range(len(playback)):
                    demonstration = playback.demonstration(index)
                    episode = playback.by_state(demonstration)
                    counter.add(episode.success)
                    yield episode, demonstration.simulation

            write_recordings(out, episodes(), playback.environment)
        console.print(f"{len(playback)} demonstrations in {out}", soft_wrap=True)
        return 0

    def _by_action(self, playback: Playback) -> int:
        strayed = []
        with progress_bar() as progress:
            counter = Counter(progress, "demonstrations", len(playback))
            for index in range(len(playback)):
                demonstration = playback.demonstration(index)
                states = demonstration.simulation.states
                off_T = np.abs(playback.by_action(demonstration) - states).max(axis=1)
                counter.add(bool(off_T.max() <= _SAME))
                if off_T.max() > _SAME:
                    strayed.append((index, int(np.argmax(off_T > _SAME)), float(off_T.max())))
        console.print(
            f"{len(playback) - len(strayed)} of {len(playback)} demonstrations come out the same "
            f"(to {_SAME:g}) when their actions are taken open-loop",
            soft_wrap=True,
        )
        if strayed:
            table = Table("demonstration", "strays from step", "largest difference of a state")
            for index, step, off in strayed:
                table.add_row(str(index), str(step), f"{off:.3g}")
            console.print(table)
        return 1 if strayed else 0
