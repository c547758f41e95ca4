"""How much one identity may use of what all clients share: time of the loop, commands a second, connections,
queries that wait, and bytes that are kept for it.

Counted by identity (a uid, a certificate, another host's address) over all its connections. Root and the
daemon's own user have no share: they cannot be kept out, and must not be by their own monitoring. It counts
and says what there is left; who is served next is decided in ``turns``, what is refused by who asks.

What is dear (``pull`` of a megabyte, a page of the log, a push) is paid for by the time that it has taken, so
nothing has to know beforehand what a command costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from taskmaster.wire.frames import Allowance

if TYPE_CHECKING:
    from taskmaster.control.turns import Guest

#: What a refused command costs, or one that is no valid query: they are on record one by one, and a flood
#: of them must not push what matters out of the log.
REFUSED_COST: Final = 100.0
#: Of the loop's time: how much an identity earns in a second, and can save up, seconds. Whoever asks now and then
#: never notices; whoever asks without end leaves three quarters to others.
TIME_EARNED: Final = 0.25
TIME_SAVED_S: Final = 0.25
#: One command may cost more than there is, once (a slow disk): this much is owed at most, seconds.
TIME_OWED_S: Final = 0.25
#: Who has used its time up goes on when so much is there again, seconds, or it would be called for nothing.
TIME_WORTH_S: Final = 0.0025
#: What was used counts for so long when it is asked who has used least, seconds (to a third of it).
USED_S: Final = 1.0
#: For so long commands are earned before whoever had none left is read from again, seconds.
COMMANDS_EARNED_S: Final = 0.02

#: Of one identity, over all its connections: queries that are not answered yet, and bytes of their frames.
MAX_UNANSWERED: Final = 1024
MAX_UNANSWERED_BYTES: Final = 16 * 1024 * 1024
#: Unfinished frames: bytes of one identity, at least of one frame, and of all together, at least of four.
UNFINISHED_BYTES: Final = 16 * 1024 * 1024
ALL_UNFINISHED_BYTES: Final = 64 * 1024 * 1024
#: While so many bytes wait to be sent to an identity, no further reply is made for it.
ENOUGH_OUTBOUND: Final = 8 * 1024 * 1024
#: Where one of them was reached, there is room again below this part of it: not for one at a time.
_ROOMY: Final = 0.75
#: Queries of one identity whose meaning is remembered.
MAX_LEARNED: Final = 512
#: Identities that are remembered beyond those that are connected.
_REMEMBERED: Final = 4096


class Share:
    """What one identity has used, and its connections that wait for their turn."""

    __slots__ = (
        *(
            "_at",
            "_commands",
            "_shares",
            "_time_s",
            "_used_s",
            "connections",
            "crowded",
            "exhausted",
        ),
        *("last", "learned", "outbound", "taken", "takes_queries", "takes_replies", "thirsty"),
        *("unanswered", "unanswered_bytes", "unfinished", "waiting"),
    )

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._at = shares.clock()
        self._commands = shares.burst
        self._time_s = TIME_SAVED_S
        self._used_s = 0.0
        #: It has used up its time, and not earned enough again.
        self.exhausted = False
        self.connections = 0
        self.unanswered = 0
        self.unanswered_bytes = 0
        self.outbound = 0
        self.learned = 0
        #: Commands that were ever taken up, and whose was the last.
        self.taken = 0
        self.last: Guest | None = None
        #: Whether one query more may be read of it, and one reply more be made for it.
        self.takes_queries = self.takes_replies = True
        #: Of unfinished frames.
        self.unfinished = Allowance(shares.unfinished_bytes, shares.unfinished)
        #: In the order in which they are served: those that are to be; those that have a command to be read and
        #: none left; those that can do nothing until something of this identity is answered or sent.
        self.waiting: dict[Guest, None] = {}
        self.thirsty: dict[Guest, None] = {}
        self.crowded: dict[Guest, None] = {}

    def _earn(self, now: float) -> None:
        shares, passed = self._shares, now - self._at
        self._at = now
        self._commands = min(shares.burst, self._commands + passed * shares.rate)
        self._time_s = min(TIME_SAVED_S, self._time_s + passed * TIME_EARNED)
        self._used_s *= math.exp(-passed / USED_S)

    # commands -------------------------------------------------------------------------------------

    def may_take(self) -> bool:
        """Whether one command more is within the rate."""
        shares = self._shares
        if not shares.rate or self._commands >= 1:
            return True
        self._earn(shares.clock())
        return self._commands >= 1

    def take(self) -> None:
        """One command is taken up."""
        self._commands -= 1
        self.taken += 1

    def refused(self) -> None:
        """The command that was taken last is refused or invalid, which costs more."""
        self._commands -= min(REFUSED_COST, self._shares.burst) - 1

    def commands_in_s(self, now: float) -> float:
        """In how many seconds it is worth while to read again."""
        shares = self._shares
        if not shares.rate:
            return 0.0
        self._earn(now)
        wanted = min(max(shares.rate * COMMANDS_EARNED_S, 1.0), shares.burst)
        return max(0.0, (wanted - self._commands) / shares.rate)

    # time -----------------------------------------------------------------------------------------

    def used_s(self, now: float) -> float:
        """How much time it has used of late, seconds; ``exhausted`` is as of now then."""
        self._earn(now)
        if self.exhausted and self._time_s >= TIME_WORTH_S:
            self.exhausted = False
        return self._used_s

    def time_in_s(self, now: float) -> float:
        """In how many seconds it may be served again."""
        self._earn(now)
        return max(0.0, (TIME_WORTH_S - self._time_s) / TIME_EARNED) if self.exhausted else 0.0

    def spend(self, seconds: float) -> None:
        """So much of the loop's time went to it."""
        self._used_s += seconds
        self._time_s = max(self._time_s - seconds, -TIME_OWED_S)
        if self._time_s <= 0:
            self.exhausted = True

    # room -----------------------------------------------------------------------------------------

    def asked(self, size: int) -> None:
        """A query of this many bytes waits for its reply."""
        self.unanswered += 1
        self.unanswered_bytes += size
        if self.unanswered >= MAX_UNANSWERED or self.unanswered_bytes >= MAX_UNANSWERED_BYTES:
            self.takes_queries = False

    def answered(self, size: int) -> bool:
        """It has it, or nobody waits any more; whether there is room again for those that wait for some."""
        self.unanswered -= 1
        self.unanswered_bytes -= size
        if (
            self.takes_queries
            or self.unanswered > MAX_UNANSWERED * _ROOMY
            or self.unanswered_bytes > MAX_UNANSWERED_BYTES * _ROOMY
        ):
            return False
        self.takes_queries = True
        return True

    def unsent(self, change: int) -> bool:
        """So much more or less waits to be sent; whether there is room again for those that wait for some."""
        self.outbound += change
        if self.outbound >= ENOUGH_OUTBOUND:
            self.takes_replies = False
        elif not self.takes_replies and self.outbound <= ENOUGH_OUTBOUND * _ROOMY:
            self.takes_replies = True
            return True
        return False

    def leave(self) -> None:
        """One connection less. What was used counts on for the next one."""
        self.connections -= 1

    def idle(self, now: float) -> bool:
        """Whether it says no more than a new one would."""
        if self.connections:
            return False
        self._earn(now)
        full = not self._shares.rate or self._commands >= self._shares.burst
        return full and self._time_s >= TIME_SAVED_S


class Shares:
    """All shares. ``rate``: commands a second, 0 for any, ``burst`` at once; ``clock``: monotonic seconds."""

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        rate: float,
        burst: float,
        max_connections: int,
        max_frame_bytes: int = 0,
    ) -> None:
        self.clock = clock
        self.rate = rate
        self.burst = max(float(burst), 1.0)
        self.max_connections = max_connections
        #: Of unfinished frames: one identity, and all together.
        self.unfinished_bytes = max(UNFINISHED_BYTES, max_frame_bytes)
        self.unfinished = Allowance(max(ALL_UNFINISHED_BYTES, 4 * max_frame_bytes))
        self._shares: dict[str, Share] = {}

    def of(self, identity: str) -> Share:
        """The share of an identity, a new one where it was never seen, or not for long."""
        share = self._shares.get(identity)
        if share is None:
            if len(self._shares) >= _REMEMBERED:
                self._forget()
            share = self._shares[identity] = Share(self)
        return share

    def enter(self, identity: str, *, let_in: bool = False) -> Share | None:
        """One connection more; None where the identity has as many as it may, unless it was let in before."""
        share = self.of(identity)
        if share.connections >= self.max_connections and not let_in:
            return None
        share.connections += 1
        return share

    def _forget(self) -> None:
        now = self.clock()
        kept = {name: one for name, one in self._shares.items() if not one.idle(now)}
        # Should most of them be of this moment, the oldest go: a flood of addresses, each of them new. So
        # many at once that it is not done for each that comes.
        for name in [name for name, one in kept.items() if not one.connections]:
            if len(kept) <= _REMEMBERED * 3 // 4:
                break
            del kept[name]
        self._shares = kept
