"""Watchdogs that do not answer: noticed when somebody waits for one, or by a slow look at /proc, and replaced.

Nothing is sent to find out: a watchdog at rest is left at rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from taskmaster import procfs
from taskmaster.audit import AuditLog, Event
from taskmaster.control.job import Job, Watchdog
from taskmaster.control.link import Request
from taskmaster.control.say import Say
from taskmaster.wire.link import Ping, Retire

if TYPE_CHECKING:
    from taskmaster.control.supervisor import Supervisor

#: How often watchdogs are looked at in /proc: the only thing that wakes a daemon at rest.
_LOOK_S: Final = 30.0


class Silence:
    """The silent watchdogs of one supervisor.

    ``deadline_s``: how long one may take to take a request up; ``timeout_s``: how long it may be silent before it
    is killed.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        audit: AuditLog,
        say: Say,
        deadline_s: float,
        timeout_s: float,
    ) -> None:
        self._supervisor = supervisor
        self._audit = audit
        self._say = say
        self._deadline_s = deadline_s
        self._timeout_s = max(timeout_s, deadline_s)

    def late(self, job: Job, request: Request) -> str:
        """A request was not taken up in time; the words for who asked."""
        watchdog = job.watchdog
        if watchdog is None:
            why = job.trouble or "its watchdog is being started"
            return f'Job "{job.name}": not begun within {self._deadline_s:g} s: {why}.'
        self.begins(job, watchdog, self._deadline_s)
        if isinstance(request.message, Retire):
            return (
                f'Job "{job.name}": its watchdog (pid {watchdog.pid}) did not answer within '
                f"{self._deadline_s:g} s; nothing was stopped or removed."
            )
        return (
            f'Job "{job.name}": its watchdog (pid {watchdog.pid}) did not answer within '
            f"{self._deadline_s:g} s; what was asked may still be done when it does."
        )

    def begins(self, job: Job, watchdog: Watchdog, silent_s: float) -> None:
        """A watchdog does not answer: it is given the rest of its time, then it is replaced."""
        if job.silent:
            return
        job.silent = True
        self._audit.record(
            Event.WATCHDOG_UNRESPONSIVE, job=job.name, pid=watchdog.pid, silentS=silent_s
        )
        job.trouble = (
            f"its watchdog (pid {watchdog.pid}) does not answer; its processes run on; "
            f"it is replaced after {self._timeout_s:g} s"
        )
        self._say.error(f"job {job.name}: {job.trouble}")

        def over() -> None:
            job.silence_timer = None
            if job.watchdog is watchdog and job.silent:
                self._supervisor.kill(job, watchdog, f"silent for {self._timeout_s:g} s")

        job.silence_timer = self._supervisor.loop.call_in(self._timeout_s - silent_s, over)

    def look_for_stopped(self) -> None:
        """Notice watchdogs that were stopped (SIGSTOP, a debugger) while nobody asked them anything.

        One that is asked after this, and answers, has recovered.
        """
        for job in self._supervisor.jobs.values():
            watchdog = job.watchdog
            if watchdog is None or job.silent or watchdog.link is None:
                continue
            status = procfs.stat(watchdog.pid)
            if status is not None and status.state in "Tt":
                self.begins(job, watchdog, 0.0)
                watchdog.link.send(Ping(0))
        self._supervisor.loop.call_in(_LOOK_S, self.look_for_stopped)

    def recovered(self, job: Job, watchdog: Watchdog) -> None:
        """It has said something after all."""
        self.forget(job)
        job.trouble = ""
        self._audit.record(Event.WATCHDOG_RECOVERED, job=job.name, pid=watchdog.pid, silentS=None)

    def forget(self, job: Job) -> None:
        """Nobody waits for a silent watchdog of this job any more."""
        job.silent = False
        if job.silence_timer is not None:
            job.silence_timer.cancel()
            job.silence_timer = None
