"""Processes that come and go without end, in a log that only remembers, on a clock of the test."""

from __future__ import annotations

import pytest

from taskmaster.audit import Event
from taskmaster.control.churn import BURST, TELL_S, Churn
from taskmaster.eventloop import EventLoop

A_DAY = 256 << 20
FIELDS = {"number": 0, "pid": 7}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Log:
    def __init__(self) -> None:
        self.records: list[tuple[Event, dict]] = []

    def put(self, event, fields):
        self.records.append((event, fields))
        return 300

    def record(self, event, **fields):
        self.records.append((event, fields))


@pytest.fixture
def world():
    clock, log = Clock(), Log()
    loop = EventLoop(clock)
    yield clock, log, loop, Churn(loop, log, A_DAY, lambda: 0.0)
    loop.close()


def test_churn_is_counted(world):
    """A burst is recorded one by one, then a share of the log; all the rest is counted, by user and event."""
    clock, log, loop, churn = world
    for second in range(300):
        for number in range(300):
            churn.record(Event.PROCESS_EXITED, f"j{number}", "www-data", FIELDS)
        clock.now += 1
        turned = loop.call_in(0, lambda: None)
        loop.turn()
        turned.cancel()
        assert second >= 0
    churn.flush()
    told = [fields for event, fields in log.records if event is Event.PROCESS_COUNTED]
    single = len(log.records) - len(told)
    assert single + sum(fields["count"] for fields in told) == 90_000
    assert single * 300 < BURST + 310 * A_DAY / 86_400
    assert len(told) <= 300 / TELL_S + 1
    assert {(one["what"], one["user"]) for one in told} == {("process.exited", "www-data")}


@pytest.mark.parametrize(
    ("runas", "fields"),
    [
        ("", FIELDS),
        ("root", FIELDS),
        ("root:adm", FIELDS),
        ("www-data", {**FIELDS, "cause": "x-1"}),
    ],
)
def test_what_is_never_counted(world, runas, fields):
    """Jobs of root and of the daemon's user; and what a command has caused, which is charged to its giver."""
    _, log, _, churn = world
    for _ in range(20_000):
        churn.record(Event.PROCESS_EXITED, "web", runas, fields)
    assert len(log.records) == 20_000


def test_one_user_hides_no_other(world):
    """However much one user's jobs tell, another's are on record."""
    _, log, _, churn = world
    for _ in range(20_000):
        churn.record(Event.PROCESS_EXITED, "web", "www-data", FIELDS)
    churn.record(Event.PROCESS_EXITED, "db", "postgres:postgres", FIELDS)
    assert log.records[-1] == (Event.PROCESS_EXITED, {"job": "db", **FIELDS})
