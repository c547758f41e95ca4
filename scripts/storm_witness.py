"""The observer of a storm: it reads the ledgers of the job programs while they write them.

Beside the ledgers it believes only the kernel: a process that is in a ledger is held by a pidfd, so that
its end is seen even where it could not write one down.
"""

from __future__ import annotations

import dataclasses
import json
import os
import select
import threading
import time
from pathlib import Path
from typing import Any, Final

from storm_host import look
from storm_jobs import StormJob

_TICK_S: Final = 0.03


@dataclasses.dataclass
class Life:
    """One process by its own account. ``exit`` is its last entry; ``dead_at``: when its end was seen.

    ``role``: main, or daemon for the double-forked child of ``of``. ``through``: how many lines it has
    noted as written. Times are monotonic.
    """

    job: str
    number: int
    role: str
    pid: int
    start: int
    at: float
    ppid: int
    of: int
    held: int
    through: int = 0
    exit: dict[str, Any] | None = None
    dead_at: float | None = None

    @property
    def ended_at(self) -> float | None:
        """When it ended, as near as is known: its own word, or when it was seen to be gone."""
        return self.exit["at"] if self.exit else self.dead_at

    @property
    def by_itself(self) -> bool:
        """Whether it ended of its own accord."""
        return self.exit is not None and self.exit["why"] == "self"

    def __str__(self) -> str:
        ended = "lives"
        if self.exit is not None:
            ended = "exit {at:.3f} code {code} signal {signal} ({why})".format(**self.exit)
        elif self.dead_at is not None:
            ended = f"seen dead {self.dead_at:.3f}, without a word"
        role = "" if self.role == "main" else f" ({self.role} of {self.of})"
        return f"{self.job}.{self.number}{role} pid {self.pid} start {self.at:.3f} {ended}"


class Witness:
    """Follows all ledgers in ``folder``. ``violations``: what was seen at once; ``lives``: all processes."""

    def __init__(self, folder: Path, jobs: list[StormJob]) -> None:
        self._folder = folder
        self._jobs = {job.name: job for job in jobs}
        self._read: dict[str, tuple[int, bytes]] = {}
        self._current: dict[tuple[str, int], Life] = {}
        self._held: dict[int, Life] = {}
        self._poll = select.epoll()
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.lives: list[Life] = []
        self.torn = 0
        self.violations: list[str] = []
        #: From now on every end is an ordered one.
        self.ending_at: float | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Read what is left, and end."""
        self._over.set()
        self._thread.join()
        self._turn()
        for pidfd in self._held:
            os.close(pidfd)
        self._poll.close()

    def living(self) -> list[Life]:
        """All that have not been seen dead."""
        with self._lock:
            return [life for life in self.lives if life.dead_at is None]

    def _run(self) -> None:
        while not self._over.wait(_TICK_S):
            try:
                with self._lock:
                    self._turn()
            except Exception as error:  # noqa: BLE001  nobody else would see it
                self.violations.append(f"the observer itself failed: {error!r}")
                return

    def _turn(self) -> None:
        # First who is dead, then what the ledgers say: so the last word of a dead one has been read.
        dead = [self._held.pop(fd) for fd, _ in self._forget(self._poll.poll(0))]
        now = time.monotonic()
        self._follow()
        for life in dead:
            life.dead_at = now
            self._judge_end(life)

    def _forget(self, events: list[tuple[int, int]]) -> list[tuple[int, int]]:
        for fd, _ in events:
            self._poll.unregister(fd)
            os.close(fd)
        return events

    def _follow(self) -> None:
        for entry in os.scandir(self._folder):
            if entry.name.endswith(".lock"):
                continue
            offset, rest = self._read.get(entry.name, (0, b""))
            if entry.stat().st_size == offset:
                continue
            with open(entry.path, "rb") as file:
                file.seek(offset)
                data = file.read()
            lines = (rest + data).split(b"\n")
            self._read[entry.name] = offset + len(data), lines.pop()
            for line in lines:
                if line:
                    self._entry(entry.name, line)

    def _entry(self, name: str, line: bytes) -> None:
        try:
            said = json.loads(line)
        except ValueError:
            self.torn += 1  # cut short by a SIGKILL
            return
        event, pid = said.pop("event"), said["pid"]
        if event == "start":
            self._began(name, Life(**said))
            return
        life = self._current[name, pid]
        life.through = said["through"]
        if event == "exit":
            life.exit = said

    def _began(self, name: str, life: Life) -> None:
        self._current[name, life.pid] = life
        self.lives.append(life)
        if life.held:
            before = self._current.get((name, life.held))
            self.violations.append(
                f"started while its predecessor lived: {life}; the lock of its place was held by {before}"
            )
        try:
            pidfd = os.pidfd_open(life.pid)
        except ProcessLookupError:
            pidfd = -1
        now = look(life.pid)
        if pidfd >= 0 and now is not None and now.start == life.start:
            self._held[pidfd] = life
            self._poll.register(pidfd, select.EPOLLIN)
            return
        if pidfd >= 0:
            os.close(pidfd)
        life.dead_at = time.monotonic()

    def _judge_end(self, life: Life) -> None:
        """A process that nobody may end has ended: by itself, or is that a violation?"""
        if life.role != "main" or life.by_itself or not self._jobs[life.job].spared:
            return
        if self.ending_at is None or (life.ended_at or 0) < self.ending_at:
            self.violations.append(f"killed, and nobody had asked for it: {life}")
