"""What the control loop's process and the runtime's tell each other, by shared memory.

Shape legend: C chunk length, J joints; X = J + 1, the last entry being the gripper's opening.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_qsft.hardware.chunks import JointChunk
from robot_qsft.hardware.controller import Decision, Request
from robot_qsft.hardware.robot import RobotState
from robot_qsft.hardware.shared_memory import SharedRecords
from robot_qsft.hardware.states import State

MAX_STEPS = 128
"""Of a chunk; what is beyond is left out, being seconds ahead."""
_CHUNKS, _REQUESTS, _PERIODS = 16, 64, 8192
_REASON_BYTES = 240
_REQUEST_DTYPE = np.dtype([("flags", "<u4"), ("reason", f"S{_REASON_BYTES}")])


@dataclass(frozen=True, eq=False)
class Period:
    """What the control loop did in one period.

    Attributes:
        now_s: when it began, by the monotonic clock.
        late_s: how late.
        state: after it.
        reason: why it holds, is at fault, or waits.
        objection: to the last chunk that was refused, "" where none was.
        measured: what the arm told.
        commanded_rad: float64 (J,); NaN where nothing was commanded.
        commanded_rad_s: float64 (J,).
        commanded_opening: of the gripper.
        step: of the policy, -1 where it had no say.
        seq: of the observation behind it.
        age_s: of that observation.
        value: that it came with.
    """

    now_s: float
    late_s: float
    state: State
    reason: str
    objection: str
    measured: RobotState
    commanded_rad: NDArray[np.float64]
    commanded_rad_s: NDArray[np.float64]
    commanded_opening: float
    step: int
    seq: int
    age_s: float
    value: float


class LoopPorts:
    """Three rings: chunks and requests to the loop, periods from it."""

    def __init__(self, joints: int, *, names: tuple[str, str, str] | None = None):
        """Make the rings, or open those of these names."""
        self._joints = joints
        chunk, request, period = names or (None, None, None)
        self._chunks = SharedRecords(_chunk_dtype(joints), _CHUNKS, name=chunk)
        self._requests = SharedRecords(_REQUEST_DTYPE, _REQUESTS, name=request)
        self._periods = SharedRecords(_period_dtype(joints), _PERIODS, name=period)

    @property
    def names(self) -> tuple[str, str, str]:
        """To open them by in the other process."""
        return self._chunks.name, self._requests.name, self._periods.name

    def send_chunk(self, chunk: JointChunk, *, begin_s: float, period_s: float) -> None:
        """Runtime: hand a chunk to the loop, with its stream's clock."""
        record = np.zeros((), _chunk_dtype(self._joints))
        targets_CX = chunk.targets_CX[:MAX_STEPS]
        for name in ("stream", "seq", "first_step", "observed_s", "value"):
            record[name] = getattr(chunk, name)
        record["begin_s"], record["period_s"] = begin_s, period_s
        record["steps"] = len(targets_CX)
        record["targets"][: len(targets_CX)] = targets_CX
        self._chunks.write(record)

    def chunks(self) -> list[tuple[JointChunk, float, float]]:
        """Loop: what has come: chunks, when their stream began, and the policy's period."""
        return [
            (
                JointChunk(
                    int(record["stream"]),
                    int(record["seq"]),
                    int(record["first_step"]),
                    float(record["observed_s"]),
                    record["targets"][: int(record["steps"])],
                    float(record["value"]),
                ),
                float(record["begin_s"]),
                float(record["period_s"]),
            )
            for record in self._chunks.unread()[0]
        ]

    def request(self, request: Request, reason: str = "") -> None:
        """Runtime: pass on what is asked for, and why to stop where the operator did not ask."""
        self._requests.write((request.value, _bytes(reason)))

    def requests(self) -> tuple[Request, str]:
        """Loop: all that was asked for, and the first reason to stop that was given."""
        asked, reason = Request.NONE, ""
        for record in self._requests.unread()[0]:
            asked |= Request(int(record["flags"]))
            reason = reason or _text(record["reason"])
        return asked, reason

    def tell(
        self,
        decision: Decision,
        measured: RobotState,
        *,
        now_s: float,
        late_s: float,
        objection: str,
    ) -> None:
        """Loop: what was done in a period."""
        record = np.zeros((), _period_dtype(self._joints))
        setpoint, due = decision.setpoint, decision.due
        record["now_s"], record["late_s"], record["state"] = now_s, late_s, decision.state
        record["reason"], record["objection"] = _bytes(decision.reason), _bytes(objection)
        record["measured_s"], record["fault"] = measured.time_s, _bytes(measured.fault)
        record["measured_rad"] = measured.positions_rad
        record["measured_rad_s"] = measured.velocities_rad_s
        record["measured_opening"] = measured.gripper_opening
        record["commanded_rad"] = math.nan if setpoint is None else setpoint.positions_rad
        record["commanded_rad_s"] = math.nan if setpoint is None else setpoint.velocities_rad_s
        record["commanded_opening"] = decision.gripper_opening
        record["step"], record["seq"] = (-1, -1) if due is None else (due.step, due.seq)
        record["age_s"], record["value"] = (
            (math.nan, math.nan) if due is None else (due.age_s, due.value)
        )
        self._periods.write(record)

    def newest(self) -> Period | None:
        """Runtime: the last period, None before the first."""
        record = self._periods.newest()
        return None if record is None else _period(record)

    def periods(self) -> tuple[list[Period], int]:
        """Runtime: those since the last call, and how many were lost for being asked too late."""
        records, lost = self._periods.unread()
        return [_period(record) for record in records], lost

    def close(self) -> None:
        """Let go of the memory."""
        for ring in (self._chunks, self._requests, self._periods):
            ring.close()


def _chunk_dtype(joints: int) -> np.dtype[Any]:
    return np.dtype(
        [
            *((name, "<i8") for name in ("stream", "seq", "first_step", "steps")),
            *((name, "<f8") for name in ("observed_s", "begin_s", "period_s", "value")),
            ("targets", "<f8", (MAX_STEPS, joints + 1)),
        ]
    )


def _period_dtype(joints: int) -> np.dtype[Any]:
    vectors = ("measured_rad", "measured_rad_s", "commanded_rad", "commanded_rad_s")
    numbers = (
        *("now_s", "late_s", "measured_s", "measured_opening", "commanded_opening"),
        *("age_s", "value"),
    )
    return np.dtype(
        [
            *((name, "<f8") for name in numbers),
            *((name, "<i8") for name in ("state", "step", "seq")),
            *((name, "<f8", (joints,)) for name in vectors),
            *((name, f"S{_REASON_BYTES}") for name in ("reason", "objection", "fault")),
        ]
    )


def _period(record: Any) -> Period:
    return Period(
        now_s=float(record["now_s"]),
        late_s=float(record["late_s"]),
        state=State(int(record["state"])),
        reason=_text(record["reason"]),
        objection=_text(record["objection"]),
        measured=RobotState(
            float(record["measured_s"]),
            record["measured_rad"],
            record["measured_rad_s"],
            float(record["measured_opening"]),
            _text(record["fault"]),
        ),
        commanded_rad=record["commanded_rad"],
        commanded_rad_s=record["commanded_rad_s"],
        commanded_opening=float(record["commanded_opening"]),
        step=int(record["step"]),
        seq=int(record["seq"]),
        age_s=float(record["age_s"]),
        value=float(record["value"]),
    )


def _bytes(text: str) -> bytes:
    return text.encode()[:_REASON_BYTES]


def _text(record: Any) -> str:
    return bytes(record).decode(errors="ignore")
