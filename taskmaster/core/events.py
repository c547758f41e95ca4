"""What may happen to one process, and what then must be done about it.

Events go into ``lifecycle.step``, effects come out; both are values, neither knows how it is done.
"""

from __future__ import annotations

import enum

import msgspec


class Start(msgspec.Struct, frozen=True):
    """Somebody wants it up."""


class Stop(msgspec.Struct, frozen=True):
    """Somebody wants it down, politely. ``remains``: something it started still lives."""

    remains: bool = False


class Kill(msgspec.Struct, frozen=True):
    """Somebody wants it down at once. ``remains`` as in Stop."""

    remains: bool = False


class Spawned(msgspec.Struct, frozen=True):
    """The program was exec'd."""


class SpawnFailed(msgspec.Struct, frozen=True):
    """There is no process: a step between fork and exec failed.

    ``transient``: for want of memory, descriptors, process numbers or disk; that is the host's state
    and no fault of the job, so it is retried for ever. ``jitter``: random, in [0, 1).
    """

    transient: bool = False
    jitter: float = 0.5


class LeftBehind(msgspec.Struct, frozen=True):
    """Nothing is forked yet: something that the process before had started still lives."""


class Exited(msgspec.Struct, frozen=True):
    """The process has ended; one that is STOPPING, or is being cleared away, with everything it had started.

    ``normal``: the job's definition expects an end like this. ``uptime_s``: seconds since it was
    exec'd. ``jitter``: random, in [0, 1).
    """

    normal: bool
    uptime_s: float
    jitter: float = 0.5


class Timer(str, enum.Enum):
    """The timers a process may have; at most one is armed at any time."""

    STABLE = "stable"
    RETRY = "retry"
    KILL = "kill"


class TimerFired(msgspec.Struct, frozen=True):
    """An armed timer is over."""

    timer: Timer


Event = Start | Stop | Kill | Spawned | SpawnFailed | LeftBehind | Exited | TimerFired


class Spawn(msgspec.Struct, frozen=True):
    """Start the program."""


class SignalStop(msgspec.Struct, frozen=True):
    """Begin to stop: the job's stop signal, to the main process first or to everything (``stopTo``)."""


class KillAll(msgspec.Struct, frozen=True):
    """Send SIGKILL to the process and everything it started."""


class Arm(msgspec.Struct, frozen=True):
    """Start a timer that fires after ``delay_s`` seconds; it replaces any other."""

    timer: Timer
    delay_s: float


class Disarm(msgspec.Struct, frozen=True):
    """Stop whichever timer runs."""


Effect = Spawn | SignalStop | KillAll | Arm | Disarm
