"""Descriptors: what was removed is not called, not even when its number is somebody else's by then."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Callable, Iterator

import pytest

from taskmaster.eventloop import EventLoop, Watch

Until = Callable[[Callable[[], object]], None]


@pytest.fixture
def pipe() -> Iterator[Callable[[], tuple[int, int]]]:
    """Make pipes; both ends are closed afterwards."""
    made: list[int] = []

    def make() -> tuple[int, int]:
        ends = os.pipe()
        made.extend(ends)
        return ends

    yield make
    for fd in made:
        os.close(fd)


def test_a_number_reused_within_a_turn(
    loop: EventLoop, pipe: Callable[[], tuple[int, int]]
) -> None:
    """Two are ready; the first served closes the other and opens a new one of the same number."""
    calls: list[str] = []
    ends = [pipe(), pipe()]
    quiet = pipe()
    watches: list[Watch] = []

    def served(which: int) -> None:
        calls.append("old")
        os.read(ends[which][0], 1)
        number = ends[1 - which][0]
        loop.unwatch(watches[1 - which])
        os.dup2(quiet[0], number)  # closes the old one; of the new one there is nothing to be read
        loop.watch(number, lambda: calls.append("new"))

    for which, (reading, writing) in enumerate(ends):
        os.write(writing, b"x")
        watches.append(loop.watch(reading, lambda which=which: served(which)))
    loop.turn()
    assert calls == ["old"]
    os.write(quiet[1], b"x")
    loop.turn()
    assert calls == ["old", "new"]


def test_removed_between_reading_and_writing(loop: EventLoop) -> None:
    """A descriptor ready for both that its reader closes is not written to."""
    ours, theirs = socket.socketpair()
    calls = []

    def read() -> None:
        calls.append("read")
        loop.unwatch(watch)
        ours.close()

    watch = loop.watch(ours.fileno(), read, lambda: calls.append("write"))
    theirs.send(b"x")
    loop.turn()
    assert calls == ["read"]
    loop.unwatch(watch)
    theirs.close()


def test_what_is_called_can_be_changed(loop: EventLoop, until: Until) -> None:
    """Reading only, writing only, both; a change within a call holds for the rest of that turn."""
    ours, theirs = socket.socketpair()
    calls: list[str] = []
    theirs.send(b"x")

    def read() -> None:
        calls.append("read")
        loop.change(watch, read, None)

    def write() -> None:
        calls.append("write")

    watch = loop.watch(ours.fileno(), read, write)
    loop.turn()
    loop.turn()
    assert calls == ["read", "read"]
    loop.change(watch, None, write)
    loop.turn()
    assert calls.pop() == "write"
    loop.change(watch, lambda: calls.append("other"), None)
    loop.turn()
    assert calls == ["read", "read", "other"]
    loop.unwatch(watch)
    timer = loop.call_in(0, lambda: None)
    loop.turn()
    assert not timer.armed
    assert calls == ["read", "read", "other"]
    ours.close()
    theirs.close()


def test_a_hang_up_is_seen_without_reading(loop: EventLoop, until: Until) -> None:
    """Who only watches for writing is told of the end of the other side."""
    reading, writing = os.pipe()
    told = []
    watch = loop.watch(reading, None, lambda: told.append("gone"))
    timer = loop.call_in(0, lambda: None)
    loop.turn()
    assert (told, timer.armed) == ([], False)
    os.close(writing)
    until(lambda: told)
    loop.unwatch(watch)
    os.close(reading)


@pytest.mark.skipif(
    tuple(map(int, platform.release().split(".")[:2])) < (6, 9),
    reason="a pidfd tells of the reaping since Linux 6.9",
)
def test_a_pidfd_tells_exit_and_reaping_apart(loop: EventLoop, until: Until) -> None:
    """Readable at the exit; the hang-up comes only when somebody has reaped."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    told: list[str] = []
    held = os.pidfd_open(pid)
    watch = loop.watch(held, lambda: told.append("ended"), lambda: told.append("reaped"))
    os.close(writing)
    until(lambda: told)
    loop.turn()
    assert set(told) == {"ended"}
    loop.change(watch, None, watch.on_write)
    os.waitpid(pid, 0)
    until(lambda: "reaped" in told)
    loop.unwatch(watch)
    os.close(held)


def test_the_order_of_a_turn(loop: EventLoop, pipe: Callable[[], tuple[int, int]]) -> None:
    """Descriptors, then timers, then ``after_turn``, once; ``stop`` ends it after that."""
    reading, writing = pipe()
    calls: list[str] = []

    def read() -> None:
        calls.append("read")
        os.read(reading, 1)
        loop.stop()

    loop.watch(reading, read)
    loop.call_in(0, lambda: calls.append("timer"))
    loop.after_turn = lambda: calls.append("after")
    os.write(writing, b"x")
    loop.run()
    assert calls == ["read", "timer", "after"]
