"""How soon one looks again for what is left of a process: at once the first time, then ever later.

The ends of processes are events, so that a job of many that is stopped brings many of them, and a program that
forks and ends without pause brings them without end. Each look costs; so they get a distance that grows while they
come one after the other, and the last one still comes within a few milliseconds.
"""

from __future__ import annotations

from typing import Final

_SHORTEST_S: Final = 0.001
#: Where everything gets SIGKILL, and one has to be quicker than what forks.
KILLING_S: Final = 0.004
#: Where all has been asked to end, and only an end or the deadline brings anything new.
ASKING_S: Final = 0.032
#: A pause of this many times the longest distance, and it is the first time again.
_PAUSE: Final = 4


class Pace:
    """The distance of the looks for one place."""

    def __init__(self) -> None:
        self._distance_s = 0.0
        self._next = 0.0

    def delay_s(self, now: float, longest_s: float) -> float:
        """Seconds from now until one may look next, which one will."""
        if now > self._next + _PAUSE * longest_s:
            self._distance_s = 0.0
        at = max(now, self._next if self._distance_s else now)
        self._distance_s = min(max(_SHORTEST_S, 2 * self._distance_s), longest_s)
        self._next = at + self._distance_s
        return at - now
