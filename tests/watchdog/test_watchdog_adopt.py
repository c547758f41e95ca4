"""A replacement goes on with a stop: its deadline, who was asked, and what it waits for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from watchdog_children import isolated

from taskmaster import procfs
from taskmaster.core.lifecycle import Phase, Process
from taskmaster.core.spec import JobSpec
from taskmaster.core.states import Desired
from taskmaster.eventloop import EventLoop
from taskmaster.watchdog import record
from taskmaster.watchdog.adopt import adopt
from taskmaster.watchdog.place import Place
from taskmaster.watchdog.record import PlaceRecord, StateRecord
from taskmaster.watchdog.runner import Runner

UP, DOWN = Desired.UP, Desired.DOWN
SPEC = JobSpec("web", ("/bin/sleep", "1000"), stdout=None, stderr=None, stop_time_s=100)


def gone() -> int:
    """The number of a process that has ended and was reaped."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def found(*places: PlaceRecord) -> StateRecord:
    return StateRecord(record.FORMAT, "web", procfs.boot_id(), "i", "l", SPEC, "", 0, (), 1, places)


def adopted(directory: int, logs: Path, place: PlaceRecord) -> Place:
    null = os.open("/dev/null", os.O_RDWR)
    runner = Runner(EventLoop(), directory, SPEC, "", (), null, str(logs))
    adopt(runner, found(place))
    return runner.places[place.number]


@pytest.mark.parametrize(
    ("process", "with_process"),
    [
        (Process(Phase.STOPPING, DOWN), True),
        (Process(Phase.STOPPING, UP), True),
        (Process(Phase.STOPPING, DOWN), False),
        (Process(Phase.CLEARING, UP), False),
        (Process(Phase.SPAWNING, DOWN), True),
        (Process(Phase.SPAWNING, UP, urgent=True), True),
    ],
    ids=repr,
)
def test_the_deadline_of_a_stop(
    directory: int, tmp_path: Path, process: Process, with_process: bool
) -> None:
    """It is that of the record, also where the main process is gone by now, for what is left of it."""
    due_at = time.monotonic() + 50

    def watchdog() -> list[Any]:
        pid = gone() if with_process else None
        start = 1 if with_process else None
        place = adopted(
            directory, tmp_path, PlaceRecord(0, process, pid=pid, start=start, due_at=due_at)
        )
        return [place.timer is not None, place.due_at]

    assert isolated(watchdog) == [True, due_at]


@pytest.mark.parametrize(
    ("due_in_s", "armed_in_s"), [(10_000_000.0, 100), (-5.0, -5), (None, 0)], ids=repr
)
def test_a_deadline_that_cannot_be(
    directory: int, tmp_path: Path, due_in_s: float | None, armed_in_s: float
) -> None:
    """A record is believed only as far as such a deadline could have been set."""

    def watchdog() -> float:
        now = time.monotonic()
        due_at = None if due_in_s is None else now + due_in_s
        process = Process(Phase.CLEARING, UP)
        place = adopted(directory, tmp_path, PlaceRecord(0, process, due_at=due_at))
        assert place.due_at is not None
        return place.due_at - now

    assert isolated(watchdog) == pytest.approx(armed_in_s, abs=5)


def test_who_was_asked(directory: int, tmp_path: Path) -> None:
    """Nobody is asked twice, and what gets SIGKILL by now goes on to."""

    def watchdog() -> list[Any]:
        process = Process(Phase.CLEARING, UP)
        place = adopted(
            directory,
            tmp_path,
            PlaceRecord(
                0, process, left=2, left_pids=(8, 9), killing=True, stop_signal=3, asked=((8, 80),)
            ),
        )
        return [place.killing, place.stop_signal, sorted(place.asked), place.left, place.ended]

    assert isolated(watchdog) == [True, 3, [[8, 80]], 2, True]


@pytest.mark.parametrize(
    "place",
    [
        PlaceRecord(0, Process(Phase.CLEARING, UP), pid=5, start=50),
        PlaceRecord(0, Process(Phase.STOPPING, UP), stop_signal=-1),
        PlaceRecord(0, Process(Phase.STOPPING, UP), stop_signal=65),
    ],
    ids=repr,
)
def test_a_record_that_cannot_be(
    directory: int, place: PlaceRecord, read_record: Callable[[StateRecord], object]
) -> None:
    """What no watchdog writes is refused: a process where one is only waited for, a signal that there is not."""
    with pytest.raises(record.UnusableRecord):
        read_record(found(place))


@pytest.fixture
def read_record(directory: int) -> Callable[[StateRecord], object]:
    """Write a record and read it as a replacement does."""

    def read(one: StateRecord) -> object:
        record.write(directory, one)
        return record.read(directory, "web", procfs.boot_id())

    return read
