"""A job as the control plane knows it: its definition, its watchdog, and what that last published.

Status is answered from here, without a round trip. Nothing here forks, reads files or talks to clients.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from taskmaster.core.spec import JobSpec
from taskmaster.core.states import SETTLED, Desired, State, job_state
from taskmaster.wire.link import ProcessStatus, Published

if TYPE_CHECKING:
    from taskmaster.control.launch import Child
    from taskmaster.control.link import Link, Requests
    from taskmaster.control.stops import Stopped
    from taskmaster.control.witness import Witness
    from taskmaster.eventloop import Timer, Watch


#: Why a watchdog leaves that runs an older program.
REPLACED: Final = "replaced by one of the new program"


class Watchdog:
    """A watchdog that lives, or did. ``process`` is None for one that is not our child."""

    def __init__(self, pid: int, process: Child | None, pidfd: int) -> None:
        self.pid = pid
        self.process = process
        self.pidfd = pidfd
        self.watch: Watch | None = None
        self.link: Link | None = None
        self.attached_at: float | None = None
        self.leaving = ""
        self.greeting: Timer | None = None


class Job:
    """One job. ``spec`` is None while its file has never been usable; ``problem`` then says why.

    ``problem`` beside a ``spec``: the file on disk cannot be used, and the definition in force stays.
    """

    def __init__(self, name: str) -> None:
        #: Grows with every change, so that what was made of the job can be told to be old.
        self.version = 0
        self.name = name
        #: Wall-clock seconds: since when the job is known.
        self.known_s = time.time()
        self.spec: JobSpec | None = None
        self.sha256 = ""
        self.stamp: tuple[int, int, int, int] | None = None
        self.problem = ""
        #: Its file is unusable and its watchdog is to say which definition is in force.
        self.asks_spec = False
        #: It runs on although neither it nor any job of before had a file when the daemon started.
        self.unfiled = False
        #: There is a state folder from before this daemon: something of it may run, recorded or not.
        self.had_state = False
        #: The successor of a watchdog that has been asked to leave, and the descriptor of its link.
        self.standby: tuple[Watchdog, int] | None = None

        self.directory = -1
        self.pipes: dict[str, int] = {}
        self.watchdog: Watchdog | None = None
        self.requests: Requests
        self.witness: Witness
        self.foreign = False
        #: What dead watchdogs of this job had and left to this process, by pid and start time.
        self.inherited: dict[int, int] = {}
        #: What bears this job's mark and is another's.
        self.denied: dict[int, int] = {}
        #: Its watchdog is to be told of a change of these.
        self.heirs_timer: Timer | None = None
        #: Orphans that may be of this job or of another: nobody can say.
        self.doubtful: tuple[int, ...] = ()
        #: Whether it has lost a watchdog to this process: its orphans may be this process's children.
        self.bereft = False
        #: The random mark in the environment of its processes, as its watchdog says.
        self.instance = ""
        self.ledger = ""
        self.noticed_through = 0
        self.statuses: dict[int, ProcessStatus] = {}
        self.since_s: dict[int, str] = {}
        self.heard = False
        self.silent = False
        self.dropped_bytes = 0
        #: How often a watchdog of this job was replaced, and how often in a row.
        self.relaunches = 0
        self.losses = 0
        self.relaunch_timer: Timer | None = None
        self.silence_timer: Timer | None = None
        self.trouble = ""
        self.removing = False
        #: Called once, when its watchdog has said how things stand.
        self.on_attached: Callable[[], object] | None = None
        #: Who stopped it, if an administrator did and nobody started it since.
        self.stopped: Stopped | None = None

        #: Operations of several steps (push, reload, delete) go one after the other; what would see the job
        #: halfway waits behind them.
        self.busy = False
        self.queue: deque[tuple[Callable[[], None], Callable[[str], None]]] = deque()
        #: Called when it may have reached another state; each takes itself out (``watch``).
        self._watchers: dict[Callable[[], object], None] = {}
        self._settled: tuple[int, bool] = (-1, False)

    def __setattr__(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)
        if name != "version":
            object.__setattr__(self, "version", self.__dict__.get("version", 0) + 1)

    @property
    def attached(self) -> bool:
        """Whether its watchdog can be talked to and has said how things stand."""
        return (
            self.watchdog is not None
            and self.watchdog.link is not None
            and self.heard
            and not self.silent
        )

    @property
    def watchdog_state(self) -> str:
        """ATTACHED, LOST or UNRESPONSIVE."""
        if self.silent:
            return "UNRESPONSIVE"
        return "ATTACHED" if self.attached else "LOST"

    def wanted(self) -> list[ProcessStatus]:
        """The status of each process there should be, and of each there still is, by number."""
        wanted = 0 if self.spec is None else self.spec.proc_nr
        numbers = sorted({*range(wanted), *self.statuses})
        never = State.STOPPED
        return [
            self.statuses.get(number)
            or ProcessStatus(number, never, Desired.DOWN, since_s=self.known_s)
            for number in numbers
        ]

    @property
    def state(self) -> State:
        """The state of the job."""
        if self.spec is None:
            return State.FATAL
        if not self.attached:
            return State.UNKNOWN
        return job_state(status.state for status in self.wanted())

    def settled(self) -> bool:
        """Whether nothing more will happen by itself."""
        if self.spec is None:
            return True
        version, settled = self._settled
        if version != self.version:
            # Once for all who wait for it: of a thousand processes it takes a while to tell.
            settled = all(status.state in SETTLED for status in self.wanted())
            self.__dict__["_settled"] = (self.version, settled)
        return settled and self.attached

    def publish(self, message: Published) -> None:
        """The watchdog says how its processes stand."""
        if message.full:
            self.statuses.clear()
        for number in message.removed:
            self.statuses.pop(number, None)
        for status in message.processes:
            self.statuses[status.number] = status
        self.dropped_bytes = message.dropped_bytes
        self.heard = True  # assigned last: what was made of the job before is old now
        self.look()

    def look(self) -> None:
        """Let everybody who waits for a state of this job look at it."""
        for watcher in list(self._watchers):
            if watcher in self._watchers:
                watcher()

    def watch(self, watcher: Callable[[], object]) -> Callable[[], None]:
        """Have ``watcher`` called when it may be in another state, until what this returns is called."""
        self._watchers[watcher] = None
        return lambda: self._watchers.pop(watcher, None)

    def run(self, operation: Callable[[], None], refused: Callable[[str], None]) -> None:
        """Run an operation now, or when those before it are done; ``refused`` is told why it never will."""
        if self.busy or self.queue:
            self.queue.append((operation, refused))
        else:
            operation()

    def refuse_all(self, why: str) -> None:
        """Nothing that waits behind an operation will be begun any more."""
        waiting, self.queue = self.queue, deque()
        for _, refused in waiting:
            refused(why)

    def begin(self) -> None:
        """An operation of several steps is under way."""
        self.busy = True

    def end(self) -> None:
        """It is over; what waited behind it goes on."""
        self.busy = False
        while self.queue and not self.busy:
            operation, _ = self.queue.popleft()
            operation()

    def close_pipes(self, wanted: set[str]) -> None:
        """Let go of all pipes that are not wanted any more."""
        for name in self.pipes.keys() - wanted:
            os.close(self.pipes.pop(name))
