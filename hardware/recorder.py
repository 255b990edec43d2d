"""What happened on the arm, kept: episodes for training, and every control period beside them.

An episode goes to a data set of the usual layout, a row for each policy step that was executed:
what was seen, the action that was done (in the policy's own units), how it ended. An episode whose
outcome nobody told is labelled "unclear", so that training leaves it out until somebody does.
`control/episode-000000.parquet` holds the same episode at the control rate: commanded and measured
joints, state, reasons, lateness, and which observation was behind it.

Shape legend: A action dimensions, S state dimensions.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from robot_qsft.datasets.episode import Episode
from robot_qsft.datasets.features import DatasetInfo
from robot_qsft.datasets.interface import Image, Vector
from robot_qsft.datasets.labels import Label, Labels, labels_path, now_utc
from robot_qsft.datasets.store import Dataset
from robot_qsft.datasets.writer import DatasetWriter
from robot_qsft.hardware.loop_ports import Period

Ending: TypeAlias = Literal["success", "failure", "unclear"]


@dataclass(frozen=True, eq=False)
class Step:
    """One executed policy step.

    Attributes:
        state: float32 (S,), what the policy was told.
        images: camera to RGB uint8 (H, W, 3).
        action: float32 (A,), what was done.
    """

    state: Vector
    images: Mapping[str, Image]
    action: Vector


class Recorder:
    """Writes episodes one by one; each is there whole or not at all."""

    def __init__(self, path: Path, info: DatasetInfo):
        """Record into the data set at `path`, which is made or added to.

        Raises:
            ValueError: when something else is there.
        """
        self._path = path
        self._info = info
        if path.exists():
            Dataset.open(path)  # complains now rather than after the first episode

    def write(
        self,
        steps: Sequence[Step],
        periods: Sequence[Period],
        *,
        instruction: str,
        ending: Ending,
        by: str,
    ) -> int:
        """Add an episode; gives its index.

        Args:
            steps: executed, one at least.
            periods: of the control loop meanwhile.
            instruction: that the policy had.
            ending: how it ended; the success is at the last step.
            by: who says so.

        Raises:
            ValueError: when there is no step, or the data set cannot be written.
        """
        count = len(steps)
        if count == 0:
            raise ValueError("no step was executed, so there is no episode to record")
        successes = np.zeros(count, np.bool_)
        successes[-1] = ending == "success"
        episode = Episode(
            states=np.stack([step.state for step in steps]),
            actions=np.stack([step.action for step in steps]),
            rewards=successes.astype(np.float32),
            successes=successes,
            terminated=ending == "success",
            truncated=ending != "success",
            instruction=instruction,
            images={
                camera: np.stack([step.images[camera] for step in steps])
                for camera in self._info.cameras
            },
            environment_states=np.zeros((count, 0), np.float32),
            demonstrator="policy",
        )
        with DatasetWriter(self._path, info=self._info, append=self._path.exists()) as writer:
            writer.add_episode(episode)
        dataset = Dataset.open(self._path)
        index = len(dataset) - 1
        self._write_periods(index, periods)
        if ending == "unclear":
            with Labels.edit(labels_path(self._path), episodes=len(dataset)) as labels:
                name = f"episode {index}"
                labels.set(Label(index, name, ending, None, "bridge", by, now_utc()))
        return index

    def _write_periods(self, index: int, periods: Sequence[Period]) -> None:
        folder = self._path / "control"
        folder.mkdir(exist_ok=True)
        path = folder / f"episode-{index:06d}.parquet"
        partial = path.with_name(f".{os.getpid()}.{path.name}")
        pq.write_table(_table(periods), partial)
        partial.rename(path)


def _table(periods: Sequence[Period]) -> pa.Table:
    return pa.table(
        {
            "now_s": [one.now_s for one in periods],
            "late_s": [one.late_s for one in periods],
            "state": [one.state.name for one in periods],
            "reason": [one.reason for one in periods],
            "objection": [one.objection for one in periods],
            "commanded_rad": [one.commanded_rad.tolist() for one in periods],
            "commanded_opening": [one.commanded_opening for one in periods],
            "measured_rad": [one.measured.positions_rad.tolist() for one in periods],
            "measured_rad_s": [one.measured.velocities_rad_s.tolist() for one in periods],
            "measured_opening": [one.measured.gripper_opening for one in periods],
            "fault": [one.measured.fault for one in periods],
            "step": [one.step for one in periods],
            "seq": [one.seq for one in periods],
            "age_s": [one.age_s for one in periods],
            "value": [one.value for one in periods],
        }
    )
