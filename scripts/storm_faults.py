"""The faults of a storm: who is killed, stopped and started again, what is broken or removed, and when."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from storm_client import Clients
from storm_host import Host, Watchdog, send
from storm_jobs import all_jobs
from storm_sabotage import STEPS, remove_state

#: The numbers in the ledger of commands of who asks for an upgrade, and for one that cannot succeed.
UPGRADER: Final = -1
SABOTEUR: Final = -4

#: Seconds without a daemon, and of a process that is stopped: some over, some under every limit.
_PAUSES_S: Final = (0.0, 0.05, 0.3, 1.0, 2.5)
_STOPPED_S: Final = (0.02, 0.3, 1.5, 4.0, 6.0)
_WEIGHTS: Final = {
    "watchdog killed": 36,
    "watchdog stopped": 12,
    "daemon killed": 14,
    "daemon stopped": 7,
    "both killed": 10,
    "all watchdogs killed": 5,
    "everything killed": 4,
    "upgrade": 10,
    "upgrade that fails": 8,
    "state removed": 8,
}
_RECORDED: Final = frozenset(job.name for job in all_jobs() if job.keys.get("logMaxBytes") == 0)
#: All kinds there are, by name.
KINDS: Final = tuple(_WEIGHTS)


@dataclasses.dataclass
class Fault:
    """What was done to one process at ``at``: ``kind`` killed, stopped or continued; ``job`` empty: the daemon.

    Or to files: ``kind`` removed, ``what`` in the job's state folder; ``kind`` sabotaged, ``what`` is the step in
    which the daemon's next program fails.
    """

    at: float
    kind: str
    job: str
    pid: int
    what: str = ""


class Faults:
    """Injects faults of these ``kinds`` until told to stop, with pauses ``pace`` times as long.

    ``ledger``: what was done.
    """

    def __init__(
        self, host: Host, clients: Clients, seed: int, pace: float, kinds: Sequence[str]
    ) -> None:
        self._host = host
        self._clients = clients
        self._pace = pace
        self._choice = random.Random(f"{seed} faults")
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._file = os.open(host.folder / "faults.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.ledger: list[Fault] = []
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self._waits_for_start = False
        self._upgrade: threading.Thread | None = None
        self._undisturbed = False
        self._weights = {kind: _WEIGHTS[kind] for kind in kinds}
        self._inject: dict[str, Callable[[], None]] = {
            "watchdog killed": self._watchdog_killed,
            "watchdog stopped": self._watchdog_stopped,
            "daemon killed": self._daemon_killed,
            "daemon stopped": self._daemon_stopped,
            "both killed": self._both_killed,
            "all watchdogs killed": self._all_watchdogs_killed,
            "everything killed": self._everything_killed,
            "upgrade": self._upgraded,
            "upgrade that fails": self._upgrade_failed,
            "state removed": self._state_removed,
        }

    def run(self, until: float, stop: Callable[[], bool]) -> None:
        """Inject faults until then, or until ``stop`` says so."""
        due = time.monotonic()
        while time.monotonic() < until and not stop():
            self._do_what_is_due()
            if not (self._host.running or self._waits_for_start):
                self.problems.append(f"the daemon ended by itself: {self._host.ended[-1]}")
                return
            if time.monotonic() >= due:
                kind = self._choice.choices(list(self._weights), list(self._weights.values()))[0]
                if self._host.running or "watchdog" in kind or "state" in kind:
                    self.counts[kind] += 1
                    self._inject[kind]()
                due = time.monotonic() + self._pace * self._choice.uniform(0.1, 0.6)
            time.sleep(0.01)

    def finish(self) -> None:
        """Undo what can be undone: continue all that is stopped, start the daemon."""
        while self._later:
            _, _, action = heapq.heappop(self._later)
            action()
        if self._upgrade is not None:
            self._upgrade.join()

    def _do_what_is_due(self) -> None:
        while self._later and self._later[0][0] <= time.monotonic():
            _, _, action = heapq.heappop(self._later)
            action()

    def _in(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + delay_s, next(self._order), action))

    def _note(self, kind: str, job: str, pid: int, what: str = "") -> None:
        fault = Fault(time.monotonic(), kind, job, pid, what)
        self.ledger.append(fault)
        os.write(self._file, json.dumps(dataclasses.asdict(fault)).encode() + b"\n")

    # the kinds ------------------------------------------------------------------------------------

    def _watchdogs(self, count: int | None) -> list[Watchdog]:
        """So many of them, at random; None: all. The others' descriptors are closed."""
        every = self._host.watchdogs()
        self._choice.shuffle(every)
        chosen = every if count is None else every[:count]
        for one in every[len(chosen) :]:
            os.close(one.pidfd)
        return chosen

    def _kill(self, watchdogs: list[Watchdog]) -> None:
        for one in watchdogs:
            self._note("killed", one.job, one.pid)
            send(one.pidfd, signal.SIGKILL)
            os.close(one.pidfd)

    def _watchdog_killed(self) -> None:
        self._kill(self._watchdogs(self._choice.choice((1, 1, 1, 2, 4))))

    def _all_watchdogs_killed(self) -> None:
        self._kill(self._watchdogs(None))

    def _watchdog_stopped(self) -> None:
        for one in self._watchdogs(1):
            self._note("stopped", one.job, one.pid)
            send(one.pidfd, signal.SIGSTOP)
            end = signal.SIGKILL if self._choice.random() < 0.3 else signal.SIGCONT

            def over(one: Watchdog = one, end: int = end) -> None:
                self._note("killed" if end == signal.SIGKILL else "continued", one.job, one.pid)
                send(one.pidfd, end)
                os.close(one.pidfd)

            self._in(self._choice.choice(_STOPPED_S), over)

    def _kill_daemon(self) -> None:
        if self._waits_for_start or (self._upgrading and self._undisturbed):
            return
        self._note("killed", "", self._host.pid)
        self._host.signal_daemon(signal.SIGKILL)
        self._waits_for_start = True
        if self._host.wait_end(30.0) is None:
            self.problems.append("the daemon did not die of SIGKILL")
        self._in(self._choice.choice(_PAUSES_S), self._start)

    def _start(self) -> None:
        self._host.start()
        self._note("started", "", self._host.pid)
        self._waits_for_start = False

    def _daemon_killed(self) -> None:
        self._kill_daemon()

    def _daemon_stopped(self) -> None:
        pid = self._host.pid
        self._note("stopped", "", pid)
        self._host.signal_daemon(signal.SIGSTOP)

        def over() -> None:
            if self._host.pid == pid and self._host.running:
                self._note("continued", "", pid)
                self._host.signal_daemon(signal.SIGCONT)

        self._in(self._choice.choice(_PAUSES_S[1:]), over)

    def _both_killed(self) -> None:
        watchdogs = self._watchdogs(self._choice.choice((1, 2, 5)))
        self._kill_in_some_order(watchdogs)

    def _everything_killed(self) -> None:
        self._kill_in_some_order(self._watchdogs(None))

    def _kill_in_some_order(self, watchdogs: list[Watchdog]) -> None:
        if self._choice.random() < 0.5:
            self._kill_daemon()
            self._kill(watchdogs)
        else:
            self._kill(watchdogs)
            time.sleep(self._choice.choice((0.0, 0.001, 0.01, 0.05)))
            self._kill_daemon()

    def _upgraded(self) -> None:
        asked = self._clients.query(UPGRADER, "upgrade", None)
        self._begin_upgrade(lambda: self._clients.ask([asked], tcp=True))

    def _upgrade_failed(self) -> None:
        step = self._choice.choice(list(STEPS))
        asked = self._clients.query(SABOTEUR, "upgrade", None)

        def upgrade() -> None:
            with self._host.product.broken(step):
                self._note("sabotaged", "", self._host.pid, step)
                self._clients.ask([asked], tcp=True)

        self._begin_upgrade(upgrade)

    def _begin_upgrade(self, upgrade: Callable[[], object]) -> None:
        """One at a time: what is asked of one program must not be tried on another.

        Two of three come to an end: on a busy machine an upgrade takes longer than a daemon lives here.
        """
        if not self._upgrading:
            self._undisturbed = self._choice.random() < 2 / 3
            self._upgrade = threading.Thread(target=upgrade, daemon=True)
            self._upgrade.start()

    @property
    def _upgrading(self) -> bool:
        return self._upgrade is not None and self._upgrade.is_alive()

    def _state_removed(self) -> None:
        done = remove_state(self._host.state / "jobs", self._choice, _RECORDED)
        if done is not None:
            self._note("removed", done[0], 0, done[1])
