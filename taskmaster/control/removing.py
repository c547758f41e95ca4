"""Taking jobs away: stop everything of the job, remove its file, forget it; by this program or the next one.

A removal is on the disk before the job is asked to stop, and whatever program follows goes on with it, after an
upgrade, an order to end or a kill: a job that was half stopped for good must not be started again by the next
daemon. A job whose file was replaced meanwhile is another one, and stays.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable, Mapping
from typing import Final

from taskmaster.audit import AuditLog, Event
from taskmaster.config.store import JobStore
from taskmaster.control.answers import Done, failed
from taskmaster.control.job import Job
from taskmaster.control.removals import Removal, Removals
from taskmaster.control.say import Say
from taskmaster.control.supervisor import Supervisor
from taskmaster.errors import FileError
from taskmaster.wire import replies
from taskmaster.wire.replies import Reply

VANISHED = "its file was removed"
#: The job directory is not to be written to, by anybody's will.
_NOT_OURS: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


class Removing:
    """Removes jobs of ``supervisor`` and their files in ``store``. ``forgotten`` is told of each that is gone."""

    def __init__(
        self,
        supervisor: Supervisor,
        store: JobStore,
        removals: Removals,
        audit: AuditLog,
        say: Say,
        forgotten: Callable[[Job], None],
    ) -> None:
        self._supervisor = supervisor
        self._store = store
        self._removals = removals
        self._audit = audit
        self._say = say
        self._forgotten = forgotten
        self._under_way: dict[str, Removal] = {}
        self._was_up: dict[str, bool] = {}

    def delete(self, job: Job, removal: Removal, done: Done) -> None:
        """Stop a job whose turn has come (``Job.run``), remove its file, forget it."""
        error = self._put_on_disk(job.name, removal)
        if error is not None and error.errno in _NOT_OURS:
            # Its file cannot be removed either: better said before the job is stopped.
            self._end(job.name)
            where = f"{self._store.directory}: {error.strerror}"
            done(replies.fail(f"{where}; nothing was stopped or removed"))
            return
        job.begin()
        self._under_way[job.name] = removal
        self._was_up[job.name] = self._supervisor.is_wanted_up(job)
        stopped = functools.partial(self._stopped, job, removal, done)
        if job.spec is None:
            stopped(replies.SUCCESS, "")
        else:
            self._supervisor.retire(job, "removed", stopped, removal.cause)

    def _stopped(self, job: Job, removal: Removal, done: Done, outcome: str, error: str) -> None:
        if outcome == replies.FAIL:
            self._given_up(job)
            done(replies.fail(error))
            return
        try:
            self._store.remove(job.name, who=removal.who, reason=removal.reason)
        except (FileError, OSError) as why:
            was_up = self._was_up.get(job.name, False)
            self._end(job.name)
            job.removing = False
            self._supervisor.launching.bring_up(job)
            if was_up and job.stopped is None:
                self._supervisor.act(job, "ensure", None, removal.cause)
            job.end()
            is_back = "was stopped for that, and is started again" if was_up else "stays"
            done(failed(why, f"; the job {is_back}"))
            return
        self._removed(job, f"deleted by {removal.who}", removal.cause)
        done(replies.success())

    def vanish(self, job: Job, cause: str, done: Callable[[str, str], None]) -> None:
        """The file of a job whose turn has come is gone: stop and forget it; ``done`` as of a request."""

        def stopped(outcome: str, error: str) -> None:
            if outcome == replies.FAIL:
                self._given_up(job)
            else:
                self._removed(job, VANISHED, cause)
            done(outcome, error)

        job.begin()
        self._under_way[job.name] = Removal("", VANISHED, "", cause)
        if job.spec is None:
            stopped(replies.SUCCESS, "")
        else:
            self._supervisor.retire(job, VANISHED, stopped, cause)

    def _given_up(self, job: Job) -> None:
        """It could not be stopped. Where that is for the end of the daemon, the next one removes it."""
        if not self._supervisor.closing:
            self._end(job.name)
            self._supervisor.stays(job)
        job.end()

    def _end(self, name: str) -> None:
        self._under_way.pop(name, None)
        self._was_up.pop(name, None)
        error = self._removals.end(name)
        if error is not None:
            self._say.error(f"job {name}: that it was to be removed stays noted: {error.strerror}")

    # an upgrade -----------------------------------------------------------------------------------

    def keep(self) -> dict[str, Removal]:
        """All that is under way, for the next program, and on the disk for whichever that will be."""
        for name, removal in self._under_way.items():
            self._put_on_disk(name, removal)
        return dict(self._under_way)

    def _put_on_disk(self, name: str, removal: Removal) -> OSError | None:
        error = self._removals.begin(name, removal)
        if error is not None:
            self._say.error(
                f"job {name}: that it is being removed is not on the disk: {error.strerror}"
            )
        return error

    def know(self, under_way: Mapping[str, Removal]) -> None:
        """What the program before this one, in the same process, had under way."""
        for name, removal in under_way.items():
            self._removals.know(name, removal)

    # what the program before has begun ------------------------------------------------------------

    def is_begun(self, name: str) -> bool:
        """Whether a program before this one was about to remove a job of this name."""
        return name in self._removals.all

    def goes_on(self, job: Job) -> bool:
        """Go on with a removal of this job, whose file was read; False where there is none."""
        removal = self._removals.all.get(job.name)
        if removal is None:
            return False
        if removal.sha256 != job.sha256:
            self._say.error(
                f"job {job.name}: it was to be removed, and has another file by now: it stays"
            )
            self._end(job.name)
            return False
        job.begin()
        self._under_way[job.name] = removal
        self._go_on(job, removal)
        self._supervisor.launching.bring_up(job)
        return True

    def _go_on(self, job: Job, removal: Removal) -> None:
        def told(reply: Reply) -> None:
            if reply.error:
                self._say.error(f"job {job.name}: it was to be removed: {reply.error}")

        def stopped(outcome: str, error: str) -> None:
            if outcome == replies.FAIL:
                self._go_on(job, removal)  # its watchdog was hung or dead: the next one is asked
            else:
                self._stopped(job, removal, told, outcome, error)

        self._supervisor.retire(job, "removed", stopped, removal.cause)

    def stop_vanished(self, job: Job) -> None:
        """The file went while no daemon ran: a watchdog, found or launched to adopt, is told to end the job."""

        def stopped(outcome: str, error: str) -> None:
            if outcome == replies.FAIL:
                self._supervisor.retire(job, VANISHED, stopped)
            else:
                self._removed(job, f"{VANISHED} while no daemon ran")

        job.begin()
        self._under_way[job.name] = Removal("", VANISHED, "", "")
        self._supervisor.retire(job, VANISHED, stopped)
        self._supervisor.launching.bring_up(job)

    def is_vanishing(self, name: str) -> bool:
        """Whether a job is being removed for want of a file; one that comes meanwhile is of a new job."""
        removal = self._under_way.get(name)
        return removal is not None and not removal.who

    def tidy(self) -> None:
        """Forget removals of which nothing is left to do."""
        for name in list(self._removals.all):
            if name not in self._supervisor.jobs:
                self._end(name)

    def _removed(self, job: Job, reason: str, cause: str = "") -> None:
        """Nothing of the job runs any more and its file is gone: it is forgotten."""
        because = {"cause": cause} if cause else {}
        self._audit.record(
            Event.JOB_REMOVED, job=job.name, sha256=job.sha256, reason=reason, **because
        )
        self._end(job.name)
        self._forgotten(job)
        self._supervisor.forget(job)
        job.end()
