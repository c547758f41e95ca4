"""Which definitions are in force: job files read and applied, pushed, rolled back and deleted, each by itself.

Whatever is wrong with one file is reported and keeps no other job from anything. A definition that
cannot be used leaves the one before in force.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from taskmaster.audit import AuditLog, Event
from taskmaster.config import history, jobfile
from taskmaster.config.store import JobStore
from taskmaster.control.answers import Done, failed, refusing
from taskmaster.control.job import Job
from taskmaster.control.outputs import Outputs
from taskmaster.control.removals import Removal, Removals
from taskmaster.control.removing import Removing
from taskmaster.control.say import Say
from taskmaster.control.status import timestamp
from taskmaster.control.stops import Stops
from taskmaster.control.supervisor import Supervisor
from taskmaster.control.unfiled import Unfiled
from taskmaster.control.versions import Versions
from taskmaster.core import names
from taskmaster.core.spec import JobSpec, changed_fields, same_processes
from taskmaster.errors import Conflict, FileError, NoSuchJob, TaskmasterError
from taskmaster.wire import replies
from taskmaster.wire.replies import Reply

#: Raises NotPermitted where who asks may not have this definition put in force.
Permit = Callable[[JobSpec], None]
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
    """The job directory ``store``, in force for ``supervisor``; ``base``: where a relative ``dir`` starts;
    ``outputs``: which output files are whose; ``unfiled``: which jobs stay without a file."""

    def __init__(
        self,
        supervisor: Supervisor,
        store: JobStore,
        stops: Stops,
        removals: Removals,
        base: Path,
        audit: AuditLog,
        say: Say,
        *,
        outputs: Outputs,
        unfiled: Unfiled,
    ) -> None:
        self._stops = stops
        self.unfiled = unfiled
        self._outputs = outputs
        self._supervisor = supervisor
        self._store = store
        self.versions = Versions(supervisor.jobs, store)
        self._folder = str(store.directory)
        self._base = base
        self._audit = audit
        self._say = say
        #: A job of the name of one that is gone is another one, so nobody has stopped it.
        self.removing = Removing(supervisor, store, removals, audit, say, self.started)

    def path(self, name: str) -> str:
        """Where the file of a job is."""
        return f"{self._folder}/{name}{names.FILE_SUFFIX}"

    def find(self, name: str | None) -> Job:
        """The job of this name. Raises InvalidJobName, NoSuchJob."""
        job = self._supervisor.jobs.get(name or "")
        if job is None:
            raise NoSuchJob(names.checked(name or ""))
        return job

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

    def read(self, name: str, who: str) -> Definition:
        """The definition in a job's file, which ``who`` has read. Raises FileError."""
        stamp = self._store.stamp(name)
        data = self._store.read(name)
        digest = history.sha256(data)
        job = self._supervisor.jobs.get(name)
        if job is not None and job.spec is not None and job.sha256 == digest and not job.problem:
            return Definition(job.spec, digest, stamp)  # the bytes in force mean what is in force
        spec = jobfile.parse_job(name, data, self._base)
        self._outputs.check(spec)
        self._note(name, data, who)
        return Definition(spec, digest, stamp)

    def load(self) -> None:
        """At the start: know every job that has a file, and bring its watchdog up."""
        found, bad = self._store.names()
        for error in bad:
            self.rejected(None, error)
        before = set(self._supervisor.unclaimed())
        for name in found:
            job = self._supervisor.add(name)
            job.had_state = name in before
            try:
                definition = self.read(name, _STARTED)
            except FileError as error:
                self.rejected(job, error)
                if job.had_state:
                    self._adopt_as_it_was(job)
                continue
            self._put_in_force(job, definition)
            if self.removing.goes_on(job):
                continue
            self._supervisor.launching.bring_up(job)
            job.stopped = self._stops.get(name)
            if job.stopped is not None:
                # One whose stop was interrupted by the end of the last daemon is stopped now.
                self._supervisor.act(job, "stop", None)
            elif definition.spec.auto_start:
                self._supervisor.act(job, "ensure", None)

        no_file = not before & set(found)
        for name in self._supervisor.unclaimed():
            begun = self.removing.is_begun(name)
            is_lost = no_file or self.unfiled.is_kept(name)
            if is_lost and not begun and self._supervisor.launching.is_alive(name):
                self._keep_vanished(self._supervisor.add(name))
            else:
                job = self._supervisor.add(name)
                job.spec = _nothing(name)
                self.removing.stop_vanished(job)
        self.removing.tidy()

    def _keep_vanished(self, job: Job) -> None:
        """No job that was there has a file, and this one runs: the directory may not be mounted, so it runs on."""
        job.had_state = True
        self.unfiled.keep([job])
        self.rejected(job, self.unfiled.problem(job.name))
        self._adopt_as_it_was(job)
        job.stopped = self._stops.get(job.name)

    def _adopt_as_it_was(self, job: Job) -> None:
        """Go by the definition that the job's watchdog has, since no file of it can be used."""
        job.spec, job.asks_spec = _nothing(job.name), True
        self._supervisor.launching.bring_up(job)

    def rejected(self, job: Job | None, error: FileError) -> None:
        """A file cannot be used: it is on record, and with the job that it should be the definition of."""
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
        self.unfiled.found(job)

    # applying -------------------------------------------------------------------------------------

    def _apply(
        self, job: Job, definition: Definition, cause: str, done: Callable[[str, str], None]
    ) -> None:
        """Put a definition in force for a job, new or known; ``done`` gets the outcome and the error."""
        because = {"cause": cause} if cause else {}
        old, old_sha256 = job.spec, job.sha256
        self._put_in_force(job, definition)
        if old is None:
            for other in self.unfiled.keep_from(job):
                self.rejected(other, self.unfiled.problem(other.name))
            self._audit.record(Event.JOB_ADDED, job=job.name, sha256=definition.sha256, **because)
            self._supervisor.launching.bring_up(job)
            job.stopped = self._stops.look(job.name)
            if definition.spec.auto_start and job.stopped is None:
                self._supervisor.act(job, "ensure", done, cause)
            else:
                # Any question will do: the answer means that the watchdog is there.
                self._supervisor.configure(job, done, cause)
            return
        if old == definition.spec and old_sha256 == definition.sha256:
            done(replies.REDUNDANT, "")
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
        known.run(lambda: self.reload_job(known, change, done), refusing(done))

    def reload_job(self, job: Job, change: Change, done: Done) -> None:
        """The same of a job that is known, when its turn has come (``Job.run``)."""
        if self._supervisor.jobs.get(job.name) is not job:
            done(failed(NoSuchJob(job.name)))
            return
        try:
            definition = self.read(job.name, change.who)
        except FileError as error:
            self.rejected(job, error)
            done(failed(error))
            return
        job.begin()

        def applied(outcome: str, error: str) -> None:
            job.end()
            if outcome == replies.FAIL:
                done(replies.fail(error))
            else:
                done(replies.unchanged() if outcome == replies.REDUNDANT else replies.success())

        self._apply(job, definition, change.cause, applied)

    def push(self, name: str | None, data: bytes, change: Change, done: Done) -> None:
        """Validate, store, apply. Raises InvalidJobName, FileError, NotPermitted where nothing was touched."""
        checked = names.checked(name or "")
        self._permitted(checked, data, change)
        job = self._supervisor.jobs.get(checked) or self._supervisor.add(checked)
        job.run(lambda: self._push(job, data, change, done), refusing(done))

    def _permitted(self, name: str, data: bytes, change: Change) -> None:
        """Raises FileError, and NotPermitted before anything is said about other jobs."""
        spec = jobfile.parse_job(name, data, self._base)
        change.permit(spec)
        self._outputs.check(spec)

    def _push(self, job: Job, data: bytes, change: Change, done: Done) -> None:
        if self._supervisor.jobs.get(job.name) is not job:
            # It was deleted by the command before this one.
            self.push(job.name, data, change, done)
            return
        try:
            stamp = self._store.stamp(job.name)
            self._store.put(
                job.name,
                data,
                who=change.who,
                reason=change.reason,
                action=change.action,
                if_hash=change.if_hash,
            )
            is_other = self._store.stamp(job.name) != stamp
        except (FileError, Conflict, OSError) as error:
            if job.spec is None and not job.problem:
                self._supervisor.forget(job)
            done(failed(error))
            return

        def reloaded(reply: Reply) -> None:
            reply.unchanged = reply.unchanged and not is_other
            done(reply)

        self.reload_job(job, change, reloaded)

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
        self._permitted(checked, self.versions.older(checked, which), change)
        job = self._supervisor.jobs.get(checked) or self._supervisor.add(checked)

        def roll_back() -> None:
            # Chosen when its turn has come: a push before it may have made another file current.
            try:
                data = self.versions.older(checked, which)
                self._permitted(checked, data, change)
                current = self._store.sha256(checked)
            except TaskmasterError as error:
                done(failed(error))
                return
            chosen(data)
            if current == history.sha256(data) and change.if_hash in (None, current):
                done(replies.redundant())
            else:
                self._push(job, data, change, done)

        job.run(roll_back, refusing(done))

    def delete(self, job: Job, change: Change, done: Done) -> None:
        """Stop a job, remove its file, forget it."""
        job.run(lambda: self._delete(job, change, done), refusing(done))

    def _delete(self, job: Job, change: Change, done: Done) -> None:
        if self._supervisor.jobs.get(job.name) is not job:
            done(failed(NoSuchJob(job.name)))
            return
        try:
            digest = self._store.sha256(job.name) or ""
        except FileError:
            digest = job.sha256
        removal = Removal(change.who, change.reason, digest, change.cause)
        self.removing.delete(job, removal, done)


def _nothing(name: str) -> JobSpec:
    """A definition to launch a watchdog by that adopts: it then goes by the one in its record."""
    return JobSpec(job=name, argv=("true",), auto_start=False)
