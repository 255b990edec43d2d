"""The `_meta` extension of openpi's protocol, which clients that do not know it never see.

A server that has `"_meta": 1` in its metadata takes a map `_meta` in an observation and answers
with one. Everything in it is a number or text, so openpi's `ActionChunkBroker`, which cuts every
array by steps, leaves it alone. Times are of the clock of whoever writes them and are for reports
only: what is executed when is decided by the robot's clock.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VERSION = 1
KEY = "_meta"
_LARGEST = 2**63 - 1


@dataclass(frozen=True)
class RequestMeta:
    """What a client tells with an observation.

    Attributes:
        stream: of one run of an episode.
        seq: number of the observation in it.
        observed_ns: when it was made, by the robot's monotonic clock.
        deadline_s: from its arrival on, after which nobody wants the answer; infinite for never.
        committed: actions that will be done before the answer counts, as rows of numbers.
    """

    stream: int
    seq: int
    observed_ns: int
    deadline_s: float
    committed: Any

    def message(self) -> dict[str, Any]:
        """As it travels."""
        deadline = {} if math.isinf(self.deadline_s) else {"deadline_ms": self.deadline_s * 1e3}
        return {
            "v": VERSION,
            "sid": self.stream,
            "seq": self.seq,
            "t_obs_ns": self.observed_ns,
            "committed": self.committed,
            **deadline,
        }


def request_meta(message: Mapping[str, Any]) -> RequestMeta | None:
    """What came with an observation; None where nothing did.

    Raises:
        ValueError: naming the entry that is none.
    """
    value = message.get(KEY)
    if value is None:
        return None
    if not isinstance(value, dict) or value.get("v") != VERSION:
        raise ValueError(f"{KEY} must be a map of version {VERSION}")
    deadline_ms = value.get("deadline_ms", math.inf)
    if isinstance(deadline_ms, bool) or not isinstance(deadline_ms, int | float):
        raise ValueError(f"{KEY}.deadline_ms must be a number")
    if not deadline_ms > 0:
        raise ValueError(f"{KEY}.deadline_ms must be above 0")
    return RequestMeta(
        stream=_whole(value, "sid"),
        seq=_whole(value, "seq"),
        observed_ns=_whole(value, "t_obs_ns"),
        deadline_s=float(deadline_ms) * 1e-3,
        committed=value.get("committed"),
    )


def _whole(value: Mapping[str, Any], name: str) -> int:
    number = value.get(name)
    if type(number) is not int or not 0 <= number <= _LARGEST:
        raise ValueError(f"{KEY}.{name} must be a whole number of at most 63 bits")
    return number
