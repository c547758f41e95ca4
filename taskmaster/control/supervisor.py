"""The watchdogs of all jobs: found or launched, attached, heard, missed, replaced.

It never starts or signals a process of a job; it only sees to it that each job has a watchdog, and that a
dead or hung one gets a successor, which adopts.
"""

from __future__ import annotations

import os
import random
import signal
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from taskmaster import fifos, procfs, syscalls
from taskmaster.audit import KEYS, AuditLog, Event
from taskmaster.children import exit_of, reap
from taskmaster.control import launch, link
from taskmaster.control.job import Job, Watchdog
from taskmaster.control.link import Link, Request, Requests
from taskmaster.control.reaper import Reaper
from taskmaster.control.say import Say
from taskmaster.control.statedir import StateDirectory
from taskmaster.control.status import timestamp
from taskmaster.control.witness import Witness
from taskmaster.core import backoff
from taskmaster.core.states import Desired
from taskmaster.eventloop import EventLoop
from taskmaster.watchdog.entry import WATCHDOG_NAME, recorded
from taskmaster.wire.link import (
    Acknowledge,
    Act,
    Begun,
    Configure,
    Done,
    HandOver,
    Hello,
    Inherited,
    Leave,
    Missing,
    Notice,
    Ping,
    Published,
    Retire,
    ToControl,
    ToWatchdog,
)

#: Launched before the loop gets its turn: each is a fork of about 1.5 ms, and clients wait.
_LAUNCHES_A_TURN: Final = 4
#: A link may end a moment before its watchdog's death is seen; one that lives on is connected to again.
_AFTER_LINK_S: Final = 0.1
#: What a watchdog may put into the audit log.
_NOTICES: Final = {
    event.value: event
    for event in Event
    if event.value.startswith("process.") or event in (Event.OUTPUT_DROPPED, Event.STATE_REJECTED)
}
#: A notice that comes later than this tells when it happened.
_LATE_S: Final = 1.0
_SHORT: Final = 1024
#: How often watchdogs are looked at in /proc: the only thing that wakes a daemon at rest.
_LOOK_S: Final = 30.0
#: Why a watchdog leaves that runs an older program.
REPLACED: Final = "replaced by one of the new program"


class Supervisor:
    """Every job and its watchdog. ``logs``: the log directory; ``limits``: rlimits for the jobs' processes."""

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
    ) -> None:
        self.loop = loop
        self.jobs: dict[str, Job] = {}
        #: Why the daemon stops; empty while it does not.
        self.closing = ""
        self._statedir = statedir
        self._audit = audit
        self._say = say
        self._logs = logs
        self._limits = limits
        self._deadline_s = deadline_s
        self._timeout_s = max(watchdog_timeout_s, deadline_s)
        self._wall_clock = wall_clock
        self._by_pid: dict[int, tuple[Job, Watchdog]] = {}
        self._to_launch: deque[Job] = deque()
        self._acknowledge: dict[str, int] = {}
        #: Children that might be of several jobs, by pid, with their start times.
        self._unclaimed: dict[int, int] = {}
        self._on_heard: Callable[[], None] | None = None
        self._to_replace: deque[tuple[Job, Watchdog | None]] = deque()
        self.reaper = Reaper(self._ended_by_pid, self._reaped)

    # jobs -----------------------------------------------------------------------------------------

    def add(self, name: str) -> Job:
        """Know a job from now on. It has no watchdog until ``bring_up``."""
        job = Job(name)
        job.requests = Requests(
            self.loop, self._deadline_s, lambda request: self._late(job, request)
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
        job.look()

    def let_go(self, job: Job) -> None:
        """Close what is held for a job without a watchdog."""
        self._drop_standby(job)
        for timer in (job.relaunch_timer, job.silence_timer):
            if timer is not None:
                timer.cancel()
        job.close_pipes(set())
        job.witness.close()
        if job.directory >= 0:
            os.close(job.directory)
            job.directory = -1

    def request(self, job: Job, make: Callable[[int], ToWatchdog], on_done: link.OnDone) -> None:
        """Ask the job's watchdog, whichever it is by then."""
        request = job.requests.add(make, on_done)
        if job.attached or (job.silent and job.watchdog is not None):
            self._send(job, request)

    def act(self, job: Job, verb: str, on_done: link.OnDone) -> None:
        """Ask for a verb (see ``wire.link.Act``)."""
        self.request(job, lambda number: Act(number, verb), on_done)

    def configure(self, job: Job, on_done: link.OnDone) -> None:
        """Have the job's definition put in force."""
        spec = job.spec
        assert spec is not None
        self.hold_pipes(job)
        self.request(job, lambda number: Configure(number, spec, job.sha256), on_done)

    def retire(self, job: Job, reason: str, on_done: link.OnDone) -> None:
        """Have everything of the job stopped and its watchdog end."""
        job.removing = True
        if job.watchdog is not None:
            job.watchdog.leaving = reason

        def done(outcome: str, error: str) -> None:
            job.removing = outcome != "fail"
            on_done(outcome, error)

        self.request(job, Retire, done)

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

    def replace_all(self) -> None:
        """Have every watchdog replaced by one of this program, one at a time; its processes notice nothing."""
        self._to_replace = deque(
            (job, job.watchdog) for job in self.jobs.values() if job.spec is not None
        )
        self._replace_next(None)

    def _replace_next(self, done: Job | None) -> None:
        while self._to_replace:
            job, _ = self._to_replace.popleft()
            watchdog = job.watchdog
            if self.jobs.get(job.name) is not job or job.removing:
                continue
            if watchdog is None or watchdog.link is None or not job.heard:
                # It is being started, with this program, or found: looked at again when it is there.
                job.on_attached = lambda job=job: self._replace_if_old(job)
                continue
            if self._replace_if_old(job):
                return

    def _replace_if_old(self, job: Job) -> bool:
        watchdog = job.watchdog
        if watchdog is None or watchdog.process is not None or watchdog.link is None:
            return False
        try:
            # First the successor, which waits for the lock: if this process dies between the two steps, the job
            # is not left without a watchdog.
            made = self._fork(job, waits_s=2 * self._deadline_s)
        except OSError as error:
            self._say.error(f"job {job.name}: its watchdog is not replaced: {error.strerror}")
            return False
        standby = Watchdog(made.pid, made.process, made.pidfd)
        job.standby = (standby, made.link)
        self._by_pid[made.pid] = (job, standby)
        standby.watch = self.loop.watch(made.pidfd, lambda: self._ended(job, standby))
        watchdog.leaving = REPLACED
        job.on_attached = lambda: self._replace_next(job)
        watchdog.link.send(Leave(0))

        def over() -> None:
            if job.watchdog is watchdog:
                self._kill(job, watchdog, "it did not leave to be replaced")

        self.loop.call_in(self._deadline_s, over)
        return True

    # launching ------------------------------------------------------------------------------------

    def bring_up(self, job: Job) -> None:
        """See to it that the job has a watchdog: one that waits is connected to, else one is launched."""
        job.relaunch_timer = None
        if job not in self._to_launch:
            if not self._to_launch:
                self.loop.call_in(0, self._launch_some)
            self._to_launch.append(job)

    def _launch_some(self) -> None:
        for _ in range(_LAUNCHES_A_TURN):
            if not self._to_launch:
                return
            job = self._to_launch.popleft()
            if self.jobs.get(job.name) is job and (
                job.watchdog is None or job.watchdog.link is None
            ):
                self._bring_up_now(job)
        if self._to_launch:
            self.loop.call_in(0, self._launch_some)

    def _bring_up_now(self, job: Job) -> None:
        if job.spec is None:
            return
        try:
            if job.directory >= 0 and os.fstat(job.directory).st_nlink == 0:
                # Somebody has removed the folder with what was in it: nothing is left to adopt by.
                job.close_pipes(set())
                os.close(job.directory)
                job.directory = -1
            if job.directory < 0:
                job.directory = self._statedir.job(job.name)
            if not self._find(job):
                self.hold_pipes(job)
                self._launch(job)
        except OSError as error:
            self._launch_failed(job, error)

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

    def _find(self, job: Job) -> bool:
        try:
            found = link.find(job.directory)
        except BlockingIOError:
            # Others before us have knocked, and it has let none of them in: it is stopped, or worse.
            return self._hold_silent(job)
        if found is None:
            return False
        try:
            pid = syscalls.peer_pid(found)
            pidfd = os.pidfd_open(pid)
        except OSError:
            found.close()
            return False
        known = job.watchdog
        if known is not None and known.pid == pid:
            os.close(pidfd)
            self._attach(job, known, found.detach())
            return True
        self._take(job, Watchdog(pid, None, pidfd), found.detach())
        # It may be stopped, and be killed before it has said a word: then its record is all there is.
        job.witness.watch(recorded(job.directory, job.name))
        self._audit.record(Event.WATCHDOG_ATTACHED, job=job.name, pid=pid)
        return True

    def _hold_silent(self, job: Job) -> bool:
        """Take a watchdog that cannot be talked to for the job's, by the lock that it holds."""
        pid = self._statedir.holder_of(job.directory)
        if pid is None:
            return False
        known = job.watchdog
        if known is None or known.pid != pid:
            known = Watchdog(pid, None, os.pidfd_open(pid))
            self._know(job, known)
            job.witness.watch(recorded(job.directory, job.name))
        self._silent(job, known, 0.0)
        return True

    def _fork(self, job: Job, waits_s: float = 0.0) -> launch.Launched:
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
        made = self._fork(job)
        self._take(job, Watchdog(made.pid, made.process, made.pidfd), made.link)

    def _take_standby(self, job: Job) -> bool:
        """The watchdog before has left: its successor, which has waited for that, has the job."""
        if job.standby is None:
            return False
        (watchdog, fd), job.standby = job.standby, None
        job.watchdog = watchdog
        self._attach(job, watchdog, fd)
        return True

    def _drop_standby(self, job: Job) -> None:
        if job.standby is not None:
            (watchdog, fd), job.standby = job.standby, None
            os.close(fd)
            signal.pidfd_send_signal(watchdog.pidfd, signal.SIGKILL)

    def _launch_failed(self, job: Job, error: OSError) -> None:
        job.losses += 1
        # Never at once: what is missing is the host's, and trying in circles makes it worse.
        retry_s = max(1.0, backoff.relaunch_s(job.losses, random.random()))
        job.trouble = (
            f"its watchdog cannot be started: {error.strerror}; tried again in {retry_s:.1f} s"
        )
        self._audit.record(
            Event.WATCHDOG_LAUNCH_FAILED,
            job=job.name,
            error=str(error),
            relaunches=job.losses,
            retryS=round(retry_s, 3),
        )
        self._say.error(f"job {job.name}: {job.trouble}")
        job.relaunch_timer = self.loop.call_in(retry_s, lambda: self.bring_up(job))

    def _take(self, job: Job, watchdog: Watchdog, fd: int) -> None:
        self._know(job, watchdog)
        self._attach(job, watchdog, fd)

    def _know(self, job: Job, watchdog: Watchdog) -> None:
        job.watchdog = watchdog
        self._by_pid[watchdog.pid] = (job, watchdog)
        watchdog.watch = self.loop.watch(watchdog.pidfd, lambda: self._ended(job, watchdog))

    def _attach(self, job: Job, watchdog: Watchdog, fd: int) -> None:
        job.heard = False
        watchdog.link = made = Link(
            self.loop,
            fd,
            lambda message: self._received(job, watchdog, message),
            lambda reason: self._link_closed(job, watchdog, reason),
        )

        def no_word() -> None:
            if job.watchdog is watchdog and watchdog.link is made and not job.heard:
                self._silent(job, watchdog, self._deadline_s)

        # One that was stopped when it was found says nothing, and perhaps nobody asks it anything.
        watchdog.greeting = self.loop.call_in(self._deadline_s, no_word)

    # what watchdogs say ---------------------------------------------------------------------------

    def _received(self, job: Job, watchdog: Watchdog, message: ToControl) -> None:
        if watchdog is not job.watchdog:
            return
        if job.silent:
            self._recovered(job, watchdog)
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
            self._kill(job, watchdog, f"it says it is of job {message.job[:64]!r}")
            return
        watchdog.attached_at = self.loop.now()
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
            self.hold_pipes(job)
            return

        def gone(outcome: str, error: str) -> None:
            job.removing = False
            job.spec = None

        self.retire(job, "nothing of it runs, and its file cannot be used", gone)

    def _published(self, job: Job, watchdog: Watchdog, message: Published) -> None:
        first = not job.heard
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
            if job.inherited and watchdog.link is not None:
                watchdog.link.send(Inherited(tuple(job.inherited.items())))
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
                self.act(job, "stop", lambda outcome, error: None)
            if self._on_heard is not None:
                self._on_heard()
            on_attached, job.on_attached = job.on_attached, None
            if on_attached is not None:
                on_attached()

    def _send(self, job: Job, request: Request) -> None:
        watchdog = job.watchdog
        if watchdog is not None and watchdog.link is not None:
            request.sent = True
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
        if fields.get("at") is None:
            fields.pop("at", None)
        self._audit.record(event, job=job.name, **fields)
        self._say.everything(f"job {job.name}: {message.event}")

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
            self._kill(job, watchdog, reason)
            return

        def connect_again() -> None:
            if job.watchdog is watchdog and watchdog.link is None and not watchdog.leaving:
                self.bring_up(job)

        self.loop.call_in(_AFTER_LINK_S, connect_again)

    def _kill(self, job: Job, watchdog: Watchdog, reason: str) -> None:
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

    def _reaped(self, pid: int) -> None:
        """An orphan is no more; its number may be somebody else's soon."""
        self._unclaimed.pop(pid, None)
        for job in self.jobs.values():
            job.inherited.pop(pid, None)

    def _ended_by_pid(self, pid: int) -> bool:
        found = self._by_pid.get(pid)
        if found is None:
            return False
        self._ended(*found)
        return True

    def _ended(self, job: Job, watchdog: Watchdog) -> None:
        """A watchdog is dead."""
        code, by_signal = self._bury(watchdog)
        if job.standby is not None and job.standby[0] is watchdog:
            os.close(job.standby[1])
            job.standby = None  # the one before did not leave in time
        if job.watchdog is not watchdog:
            return
        job.watchdog = None
        job.heard = False
        self._not_silent(job)
        agreed = [request for request in job.requests.waiting() if request.agreed]
        if agreed:
            self._audit.record(
                Event.WATCHDOG_ENDED, job=job.name, pid=watchdog.pid, reason=watchdog.leaving
            )
            for request in agreed:
                job.requests.finish(request.number, "success", "")
            return
        if watchdog.leaving == REPLACED:
            self._audit.record(
                Event.WATCHDOG_ENDED, job=job.name, pid=watchdog.pid, reason=REPLACED
            )
            self._inherit(job)
            job.requests.interrupted()
            if not self._take_standby(job):
                self.bring_up(job)
            return
        if code == 0:
            self._audit.record(
                Event.WATCHDOG_ENDED,
                job=job.name,
                pid=watchdog.pid,
                reason="its job was removed for the daemon before, which did not end that",
            )
            job.requests.interrupted()
            self.bring_up(job)
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
        self._inherit(job)
        job.requests.interrupted()
        if retry_s:
            job.relaunch_timer = self.loop.call_in(retry_s, lambda: self.bring_up(job))
        else:
            self.bring_up(job)

    def _inherit(self, job: Job) -> None:
        """Remember what the dead watchdog had: the children that this process has only since.

        The mark in the environment tells whose they are. Where there is none, they were those of the watchdog
        that has just died, unless another one is dead too: then nobody can say.
        """
        known = self._by_pid.keys() | self._unclaimed.keys()
        known |= {pid for other in self.jobs.values() for pid in other.inherited}
        alone = not any(self._is_dead(pid) for pid in self._by_pid)
        for pid in procfs.children(os.getpid()):
            status = None if pid in known else procfs.stat(pid)
            if status is None or status.dead or procfs.name(pid).startswith(WATCHDOG_NAME):
                continue
            name = procfs.environment(pid).get("TASKMASTER_JOB", job.name if alone else "")
            owner = self.jobs.get(name)
            if owner is None:
                self._unclaimed[pid] = status.start
            else:
                owner.inherited[pid] = status.start

    def not_a_job(self, pid: int, start: int) -> None:
        """A child of this process that is none of any job."""
        self._unclaimed[pid] = start

    def inherited(self) -> dict[str, list[tuple[int, int]]]:
        """By job, pid and start time of what its dead watchdogs had; by "" what may be of several."""
        found = {
            name: list(job.inherited.items()) for name, job in self.jobs.items() if job.inherited
        }
        return {**found, "": list(self._unclaimed.items())}

    def know_inherited(self, inherited: dict[str, list[tuple[int, int]]]) -> None:
        """Take over what the program before this one, in the same process, knew of that."""
        for name, processes in inherited.items():
            owner = self.jobs.get(name)
            (self._unclaimed if owner is None else owner.inherited).update(processes)

    def _is_dead(self, pid: int) -> bool:
        status = procfs.stat(pid)
        return status is None or status.dead

    def _bury(self, watchdog: Watchdog) -> tuple[int | None, int | None]:
        """Give back everything that a dead watchdog had here; its exit code or signal, if known."""
        self._by_pid.pop(watchdog.pid, None)
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
            watchdog.process.close()
            if code is not None:
                return (code, None) if code >= 0 else (None, -code)
            return None, None
        # Of the program before this one (then still our child), or of the daemon before (then init's).
        status = reap(watchdog.pid)
        if status is None:
            status = syscalls.pidfd_exit_status(watchdog.pidfd)
        os.close(watchdog.pidfd)
        return (None, None) if status is None else exit_of(status)

    # silence --------------------------------------------------------------------------------------

    def _late(self, job: Job, request: Request) -> str:
        """A request was not taken up in time; the words for who asked."""
        watchdog = job.watchdog
        if watchdog is None:
            why = job.trouble or "its watchdog is being started"
            return f'Job "{job.name}": not begun within {self._deadline_s:g} s: {why}.'
        self._silent(job, watchdog, self._deadline_s)
        return (
            f'Job "{job.name}": its watchdog (pid {watchdog.pid}) did not answer within '
            f"{self._deadline_s:g} s; what was asked may still be done when it does."
        )

    def _silent(self, job: Job, watchdog: Watchdog, silent_s: float) -> None:
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
                self._kill(job, watchdog, f"silent for {self._timeout_s:g} s")

        job.silence_timer = self.loop.call_in(self._timeout_s - silent_s, over)

    def look_for_stopped(self) -> None:
        """Notice watchdogs that were stopped (SIGSTOP, a debugger) while nobody asked them anything.

        One that is asked after this, and answers, has recovered.
        """
        for job in self.jobs.values():
            watchdog = job.watchdog
            if watchdog is None or job.silent or watchdog.link is None:
                continue
            status = procfs.stat(watchdog.pid)
            if status is not None and status.state in "Tt":
                self._silent(job, watchdog, 0.0)
                watchdog.link.send(Ping(0))
        self.loop.call_in(_LOOK_S, self.look_for_stopped)

    def _recovered(self, job: Job, watchdog: Watchdog) -> None:
        self._not_silent(job)
        job.trouble = ""
        self._audit.record(Event.WATCHDOG_RECOVERED, job=job.name, pid=watchdog.pid, silentS=None)

    def _not_silent(self, job: Job) -> None:
        job.silent = False
        if job.silence_timer is not None:
            job.silence_timer.cancel()
            job.silence_timer = None


def _is_ensure(request: Request) -> bool:
    return isinstance(request.message, Act) and request.message.verb == "ensure"


def _plain(value: Any) -> Any:
    """A value from a watchdog as it may be logged: nothing nested, nothing long."""
    if isinstance(value, str):
        return value[:_SHORT]
    return value if value is None or isinstance(value, (bool, int, float)) else None
