"""Whose a dead watchdog's processes are: they are this process's children by then, and have to be told apart.

What decides is nothing that a process can choose (``ownership.py``). And watchdogs are children of this process
too: those that are known by their pid, and those that hold the lock of a job, which none but a watchdog can.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Container, Iterator, Mapping

from taskmaster import children, procfs
from taskmaster.control.job import Job
from taskmaster.control.lineage import NO_JOB, WATCHDOGS, Lineage
from taskmaster.control.ownership import Claimant, Stray, owner_of
from taskmaster.procfs import Standing
from taskmaster.watchdog.entry import mark_of, trace


class Orphans:
    """The children of this process that are no watchdogs.

    ``watchdogs``: those that are, by pid; ``holder``: the process that holds the lock of a job.
    """

    def __init__(
        self,
        jobs: Mapping[str, Job],
        watchdogs: Mapping[int, object],
        holder: Callable[[Job], int | None],
    ) -> None:
        self._jobs = jobs
        self._watchdogs = watchdogs
        self._holder = holder
        #: Tells the watchdog of a job what is its and what is not.
        self.tell: Callable[[Job], None] = lambda job: None
        #: Children that are of no job, by pid, with their start times.
        self._others: dict[int, int] = {}
        #: Watchdogs of the program before this one, by pid, with their start times: what such a one leaves is of
        #: its job, and which that is nobody has handed over.
        self._met_before: dict[int, int] = {}
        #: Children that might be of several jobs.
        self._unclaimed: dict[int, int] = {}
        self._lineage = Lineage()

    def not_ours(self, watchdogs: Container[int]) -> None:
        """What this process has for children before it has started any is its caller's, which may have executed
        it in its own place.

        Only what a caller that reaps has inherited from a daemon before is not: ``watchdogs`` of it, and what
        bears another mark than this process. Init claims nothing that is not certain in any case.
        """
        if os.getpid() == 1:
            return
        own = mark_of(os.getpid())
        for pid in procfs.children(os.getpid()):
            if pid not in watchdogs and mark_of(pid) in (None, own):
                status = procfs.stat(pid)
                self.not_a_job(pid, 0 if status is None else status.start)

    def inherit(self, job: Job) -> None:
        """Remember what the dead watchdog had: the children that this process has only since."""
        job.bereft = True
        self._lineage.ended({job.name})
        self._claim(job)

    def sweep(self) -> None:
        """Look for what adopted processes have left to this process since."""
        self._claim(None)

    def succeed(self) -> list[Job]:
        """Look for what orphans that have ended have left to this process; the jobs to be told of a change."""
        if not self._lineage.pending:
            return []
        if any(job.bereft for job in self._jobs.values()):
            self._claim(None)
        changed = self._lineage.looked()
        return [job for name, job in self._jobs.items() if name in changed]

    def not_a_job(self, pid: int, start: int) -> None:
        """A child of this process that is none of any job."""
        self._others[pid] = start

    def known(self) -> dict[str, list[tuple[int, int]]]:
        """By job, pid and start time of what its dead watchdogs had; what is of no job, and watchdogs, apart."""
        found = {
            name: list(job.inherited.items()) for name, job in self._jobs.items() if job.inherited
        }
        looked = (procfs.stat(pid) for pid in self._watchdogs)
        watchdogs = [(one.pid, one.start) for one in looked if one is not None]
        watchdogs += self._met_before.items()
        return {**found, NO_JOB: list(self._others.items()), WATCHDOGS: watchdogs}

    def know(self, inherited: dict[str, list[tuple[int, int]]]) -> None:
        """Take over what the program before this one, in the same process, knew of that."""
        inherited = dict(inherited)
        self._met_before.update(inherited.pop(WATCHDOGS, ()))
        for name, processes in inherited.items():
            owner = self._jobs.get(name)
            (self._others if owner is None else owner.inherited).update(processes)
        # Watchdogs may have died while one program became the other, and nobody has met those that live yet. So
        # what is here by now is none of those that the next watchdog to die leaves, and may be of any job.
        for status in list(self._strays()):
            self._unclaimed[status.pid] = status.start
        for job in self._jobs.values():
            job.bereft = True
        self._say_doubts()

    def reaped(self, pid: int) -> None:
        """An orphan is no more; its number may be somebody else's soon."""
        owners: set[str | None] = set()
        if self._others.pop(pid, None) is not None:
            owners.add(NO_JOB)
        if self._met_before.pop(pid, None) is not None:
            owners.add(None)
        if self._unclaimed.pop(pid, None) is not None:
            owners.add(None)
            self._say_doubts()
        for name, job in self._jobs.items():
            if job.inherited.pop(pid, None) is not None:
                owners.add(name)
            job.denied.pop(pid, None)
        self._lineage.ended(owners)

    def _say_doubts(self) -> None:
        """Have the status of each job say which processes may be its own, and may not."""
        for job in self._jobs.values():
            if job.bereft:
                job.doubtful = tuple(sorted(self._unclaimed))

    # whose they are -------------------------------------------------------------------------------

    def _claim(self, dead: Job | None) -> None:
        strays = list(self._strays())
        if not strays:
            return
        # Looked for after the children: then nobody else can have left them.
        heirs_of = self._lineage.only
        if heirs_of is not None and os.getpid() != 1 and not self._others_lost(heirs_of):
            # Also those that have ended: they may have left some in turn.
            self._bequeath(strays, heirs_of)
            return
        strays = [one for one in strays if not one.dead]
        # That it is new since this death says something only where no other death may have left it.
        died = None if dead is None or self._others_lost(dead.name) else dead.name
        lost = set() if dead is None else {dead.name}
        # Looked at after the children: whose watchdog was dead by then may have left some of them.
        for job in self._jobs.values():
            if job.watchdog is not None and _is_dead(job.watchdog.pid):
                job.bereft, died = True, None
                lost.add(job.name)
            elif job.bereft and not job.heard:
                # Not met yet by this program: what is on record is all that is known of it.
                lost.add(job.name)
        bereft = [job for job in self._jobs.values() if job.bereft]
        claimants = [_claimant(job, recorded=job.name in lost) for job in bereft]
        for status in strays:
            mark = mark_of(status.pid)
            bearer = next(
                (job for job in self._jobs.values() if mark and job.instance == mark), None
            )
            user = procfs.user(status.pid)
            stray = Stray(
                status.pid, status.start, status.session, user, bearer.name if bearer else None
            )
            # One that could not be told apart before is none of those that this watchdog has just left.
            since = None if status.pid in self._unclaimed else died
            # Init inherits orphans that were never a job's, too.
            name = owner_of(stray, claimants, since, only_jobs=os.getpid() != 1)
            owner = self._jobs.get(name or "")
            if owner is None:
                self._unclaimed[status.pid] = status.start
                self._say_doubts()
            else:
                if self._unclaimed.pop(status.pid, None) is not None:
                    self._say_doubts()
                owner.inherited[status.pid] = status.start
                if bearer is not None and bearer is not owner:
                    bearer.denied[status.pid] = status.start
                    self.tell(bearer)

    def _others_lost(self, name: str) -> bool:
        """Whether a watchdog or an orphan of another job may have ended and left some.

        A watchdog that this program has not met yet may end without anybody here being told which job it had.
        """
        others = [job for other, job in self._jobs.items() if other != name]
        if any(job.spec is not None and not job.heard for job in others):
            return True
        none = self._others if name != NO_JOB else ()
        known = itertools.chain(
            *(self._watchdogs, self._met_before, self._unclaimed, none),
            *(job.inherited for job in others),
        )
        return any(_has_ended(pid) for pid in known)

    def _bequeath(self, strays: list[procfs.ProcStat], name: str) -> None:
        """These come from processes of that job, or of none: whatever they say, they are its too."""
        owner = self._jobs.get(name)
        for status in strays:
            if self._unclaimed.get(status.pid) == status.start:
                continue  # it was there before
            (self._others if owner is None else owner.inherited)[status.pid] = status.start
            mark = mark_of(status.pid)
            for job in self._jobs.values():
                if mark and job is not owner and job.instance == mark:
                    job.denied[status.pid] = status.start
                    self.tell(job)

    def _strays(self) -> Iterator[procfs.ProcStat]:
        inherited = {one for job in self._jobs.values() for one in job.inherited.items()}
        known = inherited | self._others.items() | self._met_before.items()
        holders: set[int | None] | None = None
        for pid in procfs.children(os.getpid()):
            if pid in self._watchdogs:
                continue
            status = procfs.stat(pid)
            if status is None:
                status = _hidden(pid)
            if status is None or (pid, status.start) in known:
                continue
            if status.session == pid:
                # As watchdogs are: one of the program before this one, perhaps, that is not met yet.
                if holders is None:
                    holders = {self._holder(job) for job in self._jobs.values()}
                if pid in holders:
                    continue
            yield status


def _claimant(job: Job, *, recorded: bool) -> Claimant:
    living = [one for one in job.statuses.values() if one.pid is not None]
    users = {user for one in living if one.pid and (user := procfs.user(one.pid)) is not None}
    sessions = {one.pid for one in living if one.pid is not None}
    processes = {(one.pid, one.start) for one in living if one.pid and one.start is not None}
    if recorded and job.directory >= 0:
        found = trace(job.directory, job.name)
        processes |= set(found.processes)
        sessions |= {session for session in found.sessions if _is_free(session)}
        job.instance = job.instance or found.instance
    return Claimant(job.name, frozenset(processes), frozenset(sessions), frozenset(users))


def _has_ended(pid: int) -> bool:
    try:
        return children.peek(pid) is not None
    except ChildProcessError:
        return False  # of the daemon before: its orphans do not come here


def _is_free(session: int) -> bool:
    """Whether a session has no leader any more: else its number may be somebody else's by now."""
    return procfs.standing(session) in (Standing.GONE, Standing.DEAD)


def _hidden(pid: int) -> procfs.ProcStat | None:
    """What can be said of a child that /proc does not show; None where it has ended."""
    try:
        if children.peek(pid) is not None:
            return None
        return procfs.ProcStat(pid, "?", os.getpid(), os.getpgid(pid), os.getsid(pid), 0)
    except (ChildProcessError, ProcessLookupError):
        return None


def _is_dead(pid: int) -> bool:
    return procfs.standing(pid) in (Standing.GONE, Standing.DEAD)
