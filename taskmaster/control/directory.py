"""The whole job directory read again (``restart`` without a job, SIGHUP): what differs is applied.

What is wrong with one file keeps no other from being applied; all of it is told in one reply at the end.
But a directory in which no job that is in force has a file any more is not believed: an unmounted or
vanished folder looks just like that, and every job of the host would be stopped for it.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from taskmaster.audit import AuditLog, Event
from taskmaster.config import diff
from taskmaster.config.store import JobStore
from taskmaster.control.answers import Done, failed, refusing
from taskmaster.control.definitions import Change, Definition, Definitions
from taskmaster.control.job import Job
from taskmaster.control.supervisor import Supervisor
from taskmaster.errors import FileError, TaskmasterError
from taskmaster.wire import replies
from taskmaster.wire.replies import Reply


class Directory:
    """All files of ``store``, for ``supervisor``; each is applied by ``definitions``."""

    def __init__(
        self, supervisor: Supervisor, definitions: Definitions, store: JobStore, audit: AuditLog
    ) -> None:
        self._supervisor = supervisor
        self._definitions = definitions
        self._store = store
        self._audit = audit

    def reload(self, reason: str, change_by: Change, done: Done, *, force: bool = False) -> None:
        """Read it again: new, changed and removed files are applied, and ``done`` names one that could not be.

        Where this would remove every job there is, nothing is applied, unless ``force`` is given.
        """
        try:
            found, bad = self._files(force)
        except FileError as error:
            self._audit.record(Event.CONFIG_REJECTED, file=error.file, error=str(error))
            done(failed(error))
            return
        errors: list[str] = []
        for misnamed in bad:
            self._definitions.rejected(None, misnamed)
            errors.append(str(misnamed))
        jobs = self._supervisor.jobs
        in_force = {name: job.sha256 for name, job in jobs.items() if not job.removing}
        on_disk: dict[str, str] = {}
        definitions: dict[str, Definition] = {}
        returned: list[str] = []
        for name in found:
            if name in jobs and jobs[name].removing:
                # While one is deleted its file is there until its last process has ended.
                if self._definitions.removing.is_vanishing(name):
                    returned.append(name)
                continue
            try:
                definitions[name] = self._definitions.read(name, change_by.who)
                on_disk[name] = definitions[name].sha256
            except FileError as error:
                self._definitions.rejected(jobs.get(name) or self._supervisor.add(name), error)
                errors.append(str(error))
                on_disk[name] = in_force.get(name, "")
                in_force.setdefault(name, "")
        change = diff.compare(in_force, on_disk)
        if not force:
            change = self._without_unfiled(change, errors)
        work = _Counter(lambda: self._all_applied(reason, change, errors, done))
        for name in change.removed:
            self._begin_removal(jobs[name], change_by, work, errors)
        for name in (*change.new, *change.changed):
            self._begin_reload(
                jobs.get(name) or self._supervisor.add(name), change_by, work, errors
            )
        for name in returned:
            self._begin_return(jobs[name], change_by, work, errors)
        for name in change.unchanged:
            if name in definitions:
                jobs[name].stamp = definitions[name].stamp
                self._definitions.unfiled.found(jobs[name])
        work.close()

    def _files(self, force: bool) -> tuple[list[str], list[FileError]]:
        """The files there are, as ``JobStore.names``. Raises FileError where none is of a job in force."""
        if force:
            return ([], []) if self._store.is_gone() else self._store.names()
        found, bad = self._store.names()
        jobs = self._supervisor.jobs.values()
        standing = [job.name for job in jobs if job.spec is not None and not job.removing]
        if standing and not set(standing) & set(found):
            self._definitions.unfiled.keep(self._definitions.unfiled.standing())
            raise _emptied(str(self._store.directory), sorted(standing))
        return found, bad

    def _without_unfiled(self, change: diff.DirectoryDiff, errors: list[str]) -> diff.DirectoryDiff:
        """Jobs that had no file from the start of the daemon on are not removed for that: it said they run on."""
        jobs = self._supervisor.jobs
        errors += [jobs[name].problem for name in change.removed if jobs[name].unfiled]
        removed = tuple(name for name in change.removed if not jobs[name].unfiled)
        return msgspec.structs.replace(change, removed=removed)

    def _begin_reload(self, job: Job, change: Change, work: _Counter, errors: list[str]) -> None:
        work.add()

        def reloaded(reply: Reply) -> None:
            if reply.error:
                errors.append(reply.error)
            work.done()

        job.run(lambda: self._definitions.reload_job(job, change, reloaded), refusing(reloaded))

    def _begin_return(self, job: Job, change: Change, work: _Counter, errors: list[str]) -> None:
        """Its file is there again while the job is being removed for want of one: it becomes a new job then."""
        work.add()

        def reloaded(reply: Reply) -> None:
            if reply.error:
                errors.append(reply.error)
            work.done()

        def reload() -> None:
            try:
                self._definitions.reload(job.name, change, reloaded)
            except TaskmasterError as error:
                reloaded(failed(error))  # gone once more

        job.run(reload, refusing(reloaded))

    def _begin_removal(self, job: Job, change: Change, work: _Counter, errors: list[str]) -> None:
        work.add()

        def remove() -> None:
            if self._supervisor.jobs.get(job.name) is not job:
                work.done()
            else:
                self._definitions.removing.vanish(job, change.cause, removed)

        def removed(outcome: str, error: str) -> None:
            if outcome == replies.FAIL:
                errors.append(error)
            work.done()

        job.run(remove, lambda why: removed(replies.FAIL, why))

    def _all_applied(
        self, reason: str, change: diff.DirectoryDiff, errors: list[str], done: Done
    ) -> None:
        self._audit.record(
            Event.CONFIG_RELOADED,
            reason=reason,
            added=list(change.new),
            changed=list(change.changed),
            removed=list(change.removed),
            rejected=errors[:100],
        )
        if errors:
            more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            done(replies.fail(f"{errors[0]}{more}; everything else was applied", FileError.code))
        else:
            is_other = change.new or change.changed or change.removed
            done(replies.success() if is_other else replies.unchanged())


def _emptied(directory: str, lost: list[str]) -> FileError:
    """What is wrong with a directory that has no file of any job in force."""
    named = ", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
    every = f"all {len(lost)} jobs ({named})" if len(lost) > 1 else f"the only job ({named})"
    return FileError(
        directory,
        "",
        f"no file of any job that is in force, so that {every} would be stopped and removed; nothing was changed",
        'the directory as it was (is it mounted?), or "force": true (taskmasterctl restart --force)',
    )


class _Counter:
    """Calls ``then`` once when everything that was added is done."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._open = 1
        self._then = then

    def add(self) -> None:
        self._open += 1

    def done(self) -> None:
        self._open -= 1
        if self._open == 0:
            self._then()

    close = done
