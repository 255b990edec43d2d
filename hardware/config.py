"""What can be set of the robot's side, importable without the packages that it needs to run."""

import math
from dataclasses import dataclass
from pathlib import Path

from robot_qsft.hardware.chunks import Overlap, Pace


@dataclass(frozen=True)
class ControlConfig:
    """How chunks become motion.

    Attributes:
        stale_s: an observation older than this moves nothing any more.
        overlap: who speaks for a step that several chunks have: the newest ("replace"), or all
            together ("ensemble").
        pace: within a policy's step the target moves "even"-ly, or is there "at once".
        speed: share of the velocity limits that is used.
        late_s: a control period that begins later than this holds the arm.
    """

    stale_s: float = 0.5
    overlap: Overlap = "replace"
    pace: Pace = "even"
    speed: float = 1.0
    late_s: float = 0.1

    def __post_init__(self) -> None:
        """Refuse settings outside their range.

        Raises:
            ValueError: naming the field.
        """
        for name in ("stale_s", "late_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 < self.speed <= 1:
            raise ValueError(f"speed must lie in (0, 1], got {self.speed}")


@dataclass(frozen=True)
class RuntimeConfig:
    """How the policy is asked.

    Attributes:
        policy_hz: observations in a second; the rate of the demonstrations.
        instruction: what the robot is asked to do.
        commit: tell the policy which actions it is bound to, where answers take longer than half a
            step.
        camera_stale_s: a camera without a new picture for this long holds the arm.
        deadline_s: the server drops observations that it cannot answer within this time.
    """

    policy_hz: float = 10.0
    instruction: str = ""
    commit: bool = True
    camera_stale_s: float = 0.5
    deadline_s: float = 1.0

    def __post_init__(self) -> None:
        """Refuse settings outside their range.

        Raises:
            ValueError: naming the field.
        """
        for name in ("policy_hz", "camera_stale_s", "deadline_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and above 0, got {getattr(self, name)}")


@dataclass(frozen=True)
class LinkConfig:
    """Which server is asked, and how it is reached.

    Attributes:
        server: ws:// or wss:// address.
        token_file: file with the token that the server wants.
        authority: certificates (PEM) to trust besides the system's.
        certificate: to show to a server that asks for one (PEM).
        key: its private key (PEM).
    """

    server: str = "ws://127.0.0.1:8000"
    token_file: Path | None = None
    authority: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what is no websocket's address.

        Raises:
            ValueError: naming the field.
        """
        if not self.server.startswith(("ws://", "wss://")):
            raise ValueError(f"server must begin with ws:// or wss://, got {self.server!r}")
