"""Seeing to it that a job has a watchdog: one that waits is connected to, else one is launched.

A few at a time, so that clients are served while two hundred jobs come up.
"""

from __future__ import annotations

import os
import random
import signal
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from taskmaster import fifos, procfs, statefolder, syscalls
from taskmaster.audit import AuditLog, Event
from taskmaster.control import launch, link
from taskmaster.control.job import Job, Watchdog
from taskmaster.control.say import Say
from taskmaster.control.statedir import StateDirectory
from taskmaster.core import backoff
from taskmaster.procfs import Standing
from taskmaster.watchdog.entry import recorded

if TYPE_CHECKING:
    from taskmaster.control.supervisor import Supervisor

#: Launched before the loop gets its turn: each is a fork of about 4 ms, and clients wait.
_LAUNCHES_A_TURN: Final = 4
#: Between two looks for the socket of a watchdog that has just begun, seconds: it takes 10 ms to be there.
_LISTENS_S: Final = 0.1


class Launching:
    """Finds or launches the watchdogs of one supervisor. ``logs``: the log directory; ``limits``: for the jobs.

    ``deadline_s``: how long a watchdog may take to be heard of."""

    def __init__(
        self,
        supervisor: Supervisor,
        statedir: StateDirectory,
        audit: AuditLog,
        say: Say,
        logs: Path,
        limits: tuple[tuple[int, tuple[int, int]], ...],
        deadline_s: float,
    ) -> None:
        self._supervisor = supervisor
        self._statedir = statedir
        self._audit = audit
        self._say = say
        self._logs = logs
        self._limits = limits
        self._deadline_s = deadline_s
        self._to_launch: deque[Job] = deque()
        #: Told of each job whose state folder is open.
        self.entered: Callable[[Job], object] = lambda job: None

    def is_alive(self, name: str) -> bool:
        """Whether the state folder of this name is that of something alive: a watchdog, or processes on record.

        True where that cannot be seen: what may be alive is not treated as gone.
        """
        try:
            directory = self._statedir.job(name)
        except OSError as error:
            self._say.error(f"job {name}: whether it runs cannot be seen: {error}")
            return True
        try:
            if self._statedir.holder_of(directory) is not None:
                return True
            stray = self._statedir.stray(name)
            if stray is not None:
                os.close(stray)
            if stray is not None or name in self._statedir.seen.orphaned:
                return True
            return any(
                procfs.standing(pid, start) is not Standing.GONE
                for pid, start in recorded(directory, name)
            )
        except OSError as error:
            self._say.error(f"job {name}: whether it runs cannot be seen: {error}")
            return True
        finally:
            os.close(directory)

    def bring_up(self, job: Job) -> None:
        """See to it that the job has a watchdog: one that waits is connected to, else one is launched."""
        job.relaunch_timer = None
        if job not in self._to_launch:
            if not self._to_launch:
                self._supervisor.loop.call_in(0, self._launch_some)
            self._to_launch.append(job)

    def _launch_some(self) -> None:
        for _ in range(_LAUNCHES_A_TURN):
            if not self._to_launch:
                return
            job = self._to_launch.popleft()
            if self._supervisor.jobs.get(job.name) is job and (
                job.watchdog is None or job.watchdog.link is None
            ):
                self._bring_up_now(job)
        if self._to_launch:
            self._supervisor.loop.call_in(0, self._launch_some)

    def _bring_up_now(self, job: Job) -> None:
        if job.spec is None:
            return
        try:
            self.enter(job)
            if not self._find(job):
                self.hold_pipes(job)
                self._launch(job)
        except OSError as error:
            self._launch_failed(job, error)

    def enter(self, job: Job) -> None:
        """Have the job's state folder open: the one that is there now. Raises OSError."""
        if job.directory >= 0 and "folder" in self._statedir.missing(job.name, job.directory):
            # Somebody has removed it with what was in it.
            job.close_pipes(set())
            os.close(job.directory)
            job.directory = -1
        if job.directory < 0:
            job.directory = self._statedir.job(job.name)
            job.had_state = job.had_state or job.name in self._statedir.seen.orphaned
        self.entered(job)

    def hold_pipes(self, job: Job) -> None:
        """Hold the job's pipes open, so that no death of others empties them. What fails, is tried again."""
        assert job.spec is not None
        if job.directory < 0:
            return
        for name in fifos.needed(job.spec):
            if name not in job.pipes:
                try:
                    job.pipes[name] = fifos.hold(job.directory, name)
                except OSError as error:
                    self._say.error(f"job {job.name}: pipe {name} is not held: {error.strerror}")
                    return

    def renew_pipes(self, job: Job) -> None:
        """Hold the pipes that are there now: a name may have been removed, and belong to another pipe since."""
        for name, held in list(job.pipes.items()):
            if not statefolder.is_there(job.directory, name, held):
                os.close(job.pipes.pop(name))
        if job.spec is not None:
            self.hold_pipes(job)

    def _find(self, job: Job) -> bool:
        try:
            found = link.find(job.directory)
        except BlockingIOError:
            # Others before us have knocked, and it has let none of them in: it is stopped, or worse.
            return self._hold_silent(job)
        if found is None:
            return self._wait_for(job)
        try:
            pid = syscalls.peer_pid(found)
            pidfd = os.pidfd_open(pid)
        except OSError:
            found.close()
            return False
        known = job.watchdog
        if known is not None and known.pid == pid:
            os.close(pidfd)
            self._supervisor.attach(job, known, found.detach())
            if known.attached_at is None and known.process is None:
                self._audit.record(Event.WATCHDOG_ATTACHED, job=job.name, pid=pid)
            return True
        self._take(job, Watchdog(pid, None, pidfd), found.detach())
        # It may be stopped, and be killed before it has said a word: then its record is all there is.
        job.witness.watch(recorded(job.directory, job.name))
        self._audit.record(Event.WATCHDOG_ATTACHED, job=job.name, pid=pid)
        return True

    def _hold_silent(self, job: Job) -> bool:
        """Take a watchdog that cannot be talked to for the job's, by the lock that it holds."""
        known = self._by_lock(job)
        if known is None:
            return False
        self._supervisor.silence.begins(job, known, 0.0)
        return True

    def _wait_for(self, job: Job) -> bool:
        """Take a watchdog for the job's that has the lock and listens nowhere: it has only just begun, or was
        stopped over that. It is looked for again, and counts as silent if that goes on."""
        known = self._by_lock(job)
        if known is None:
            return False

        def still_deaf() -> None:
            if job.watchdog is known and known.link is None:
                self._supervisor.silence.begins(job, known, self._deadline_s)

        if known.greeting is None:
            known.greeting = self._supervisor.loop.call_in(self._deadline_s, still_deaf)
        job.trouble = f"its watchdog (pid {known.pid}) begins"
        job.relaunch_timer = self._supervisor.loop.call_in(_LISTENS_S, lambda: self.bring_up(job))
        return True

    def _by_lock(self, job: Job) -> Watchdog | None:
        """The watchdog that holds the lock of the job's folder, the job's from now on; None where none does."""
        pid = self._statedir.holder_of(job.directory)
        if pid is None:
            return self._by_beacon(job)
        known = job.watchdog
        if known is None or known.pid != pid:
            try:
                known = Watchdog(pid, None, os.pidfd_open(pid))
            except ProcessLookupError:
                return None  # it has ended meanwhile
            self._supervisor.know(job, known)
            job.witness.watch(recorded(job.directory, job.name))
        return known

    def _by_beacon(self, job: Job) -> Watchdog | None:
        """The job's watchdog whose folder was removed while no daemon ran: it is told to make it again."""
        held = self._statedir.stray(job.name)
        if held is None:
            return None
        pid = self._statedir.seen.watchdogs[job.name]
        known = job.watchdog
        if known is None or known.pid != pid:
            known = Watchdog(pid, None, held)
            self._supervisor.know(job, known)
        else:
            os.close(held)
        try:
            signal.pidfd_send_signal(known.pidfd, signal.SIGUSR1)
        except ProcessLookupError:
            return None  # it has ended meanwhile
        return known

    def fork(self, job: Job, waits_s: float = 0.0) -> launch.Launched:
        """Launch a watchdog that waits ``waits_s`` for the one before to leave. Raises OSError."""
        assert job.spec is not None
        logs = str(self._logs / "jobs" / job.name)
        expected = job.had_state or any(one.pid is not None for one in job.statuses.values())
        job.had_state = False
        made = launch.launch(
            job.spec, job.sha256, job.directory, logs, self._limits, expected, waits_s
        )
        self._audit.record(
            Event.WATCHDOG_LAUNCHED, job=job.name, pid=made.pid, relaunches=job.losses
        )
        return made

    def _launch(self, job: Job) -> None:
        made = self.fork(job)
        self._take(job, Watchdog(made.pid, made.process, made.pidfd), made.link)

    def _launch_failed(self, job: Job, error: OSError) -> None:
        job.losses += 1
        # Never at once: what is missing is the host's, and trying in circles makes it worse.
        retry_s = max(1.0, backoff.relaunch_s(job.losses, random.random()))
        job.trouble = (
            f"its watchdog cannot be started: {_where(error)}{error.strerror}; "
            f"tried again in {retry_s:.1f} s"
        )
        self._audit.record(
            Event.WATCHDOG_LAUNCH_FAILED,
            job=job.name,
            error=str(error),
            relaunches=job.losses,
            retryS=round(retry_s, 3),
        )
        self._say.error(f"job {job.name}: {job.trouble}")
        job.relaunch_timer = self._supervisor.loop.call_in(retry_s, lambda: self.bring_up(job))

    def _take(self, job: Job, watchdog: Watchdog, fd: int) -> None:
        self._supervisor.know(job, watchdog)
        self._supervisor.attach(job, watchdog, fd)


def _where(error: OSError) -> str:
    """The file that it is about, before the system's words."""
    return "" if error.filename is None else f"{error.filename}: "
