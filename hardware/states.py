"""What the control loop is doing, and what takes it from one state to the next."""

from enum import IntEnum


class State(IntEnum):
    """Of the control loop.

    Motion by the policy happens in RUNNING alone. HOLD and FAULT are left by the operator only:
    nothing starts moving by itself.
    """

    DISCONNECTED = 0
    """No arm."""
    READY = 1
    """The arm answers and stands still; the policy may be watched, and moves nothing."""
    ARMED = 2
    """An operator has allowed motion; waits to be run."""
    RUNNING = 3
    """Follows the policy."""
    HOLD = 4
    """Comes to rest along its path and stays there, still commanded; the reason is told."""
    FAULT = 5
    """Stopped by the vendor's own means; no commands until an operator resets it."""


class Event(IntEnum):
    """Something that may change the state."""

    CONNECTED = 0
    DISCONNECTED = 1
    ARM = 2
    DISARM = 3
    RUN = 4
    HOLD = 5
    FAULT = 6
    RESET = 7


_S, _E = State, Event
_TRANSITIONS: dict[tuple[State, Event], State] = {
    (_S.DISCONNECTED, _E.CONNECTED): _S.READY,
    (_S.READY, _E.ARM): _S.ARMED,
    (_S.ARMED, _E.RUN): _S.RUNNING,
    (_S.ARMED, _E.DISARM): _S.READY,
    (_S.HOLD, _E.RUN): _S.RUNNING,
    (_S.HOLD, _E.DISARM): _S.READY,
    (_S.ARMED, _E.HOLD): _S.READY,
    (_S.RUNNING, _E.HOLD): _S.HOLD,
    (_S.FAULT, _E.RESET): _S.READY,
    **{(state, _E.FAULT): _S.FAULT for state in State if state is not _S.DISCONNECTED},
    **{(state, _E.DISCONNECTED): _S.DISCONNECTED for state in State},
}


def after(state: State, event: Event) -> State:
    """The state that `event` leads to; the same where it means nothing.

    >>> after(State.FAULT, Event.RUN).name
    'FAULT'
    """
    return _TRANSITIONS.get((state, event), state)
