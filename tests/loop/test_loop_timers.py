"""Timers: in order, never early, never after cancel, and without a wake-up that nobody asked for."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskmaster.eventloop import EventLoop, Timer


class Clock:
    """Time that moves only when it is told to."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


class Timed:
    """A loop on a clock of its own. One descriptor is always ready, so that a turn never waits."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.loop = EventLoop(self.clock)
        self._ends = os.pipe()
        os.write(self._ends[1], b"x")
        self.loop.watch(self._ends[0], lambda: None)

    def advance(self, seconds: float) -> None:
        """Let time pass, then serve what is due."""
        self.clock.time += seconds
        self.loop.turn()

    def close(self) -> None:
        self.loop.close()
        for fd in self._ends:
            os.close(fd)


@pytest.fixture
def timed() -> Iterator[Timed]:
    """A loop on a clock of its own."""
    timed = Timed()
    yield timed
    timed.close()


def kept_timers() -> int:
    return sum(type(one) is Timer for one in gc.get_objects())


#: Arm so many with this delay; cancel these (by place among those armed); let time pass.
Arm = st.tuples(st.just("arm"), st.integers(1, 90), st.integers(0, 20))
Cancel = st.tuples(st.just("cancel"), st.integers(0, 300), st.integers(1, 90))
Pass = st.tuples(st.just("pass"), st.integers(0, 12), st.just(0))


@settings(deadline=None, max_examples=120)
@given(st.lists(st.one_of(Arm, Cancel, Pass), max_size=25))
def test_any_history_of_timers(history: list[tuple[str, int, int]]) -> None:
    """Whatever was armed and cancelled before: each live timer fires once, by time, then by arming."""
    timed = Timed()
    timers: list[Timer] = []
    fired: list[int] = []
    pending: dict[int, float] = {}
    expected: list[int] = []
    for what, first, second in history:
        if what == "arm":
            for _ in range(first):
                number = len(timers)
                timers.append(
                    timed.loop.call_in(second, lambda number=number: fired.append(number))
                )
                pending[number] = timed.clock.time + second
        elif what == "cancel":
            for number in range(first, min(first + second, len(timers))):
                timers[number].cancel()
                pending.pop(number, None)
        else:
            timed.advance(first)
            due = [number for number, when in pending.items() if when <= timed.clock.time]
            expected += sorted(due, key=lambda number: (pending[number], number))
            for number in due:
                del pending[number]
        assert fired == expected
        assert {number for number, timer in enumerate(timers) if timer.armed} == set(pending)
    timed.close()


def test_a_timer_armed_by_a_timer_waits_for_the_next_turn(timed: Timed) -> None:
    """A chain of timers without delay cannot keep the loop from its descriptors."""
    fired = []

    def again() -> None:
        fired.append(timed.clock.time)
        timed.loop.call_in(0, again)

    timed.loop.call_in(1, again)
    timed.advance(0.99)
    assert fired == []
    for turns in range(1, 4):
        timed.advance(0.01)
        assert len(fired) == turns


def test_a_due_timer_cancelled_by_another(timed: Timed) -> None:
    """Of two due in one turn, the first may still call the second off; the books stay right."""
    fired = []
    for _ in range(500):
        second = timed.loop.call_in(1, lambda: fired.append("cancelled"))
        timed.loop.call_at(second.when - 0.5, second.cancel)
        timed.advance(2)
        assert not second.armed
    live = [timed.loop.call_in(1, lambda number=n: fired.append(number)) for n in range(100)]
    for timer in live[::2]:
        timer.cancel()
    timed.advance(1)
    assert fired == list(range(1, 100, 2))


def test_cancelled_timers_are_swept(timed: Timed) -> None:
    """A job restarted for weeks arms and cancels without end: the dead are not kept."""
    before = kept_timers()
    fired = []
    live = [timed.loop.call_in(500 + n, lambda number=n: fired.append(number)) for n in range(20)]
    for n in range(5000):
        timed.loop.call_in(1000 + n, lambda: fired.append(-1)).cancel()
        if n % 50 == 0:
            timed.advance(0)
    assert kept_timers() - before < 200
    timed.advance(600)
    assert fired == list(range(20))
    assert not any(timer.armed for timer in live)


@pytest.mark.parametrize("delay", [31_536_000.0, 1e12, 1e308, math.inf])
def test_a_timer_that_is_far_away(timed: Timed, delay: float) -> None:
    """The longest stopTime there may be (a year) is longer than epoll can wait; it is no error."""
    fired: list[str] = []
    far = timed.loop.call_in(delay, lambda: fired.append("far"))
    timed.loop.turn()
    timed.loop.call_in(1, lambda: fired.append("near"))
    timed.advance(1)
    timed.loop.turn()
    assert fired == ["near"]
    assert far.armed
    timed.advance(delay)
    assert fired == ["near", "far"]


def test_never_early_and_never_awake_for_nothing(loop: EventLoop) -> None:
    """On the real clock: a timer is not early, and the loop sleeps until it is due."""
    turns = []
    fired = []
    loop.after_turn = lambda: turns.append(loop.now())
    due = loop.now() + 0.15

    def last() -> None:
        fired.append(loop.now())
        loop.stop()

    loop.call_at(due, last)
    loop.call_in(0.05, lambda: fired.append(0.0)).cancel()
    loop.run()
    assert len(fired) == 1
    assert fired[0] >= due
    assert len(turns) <= 2
