"""The runner of one job: what happens goes into the lifecycle table, what comes out is done.

It decides nothing. Each turn of the loop collects what happened and ends in ``commit``: fork what is to
be started, write the state record, and only then let the new processes exec and reap those that ended.
So the record is never behind: a process that runs is in it, and an exit status that is no longer in
the kernel is in it too. If it cannot be written, nothing is started and nothing is reaped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

from taskmaster import procfs
from taskmaster.core import lifecycle
from taskmaster.core.events import (
    Arm,
    Disarm,
    Effect,
    Event,
    KillAll,
    SignalStop,
    Spawn,
    TimerFired,
)
from taskmaster.core.events import Timer as TimerKind
from taskmaster.core.lifecycle import Phase
from taskmaster.core.spec import JobSpec
from taskmaster.core.states import SETTLED
from taskmaster.eventloop import EventLoop, Timer
from taskmaster.watchdog import logfolder, process, record
from taskmaster.watchdog.captures import Captures
from taskmaster.watchdog.confinement import Limits
from taskmaster.watchdog.endings import Endings
from taskmaster.watchdog.family import Family
from taskmaster.watchdog.memory import Memory
from taskmaster.watchdog.notices import Notices
from taskmaster.watchdog.place import Place
from taskmaster.watchdog.record import MAX_INHERITED, StateRecord
from taskmaster.watchdog.signalling import Signalling
from taskmaster.watchdog.spawning import Spawning

#: How soon a state record that could not be written is tried again, seconds.
_RECORD_AGAIN_S: Final = 1.0
#: Of how many processes of the job the record knows that they have had the stop signal: 20 bytes each.
_MOST_ASKED: Final = 16384


class Runner:
    """All places of one job.

    ``null``: a descriptor of /dev/null; ``logs``: the job's log folder; ``limits``: rlimits for the processes.
    ``settled`` is called at the end of each commit.
    """

    def __init__(
        self,
        loop: EventLoop,
        directory: int,
        spec: JobSpec,
        sha256: str,
        limits: Limits,
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
        self.captures = Captures(loop, directory, logs, null, self._dropped, self._not_rotated)
        self.family = Family(self.instance)
        self.signalling = Signalling(self)
        self.spawning = Spawning(self, limits)
        self.endings = Endings(self)
        self.memory = Memory(self)
        self.dropped_bytes = 0
        self.removed: list[int] = []
        #: The audit log's id of the command that is being carried out; empty while none is.
        self.cause = ""
        self.settled: Callable[[], None] = lambda: None
        #: Makes the state folder anew where it was removed; whether it is there then.
        self.restore: Callable[[], bool] = lambda: False
        self._dirty = True
        self._record_timer: Timer | None = None
        self._retired = False

    # events -------------------------------------------------------------------------------------

    def feed(self, place: Place, event: Event) -> None:
        """Put one event through the table and begin what comes out of it."""
        before = place.process
        place.process, effects = lifecycle.step(before, event, self.spec)
        if place.process == before and not effects:
            return
        self._dirty = place.changed = True
        place.cause = self.cause or place.cause
        if place.phase.state is not before.phase.state:
            place.since_s = time.time()
        for effect in effects:
            self._perform(place, event, effect)
        self._tell(place, before.phase)
        if place.phase.state in SETTLED:
            place.cause = ""

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
            place.wants_spawn, place.error = True, ""
        elif isinstance(effect, SignalStop):
            self.signalling.begin(place)
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

    # the commit ---------------------------------------------------------------------------------

    def commit(self) -> None:
        """Make everything that this turn brought so, in the order that no death can harm."""
        self.family.look_again()
        if self._dirty and not self._retired and os.fstat(self.directory).st_nlink == 0:
            self.restore()
        self.endings.collect_orphans()
        for _ in range(len(self.places) + 2):
            forked = self.spawning.fork_wanted()
            if not self._dirty:
                break
            if not self._write_record(forked):
                break
            self.endings.reap()
            self.endings.collect_orphans()
        self.memory.settle()
        self.settled()

    def _write_record(self, forked: list[Place]) -> bool:
        try:
            if not self._retired:
                record.write(self.directory, self._record())
        except OSError as error:
            words = f"record of its state: {os.strerror(error.errno or 0)}"
            if self._record_timer is None:
                self._record_timer = self.loop.call_in(_RECORD_AGAIN_S, self._record_again)
            self.spawning.abandon(forked, process.Failure(words, error.errno or 0))
            return False
        self._dirty = False
        if self._record_timer is not None:
            self._record_timer.cancel()
            self._record_timer = None
        self.spawning.release(forked)
        return True

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
            # Our own orphans too: unmarked ones, told apart from those of other jobs only here.
            inherited=tuple(
                dict.fromkeys(
                    [*self.family.inherited, *self.family.own_orphans(self.places.values())]
                )
            )[:MAX_INHERITED],
            next_notice=self.notices.next_number,
            places=tuple(
                place.record(_MOST_ASKED // len(self.places)) for place in self.places.values()
            ),
            notices=self.notices.records(),
        )

    # telling ------------------------------------------------------------------------------------

    def notice(self, place: Place, event: str, **fields: object) -> None:
        """Something for the audit log."""
        cause = {"cause": place.cause} if place.cause else {}
        self.notices.add(event, number=place.number, **fields, **cause)
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
                reason=_what(why),
            )

    def _not_rotated(self, number: int, stream: str, why: OSError) -> None:
        place = self.places.get(number)
        if place is not None:
            self.notice(place, "output.rotate_failed", stream=stream, reason=_what(why))

    # ending -------------------------------------------------------------------------------------

    def idle(self) -> bool:
        """Whether nothing of the job lives and nothing is about to."""
        return all(place.phase in lifecycle.IDLE for place in self.places.values())

    def of_instance(self, instance: str) -> None:
        """Go by the mark that processes which run already have in their environment."""
        self.instance = instance
        self.family = Family(instance)

    def inherit(
        self, processes: tuple[tuple[int, int], ...], denied: tuple[tuple[int, int], ...]
    ) -> None:
        """Take for the job's own what its dead watchdog had, and not what is another job's."""
        self.family.denied = frozenset(denied)
        self.family.told(processes, MAX_INHERITED)
        self._dirty = True

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
        self.memory.forget()
        record.remove(self.directory)
        self._retired = True


def _what(why: OSError) -> str:
    """What is wrong with an output file, and with which where that is known."""
    where = f"{why.filename}: " if why.filename else ""
    return f"{where}{logfolder.words(why)}"


def last_exit(place: Place) -> str:
    """How the last process of the place ended, in words; empty where none has."""
    if place.exit_unknown:
        return "last exit unknown"
    why = f", {place.exit_why}" if place.exit_why else ""
    if place.exit_signal is not None:
        return f"last ended by signal {place.exit_signal}{why}"
    return "" if place.exit_code is None else f"last exit code {place.exit_code}{why}"
