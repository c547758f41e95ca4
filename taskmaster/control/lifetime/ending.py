"""The end of the daemon: of all jobs in order, or of the daemon alone, which leaves them.

It stops no process itself: each job's watchdog is told to retire, and what it answers is waited for.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Final

from taskmaster.audit import Event
from taskmaster.control.exchange import Exchange
from taskmaster.control.job import Job
from taskmaster.control.lifetime.life import Life
from taskmaster.control.lifetime.parts import Parts
from taskmaster.core import lifetime
from taskmaster.wire import replies

#: On top of the longest stopTime: for watchdogs that have to be replaced before they can be told.
_GRACE_S: Final = 20.0


class Ending:
    """The end of one daemon. ``status``: what it exits with, once it has left."""

    def __init__(self, parts: Parts, life: Life) -> None:
        self._loop = parts.loop
        self._supervisor = parts.supervisor
        self._dispatcher = parts.dispatcher
        self._audit = parts.premises.audit
        self._say = parts.say
        self._life = life
        self.status = 0
        self._reason = ""
        self._left: set[str] = set()
        self._told_at_the_end: list[Exchange] = []

    # who asks -------------------------------------------------------------------------------------

    def ask(self, reason: str) -> None:
        """End in order; a second time: without patience."""
        self._reason = reason
        self._life.happens(lifetime.Event.END_ASKED)

    def shut_down(self, exchange: Exchange) -> None:
        """The command ``shutdown``: as SIGTERM, or the daemon alone."""
        query = exchange.query
        assert query is not None
        reason = f"shutdown by {exchange.peer.who()}"
        leave = query.leave_jobs
        if query.wait_s is None or leave:
            exchange.done(replies.success())
        else:
            self._told_at_the_end.append(exchange)

        def begin() -> None:
            if self._life.is_over:
                return  # somebody else asked in the same turn
            if leave:
                self._audit.record(
                    Event.DAEMON_STOPPING, pid=os.getpid(), reason=f"{reason}, leaving the jobs"
                )
                self._life.happens(lifetime.Event.LEAVE_ASKED)
            else:
                self.ask(reason)

        # The reply goes out with the end of this turn; this is the next one.
        self._loop.call_in(0, begin)

    # what is done ---------------------------------------------------------------------------------

    def stop_jobs(self) -> None:
        """Have every job stopped; ``lifetime.Event.STOPPED`` follows, now or later."""
        self._say.connection(f"{self._reason}: stopping all jobs")
        self._audit.record(Event.DAEMON_STOPPING, pid=os.getpid(), reason=self._reason)
        self._dispatcher.closing = "taskmasterd is stopping"
        self._supervisor.closing = "taskmasterd is stopping; what was begun is not waited for."
        jobs = [job for job in self._supervisor.jobs.values() if job.spec is not None]
        longest_s = max((job.spec.stop_time_s for job in jobs if job.spec is not None), default=0.0)
        self._loop.call_in(longest_s + _GRACE_S, self._out_of_time)
        self._left = {job.name for job in jobs}
        for job in jobs:
            job.refuse_all("taskmasterd is stopping; this was not begun.")
            self._retire(job.name, job)
        if not jobs:
            self._life.happens(lifetime.Event.STOPPED)

    def _retire(self, name: str, job: Job) -> None:
        self._supervisor.retire(job, "the daemon stops", functools.partial(self._gone, name))

    def _gone(self, name: str, outcome: str, error: str) -> None:
        job = self._supervisor.jobs.get(name)
        if outcome == replies.FAIL and job is not None and name in self._left:
            # Its watchdog was hung or dead: the replacement is asked again.
            self._say.error(f"job {name}: {error}")
            self._retire(name, job)
            return
        self._left.discard(name)
        if job is not None:
            self._supervisor.forget(job)
        if not self._left:
            self._life.happens(lifetime.Event.STOPPED)

    def kill_jobs(self) -> None:
        """The end was asked for again: SIGKILL to what still runs."""
        self._say.error(f"{self._reason} again: SIGKILL to what still runs")
        for job in list(self._supervisor.jobs.values()):
            if job.spec is not None:
                self._supervisor.act(job, "kill", lambda outcome, error: None)

    def _out_of_time(self) -> None:
        running = sorted(
            name for name, job in self._supervisor.jobs.items() if job.spec is not None
        )
        text = (
            f"not stopped in time, left as they are: {', '.join(running[:20])}; "
            "the next taskmasterd takes them over"
        )
        self._say.error(text)
        for exchange in self._told_at_the_end:
            exchange.done(replies.fail(text))
        self.status = 1
        self._life.happens(lifetime.Event.STOPPED)

    def tell(self) -> None:
        """Whoever has waited for the end has it."""
        for exchange in self._told_at_the_end:
            exchange.done(replies.success())

    def told_by(self, name: str) -> Callable[[], None]:
        """What a signal of this name does."""
        return functools.partial(self.ask, name)
