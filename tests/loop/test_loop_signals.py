"""Signals reach the program from the loop, never in the middle of other code, and none gets lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from taskmaster.eventloop import EventLoop

NUMBERS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
Until = Callable[[Callable[[], object]], None]


@pytest.fixture
def told(loop: EventLoop) -> Iterator[list[int]]:
    """The signals that the loop told of; the handlers of before are put back."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    told: list[int] = []
    for number in NUMBERS:
        loop.on_signal(number, lambda number=number: told.append(number))
    yield told
    for number, handler in before.items():
        signal.signal(number, handler)


def test_told_from_the_loop(loop: EventLoop, told: list[int], until: Until) -> None:
    """Nothing happens where the signal strikes; several of one kind are one."""
    for number in (*NUMBERS, *NUMBERS):
        signal.raise_signal(number)
    assert told == []
    until(lambda: len(told) >= len(NUMBERS))
    timer = loop.call_in(0, lambda: None)
    loop.turn()
    assert not timer.armed
    assert sorted(told) == sorted(NUMBERS)


def test_a_signal_wakes_a_loop_that_waits_for_nothing_else(
    loop: EventLoop, told: list[int]
) -> None:
    """No timer, no other descriptor: the loop sleeps until another process sends the signal."""
    parent = os.getpid()
    loop.after_turn = lambda: loop.stop() if told else None
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        os.kill(parent, signal.SIGUSR2)
        os._exit(0)
    loop.run()
    os.waitpid(pid, 0)
    assert told == [signal.SIGUSR2]


def test_a_flood_of_one_does_not_hide_another(
    loop: EventLoop, told: list[int], until: Until
) -> None:
    """More signals than the wake-up pipe holds, then SIGTERM: it is told all the same."""
    for _ in range(70_000):
        signal.raise_signal(signal.SIGUSR1)
    signal.raise_signal(signal.SIGTERM)
    until(lambda: signal.SIGUSR1 in told)
    timer = loop.call_in(0.2, lambda: None)
    until(lambda: signal.SIGTERM in told or not timer.armed)
    assert signal.SIGTERM in told


def test_close_lets_go_of_the_signals(told: list[int], loop: EventLoop) -> None:
    """A signal after that writes into no descriptor, whoever has its number by then."""
    loop.close()
    signal.raise_signal(signal.SIGUSR1)
    assert signal.set_wakeup_fd(-1) == -1
    assert told == []
