"""The watchdogs of all jobs: found or launched, attached, heard, missed, replaced.

It never starts or signals a process of a job; it only sees to it that each job has a watchdog, and that a
dead or hung one gets a successor, which adopts.
"""

from __future__ import annotations

import functools
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from taskmaster import fifos, syscalls
from taskmaster.audit import KEYS, AuditLog, Event
from taskmaster.children import exit_of, reap
from taskmaster.control import link
from taskmaster.control.churn import Churn
from taskmaster.control.job import REPLACED, Job, Watchdog
from taskmaster.control.launching import Launching
from taskmaster.control.link import Link, Request, Requests
from taskmaster.control.orphans import Orphans
from taskmaster.control.reaper import Reaper
from taskmaster.control.replacing import Replacing
from taskmaster.control.say import Say
from taskmaster.control.silence import Silence
from taskmaster.control.statedir import StateDirectory
from taskmaster.control.status import timestamp
from taskmaster.control.witness import Witness
from taskmaster.core import backoff
from taskmaster.core.states import Desired, State
from taskmaster.eventloop import EventLoop
from taskmaster.wire.link import (
    Acknowledge,
    Act,
    Begun,
    Configure,
    Done,
    HandOver,
    Hello,
    Inherited,
    Missing,
    Notice,
    Published,
    Retire,
    ToControl,
    ToWatchdog,
)

#: A link may end a moment before its watchdog's death is seen; one that lives on is connected to again.
_AFTER_LINK_S: Final = 0.1
#: What a watchdog may put into the audit log.
_NOTICES: Final = {
    event.value: event
    for event in Event
    if event.value.startswith("process.")
    or event
    in (
        Event.OUTPUT_DROPPED,
        Event.OUTPUT_ROTATE_FAILED,
        Event.STATE_REJECTED,
        Event.STATE_RESTORED,
        Event.STATE_LOST,
    )
}
#: A notice that comes later than this tells when it happened.
_LATE_S: Final = 1.0
_SHORT: Final = 1024
#: A job that is not being stopped is told this late of what its orphans have left, seconds: they may be many.
_HEIRS_S: Final = 0.1
#: States of a process in which what it has left behind may be on its way out.
_ENDING: Final = frozenset({State.STOPPING, State.STARTING})


class Supervisor:
    """Every job and its watchdog. ``logs``: the log directory; ``limits``: rlimits for the jobs' processes.

    ``churn``: puts on record what watchdogs tell.
    """

    def __init__(
        self,
        loop: EventLoop,
        statedir: StateDirectory,
        audit: AuditLog,
        say: Say,
        *,
        logs: Path,
        limits: tuple[tuple[int, tuple[int, int]], ...],
        deadline_s: float,
        watchdog_timeout_s: float,
        wall_clock: Callable[[], float],
        churn: Churn,
    ) -> None:
        self._churn = churn
        self.loop = loop
        self.jobs: dict[str, Job] = {}
        #: Why the daemon stops; empty while it does not.
        self.closing = ""
        self._statedir = statedir
        self._audit = audit
        self._say = say
        self.launching = Launching(self, statedir, audit, say, logs, limits, deadline_s)
        self.replacing = Replacing(self, say, deadline_s)
        self._deadline_s = deadline_s
        self.silence = Silence(self, audit, say, deadline_s, watchdog_timeout_s)
        self._wall_clock = wall_clock
        self.by_pid: dict[int, tuple[Job, Watchdog]] = {}
        self._acknowledge: dict[str, int] = {}
        self._on_heard: Callable[[], None] | None = None
        self.orphans = Orphans(self.jobs, self.by_pid, self._holder)
        self.orphans.tell = self._tell_inherited
        self.reaper = Reaper(self._ended_by_pid, self.orphans.reaped, self._is_awaited)

    # jobs -----------------------------------------------------------------------------------------

    def add(self, name: str) -> Job:
        """Know a job from now on. It has no watchdog until ``bring_up``."""
        job = Job(name)
        job.requests = Requests(
            self.loop, self._deadline_s, lambda request: self.silence.late(job, request)
        )
        job.witness = Witness(self.loop)
        self.jobs[name] = job
        return job

    def forget(self, job: Job) -> None:
        """Know it no more; it has no watchdog by now."""
        job.requests.fail_all(self.closing or f'Job "{job.name}" is no more.')
        self.let_go(job)
        try:
            self._statedir.forget(job.name)
        except OSError as error:
            self._say.error(f"job {job.name}: its state folder stays: {error.strerror}")
        self.jobs.pop(job.name, None)
        self.reaper.release()
        job.look()

    def let_go(self, job: Job) -> None:
        """Close what is held for a job without a watchdog."""
        self.replacing.drop_standby(job)
        for timer in (job.relaunch_timer, job.silence_timer, job.heirs_timer):
            if timer is not None:
                timer.cancel()
        job.close_pipes(set())
        job.witness.close()
        if job.directory >= 0:
            os.close(job.directory)
            job.directory = -1

    def request(
        self, job: Job, make: Callable[[int], ToWatchdog], on_done: link.OnDone | None
    ) -> None:
        """Ask the job's watchdog, whichever it is by then; without ``on_done`` for as long as it takes."""
        request = job.requests.add(make, on_done)
        if job.attached or (job.silent and job.watchdog is not None):
            self._send(job, request)

    def act(self, job: Job, verb: str, on_done: link.OnDone | None, cause: str = "") -> None:
        """Ask for a verb (see ``wire.link.Act``); ``cause``: id of the command behind it."""
        self.request(job, lambda number: Act(number, verb, cause), on_done)

    def not_begun(self) -> dict[str, list[tuple[str, str]]]:
        """By job, verb and cause of what its watchdog has not taken up, for the next program of this process.

        ``restart`` that was sent is not among them: done twice it is another thing.
        """
        found = {
            name: [
                (request.message.verb, request.message.cause)
                for request in job.requests.waiting()
                if isinstance(request.message, Act) and not request.begun and request.repeatable
            ]
            for name, job in self.jobs.items()
        }
        return {name: asked for name, asked in found.items() if asked}

    def ask_again(self, asked: dict[str, list[tuple[str, str]]]) -> None:
        """Ask for what the program before this one, in the same process, could not hand to a watchdog."""
        for name, verbs in asked.items():
            job = self.jobs.get(name)
            if job is None or job.spec is None or job.removing:
                continue
            for verb, cause in verbs:
                self.act(job, verb, None, cause)

    def configure(self, job: Job, on_done: link.OnDone, cause: str = "") -> None:
        """Have the job's definition put in force."""
        spec = job.spec
        assert spec is not None
        self.launching.hold_pipes(job)
        self.request(job, lambda number: Configure(number, spec, job.sha256, cause), on_done)

    def retire(self, job: Job, reason: str, on_done: link.OnDone, cause: str = "") -> None:
        """Have everything of the job stopped and its watchdog end."""
        job.removing = True
        if job.watchdog is not None:
            job.watchdog.leaving = reason

        def done(outcome: str, error: str) -> None:
            job.removing = outcome != "fail"
            on_done(outcome, error)

        self.request(job, lambda number: Retire(number, cause), done)

    def stays(self, job: Job) -> None:
        """What failed to be retired is not to be so later: a silent watchdog that was asked is replaced, and what
        it may have begun is taken back.
        """
        watchdog = job.watchdog
        if watchdog is not None and job.silent:
            self.kill(job, watchdog, "it may still do what has failed: to remove the job")
        if job.stopped is None and self.is_wanted_up(job):
            self.act(job, "ensure", None)

    def is_wanted_up(self, job: Job) -> bool:
        """Whether some process of the job is to run, as far as is known here."""
        return any(one.desired is Desired.UP for one in job.statuses.values())

    def unclaimed(self) -> list[str]:
        """Names that have a state folder and are no jobs: something of them may run."""
        return [name for name in self._statedir.jobs() if name not in self.jobs]

    def when_heard(self, then: Callable[[], None], at_most_s: float) -> None:
        """Call ``then`` once every watchdog has said how things stand, or after so many seconds."""

        def look() -> None:
            missing = any(job.spec is not None and not job.heard for job in self.jobs.values())
            if self._on_heard is None or (missing and timer.armed):
                return
            self._on_heard = None
            timer.cancel()
            then()

        timer = self.loop.call_in(at_most_s, look)
        self._on_heard = look
        look()

    # links ----------------------------------------------------------------------------------------

    def know(self, job: Job, watchdog: Watchdog) -> None:
        """This is the job's watchdog from now on; its end is noticed."""
        job.watchdog = watchdog
        self.by_pid[watchdog.pid] = (job, watchdog)
        watchdog.watch = self.loop.watch(watchdog.pidfd, lambda: self.ended(job, watchdog))

    def attach(self, job: Job, watchdog: Watchdog, fd: int) -> None:
        """Talk to the watchdog over this connection, which it is to begin with its greeting."""
        job.heard = False
        watchdog.link = made = Link(
            self.loop,
            fd,
            lambda message: self._received(job, watchdog, message),
            lambda reason: self._link_closed(job, watchdog, reason),
        )

        def no_word() -> None:
            if job.watchdog is watchdog and watchdog.link is made and not job.heard:
                self.silence.begins(job, watchdog, self._deadline_s)

        if watchdog.greeting is not None:
            watchdog.greeting.cancel()
        # One that was stopped when it was found says nothing, and perhaps nobody asks it anything.
        watchdog.greeting = self.loop.call_in(self._deadline_s, no_word)

    # what watchdogs say ---------------------------------------------------------------------------

    def _received(self, job: Job, watchdog: Watchdog, message: ToControl) -> None:
        if watchdog is not job.watchdog:
            return
        if job.silent:
            self.silence.recovered(job, watchdog)
        if isinstance(message, Published):
            self._published(job, watchdog, message)
        elif isinstance(message, Begun):
            job.requests.begun(message)
        elif isinstance(message, Done):
            job.requests.done(message)
        elif isinstance(message, Notice):
            self._noticed(job, message)
        elif isinstance(message, Missing):
            self._missing(job, message)
        else:
            self._hello(job, watchdog, message)

    def _hello(self, job: Job, watchdog: Watchdog, message: Hello) -> None:
        if message.job != job.name:
            self.kill(job, watchdog, f"it says it is of job {message.job[:64]!r}")
            return
        watchdog.attached_at = self.loop.now()
        job.instance = message.instance
        job.foreign = job.foreign or message.adopted > 0
        if message.ledger != job.ledger:
            job.ledger, job.noticed_through = message.ledger, 0
        if job.asks_spec:
            self._learn(job, message)
            return
        if job.removing:
            return  # what it runs is to be stopped, whatever its definition is
        if message.sha256 != job.sha256 or watchdog.process is None:
            self.configure(job, lambda outcome, error: None)

    def _learn(self, job: Job, message: Hello) -> None:
        """The definition before, which stays in force while the file is unusable, is the watchdog's."""
        job.asks_spec = False
        if message.spec.job == job.name and message.sha256:
            job.spec, job.sha256 = message.spec, message.sha256
            self.launching.hold_pipes(job)
            return

        def gone(outcome: str, error: str) -> None:
            job.removing = False
            job.spec = None

        self.retire(job, "nothing of it runs, and its file cannot be used", gone)

    def _published(self, job: Job, watchdog: Watchdog, message: Published) -> None:
        first = not job.heard
        self.loop.call_in(0, self._release)
        if watchdog.greeting is not None:
            watchdog.greeting.cancel()
            watchdog.greeting = None
        for number in message.removed:
            for stream in fifos.STREAMS:
                held = job.pipes.pop(fifos.name(number, stream), None)
                if held is not None:
                    os.close(held)
        job.publish(message)
        # Once such a watchdog was met, its processes are nobody's here, whoever watches them later.
        job.foreign = job.foreign or watchdog.process is None
        if job.foreign:
            job.witness.watch(
                (one.pid, one.start)
                for one in job.statuses.values()
                if one.pid is not None and one.start is not None
            )
        if first:
            job.trouble = ""
            if job.inherited or job.denied:
                self._tell_inherited(job)
            if job.removing:
                watchdog.leaving = watchdog.leaving or "removed"
            for request in job.requests.waiting():
                if job.stopped is not None and _is_ensure(request):
                    job.requests.finish(request.number, "success", "")  # stopped since it was asked
                else:
                    self._send(job, request)
            if job.stopped is not None and any(
                one.desired is Desired.UP for one in job.statuses.values()
            ):
                # The stop was asked of a watchdog that could not do it any more.
                self.act(job, "stop", None)
            if self._on_heard is not None:
                self._on_heard()
            on_attached, job.on_attached = job.on_attached, None
            if on_attached is not None:
                on_attached()

    def _send(self, job: Job, request: Request) -> None:
        watchdog = job.watchdog
        if watchdog is not None and watchdog.link is not None:
            request.sent = True
            if _ends_some(request) and job.bereft:
                self.orphans.sweep()
                self._tell_inherited(job)
            watchdog.link.send(request.message)

    def _noticed(self, job: Job, message: Notice) -> None:
        if message.number <= job.noticed_through:
            self._acknowledge[job.name] = job.noticed_through
            return
        job.noticed_through = self._acknowledge[job.name] = message.number
        event = _NOTICES.get(message.event)
        if event is None:
            self._say.error(f"job {job.name}: its watchdog told of an unknown event; left out")
            return
        fields = {key: _plain(message.fields.get(key)) for key in KEYS[event] if key != "job"}
        if "at" in fields:
            late = self._wall_clock() - message.at_s > _LATE_S
            fields["at"] = timestamp(message.at_s) if late else None
        for key in ("at", "cause", *(("reason",) if event is Event.PROCESS_STOPPING else ())):
            if fields.get(key) is None:
                fields.pop(key, None)
        self._churn.record(event, job.name, "" if job.spec is None else job.spec.runas, fields)
        self._say.everything(f"job {job.name}: {message.event}")

    def _is_awaited(self, pid: int, start: int) -> bool:
        return any(
            one.pid == pid and start in (one.start, 0)
            for job in self.jobs.values()
            for one in job.statuses.values()
        )

    def _tell_inherited(self, job: Job) -> None:
        if job.watchdog is not None and job.watchdog.link is not None:
            told = Inherited(tuple(job.inherited.items()), tuple(job.denied.items()))
            job.watchdog.link.send(told)

    def leave_to_caller(self) -> None:
        """Whatever children there are before the first is started here are no job's."""
        self.orphans.not_ours(self._statedir.seen.watchdogs.values())

    def reap(self) -> None:
        """Reap what has ended. What that has left to this process is its job's, which is told while it stops."""
        self.reaper.collect()
        self._succeed()

    def _release(self) -> None:
        self.reaper.release()
        self._succeed()

    def _succeed(self) -> None:
        for job in self.orphans.succeed():
            if any(one.state in _ENDING for one in job.statuses.values()):
                self._tell_inherited(job)
            elif job.heirs_timer is None:
                tell = functools.partial(self._tell_of_heirs, job)
                job.heirs_timer = self.loop.call_in(_HEIRS_S, tell)

    def _tell_of_heirs(self, job: Job) -> None:
        job.heirs_timer = None
        self._tell_inherited(job)

    def _holder(self, job: Job) -> int | None:
        return None if job.directory < 0 else self._statedir.holder_of(job.directory)

    def acknowledge(self) -> None:
        """The audit log has been written: what is in it need not be told again."""
        if not self._acknowledge:
            return
        for name, through in self._acknowledge.items():
            job = self.jobs.get(name)
            if job is not None and job.watchdog is not None and job.watchdog.link is not None:
                job.watchdog.link.send(Acknowledge(through))
        self._acknowledge.clear()

    def _missing(self, job: Job, message: Missing) -> None:
        ended, status = self.reaper.status_of(message.pid, message.start)
        if not ended:
            return
        if status is None and job.witness.ask(
            message.pid, message.start, lambda found: self._tell_exit(job, message, found)
        ):
            return
        self._tell_exit(job, message, status)

    def statuses(self) -> list[tuple[int, int, int]]:
        """Pid, start time and wait status of all that ended of late, for the next program of this process."""
        told = [one for job in self.jobs.values() for one in job.witness.told()]
        return self.reaper.statuses() + told

    def hand_over(self) -> dict[str, list[tuple[int, int, int]]]:
        """By job, the processes whose ends are witnessed here: pid, start time and pidfd."""
        return {name: job.witness.hand_over() for name, job in self.jobs.items()}

    def take_over(self, held: dict[str, list[tuple[int, int, int]]]) -> None:
        """Witness what the program before this one, in the same process, did."""
        for name, processes in held.items():
            job = self.jobs.get(name)
            if job is not None:
                job.witness.take_over(processes)
            else:
                for _, _, pidfd in processes:
                    os.close(pidfd)

    def _tell_exit(self, job: Job, message: Missing, status: int | None) -> None:
        """Give a watchdog the answer to Missing; whichever has the job by then can use it."""
        watchdog = job.watchdog
        if watchdog is None or watchdog.link is None:
            return
        if status is not None:
            code, by_signal = exit_of(status)
            self._audit.record(
                Event.PROCESS_HANDED_OVER,
                job=job.name,
                number=message.number,
                pid=message.pid,
                exitCode=code,
                signal=by_signal,
            )
        watchdog.link.send(HandOver(message.pid, message.start, status))

    # losses ---------------------------------------------------------------------------------------

    def _link_closed(self, job: Job, watchdog: Watchdog, reason: str) -> None:
        watchdog.link = None
        if watchdog is not job.watchdog:
            return
        job.heard = False
        if reason.startswith("it sent"):
            self.kill(job, watchdog, reason)
            return

        def connect_again() -> None:
            if job.watchdog is watchdog and watchdog.link is None and not watchdog.leaving:
                self.launching.bring_up(job)

        self.loop.call_in(_AFTER_LINK_S, connect_again)

    def kill(self, job: Job, watchdog: Watchdog, reason: str) -> None:
        """SIGKILL to a watchdog, for a reason that goes on record; its successor adopts."""
        self._audit.record(
            Event.WATCHDOG_KILLED, job=job.name, pid=watchdog.pid, reason=reason[:_SHORT]
        )
        self._say.error(
            f"job {job.name}: watchdog (pid {watchdog.pid}) killed: {reason[:_SHORT]}; it is replaced"
        )
        try:
            signal.pidfd_send_signal(watchdog.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass  # its end is seen by its descriptor in any case

    def _ended_by_pid(self, pid: int) -> bool:
        found = self.by_pid.get(pid)
        if found is None:
            return False
        self.ended(*found)
        return True

    def ended(self, job: Job, watchdog: Watchdog) -> None:
        """A watchdog is dead: tell why, give back what it had here, and see to its successor."""
        code, by_signal = self._bury(watchdog)
        if job.standby is not None and job.standby[0] is watchdog:
            os.close(job.standby[1])
            job.standby = None  # the one before did not leave in time
        if job.watchdog is not watchdog:
            return
        job.watchdog = None
        job.heard = False
        self.silence.forget(job)
        agreed = [request for request in job.requests.waiting() if request.agreed]
        if agreed:
            self._audit.record(
                Event.WATCHDOG_ENDED, job=job.name, pid=watchdog.pid, reason=watchdog.leaving
            )
            for request in agreed:
                job.requests.finish(request.number, "success", "")
            return
        if watchdog.leaving == REPLACED or job.standby is not None:
            # Whatever else it was told meanwhile: its successor is there, and must not be found as another.
            self._audit.record(
                Event.WATCHDOG_ENDED, job=job.name, pid=watchdog.pid, reason=REPLACED
            )
            self.orphans.inherit(job)
            job.requests.interrupted()
            if not self.replacing.take_standby(job):
                self.launching.bring_up(job)
            return
        if code == 0:
            self._audit.record(
                Event.WATCHDOG_ENDED,
                job=job.name,
                pid=watchdog.pid,
                reason="its job was removed for the daemon before, which did not end that",
            )
            job.requests.interrupted()
            self.launching.bring_up(job)
            return
        healthy = (
            watchdog.attached_at is not None
            and self.loop.now() - watchdog.attached_at >= backoff.WATCHDOG_HEALTHY_S
        )
        job.losses = 1 if healthy else job.losses + 1
        job.relaunches += 1
        retry_s = backoff.relaunch_s(job.losses, random.random())
        how = f"signal {by_signal}" if by_signal is not None else f"exit code {code}"
        if code is None and by_signal is None:
            how = "how is not known"
        when = f"in {retry_s:.1f} s" if retry_s else "now"
        job.trouble = (
            f"its watchdog (pid {watchdog.pid}) ended ({how}); its processes run on, "
            f"a new one comes {when}"
        )
        self._audit.record(
            Event.WATCHDOG_LOST,
            job=job.name,
            pid=watchdog.pid,
            exitCode=code,
            signal=by_signal,
            relaunches=job.losses,
            retryS=round(retry_s, 3),
        )
        self._say.error(f"job {job.name}: {job.trouble}")
        self.orphans.inherit(job)
        job.requests.interrupted()
        if retry_s:
            job.relaunch_timer = self.loop.call_in(retry_s, lambda: self.launching.bring_up(job))
        else:
            self.launching.bring_up(job)

    def _bury(self, watchdog: Watchdog) -> tuple[int | None, int | None]:
        """Give back everything that a dead watchdog had here; its exit code or signal, if known."""
        self.by_pid.pop(watchdog.pid, None)
        if watchdog.link is not None:
            # What it said before it died is still to be read: the outcome of a request, a notice.
            ended, watchdog.link = watchdog.link, None
            ended.finish()
        if watchdog.watch is not None:
            self.loop.unwatch(watchdog.watch)
            watchdog.watch = None
        if watchdog.process is not None:
            os.close(watchdog.pidfd)
            code = watchdog.process.exitcode
            if code is None:
                # Somebody traces it (strace, a debugger) and has not let go: it is reaped with the orphans then.
                return None, None
            watchdog.process.close()
            return (code, None) if code >= 0 else (None, -code)
        # Of the program before this one (then still our child), or of the daemon before (then init's).
        status = reap(watchdog.pid)
        if status is None:
            status = syscalls.pidfd_exit_status(watchdog.pidfd)
        os.close(watchdog.pidfd)
        return (None, None) if status is None else exit_of(status)

    # silence --------------------------------------------------------------------------------------


def _ends_some(request: Request) -> bool:
    """Whether it asks for an end, of all that belongs to the job."""
    message = request.message
    return isinstance(message, Retire) or (
        isinstance(message, Act) and message.verb in ("stop", "kill", "restart")
    )


def _is_ensure(request: Request) -> bool:
    return isinstance(request.message, Act) and request.message.verb == "ensure"


def _plain(value: Any) -> Any:
    """A value from a watchdog as it may be logged: nothing nested, nothing long."""
    if isinstance(value, str):
        return value[:_SHORT]
    return value if value is None or isinstance(value, (bool, int, float)) else None
