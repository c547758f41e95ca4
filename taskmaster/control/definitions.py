"""Which definitions are in force: the job directory read, compared and applied; push and delete.

Whatever is wrong with one file is reported and keeps no other job from anything. A definition that
cannot be used leaves the one before in force.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from taskmaster.audit import AuditLog, Event
from taskmaster.config import diff, history, jobfile
from taskmaster.config.store import JobStore
from taskmaster.control.job import Job
from taskmaster.control.say import Say
from taskmaster.control.status import timestamp
from taskmaster.control.stops import Stops
from taskmaster.control.supervisor import Supervisor
from taskmaster.core import names
from taskmaster.core.spec import JobSpec, changed_fields, same_processes
from taskmaster.errors import Conflict, FileError, NoSuchJob, TaskmasterError
from taskmaster.wire import replies
from taskmaster.wire.replies import Reply

Done = Callable[[Reply], None]
#: Raises NotPermitted where who asks may not have this definition put in force.
Permit = Callable[[JobSpec], None]
#: Versions in one history document: each is a file to be read.
_PAGE = 100
_STARTED = "taskmasterd at its start"


class Change(msgspec.Struct, frozen=True):
    """By whom a job's file is changed, and why. ``cause``: the audit log's id of the command.

    ``if_hash``: the sha256 that the file must have now, "" for no file, None for any. ``permit``: what is put
    in force has to pass it.
    """

    who: str
    reason: str = ""
    cause: str = ""
    if_hash: str | None = None
    action: history.Action = "put"
    permit: Permit = lambda spec: None


class Definition(msgspec.Struct, frozen=True):
    """A usable job file: what it says, its sha256, and what tells this state of the file from another."""

    spec: JobSpec
    sha256: str
    stamp: tuple[int, int, int, int] | None


class Definitions:
    """The job directory ``store``, in force for ``supervisor``; ``base``: where a relative ``dir`` starts."""

    def __init__(
        self,
        supervisor: Supervisor,
        store: JobStore,
        stops: Stops,
        base: Path,
        audit: AuditLog,
        say: Say,
    ) -> None:
        self._stops = stops
        self._supervisor = supervisor
        self._store = store
        self._folder = str(store.directory)
        self._base = base
        self._audit = audit
        self._say = say

    def path(self, name: str) -> str:
        """Where the file of a job is."""
        return f"{self._folder}/{name}{names.FILE_SUFFIX}"

    def find(self, name: str | None) -> Job:
        """The job of this name. Raises InvalidJobName, NoSuchJob."""
        job = self._supervisor.jobs.get(name or "")
        if job is None:
            raise NoSuchJob(names.checked(name or ""))
        return job

    def pull(self, name: str) -> bytes:
        """The exact bytes of a job's file. Raises FileError."""
        return self._store.read(name)

    def version(self, name: str | None, which: int | str) -> bytes:
        """The exact bytes of a version, also of a job that was deleted. Raises TaskmasterError."""
        checked = names.checked(name or "")
        if checked not in self._supervisor.jobs and not self._store.history(checked, None, 1):
            raise NoSuchJob(checked)
        return self._store.version(checked, which)

    def history(self, name: str | None, before: int | None) -> dict[str, object]:
        """The history document, of versions below number ``before``. Raises TaskmasterError."""
        checked = names.checked(name or "")
        found = self._store.history(checked, before, _PAGE + 1)
        if not found and before is None and checked not in self._supervisor.jobs:
            raise NoSuchJob(checked)
        try:
            current = self._store.sha256(checked)
        except FileError:
            current = None  # a symbolic link, unreadable: pull says so
        return {
            "job": checked,
            "current": current,
            "more": len(found) > _PAGE,
            "versions": [_shown(one) for one in reversed(found[-_PAGE:])],
        }

    def _note(self, name: str, data: bytes, who: str) -> None:
        """What was read is in force: the history is to have it, too."""
        try:
            self._store.note(name, data, who=who)
        except (FileError, OSError) as error:
            # At the start of a daemon that may not write there it would be said of every job.
            say = self._say.everything if who == _STARTED else self._say.error
            say(f"job {name}: its file is not in the history: {error}")

    def stopped(self, job: Job, who: str) -> None:
        """An administrator wants the job stopped, over restarts of daemon and host."""
        error = self._stops.stop(job.name, who, timestamp(time.time()))
        job.stopped = self._stops.get(job.name)
        if error is not None:
            self._say.error(
                f"job {job.name}: that it was stopped is not on disk ({error.strerror}); "
                "the next taskmasterd would start it"
            )

    def started(self, job: Job) -> None:
        """Somebody wants the job up again."""
        error = self._stops.start(job.name)
        job.stopped = None
        if error is not None:
            self._say.error(
                f"job {job.name}: that it was started is not on disk ({error.strerror}); "
                "the next taskmasterd would stop it"
            )

    # reading --------------------------------------------------------------------------------------

    def _read(self, name: str, who: str) -> Definition:
        """The definition in a job's file, which ``who`` has read. Raises FileError."""
        stamp = self._store.stamp(name)
        data = self._store.read(name)
        digest = history.sha256(data)
        job = self._supervisor.jobs.get(name)
        if job is not None and job.spec is not None and job.sha256 == digest and not job.problem:
            return Definition(job.spec, digest, stamp)  # the bytes in force mean what is in force
        spec = jobfile.parse_job(name, data, self._base)
        self._note(name, data, who)
        return Definition(spec, digest, stamp)

    def load(self) -> None:
        """At the start: know every job that has a file, and bring its watchdog up."""
        found, bad = self._store.names()
        for error in bad:
            self._rejected(None, error)
        before = set(self._supervisor.unclaimed())
        for name in found:
            job = self._supervisor.add(name)
            job.had_state = name in before
            try:
                definition = self._read(name, _STARTED)
            except FileError as error:
                self._rejected(job, error)
                if job.had_state:
                    job.spec, job.asks_spec = _nothing(name), True
                    self._supervisor.launching.bring_up(job)
                continue
            self._put_in_force(job, definition)
            self._supervisor.launching.bring_up(job)
            job.stopped = self._stops.get(name)
            if job.stopped is not None:
                # One whose stop was interrupted by the end of the last daemon is stopped now.
                self._supervisor.act(job, "stop", None)
            elif definition.spec.auto_start:
                self._supervisor.act(job, "ensure", None)

        for name in self._supervisor.unclaimed():
            self._stop_vanished(self._supervisor.add(name))

    def _stop_vanished(self, job: Job) -> None:
        """The file went while no daemon ran: a watchdog, found or launched to adopt, is told to end the job."""
        job.spec = _nothing(job.name)

        def stopped(outcome: str, error: str) -> None:
            if outcome == replies.FAIL:
                self._supervisor.retire(job, "its file was removed", stopped)
            else:
                self._removed(job, "its file was removed while no daemon ran")

        self._supervisor.retire(job, "its file was removed", stopped)
        self._supervisor.launching.bring_up(job)

    def _rejected(self, job: Job | None, error: FileError) -> None:
        if job is not None:
            job.problem = str(error)
        self._audit.record(
            Event.JOBFILE_REJECTED,
            job=None if job is None else job.name,
            file=error.file,
            error=str(error),
        )
        self._say.error(f"job file {error}; the definition before, if any, stays in force")

    def _put_in_force(self, job: Job, definition: Definition) -> None:
        job.spec, job.sha256, job.stamp = definition.spec, definition.sha256, definition.stamp
        job.problem = ""

    # applying -------------------------------------------------------------------------------------

    def _apply(
        self, job: Job, definition: Definition, cause: str, done: Callable[[str, str], None]
    ) -> None:
        """Put a definition in force for a job, new or known; ``done`` gets the outcome and the error."""
        because = {"cause": cause} if cause else {}
        old, old_sha256 = job.spec, job.sha256
        self._put_in_force(job, definition)
        if old is None:
            self._audit.record(Event.JOB_ADDED, job=job.name, sha256=definition.sha256, **because)
            self._supervisor.launching.bring_up(job)
            if definition.spec.auto_start:
                self._supervisor.act(job, "ensure", done, cause)
            else:
                # Any question will do: the answer means that the watchdog is there.
                self._supervisor.configure(job, done, cause)
            return
        if old == definition.spec and old_sha256 == definition.sha256:
            done(replies.SUCCESS, "")
            return

        def applied(outcome: str, error: str) -> None:
            if outcome != replies.FAIL:
                self._audit.record(
                    Event.JOB_CHANGED,
                    job=job.name,
                    sha256=definition.sha256,
                    previousSha256=old_sha256,
                    changed=list(changed_fields(old, definition.spec)),
                    restarted=not same_processes(old, definition.spec),
                    **because,
                )
            done(outcome, error)

        self._supervisor.configure(job, applied, cause)

    def reload(self, name: str | None, change: Change, done: Done) -> None:
        """Read one job's file again and apply what changed. A file that is new makes a new job."""
        checked = names.checked(name or "")
        job = self._supervisor.jobs.get(checked)
        if job is None:
            if self._store.stamp(checked) is None:
                raise NoSuchJob(checked)
            job = self._supervisor.add(checked)
        known = job
        known.run(lambda: self._reload(known, change, done), _refusing(done))

    def _reload(self, job: Job, change: Change, done: Done) -> None:
        if self._supervisor.jobs.get(job.name) is not job:
            done(_failed(NoSuchJob(job.name)))
            return
        try:
            definition = self._read(job.name, change.who)
        except FileError as error:
            self._rejected(job, error)
            done(_failed(error))
            return
        job.begin()

        def applied(outcome: str, error: str) -> None:
            job.end()
            done(replies.success() if outcome != replies.FAIL else replies.fail(error))

        self._apply(job, definition, change.cause, applied)

    def push(self, name: str | None, data: bytes, change: Change, done: Done) -> None:
        """Validate, store, apply. Raises InvalidJobName, FileError, NotPermitted where nothing was touched."""
        checked = names.checked(name or "")
        change.permit(jobfile.parse_job(checked, data, self._base))
        job = self._supervisor.jobs.get(checked) or self._supervisor.add(checked)
        job.run(lambda: self._push(job, data, change, done), _refusing(done))

    def _push(self, job: Job, data: bytes, change: Change, done: Done) -> None:
        if self._supervisor.jobs.get(job.name) is not job:
            # It was deleted by the command before this one.
            self.push(job.name, data, change, done)
            return
        try:
            self._store.put(
                job.name,
                data,
                who=change.who,
                reason=change.reason,
                action=change.action,
                if_hash=change.if_hash,
            )
        except (FileError, Conflict, OSError) as error:
            if job.spec is None and not job.problem:
                self._supervisor.forget(job)
            done(_failed(error))
            return
        self._reload(job, change, done)

    def rollback(
        self,
        name: str | None,
        which: int | str | None,
        change: Change,
        done: Done,
        chosen: Callable[[bytes], None],
    ) -> None:
        """Push an older version; without ``which`` the newest that differs from the file.

        ``chosen`` is told its bytes. Raises TaskmasterError where nothing was touched.
        """
        checked = names.checked(name or "")
        change.permit(jobfile.parse_job(checked, self._older(checked, which), self._base))
        job = self._supervisor.jobs.get(checked) or self._supervisor.add(checked)

        def roll_back() -> None:
            # Chosen when its turn has come: a push before it may have made another file current.
            try:
                data = self._older(checked, which)
                change.permit(jobfile.parse_job(checked, data, self._base))
                current = self._store.sha256(checked)
            except TaskmasterError as error:
                done(_failed(error))
                return
            chosen(data)
            if current == history.sha256(data) and change.if_hash in (None, current):
                done(replies.redundant())
            else:
                self._push(job, data, change, done)

        job.run(roll_back, _refusing(done))

    def _older(self, name: str, which: int | str | None) -> bytes:
        if which is not None:
            return self.version(name, which)
        found = self._store.version_before(name)
        if found is not None:
            return self._store.version(name, found.number)
        if name not in self._supervisor.jobs:
            raise NoSuchJob(name)
        raise TaskmasterError(f'Job "{name}" has no version but the present one.')

    def delete(self, job: Job, change: Change, done: Done) -> None:
        """Stop a job, remove its file, forget it."""
        job.run(lambda: self._delete(job, change, done), _refusing(done))

    def _delete(self, job: Job, change: Change, done: Done) -> None:
        if self._supervisor.jobs.get(job.name) is not job:
            done(_failed(NoSuchJob(job.name)))
            return
        job.begin()

        def stopped(outcome: str, error: str) -> None:
            if outcome == replies.FAIL:
                job.end()
                done(replies.fail(error))
                return
            try:
                self._store.remove(job.name, who=change.who, reason=change.reason)
            except (FileError, OSError) as why:
                job.removing = False
                self._supervisor.launching.bring_up(job)
                job.end()
                done(_failed(why, "; the job is stopped and kept"))
                return
            self._removed(job, f"deleted by {change.who}", change.cause)
            done(replies.success())

        if job.spec is None:
            stopped(replies.SUCCESS, "")
        else:
            self._supervisor.retire(job, "removed", stopped, change.cause)

    def _removed(self, job: Job, reason: str, cause: str = "") -> None:
        because = {"cause": cause} if cause else {}
        self._audit.record(
            Event.JOB_REMOVED, job=job.name, sha256=job.sha256, reason=reason, **because
        )
        self.started(job)  # a later job of that name is another one
        self._supervisor.forget(job)
        job.end()

    # the whole directory --------------------------------------------------------------------------

    def reload_all(self, reason: str, change_by: Change, done: Done) -> None:
        """Read the whole directory again: new, changed and removed files."""
        try:
            found, bad = self._store.names()
        except FileError as error:
            done(_failed(error))
            return
        errors: list[str] = []
        for misnamed in bad:
            self._rejected(None, misnamed)
            errors.append(str(misnamed))
        jobs = self._supervisor.jobs
        in_force = {name: job.sha256 for name, job in jobs.items() if not job.removing}
        on_disk: dict[str, str] = {}
        definitions: dict[str, Definition] = {}
        for name in found:
            if name in jobs and jobs[name].removing:
                continue  # it is being deleted: its file is there until its last process has ended
            try:
                definitions[name] = self._read(name, change_by.who)
                on_disk[name] = definitions[name].sha256
            except FileError as error:
                self._rejected(jobs.get(name) or self._supervisor.add(name), error)
                errors.append(str(error))
                on_disk[name] = in_force.get(name, "")
                in_force.setdefault(name, "")
        change = diff.compare(in_force, on_disk)
        work = _Counter(lambda: self._all_applied(reason, change, errors, done))
        for name in (*change.new, *change.changed):
            self._begin_reload(
                jobs.get(name) or self._supervisor.add(name), change_by, work, errors
            )
        for name in change.unchanged:
            if name in definitions:
                jobs[name].problem, jobs[name].stamp = "", definitions[name].stamp
        for name in change.removed:
            self._begin_removal(jobs[name], change_by, work, errors)
        work.close()

    def _begin_reload(self, job: Job, change: Change, work: _Counter, errors: list[str]) -> None:
        work.add()

        def reloaded(reply: Reply) -> None:
            if reply.error:
                errors.append(reply.error)
            work.done()

        job.run(lambda: self._reload(job, change, reloaded), _refusing(reloaded))

    def _begin_removal(self, job: Job, change: Change, work: _Counter, errors: list[str]) -> None:
        work.add()

        def remove() -> None:
            if self._supervisor.jobs.get(job.name) is not job:
                work.done()
                return
            job.begin()
            if job.spec is None:
                removed(replies.SUCCESS, "")
            else:
                self._supervisor.retire(job, "its file was removed", removed, change.cause)

        def removed(outcome: str, error: str) -> None:
            if outcome == replies.FAIL:
                errors.append(error)
                if job.busy:
                    job.end()
            else:
                self._removed(job, "its file was removed", change.cause)
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
            done(replies.success())


def _nothing(name: str) -> JobSpec:
    """A definition to launch a watchdog by that adopts: it then goes by the one in its record."""
    return JobSpec(job=name, argv=("true",), auto_start=False)


_ACTIONS = {"put": "pushed", "replaced": "edited"}


def _shown(version: history.Version) -> dict[str, object]:
    """A version as the history document has it."""
    return {
        "version": version.number,
        "at": version.when,
        "by": version.who,
        "action": _ACTIONS.get(version.action, version.action),
        "sha256": version.sha256,
        "size": version.size,
        "reason": version.reason,
    }


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


def _refusing(done: Done) -> Callable[[str], None]:
    return lambda why: done(replies.fail(why))


def _failed(error: TaskmasterError | OSError, then: str = "") -> Reply:
    if isinstance(error, TaskmasterError):
        return replies.fail(f"{error}{then}", error.code)
    return replies.fail(f"{error.filename}: {error.strerror}{then}")
