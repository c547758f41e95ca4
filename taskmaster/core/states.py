"""The states of a process and of a job, and how a job's state follows from its processes'."""

from __future__ import annotations

import enum
from collections.abc import Iterable


class State(str, enum.Enum):
    """Where a process or a job stands. The words are Supervisor's, which most administrators know."""

    STOPPED = "STOPPED"
    WAITING = "WAITING"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    BACKOFF = "BACKOFF"
    STOPPING = "STOPPING"
    EXITED = "EXITED"
    FATAL = "FATAL"
    UNKNOWN = "UNKNOWN"


class Desired(str, enum.Enum):
    """What somebody wants of a process, apart from how it stands."""

    UP = "UP"
    DOWN = "DOWN"


#: Worst first: a job that is not RUNNING in all its processes shows the first of these that occurs.
PRECEDENCE = (
    State.UNKNOWN,
    State.FATAL,
    State.BACKOFF,
    State.STOPPING,
    State.STARTING,
    State.WAITING,
    State.EXITED,
    State.STOPPED,
)

#: States in which nothing further happens by itself.
SETTLED = frozenset({State.RUNNING, State.STOPPED, State.EXITED, State.FATAL})


def job_state(states: Iterable[State]) -> State:
    """The state of a job from the states of its processes; STOPPED for a job without any."""
    present = set(states)
    if present == {State.RUNNING}:
        return State.RUNNING
    for state in PRECEDENCE:
        if state in present:
            return state
    return State.STOPPED
