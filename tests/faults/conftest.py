"""The bystander of every fault: a job that nothing is done to, and what must hold of it whatever fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from running import Daemon, process_start, wait_for

#: A status answered later than this was held up. A busy machine of 2 cores needs 0.1 s at its worst.
IN_TIME_S = 2.0


class Bystander:
    """A job of ``daemon`` beside those that a test plays with. Its file is written before the daemon starts."""

    name = "bystander"

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._pid = 0
        self._start: int | None = None
        daemon.job(self.name, ["sleep", "1000"], stdout=None, stderr=None)

    def begins(self) -> None:
        """It runs: from now on it must not notice anything."""
        self._daemon.wait_state(self.name, "RUNNING")
        (self._pid,) = self._daemon.pids(self.name)
        self._start = process_start(self._pid)
        assert self._start is not None

    def runs_on(self) -> None:
        """Its process is the same, whether or not there is a daemon to ask."""
        assert process_start(self._pid) == self._start

    def notices_nothing(self) -> None:
        """Its process is the same, and its status is answered in time."""
        self.runs_on()
        began = time.monotonic()
        status = self._daemon.status(self.name)
        took_s = time.monotonic() - began
        assert took_s < IN_TIME_S
        assert (status["state"], status["processes"][0]["pid"]) == ("RUNNING", self._pid)
        assert status["processes"][0]["restarts"] == 0

    def is_found_again(self) -> None:
        """As ``notices_nothing``, once a new control plane or watchdog has met it."""
        self._daemon.wait_state(self.name, "RUNNING")
        self.notices_nothing()

    def was_started_once(self) -> None:
        """And the audit log tells of one start."""
        wait_for(lambda: self._daemon.events("process.started", job=self.name))
        (record,) = self._daemon.events("process.started", job=self.name)
        assert record["pid"] == self._pid


@pytest.fixture
def bystander() -> Iterator[Callable[[Daemon], Bystander]]:
    """Give a daemon, not started yet, a bystander; at the end of the test it has noticed nothing."""
    made: list[Bystander] = []

    def of(daemon: Daemon) -> Bystander:
        made.append(Bystander(daemon))
        return made[-1]

    yield of
    for one in made:
        one.is_found_again()
        one.was_started_once()
