"""The runner of one job: what happens goes into the lifecycle table, what comes out is done.

It decides nothing. Each turn of the loop collects what happened and ends in ``commit``: fork what is to
be started, write the state record, and only then let the new processes exec and reap those that ended.
So the record is never behind: a process that runs is in it, and an exit status that is no longer in
the kernel is in it too. If it cannot be written, nothing is started and nothing is reaped.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import Final

from taskmaster import procfs, syscalls
from taskmaster.core import lifecycle
from taskmaster.core.events import (
    Arm,
    Disarm,
    Effect,
    Event,
    Exited,
    KillAll,
    SignalStop,
    Spawn,
    Spawned,
    SpawnFailed,
    Start,
    Stop,
    TimerFired,
)
from taskmaster.core.events import Timer as TimerKind
from taskmaster.core.lifecycle import Phase
from taskmaster.core.spec import JobSpec
from taskmaster.core.states import Desired
from taskmaster.eventloop import EventLoop, Timer
from taskmaster.watchdog import process, record
from taskmaster.watchdog.captures import Captures
from taskmaster.watchdog.family import Family
from taskmaster.watchdog.notices import Notices
from taskmaster.watchdog.place import Place
from taskmaster.watchdog.record import StateRecord
from taskmaster.watchdog.signalling import Signalling

#: Forked before the loop gets its turn: 1000 at once would leave it deaf for over a second.
_FORKS_A_TURN: Final = 16
#: How soon a state record that could not be written is tried again, seconds.
_RECORD_AGAIN_S: Final = 1.0
#: How long the control plane may take to say how a process ended before it counts as unknown, seconds.
_GRACE_S: Final = 2.0


class Runner:
    """All places of one job.

    ``null``: a descriptor of /dev/null; ``logs``: the job's log folder. ``ask`` asks the control plane how a
    process that is not our child ended; it says whether it could be asked. ``settled`` is called at the
    end of each commit.
    """

    def __init__(
        self,
        loop: EventLoop,
        directory: int,
        spec: JobSpec,
        sha256: str,
        limits: process.Limits,
        null: int,
        logs: str,
    ) -> None:
        self.loop = loop
        self.directory = directory
        self.spec = spec
        self.sha256 = sha256
        self.instance = os.urandom(8).hex()
        self.ledger = os.urandom(8).hex()
        self.places: dict[int, Place] = {}
        self.notices = Notices()
        self.captures = Captures(loop, directory, logs, null, self._dropped)
        self.family = Family(self.instance)
        self.signalling = Signalling(self)
        self.dropped_bytes = 0
        self.removed: list[int] = []
        self.ask: Callable[[Place], bool] = lambda place: False
        self.settled: Callable[[], None] = lambda: None
        #: Go on with a living process that was adopted.
        self.resume: Callable[[Place], None] = lambda place: None
        #: Told of each start that failed: the place and the words.
        self.start_failed: Callable[[Place, str], None] = lambda place, words: None
        self._limits = limits
        self._dirty = True
        self._to_reap: list[int] = []
        self._reported: list[Place] = []
        self._record_timer: Timer | None = None
        self._record_failed = ""
        self._retired = False

    # events -------------------------------------------------------------------------------------

    def feed(self, place: Place, event: Event) -> None:
        """Put one event through the table and begin what comes out of it."""
        before = place.process
        place.process, effects = lifecycle.step(before, event, self.spec)
        if place.process == before and not effects:
            return
        self._dirty = place.changed = True
        if place.phase.state is not before.phase.state:
            place.since_s = time.time()
        for effect in effects:
            self._perform(place, event, effect)
        self._tell(place, before.phase)

    def touch(self, place: Place) -> None:
        """The place was changed otherwise: it is to be recorded and published."""
        self._dirty = place.changed = True

    def mark_dirty(self) -> None:
        """Something that is in the record was changed."""
        self._dirty = True

    def _record_again(self) -> None:
        self._record_timer = None
        self._dirty = True

    def place(self, number: int) -> Place:
        """The place of this number, made where there is none."""
        found = self.places.get(number)
        if found is None:
            self.places[number] = found = Place(number)
            found.since_s = time.time()
            self._dirty = True
        return found

    def remove(self, place: Place) -> None:
        """Forget a place in which nothing is."""
        self.captures.remove(place.number)
        del self.places[place.number]
        self.removed.append(place.number)
        self._dirty = True

    # effects ------------------------------------------------------------------------------------

    def _perform(self, place: Place, event: Event, effect: Effect) -> None:
        if isinstance(effect, Spawn):
            place.wants_spawn, place.error, place.left = True, "", 0
        elif isinstance(effect, SignalStop):
            self.signalling.stop(place)
        elif isinstance(effect, KillAll):
            over = isinstance(event, TimerFired)
            self.signalling.kill(place, "stopTime was over" if over else "asked for")
        elif isinstance(effect, Arm):
            self.arm(place, effect.timer, self.loop.now() + effect.delay_s)
        else:
            assert isinstance(effect, Disarm)
            self._disarm(place)

    def arm(self, place: Place, kind: TimerKind, due_at: float) -> None:
        """Have the place's one timer fire at this time, monotonic."""
        self._disarm(place)
        place.due_at = due_at

        def fired() -> None:
            place.timer, place.due_at = None, None
            self.feed(place, TimerFired(kind))

        place.timer = self.loop.call_at(due_at, fired)

    def _disarm(self, place: Place) -> None:
        if place.timer is not None:
            place.timer.cancel()
            place.timer = None
        place.due_at = None

    # the ends of processes ----------------------------------------------------------------------

    def hold(self, place: Place) -> bool:
        """Watch the place's process by a pidfd; False where it is gone already. Raises OSError (EMFILE)."""
        assert place.pid is not None
        try:
            held = os.pidfd_open(place.pid)
        except ProcessLookupError:
            return False
        status = procfs.stat(place.pid)
        if status is None or status.start != place.start:
            os.close(held)
            return False
        place.held = held
        place.watch = self.loop.watch(held, lambda: self._readable(place))
        return True

    def let_go(self, place: Place) -> None:
        """Stop watching the process."""
        if place.watch is not None:
            self.loop.unwatch(place.watch)
            place.watch = None
        if place.held >= 0:
            os.close(place.held)
            place.held = -1
        if place.grace is not None:
            place.grace.cancel()
            place.grace = None

    def _readable(self, place: Place) -> None:
        assert place.pid is not None
        if not place.own_child:
            self.missing(place)
            return
        status = process.peek(place.pid)
        if status is not None:
            self.ended(place, status)

    def missing(self, place: Place) -> None:
        """A process that is not our child has ended: find out how, from the kernel or the control plane."""
        if place.held >= 0:
            status = syscalls.pidfd_exit_status(place.held)
            if status is not None:
                self.ended(place, status)
                return
            # Not reaped yet: its reaping is a hang-up of the pidfd, and then the kernel tells (6.15).
            assert place.watch is not None
            self.loop.change(place.watch, None, lambda: self._reaped(place))
        place.asking = True
        if place.grace is None:
            place.grace = self.loop.call_in(_GRACE_S, lambda: self._nobody_knows(place))
        self.ask(place)

    def _reaped(self, place: Place) -> None:
        assert place.watch is not None
        status = syscalls.pidfd_exit_status(place.held)
        if status is not None:
            self.ended(place, status)
        else:
            # A kernel that does not tell; a hang-up that stays would wake the loop without end.
            self.loop.unwatch(place.watch)
            place.watch = None

    def handed_over(self, pid: int, start: int, status: int | None) -> None:
        """The control plane's answer to ``ask``."""
        for place in self.places.values():
            if place.asking and place.pid == pid and place.start == start:
                if status is not None:
                    self.ended(place, status)
                elif place.held < 0 or place.watch is None:
                    self._nobody_knows(place)
                return

    def _nobody_knows(self, place: Place) -> None:
        if not place.asking:
            return
        if place.grace is not None:
            place.grace.cancel()
            place.grace = None
        assert place.pid is not None
        status = procfs.stat(place.pid)
        if place.held < 0 and status is not None and status.start == place.start:
            if not status.dead:
                self._found_alive(place)
                return
            if status.ppid == os.getppid():
                # A zombie of the control plane, which is busy: it has the status, so it is worth waiting.
                place.grace = self.loop.call_in(_GRACE_S, lambda: self._nobody_knows(place))
                return
        self.ended(place, None)

    def _found_alive(self, place: Place) -> None:
        """Only the descriptor to hold it by had been missing; it is tried for until there is one."""
        try:
            held = self.hold(place)
        except OSError:
            held = False
        if held:
            place.asking = False
            self.resume(place)
        else:
            place.grace = self.loop.call_in(_GRACE_S, lambda: self._nobody_knows(place))

    def ended(self, place: Place, status: int | None) -> None:
        """The place's process has ended with this wait status; None where nobody can say."""
        pid = place.pid
        assert pid is not None
        self.family.look_again()
        self.let_go(place)
        place.asking = False
        if place.own_child:
            self._to_reap.append(pid)
            place.own_child = False
        if place.phase is Phase.SPAWNING and not self._was_executed(place, status):
            return
        self.captures.drain(place.number)
        uptime_s = self.loop.now() - (place.up_at or self.loop.now())
        code, by_signal = (None, None) if status is None else process.exit_of(status)
        place.exit_code, place.exit_signal = code, by_signal
        place.exit_unknown = status is None
        place.pid = place.start = place.up_at = None
        self.touch(place)
        expected = self.spec.is_normal(code, by_signal)
        if status is None:
            self.notice(place, "process.unknown_exit", pid=pid, uptime=round(uptime_s, 3))
        else:
            self.notice(
                place,
                "process.exited",
                pid=pid,
                exitCode=code,
                signal=by_signal,
                uptime=round(uptime_s, 3),
                expected=expected,
            )
        if place.phase is Phase.STOPPING:
            place.ended = True
            self.signalling.check(place)
            return
        place.left = self.signalling.left_behind(place)
        self.feed(place, Exited(expected, uptime_s, random.random()))

    def _was_executed(self, place: Place, status: int | None) -> bool:
        """The process of a spawn under way has ended: as its program, or before it became that?"""
        if place.report is not None:
            self._read_report(place)
        elif status is not None and process.exit_of(status)[0] == process.UNRELEASED:
            self._not_started(
                place, process.Failure("its watchdog died before it was started"), True
            )
        else:
            self.feed(place, Spawned())
        return place.phase is not Phase.SPAWNING and place.pid is not None

    # starting -----------------------------------------------------------------------------------

    def _fork_wanted(self) -> list[Place]:
        forked: list[Place] = []
        for place in [one for one in self.places.values() if one.wants_spawn]:
            if len(forked) == _FORKS_A_TURN:
                self.loop.call_in(0, self.mark_dirty)
                break
            if place.phase is not Phase.SPAWNING or place.process.desired is Desired.DOWN:
                place.wants_spawn = False
                if place.phase is Phase.SPAWNING:
                    self.feed(place, SpawnFailed())
                continue
            if self.signalling.cleared(place):
                place.wants_spawn = False
                if self._fork(place):
                    forked.append(place)
        return forked

    def _fork(self, place: Place) -> bool:
        try:
            ends = self.captures.prepare(place.number, self.spec)
        except OSError as error:
            text = f"output {error.filename}: {os.strerror(error.errno or 0)}"
            self._not_started(place, process.Failure(text, error.errno or 0))
            return False
        stdout, stderr = ends.ends
        plan = process.Plan(
            self.spec,
            place.number,
            self.instance,
            self.directory,
            stdout,
            stderr,
            self._limits,
        )
        try:
            child = process.fork(plan)
        except OSError as error:
            text = f"fork: {os.strerror(error.errno or 0)}"
            self._not_started(place, process.Failure(text, error.errno or 0))
            return False
        finally:
            ends.close()
        place.child = child
        place.pid, place.start, place.session = child.pid, child.start, child.pid
        place.own_child = True
        place.report = self.loop.watch(child.report, lambda: self._read_report(place))
        try:
            self.hold(place)
        except OSError:
            pass  # EMFILE, ENFILE: its end is noticed by SIGCHLD all the same
        self._dirty = True
        return True

    def _read_report(self, place: Place) -> None:
        child = place.child
        assert child is not None
        assert place.report is not None
        try:
            failure = process.read_report(child.report)
        except BlockingIOError:
            return
        self.loop.unwatch(place.report)
        os.close(child.report)
        place.report, place.child = None, None
        if failure is not None:
            self._drop_child(place)
            self._not_started(place, failure)
            return
        place.up_at = self.loop.now()
        place.error = ""
        place.exit_unknown = False
        self.feed(place, Spawned())
        if place.outdated:
            place.outdated = False
            if place.process.desired is Desired.UP:
                self.feed(place, Stop())
                self.feed(place, Start())

    def _drop_child(self, place: Place) -> None:
        """What was forked is not, and will not be, the job's program."""
        if place.pid is not None and place.own_child:
            self._to_reap.append(place.pid)
        self.let_go(place)
        place.pid = place.start = None
        place.own_child = False

    def _not_started(self, place: Place, failure: process.Failure, transient: bool = False) -> None:
        place.error = failure.text
        place.pid = place.start = None
        self.notice(
            place, "process.spawn_failed", step=failure.text.split(":")[0], error=failure.text
        )
        self.feed(place, SpawnFailed(transient or failure.transient, random.random()))
        self.touch(place)
        self.start_failed(place, failure.text)

    # the commit ---------------------------------------------------------------------------------

    def commit(self) -> None:
        """Make everything that this turn brought so, in the order that no death can harm."""
        self.family.look_again()
        self._collect_orphans()
        for _ in range(len(self.places) + 2):
            forked = self._fork_wanted()
            if not self._dirty:
                break
            if not self._write_record(forked):
                break
            self._reap()
            self._collect_orphans()
        self.settled()

    def _write_record(self, forked: list[Place]) -> bool:
        try:
            if not self._retired:
                record.write(self.directory, self._record())
        except OSError as error:
            words = f"record of its state: {os.strerror(error.errno or 0)}"
            self._record_failed = words
            if self._record_timer is None:
                self._record_timer = self.loop.call_in(_RECORD_AGAIN_S, self._record_again)
            for place in forked:
                assert place.child is not None
                place.child.abandon()
                self._close_report(place)
                self._drop_child(place)
                self._not_started(place, process.Failure(words, error.errno or 0), True)
            return False
        self._dirty = False
        self._record_failed = ""
        if self._record_timer is not None:
            self._record_timer.cancel()
            self._record_timer = None
        for place in forked:
            assert place.child is not None
            place.child.release()
        return True

    def _close_report(self, place: Place) -> None:
        assert place.report is not None
        assert place.child is not None
        self.loop.unwatch(place.report)
        os.close(place.child.report)
        place.report, place.child = None, None

    def _record(self) -> StateRecord:
        return StateRecord(
            format=record.FORMAT,
            job=self.spec.job,
            boot_id=procfs.boot_id(),
            instance=self.instance,
            ledger=self.ledger,
            spec=self.spec,
            sha256=self.sha256,
            gaps=int(self.family.has_strangers),
            next_notice=self.notices.next_number,
            places=tuple(place.record() for place in self.places.values()),
            notices=self.notices.records(),
        )

    def _reap(self) -> None:
        """Only after the record was written: until then the kernel keeps the status for a replacement."""
        for pid in self._to_reap:
            # One that reported a failure may still be on its way out; SIGCHLD brings it back here.
            process.reap(pid)
        self._to_reap.clear()

    def _collect_orphans(self) -> None:
        """Reap what was re-parented to us, and notice children whose pidfd could not be had."""
        by_pid = {place.pid: place for place in self.places.values() if place.own_child}
        unreaped = set(self._to_reap)
        while (pid := process.peek_any()) is not None:
            place = by_pid.pop(pid, None)
            if place is not None:
                status = process.peek(pid)
                assert status is not None
                self.ended(place, status)
                return  # reaped after the next record; the rest is collected then
            if pid in unreaped:
                return
            process.reap(pid)

    # telling ------------------------------------------------------------------------------------

    def notice(self, place: Place, event: str, **fields: object) -> None:
        """Something for the audit log."""
        self.notices.add(event, number=place.number, **fields)
        self._dirty = True

    def _tell(self, place: Place, before: Phase) -> None:
        now = place.phase
        if now is before:
            return
        if before is Phase.SPAWNING and place.pid is not None:
            self.notice(place, "process.started", pid=place.pid, restarts=place.restarts)
        if now is Phase.RUNNING:
            startup = round(self.loop.now() - (place.up_at or self.loop.now()), 3)
            self.notice(place, "process.ready", pid=place.pid, startup=startup)
        elif now is Phase.BACKOFF:
            assert place.due_at is not None
            retry_s = round(place.due_at - self.loop.now(), 3)
            self.notice(
                place,
                "process.backoff",
                failures=place.process.failures + place.process.crashes,
                retryS=retry_s,
                reason=place.error or last_exit(place),
            )
        elif now is Phase.FATAL:
            self.notice(
                place,
                "process.fatal",
                failures=place.process.failures,
                reason=place.error or last_exit(place),
            )
        elif now is Phase.SPAWNING and before in (Phase.STARTING, Phase.RUNNING, Phase.BACKOFF):
            place.restarts += 1

    def _dropped(self, number: int, stream: str, count: int, why: OSError) -> None:
        first = self.dropped_bytes == 0
        self.dropped_bytes += count
        place = self.places.get(number)
        if place is None:
            return
        place.changed = True
        if first:
            self.notice(
                place,
                "output.dropped",
                stream=stream,
                bytes=count,
                reason=os.strerror(why.errno or 0),
            )

    # ending -------------------------------------------------------------------------------------

    def idle(self) -> bool:
        """Whether nothing of the job lives and nothing is about to."""
        return all(place.phase in lifecycle.IDLE for place in self.places.values())

    def of_instance(self, instance: str) -> None:
        """Go by the mark that processes which run already have in their environment."""
        self.instance = instance
        self.family = Family(instance)

    def adopted(self, found: StateRecord) -> None:
        """Take over identity, definition and notices from the record of a dead watchdog."""
        self.of_instance(found.instance)
        self.ledger = found.ledger
        self.spec, self.sha256 = found.spec, found.sha256
        self.notices = Notices(found.notices, found.next_notice)

    def forget(self) -> None:
        """The job is no more: remove its records and pipes."""
        for place in list(self.places.values()):
            self.captures.remove(place.number)
        record.remove(self.directory)
        self._retired = True


def last_exit(place: Place) -> str:
    """How the last process of the place ended, in words; empty where none has."""
    if place.exit_unknown:
        return "last exit unknown"
    if place.exit_signal is not None:
        return f"last ended by signal {place.exit_signal}"
    if place.exit_code is not None:
        return f"last exit code {place.exit_code}"
    return ""
