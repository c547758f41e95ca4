"""A child that hangs between fork and exec: a stop ends it at stopTime, a start takes the stop back."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from watchdog_children import DEADLINE_S, isolated

from taskmaster.core.events import Event, Kill, Start, Stop
from taskmaster.core.lifecycle import Phase
from taskmaster.core.spec import JobSpec
from taskmaster.eventloop import EventLoop
from taskmaster.watchdog import process
from taskmaster.watchdog.runner import Runner


class Watchdog:
    """A runner whose children are stopped by a signal before they can be their program."""

    def __init__(self, directory: int, logs: Path, stop_time_s: float) -> None:
        self.loop = EventLoop()
        null = os.open("/dev/null", os.O_RDWR)
        spec = JobSpec(
            "web", ("/bin/sleep", "1000"), stdout=None, stderr=None, stop_time_s=stop_time_s
        )
        self.runner = Runner(self.loop, directory, spec, "", (), null, str(logs))
        self.loop.on_signal(signal.SIGCHLD, lambda: None)
        self.loop.after_turn = self.runner.commit
        self.place = self.runner.place(0)
        self.fork, process.fork = process.fork, self._hanging

    def _hanging(self, plan: process.Plan) -> process.Child:
        child = self.fork(plan)
        os.kill(child.pid, signal.SIGSTOP)
        return child

    def tell(self, *events: Event) -> None:
        for event in events:
            self.runner.feed(self.place, event)
        self.runner.commit()

    def until(self, phase: Phase) -> None:
        end = self.loop.now() + DEADLINE_S
        while self.place.phase is not phase:
            assert self.loop.now() < end, self.place.phase
            tick = self.loop.call_in(0.01, lambda: None)
            self.loop.turn()
            tick.cancel()

    def notices(self) -> list[tuple[str, Any]]:
        return [(one.event, one.fields.get("reason")) for one in self.runner.notices.records()]


@pytest.mark.parametrize(
    ("event", "why"), [(Stop(), "stopTime was over"), (Kill(), "asked for")], ids=["stop", "kill"]
)
def test_it_has_a_deadline(directory: int, tmp_path: Path, event: Event, why: str) -> None:
    """A stop waits for stopTime, a kill for nothing; the reason is in the log."""

    def watchdog() -> list[Any]:
        one = Watchdog(directory, tmp_path, 0.1)
        one.tell(Start())
        pid = one.place.pid
        one.runner.feed(one.place, event)
        due = one.place.status().kill_at is not None  # after the commit it may be gone already
        one.until(Phase.STOPPED)
        return [due, one.notices(), one.place.pid, os.path.exists(f"/proc/{pid}")]

    due, notices, pid, there = isolated(watchdog)
    assert due
    assert ["process.killed", why] in notices
    assert (pid, there) == (None, False)


def test_a_start_takes_the_stop_back(directory: int, tmp_path: Path) -> None:
    """No timer is left, and the child is its program once it goes on."""

    def watchdog() -> list[Any]:
        one = Watchdog(directory, tmp_path, 0.1)
        one.tell(Start())
        one.tell(Stop())
        one.tell(Start())
        due, pid = one.place.due_at, one.place.pid
        assert pid is not None
        os.kill(pid, signal.SIGCONT)
        one.until(Phase.RUNNING)
        same = one.place.pid == pid
        one.tell(Kill())
        one.until(Phase.STOPPED)
        return [due, same]

    assert isolated(watchdog) == [None, True]
