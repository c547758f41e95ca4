"""After an upgrade: every watchdog is replaced by one of the new program, one at a time, by adoption."""

from __future__ import annotations

import functools
import os
import signal
from collections import deque
from typing import TYPE_CHECKING

from taskmaster.control.job import REPLACED, Job, Watchdog
from taskmaster.control.say import Say
from taskmaster.wire.link import Leave

if TYPE_CHECKING:
    from taskmaster.control.supervisor import Supervisor


class Replacing:
    """Replaces the watchdogs of one supervisor. ``deadline_s``: how long one may take to leave."""

    def __init__(self, supervisor: Supervisor, say: Say, deadline_s: float) -> None:
        self._supervisor = supervisor
        self._say = say
        self._deadline_s = deadline_s
        self._to_replace: deque[Job] = deque()
        #: The job whose successor has not come up yet.
        self._current: Job | None = None

    def replace_all(self) -> None:
        """Have every watchdog replaced by one of this program, one at a time; its processes notice nothing.

        The first that does not come up keeps the others from leaving.
        """
        self._to_replace = deque(
            job for job in self._supervisor.jobs.values() if job.spec is not None
        )
        self._replace_next()

    def _replace_next(self) -> None:
        while self._to_replace and self._current is None:
            job = self._to_replace.popleft()
            watchdog = job.watchdog
            if self._supervisor.jobs.get(job.name) is not job or job.removing:
                continue
            if watchdog is None or watchdog.link is None or not job.heard:
                # It is being started, with this program, or found: looked at again when it is there.
                job.on_attached = functools.partial(self._attached, job)
            elif self._replace_if_old(job):
                self._current = job

    def _attached(self, job: Job) -> None:
        self._to_replace.append(job)
        self._replace_next()

    def _over(self, job: Job) -> None:
        """Its successor has come up, or it needs none any more."""
        if self._current is job:
            self._current = None
            self._replace_next()

    def _replace_if_old(self, job: Job) -> bool:
        watchdog = job.watchdog
        if watchdog is None or watchdog.process is not None or watchdog.link is None:
            return False
        try:
            # First the successor, which waits for the lock: if this process dies between the two steps, the job
            # is not left without a watchdog.
            made = self._supervisor.launching.fork(job, waits_s=2 * self._deadline_s)
        except OSError as error:
            self._say.error(f"job {job.name}: its watchdog is not replaced: {error.strerror}")
            return False
        standby = Watchdog(made.pid, made.process, made.pidfd)
        job.standby = (standby, made.link)
        self._supervisor.by_pid[made.pid] = (job, standby)
        standby.watch = self._supervisor.loop.watch(
            made.pidfd, lambda: self._supervisor.ended(job, standby)
        )
        watchdog.leaving = REPLACED
        job.on_attached = functools.partial(self._over, job)
        watchdog.link.send(Leave(0))

        def over() -> None:
            if job.watchdog is watchdog:
                self._supervisor.kill(job, watchdog, "it did not leave to be replaced")

        self._supervisor.loop.call_in(self._deadline_s, over)
        return True

    def take_standby(self, job: Job) -> bool:
        """The watchdog before has left: its successor, which has waited for that, has the job."""
        if job.standby is None:
            return False
        (watchdog, fd), job.standby = job.standby, None
        job.watchdog = watchdog
        self._supervisor.attach(job, watchdog, fd)
        return True

    def drop_standby(self, job: Job) -> None:
        """The job is let go of: nobody is to succeed its watchdog."""
        if job.standby is not None:
            (watchdog, fd), job.standby = job.standby, None
            os.close(fd)
            try:
                signal.pidfd_send_signal(watchdog.pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has ended already, and that is about to be noticed
        self._over(job)
