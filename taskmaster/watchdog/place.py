"""A place: where one process of the job runs, and what is known of the one that does or last did.

Only values; ``runner`` moves them. A job with ``procNr`` 3 has places 0, 1 and 2, whichever processes come
and go in them.
"""

from __future__ import annotations

import itertools

from taskmaster.core.events import Timer as TimerKind
from taskmaster.core.lifecycle import Phase, Process, timer_of
from taskmaster.eventloop import Timer, Watch
from taskmaster.watchdog.pace import Pace
from taskmaster.watchdog.process import Child
from taskmaster.watchdog.record import PlaceRecord
from taskmaster.wire.link import ProcessStatus


class Place:
    """One place. Times ``up_at`` and ``due_at`` are monotonic, ``since_s`` is wall-clock seconds.

    ``pid`` and ``start`` name the process while it lives, or has ended and is not yet accounted for.
    ``ended``: it has, and what it had started is still being stopped. ``asking``: it has, and how is being
    found out from the control plane.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.process = Process()
        self.pid: int | None = None
        self.start: int | None = None
        self.session: int | None = None
        self.since_s = 0.0
        self.up_at: float | None = None
        self.due_at: float | None = None
        self.restarts = 0
        self.exit_code: int | None = None
        self.exit_signal: int | None = None
        self.exit_unknown = False
        #: Why the last one was ended, where nobody had asked for that.
        self.exit_why = ""
        #: It takes more memory than it may, and is killed for that.
        self.over = False
        #: How many processes an ended one has left behind, and pids of some of them.
        self.left = 0
        self.left_pids: tuple[int, ...] = ()
        self.error = ""
        #: What of it may not be signalled, in words.
        self.refused = ""
        #: The audit log's id of the command that it is on its way for; empty once it has settled.
        self.cause = ""

        #: Bytes in RAM as last told, and who keeps them within memoryMax.
        self.memory: int | None = None
        self.memory_by: str | None = None

        self.ended = False
        self.asking = False
        self.own_child = False
        self.wants_spawn = False
        #: It is becoming a program that is not wanted any more.
        self.outdated = False
        #: SIGKILL and not the stop signal is what belongs to it gets from now on.
        self.killing = False
        #: The stop signal of the stop that is under way, of the definition that it began under; 0 without one.
        self.stop_signal = 0
        #: What has had that signal, by pid and start time.
        self.asked: set[tuple[int, int]] = set()
        #: That what outlived the main process was asked to end is on record.
        self.rest_told = False
        self.changed = True
        self.child: Child | None = None
        self.report: Watch | None = None
        self.held = -1  # a pidfd
        self.watch: Watch | None = None
        self.timer: Timer | None = None
        self.grace: Timer | None = None
        #: When one looks next for what is left of it.
        self.pace = Pace()
        self.looking: Timer | None = None

    @property
    def phase(self) -> Phase:
        """Where the process stands."""
        return self.process.phase

    def record(self, most_asked: int) -> PlaceRecord:
        """The place as a replacement has to find it; of ``asked`` at most so many, the others are asked again."""
        return PlaceRecord(
            number=self.number,
            process=self.process,
            pid=self.pid,
            start=self.start,
            session=self.session,
            since_s=self.since_s,
            up_at=self.up_at,
            due_at=self.due_at,
            restarts=self.restarts,
            exit_code=self.exit_code,
            exit_signal=self.exit_signal,
            exit_unknown=self.exit_unknown,
            exit_why=self.exit_why,
            over=self.over,
            ended=self.ended,
            left=self.left,
            left_pids=self.left_pids,
            killing=self.killing,
            stop_signal=self.stop_signal,
            asked=tuple(itertools.islice(self.asked, most_asked)),
            error=self.error,
            cause=self.cause,
        )

    @classmethod
    def recorded(cls, found: PlaceRecord) -> Place:
        """The place that a dead watchdog recorded."""
        place = cls(found.number)
        place.process = found.process
        place.pid, place.start, place.session = found.pid, found.start, found.session
        place.since_s, place.up_at, place.due_at = found.since_s, found.up_at, found.due_at
        place.restarts = found.restarts
        place.exit_code, place.exit_signal = found.exit_code, found.exit_signal
        place.exit_unknown = found.exit_unknown
        place.exit_why, place.over = found.exit_why, found.over
        place.ended, place.left, place.error = found.ended, found.left, found.error
        place.left_pids, place.killing = found.left_pids, found.killing
        place.stop_signal, place.asked = found.stop_signal, set(found.asked)
        place.cause = found.cause
        return place

    def status(self) -> ProcessStatus:
        """The place as clients are told of it."""
        timer = timer_of(self.process)
        alive = self.pid is not None and self.child is None
        return ProcessStatus(
            number=self.number,
            state=self.phase.state,
            desired=self.process.desired,
            pid=self.pid if alive else None,
            start=self.start if alive else None,
            since_s=self.since_s,
            up_at=self.up_at if alive else None,
            restarts=self.restarts,
            exit_code=self.exit_code,
            exit_signal=self.exit_signal,
            exit_unknown=self.exit_unknown,
            exit_why=self.exit_why,
            memory=self.memory if alive else None,
            memory_by=self.memory_by,
            failures=self.process.failures,
            crashes=self.process.crashes,
            retry_at=self.due_at if timer is TimerKind.RETRY else None,
            kill_at=self.due_at if timer is TimerKind.KILL else None,
            left=self.left,
            left_pids=self.left_pids,
            error=self.error,
            refused=self.refused,
        )
