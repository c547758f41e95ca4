"""What processes of other users do of themselves, in the audit log: one by one, and counted where it has no end.

A job that ends and is started again each second, a thousand times over, fills a log as well as any client. So
what the jobs of one user (``runas``) tell without a command has a share like that of a client, with more at
once. Jobs of root and of the daemon's own user are not concerned: whoever may push those may do everything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from taskmaster.audit import AuditLog, Event
from taskmaster.control.status import timestamp
from taskmaster.eventloop import EventLoop, Timer

#: So much may come at once: the start of two thousand processes.
BURST: Final = 2 << 20
#: How long is counted before a record tells, seconds.
TELL_S: Final = 10.0
_DAY_S: Final = 86_400.0
#: Users that are told apart; those beyond share one bucket.
_USERS: Final = 256
_ROOT: Final = frozenset({"", "root", "0"})


class _Count:
    __slots__ = ("count", "job", "since", "until")

    def __init__(self, now: float) -> None:
        self.count = 0
        self.job = ""
        self.since = self.until = now


class Churn:
    """Decides about each such record. ``a_day``: bytes of one user's jobs, 0 for any."""

    def __init__(
        self, loop: EventLoop, audit: AuditLog, a_day: int, wall_clock: Callable[[], float]
    ) -> None:
        self._loop = loop
        self._audit = audit
        self._rate = a_day / _DAY_S
        self._wall_clock = wall_clock
        #: By user: how many bytes are left, as of when.
        self._left: dict[str, tuple[float, float]] = {}
        self._counts: dict[tuple[str, Event], _Count] = {}
        self._timer: Timer | None = None

    def record(self, event: Event, job: str, runas: str, fields: Mapping[str, object]) -> None:
        """Put on record what happened in a job that runs as this user, or count it."""
        user = runas.partition(":")[0]
        if not self._rate or user in _ROOT or "cause" in fields:
            self._audit.put(event, {"job": job, **fields})
            return
        if user not in self._left and len(self._left) >= _USERS:
            user = "others"
        now = self._loop.now()
        left, at = self._left.get(user, (float(BURST), now))
        left = min(float(BURST), left + (now - at) * self._rate)
        if left > 0:
            left -= self._audit.put(event, {"job": job, **fields})
        else:
            self._add(user, event, job)
        self._left[user] = left, now

    def _add(self, user: str, event: Event, job: str) -> None:
        now = self._wall_clock()
        found = self._counts.setdefault((user, event), _Count(now))
        found.count += 1
        found.until, found.job = now, job
        if self._timer is None:
            self._timer = self._loop.call_in(TELL_S, self.flush)

    def flush(self) -> None:
        """Tell what was counted so far."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        counts, self._counts = self._counts, {}
        for (user, event), found in counts.items():
            self._audit.record(
                Event.PROCESS_COUNTED,
                what=event.value,
                user=user,
                job=found.job,
                count=found.count,
                since=timestamp(found.since),
                until=timestamp(found.until),
            )
