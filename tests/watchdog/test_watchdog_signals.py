"""Signals go to exactly the process that was meant; how a process ended is told without losing it."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator

import pytest
from watchdog_children import (
    become_nobody,
    ended,
    executed,
    forked,
    isolated,
    killed,
    plan,
    root_only,
    wait_for,
)

from taskmaster import procfs
from taskmaster.watchdog import process


@pytest.fixture
def sleeper(directory: int) -> Iterator[process.Child]:
    """A job's process that waits to be signalled; it is ended afterwards where it still lives."""
    child = forked(plan(directory, "/bin/sleep", "1000"))
    executed(child)
    yield child
    if process.reap(child.pid) is None and os.path.exists(f"/proc/{child.pid}"):
        killed(child.pid)


def fork_and(function: Callable[[], int]) -> int:
    """A child of the test that ends with the status that the function gives."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            status = function()
        finally:
            os._exit(status)
    return pid


def test_sent_to_the_one_that_was_meant(sleeper: process.Child) -> None:
    """The right number with another start time is another process: it gets nothing."""
    for wrong in (sleeper.start - 1, sleeper.start + 1, 0, -1):
        assert not process.send(sleeper.pid, wrong, signal.SIGKILL)
    assert process.peek(sleeper.pid) is None
    assert process.send(sleeper.pid, sleeper.start, signal.SIGUSR1)
    assert ended(sleeper.pid) == signal.SIGUSR1
    assert not process.send(sleeper.pid, sleeper.start, signal.SIGUSR1)


@pytest.mark.parametrize("pid", [0, -1, -2, 1 << 22, (1 << 31) - 1])
def test_numbers_of_nobody(pid: int) -> None:
    """Above all not 0 and -1, which to kill(2) are one's own group and everybody."""
    assert not process.send(pid, 0, signal.SIGKILL)


def test_a_number_that_has_become_a_thread() -> None:
    """Threads take their numbers from the same counter: a recycled number may be some program's thread."""
    program = (
        "import threading, time, os\n"
        "def say():\n"
        "    os.write(1, b'%d' % threading.get_native_id())\n"
        "    time.sleep(1000)\n"
        "threading.Thread(target=say).start()\n"
    )
    reading, writing = os.pipe()

    def become() -> int:
        os.dup2(writing, 1)
        os.execv(sys.executable, [sys.executable, "-S", "-c", program])

    pid = fork_and(become)
    os.close(writing)
    thread = int(os.read(reading, 100))
    os.close(reading)
    status = procfs.stat(thread)
    assert status is not None
    try:
        assert thread != pid
        assert not process.send(thread, status.start, signal.SIGKILL)
        assert not process.send(thread, status.start - 1, signal.SIGKILL)
        assert process.peek(pid) is None
    finally:
        killed(pid)


def test_the_dead_are_signalled_without_harm() -> None:
    """Ended, not reaped yet: no error, and how it ended is not changed."""
    pid = fork_and(lambda: 7)
    status = procfs.stat(pid)
    assert status is not None
    wait_for(lambda: process.peek(pid) is not None)
    process.send(pid, status.start, signal.SIGKILL)
    assert process.exit_of(process.peek(pid) or 0) == (7, None)
    assert process.exit_of(process.reap(pid) or 0) == (7, None)


def test_without_a_descriptor_to_hold_it(sleeper: process.Child) -> None:
    """No descriptor left, not even to read /proc: our own child is still stopped, a stranger is not."""

    def watchdog() -> list[bool]:
        own = fork_and(lambda: signal.pause() or 0)
        identity = procfs.stat(own)
        assert identity is not None
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            sent = [
                process.send(sleeper.pid, sleeper.start, signal.SIGTERM),
                process.send(own, identity.start, signal.SIGTERM),
            ]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return [*sent, ended(own) == signal.SIGTERM]

    assert isolated(watchdog) == [False, True, True]
    assert process.peek(sleeper.pid) is None


@root_only
def test_a_process_that_has_become_somebody_elses(sleeper: process.Child) -> None:
    """A set-user-id program may have changed hands: that is said, not taken for its end."""

    def watchdog() -> str:
        become_nobody()
        with pytest.raises(PermissionError):
            process.send(sleeper.pid, sleeper.start, signal.SIGKILL)
        return "refused"

    assert isolated(watchdog) == "refused"
    assert process.peek(sleeper.pid) is None


@pytest.mark.parametrize("code", [0, 1, 7, 117, 127, 255])
def test_how_it_exited(code: int) -> None:
    """The status is seen as often as one likes before it is reaped, and is the same then."""
    pid = fork_and(lambda: code)
    wait_for(lambda: process.peek(pid) is not None)
    for _ in range(3):
        assert process.exit_of(process.peek(pid) or 0) == (code, None)
    assert process.peek_any() == pid
    status = process.reap(pid)
    assert status is not None
    assert process.exit_of(status) == (code, None)
    assert process.reap(pid) is None
    with pytest.raises(ChildProcessError):
        process.peek(pid)


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT, signal.SIGSEGV, signal.SIGRTMAX]
)
def test_which_signal_ended_it(number: int) -> None:
    """Any of them, those that write a core and the real-time ones too."""

    def die() -> int:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return 0

    pid = fork_and(die)
    wait_for(lambda: process.peek(pid) is not None)
    assert process.exit_of(process.peek(pid) or 0) == (None, number)
    assert process.exit_of(process.reap(pid) or 0) == (None, number)


def test_nobody_has_ended(sleeper: process.Child) -> None:
    """Neither peek nor reap waits, and a process that only stopped has not ended."""
    assert process.send(sleeper.pid, sleeper.start, signal.SIGSTOP)

    def stopped() -> bool:
        status = procfs.stat(sleeper.pid)
        return status is not None and status.state == "T"

    wait_for(stopped)
    assert process.peek(sleeper.pid) is None
    assert process.peek_any() is None
    assert process.reap(sleeper.pid) is None


def test_no_child_at_all() -> None:
    """A watchdog without processes asks too."""
    assert isolated(lambda: [process.peek_any(), process.reap(1)]) == [None, None]
    with pytest.raises(ChildProcessError):
        process.peek(1)
