"""What the kernel tells of processes, and the calls that Python has no wrapper for."""

from __future__ import annotations

import os
import platform
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from watchdog_children import isolated, killed, root_only, wait_for

from taskmaster import procfs, procinside, syscalls
from taskmaster.watchdog import process

NAMES = (
    "plain",
    ") Z 1 1 1 (",
    "((( R",
    "new\nline",
    "a name longer than fifteen bytes",
    "\u00e4\u00f6\u00fc",
)


@pytest.fixture
def fork_and() -> Iterator[Callable[[Callable[[], object]], int]]:
    """Children of the test: each does something and then waits to be killed afterwards."""
    pids: list[int] = []

    def make(function: Callable[[], object]) -> int:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                function()
                os.write(writing, b"x")
                signal.pause()
            finally:
                os._exit(1)
        os.close(writing)
        assert os.read(reading, 1) == b"x"
        os.close(reading)
        pids.append(pid)
        return pid

    yield make
    for pid in pids:
        killed(pid)


@pytest.mark.parametrize("name", NAMES)
def test_any_name(fork_and: Callable[[Callable[[], object]], int], name: str) -> None:
    """A process chooses its own name; it can pretend nothing by it."""
    pid = fork_and(lambda: (syscalls.set_name(name), os.setpgid(0, 0)))
    assert procfs.name(pid).encode() == name.encode()[:15]
    found = procfs.stat(pid)
    assert found is not None
    assert (found.pid, found.ppid, found.pgrp) == (pid, os.getpid(), pid)
    assert found.session == os.getsid(0)
    own = procfs.stat(os.getpid())
    assert own is not None
    assert own.start <= found.start
    assert not found.dead


def test_dead_and_gone() -> None:
    """A zombie has an identity still; who has been reaped has nothing."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    before = procfs.stat(pid)
    wait_for(lambda: process.peek(pid) is not None)
    dead = procfs.stat(pid)
    assert before is not None
    assert dead is not None
    assert dead.dead
    assert dead.start == before.start
    assert (procinside.variables(pid, "PATH"), procfs.children(pid)) == (None, [])
    os.waitpid(pid, 0)
    assert procfs.stat(pid) is None
    assert procfs.name(pid) == ""
    assert procinside.variables(pid, "PATH") is None
    assert procinside.outputs(pid) == []
    assert procfs.children(pid) == []
    assert procfs.descendants(pid) == []


def test_children_of_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child belongs to the thread that forked it; both ways of looking find it, and descendants too."""
    go, done = os.pipe()
    program = (
        "import os, threading, time\n"
        "def branch(depth):\n"
        "    if os.fork() == 0:\n"
        "        if depth: branch(depth - 1)\n"
        "        os.write(1, b'x'); os.read(0, 1); os._exit(0)\n"
        "    os.write(1, b'x'); time.sleep(1000)\n"
        "for depth in range(3): threading.Thread(target=branch, args=(depth,)).start()\n"
    )
    said, saying = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(go, 0)
        os.dup2(saying, 1)
        os.setpgid(0, 0)
        os.execv(sys.executable, [sys.executable, "-S", "-W", "ignore", "-c", program])
    os.close(saying)
    os.close(go)
    try:
        # Three threads speak, and the chains of one, two and three processes below them.
        heard = b""
        while len(heard) < 9:
            heard += os.read(said, 100)
        found = procfs.descendants(pid)
        assert len(found) == 6
        parents = {}
        for one in found:
            status = procfs.stat(one)
            assert status is not None
            assert status.ppid == pid or status.ppid in parents
            parents[one] = status.ppid
        assert len(procfs.children(pid)) == 3
        tree = {one: sorted(procfs.children(one)) for one in [pid, *found]}
        with monkeypatch.context() as without:
            without.setattr(procfs, "_has_children_files", lambda: False)
            assert {one: sorted(procfs.children(one)) for one in [pid, *found]} == tree
        assert set(found) < set(procfs.everyone())
    finally:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(said)
        os.close(done)


def test_the_environment_a_program_was_given() -> None:
    """Byte for byte where it is text; entries that are none are left out; a huge one does no harm."""
    reading, writing = os.pipe()
    given = {"A": "1", "B": "x=y=z", "EMPTY": "", "C": "\u00e4"}
    pid = os.fork()
    if pid == 0:
        os.dup2(reading, 0)
        os.execve("/bin/cat", ["cat"], given | {"Z" * 10: "y" * 100_000, "Y" * 10: "y" * 100_000})
    try:
        # The name is set a moment before the environment is there.
        wait_for(lambda: procfs.name(pid) == "cat" and procinside.variables(pid, "A"))
        assert procinside.variables(pid, *given, "NOT") == given
    finally:
        killed(pid)
        os.close(reading)
        os.close(writing)


@root_only
def test_somebody_else() -> None:
    """Not ours to read: nothing is known, and it is no error."""

    def nobody() -> list[object]:
        os.setresuid(65534, 65534, 65534)
        return [procinside.variables(1, "PATH"), procinside.outputs(1)]

    assert isolated(nobody) == [None, []]


def test_where_output_goes(fork_and: Callable[[Callable[[], object]], int], tmp_path: Path) -> None:
    """What standard output and error of a process lead to, as far as they are open."""
    file = os.open(tmp_path / "file", os.O_CREAT | os.O_WRONLY)
    both = fork_and(lambda: (os.dup2(file, 1), os.dup2(file, 2)))
    one = fork_and(lambda: (os.dup2(file, 2), os.close(1)))
    none = fork_and(lambda: os.closerange(1, 3))
    os.close(file)
    path = str(tmp_path / "file")
    assert [procinside.outputs(pid) for pid in (both, one, none)] == [[path, path], [path], []]


def test_the_boot() -> None:
    """The kernel's name of this boot, the same for all."""
    assert procfs.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert len(procfs.boot_id()) == 36


# system calls --------------------------------------------------------------------------------------


def test_orphans_of_a_subreaper() -> None:
    """A daemon that forks twice becomes a child of its job's watchdog; a child of ours does not inherit that."""

    def watchdog() -> list[bool]:
        syscalls.become_subreaper()
        reading, writing = os.pipe()
        first = os.fork()
        if first == 0:
            if os.fork() == 0:
                os.write(writing, b"%d" % os.getpid())
                signal.pause()
            os._exit(0)
        os.waitpid(first, 0)
        daemon = int(os.read(reading, 100))
        status = procfs.stat(daemon)
        assert status is not None
        adopted = status.ppid == os.getpid()
        killed(daemon)
        return [adopted]

    assert isolated(watchdog) == [True]


@pytest.mark.parametrize(("code", "number"), [(0, 0), (7, 0), (255, 0), (None, 9), (None, 15)])
def test_the_exit_of_one_that_somebody_else_reaped(code: int | None, number: int) -> None:
    """The pidfd still tells, on a kernel that can; before the reaping, and on an older one, nothing."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(code or 0)
    os.close(reading)
    held = os.pidfd_open(pid)
    assert syscalls.pidfd_exit_status(held) is None
    if number:
        os.kill(pid, number)
    os.close(writing)
    wait_for(lambda: process.peek(pid) is not None)
    _, status = os.waitpid(pid, 0)
    told = syscalls.pidfd_exit_status(held)
    os.close(held)
    if tuple(map(int, platform.release().split(".")[:2])) >= (6, 15):
        assert told == status
    else:
        assert told in (None, status)
    assert process.exit_of(status) == (code, number or None)


def test_a_descriptor_that_is_no_pidfd() -> None:
    """Nothing is told of what is no process; a descriptor that is not open at all is our mistake."""
    null = os.open("/dev/null", os.O_RDONLY)
    assert syscalls.pidfd_exit_status(null) is None
    os.close(null)
    with pytest.raises(OSError, match="Bad file descriptor"):
        syscalls.pidfd_exit_status(null)


def test_tee() -> None:
    """Copied and still there; no waiting for more or for room; errors carry errno and the call."""
    source, into = os.pipe(), os.pipe()
    with pytest.raises(BlockingIOError):
        syscalls.tee(source[0], into[1], 100)
    os.write(source[1], b"some words")
    assert syscalls.tee(source[0], into[1], 4) == 4
    assert syscalls.tee(source[0], into[1], 1000) == 10
    assert os.read(into[0], 100) == b"somesome words"
    assert os.read(source[0], 100) == b"some words"
    os.set_blocking(into[1], False)
    os.write(source[1], b"more")
    while select.select([], [into[1]], [], 0)[1]:
        os.write(into[1], b"x" * 4096)
    with pytest.raises(BlockingIOError):
        syscalls.tee(source[0], into[1], 100)
    with pytest.raises(OSError, match="tee: Invalid argument"):
        syscalls.tee(source[0], source[1], 100)
    for fd in (*source, *into):
        os.close(fd)


def test_a_name_in_threads() -> None:
    """The name is that of the calling thread only; the watchdog calls it from its one thread."""
    names = []

    def run() -> None:
        syscalls.set_name("other")
        names.append(Path(f"/proc/self/task/{threading.get_native_id()}/comm").read_text())

    before = procfs.name(os.getpid())
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert names == ["other\n"]
    assert procfs.name(os.getpid()) == before


def test_who_listens(tmp_path: Path) -> None:
    """The process behind a Unix socket is known before a word is exchanged, by who called listen."""
    listening, connecting = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket"))
    pid = os.fork()
    if pid == 0:
        try:
            listening.listen()
            signal.pause()
        finally:
            os._exit(1)

    def connected() -> bool:
        try:
            connecting.connect(str(tmp_path / "socket"))
        except ConnectionRefusedError:
            return False  # it does not listen yet
        return True

    try:
        wait_for(connected)
        assert syscalls.peer_pid(connecting) == pid
    finally:
        killed(pid)
        listening.close()
        connecting.close()
