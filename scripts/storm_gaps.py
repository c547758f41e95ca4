"""When nobody watched a job in a storm, or nobody could have written down what they saw, and what that excuses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from storm_audit import Audit
from storm_client import Command
from storm_faults import Fault
from storm_witness import Life

_Intervals = list[tuple[float, float]]
#: Between a fault and what it is blamed for: the observer's own tick, and a machine that is busy.
_BEFORE_S: Final = 0.2
#: A replacement is on record when it is forked; it holds its processes a little later.
_ADOPTS_S: Final = 0.5
#: What a watchdog tells of its processes.
_OF_PROCESSES: Final = (
    "process.started",
    "process.ready",
    "process.exited",
    "process.unknown_exit",
    "process.stopping",
    "process.adopted",
)
#: Longer than a watchdog needs to write down an exit on a machine with ten tasks for each processor.
_BUSY_S: Final = 0.5


class _Absences(NamedTuple):
    """Of one job, when its watchdog and a daemon that knew of it were not there, and why.

    Dead is what was killed, until its successor has met the job; away is what left for a successor in an
    upgrade; stopped is a watchdog until it is continued or killed: what it holds it still holds.
    """

    daemon_dead: _Intervals
    daemon_away: _Intervals
    daemon_stopped: _Intervals
    watchdog_dead: _Intervals
    watchdog_away: _Intervals
    watchdog_stopped: _Intervals


class Gaps:
    """When nobody watched: intervals without a daemon and without a watchdog, by job."""

    def __init__(self, audit: Audit, faults: list[Fault], upgrades: list[Command]) -> None:
        self._audit = audit
        self._faults = faults
        self._upgrades = [(one.sent, one.ended + _ADOPTS_S) for one in upgrades]
        self._known: dict[str, _Absences] = {}

    def excuse(self, life: Life, told_at: float) -> str | None:
        """Why an exit may be on record, at ``told_at``, with an unknown status; None: it may not."""
        job, at = life.job, life.ended_at
        assert at is not None
        found = self._of(job)
        if _within(at, found.daemon_dead) and _within(at, found.watchdog_dead):
            return "watchdog and daemon were both dead"
        # One could not reap it, and all who held it died before any of them had told.
        unreaped = _within(at, found.watchdog_dead) or _within(at, found.watchdog_stopped)
        if unreaped and _meet(found.daemon_dead, found.watchdog_dead, at, told_at):
            return "watchdog stopped or dead at the exit, and both dead before it was told"
        if self.both_between(job, at, at):
            return "one was dead or replaced, the other in an upgrade"
        # A daemon that is stopped cannot have met what began meanwhile, and is nobody's parent in the stead of a
        # watchdog that is older than itself.
        stopped = any(begin <= life.at and at <= end for begin, end in found.daemon_stopped)
        if stopped and _within(at, found.watchdog_dead):
            return "watchdog dead, and daemon stopped since before the process began"
        if self.record_lost(job, at, told_at):
            return "its record was removed, and its watchdog died before that was made again"
        soon = any(at <= begin <= at + _BUSY_S for begin, _ in found.watchdog_dead)
        if soon and _meet(found.daemon_dead, found.watchdog_dead, at, told_at):
            return f"watchdog killed within {_BUSY_S:g} s of the exit, and both dead before it was told"
        return None

    def both_between(self, job: str, since: float, until: float) -> bool:
        """Whether there was such a moment."""
        found = self._of(job)
        return _meet(
            found.daemon_dead + found.daemon_away,
            found.watchdog_dead + found.watchdog_away,
            since,
            until,
        )

    def record_lost(self, job: str, since: float, until: float) -> bool:
        """Whether the state record was removed in this time with no watchdog there that could write another.

        With it goes what was in the record alone: counters, and what the log had not been told.
        """
        return any(since - _BUSY_S <= lost <= until for lost, _ in self._losses(job))

    def untold(self, job: str, at: float) -> bool:
        """Whether what happened then was in a record that was lost before the log heard of the job again.

        Or would have been: until another watchdog comes, nobody can write it down.
        """
        heard = [one["mono"] for one in self._audit.of_job(job, _OF_PROCESSES)]
        return any(
            at - _BUSY_S <= again and not any(at + _BUSY_S < one < lost for one in heard)
            for lost, again in self._losses(job)
        )

    def _losses(self, job: str) -> _Intervals:
        """From when a record was lost for good until there was another one."""
        return [
            (max(removed, died), min(restored, replaced))
            for removed, restored in self._removed(job, ("folder", "state.json"))
            for died, replaced in self._of(job).watchdog_dead
            if max(removed, died) - _BEFORE_S <= min(restored, replaced)
        ]

    def pipe_lost(self, life: Life) -> bool:
        """Whether it wrote into a pipe whose name had been removed, and nobody may have held that at its end."""
        assert life.ended_at is not None
        removed = [
            (one.at, life.ended_at)
            for one in self._faults
            if one.kind == "removed"
            and one.job == life.job
            and one.what in ("folder", f"{life.number}.stdout")
            and one.at <= life.ended_at
        ]
        return _meet(removed, self._of(life.job).watchdog_dead, life.at, life.ended_at + _BUSY_S)

    def _removed(self, job: str, what: tuple[str, ...]) -> _Intervals:
        """When something of these was not there, at the most: until it is said to be, or another watchdog came."""
        again = self._audit.of_job(job, ("state.restored", "watchdog.launched"))
        return [
            (one.at, _next((record["mono"] for record in again), one.at))
            for one in self._faults
            if one.kind == "removed" and one.job == job and one.what in what
        ]

    def around(self, job: str, at: float) -> list[str]:
        """The faults around a moment, for people."""
        return [
            f"{one.at:.3f} fault: {one.job or 'daemon'} (pid {one.pid}) {one.kind} {one.what}".rstrip()
            for one in self._faults
            if one.job in ("", job) and at - 8 <= one.at <= at + 8
        ]

    def _of(self, job: str) -> _Absences:
        if job in self._known:
            return self._known[job]
        met = self._audit.of_job(job, ("watchdog.attached", "watchdog.launched"))
        mine = [one for one in self._faults if one.job == job]

        def until_another(at: float, pid: int) -> tuple[float, float]:
            return at, _next((one["mono"] for one in met if one["pid"] != pid), at)

        found = self._known[job] = _Absences(
            [
                (one.at, _next((one["mono"] for one in met), one.at))
                for one in self._faults
                if one.job == "" and one.kind == "killed"
            ],
            self._upgrades,
            [
                (one.at, _next((more.at for more in self._faults if more.pid == one.pid), one.at))
                for one in self._faults
                if one.job == "" and one.kind == "stopped"
            ],
            [until_another(one.at, one.pid) for one in mine if one.kind == "killed"]
            + [
                until_another(one["mono"], one["pid"])
                for one in self._audit.of_job(job, ("watchdog.killed",))
            ],
            [
                until_another(one["mono"], one["pid"])
                for one in self._audit.of_job(job, ("watchdog.ended",))
            ]
            # The one before leaves for it, and a daemon that dies meanwhile puts nothing of that on record.
            + [
                (one["mono"], one["mono"] + _ADOPTS_S)
                for one in self._audit.of_job(job, ("watchdog.launched",))
            ],
            [
                (one.at, _next((more.at for more in mine if more.pid == one.pid), one.at))
                for one in mine
                if one.kind == "stopped"
            ],
        )
        return found


def _within(at: float, intervals: _Intervals) -> bool:
    return any(begin - _BEFORE_S <= at <= end for begin, end in intervals)


def _meet(some: _Intervals, others: _Intervals, since: float, until: float) -> bool:
    """Whether one of each share a moment of this time."""
    return any(
        max(since, a[0] - _BEFORE_S, b[0] - _BEFORE_S) <= min(until, a[1], b[1])
        for a in some
        for b in others
    )


def _next(times: Iterable[float], after: float) -> float:
    return min((at for at in times if at > after), default=float("inf")) + _ADOPTS_S
