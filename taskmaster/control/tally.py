"""Commands that are counted instead of recorded one by one: who, what, how it ended, how often, from when to when.

A record for each kind tells, a little after the first that was counted; nothing is left out without a
count. The kinds of one identity are bounded, so that a flood of different ones costs no more than one of
the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from taskmaster.audit import AuditLog, Event
from taskmaster.control.peers import Peer
from taskmaster.control.status import timestamp
from taskmaster.eventloop import EventLoop, Timer

#: How long is counted before a record tells, seconds: also what a SIGKILL may take with it.
TELL_S: Final = 10.0
#: Kinds of one identity that are told apart; those beyond are counted together.
_KINDS: Final = 24
#: Kinds of all.
_ALL_KINDS: Final = 2048

#: Command, outcome, and what its code says.
Kind = tuple[str, str, str]
_REST: Final[Kind] = ("", "", "")


class _Count:
    """What was counted of one kind; ``peer``: the last of them."""

    __slots__ = ("count", "peer", "role", "since", "until")

    def __init__(self, now: float) -> None:
        self.count = 0
        self.since = self.until = now
        self.peer: Peer | None = None
        self.role: str | None = None


class Tally:
    """Counts, and tells the audit log. ``wall_clock``: seconds since 1970, UTC."""

    def __init__(
        self,
        loop: EventLoop,
        audit: AuditLog,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._loop = loop
        self._audit = audit
        self._wall_clock = wall_clock
        self._counts: dict[str, dict[Kind, _Count]] = {}
        self._kinds = 0
        #: What was put on record by itself since the last telling, by identity.
        self._firsts: dict[str, set[Kind]] = {}
        self._timer: Timer | None = None

    def is_first(self, identity: str, kind: Kind) -> bool:
        """Whether none of this kind was seen lately; from now on one was."""
        seen = self._firsts.setdefault(identity, set())
        if kind in seen or len(seen) >= _KINDS:
            return False
        seen.add(kind)
        self._arm()
        return True

    def add(self, identity: str, kind: Kind, peer: Peer, role: str | None) -> None:
        """Count one."""
        kinds = self._counts.get(identity)
        if kinds is None:
            kinds = self._counts[identity] = {}
        now = self._wall_clock()
        found = kinds.get(kind)
        if found is None:
            if len(kinds) >= _KINDS or self._kinds >= _ALL_KINDS:
                kind = _REST
            self._kinds += kind not in kinds
            found = kinds.setdefault(kind, _Count(now))
            self._arm()
        found.count += 1
        found.until = now
        found.peer, found.role = peer, role

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_in(TELL_S, self.flush)

    def flush(self) -> None:
        """Tell what was counted so far."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        counts, self._counts, self._kinds = self._counts, {}, 0
        self._firsts.clear()
        for kinds in counts.values():
            for (command, outcome, code), found in kinds.items():
                assert found.peer is not None
                self._audit.record(
                    Event.COMMAND_COUNTED,
                    command=command or None,
                    outcome=outcome or None,
                    code=code or None,
                    peer=found.peer.audit(),
                    role=found.role,
                    count=found.count,
                    since=timestamp(found.since),
                    until=timestamp(found.until),
                )
