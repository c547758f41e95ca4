"""Dead, gone and unseen are three things; nobody is taken for dead who lives."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import sys
import threading
from collections.abc import Callable

import pytest
from watchdog_children import become_nobody, isolated, killed, root_only, wait_for

from taskmaster import children, procfs, procinside, syscalls
from taskmaster.procfs import Standing
from taskmaster.watchdog.family import Family
from taskmaster.watchdog.marks import Marks

#: exit(2) of one thread, which the C library has no wrapper for.
EXIT = {"x86_64": 60, "aarch64": 93}.get(platform.machine())
MIB = 1 << 20
needs_exit = pytest.mark.skipif(EXIT is None, reason="the number of exit(2) is not known here")


def first_thread_ends(output: int) -> None:
    """Another thread runs on, with 8 MiB of memory."""
    os.dup2(output, 1)
    held = b"x" * (8 * MIB)
    threading.Thread(target=lambda: threading.Event().wait(len(held))).start()
    ctypes.CDLL(None).syscall(EXIT, 0)


def forked(function: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            function()
        finally:
            os._exit(1)
    return pid


@needs_exit
def test_the_first_thread_has_ended(tmp_path) -> None:
    """It shows as Z and lives: to us, to the pidfd and to wait; what it has is seen through the other thread."""
    output = os.open(tmp_path / "output", os.O_CREAT | os.O_WRONLY)
    pid = forked(lambda: first_thread_ends(output))
    os.close(output)
    try:
        wait_for(lambda: (found := procfs.stat(pid)) is not None and found.state == "Z")
        status = procfs.stat(pid)
        assert status is not None
        assert status.threads == 2
        assert not status.dead
        assert procfs.standing(pid, status.start) is Standing.LIVES
        assert procfs.exit_status(pid, status.start) is None
        assert children.peek(pid) is None
        assert procinside.resident(pid) > 8 * MIB
        assert procinside.proportional(pid) > 8 * MIB
        assert procinside.outputs(pid)[0] == str(tmp_path / "output")
        assert procinside.variables(pid, "PATH") == {"PATH": os.environ["PATH"]}
    finally:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: children.peek(pid) is not None)
    assert procfs.standing(pid, status.start) is Standing.DEAD
    assert procfs.exit_status(pid, status.start) == signal.SIGKILL
    os.waitpid(pid, 0)
    assert procfs.standing(pid, status.start) is Standing.GONE


def test_another_of_that_number() -> None:
    """A process with another start time is not the one that was meant."""
    own = procfs.stat(os.getpid())
    assert own is not None
    assert procfs.standing(os.getpid(), own.start + 1) is Standing.GONE
    assert procfs.standing(os.getpid()) is Standing.LIVES


@root_only
@pytest.mark.parametrize("mode", [1, 2])
def test_hidden(mode: int) -> None:
    """What /proc hides is unseen, never gone; who asks for more than it shows gets an answer and no exception."""

    def look() -> object:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(0x20000) != 0 or libc.mount(b"none", b"/", None, 0x44000, None) != 0:
            return "no namespace of mounts"
        if libc.mount(b"proc", b"/proc", b"proc", 0, f"hidepid={mode}".encode()) != 0:
            return "no mount of /proc"
        gone = os.fork()
        if gone == 0:
            os._exit(0)
        os.waitpid(gone, 0)
        become_nobody()
        parent = os.getppid()
        return [
            procfs.stat(parent), procfs.standing(parent).value, procfs.standing(gone).value,
            procfs.name(parent), procfs.children(parent), procfs.descendants(parent), procfs.user(parent),
            procfs.executable(parent)[0], procinside.variables(parent, "PATH"), procinside.outputs(parent),
            procinside.resident(parent), procinside.proportional(parent), procfs.exit_status(parent, 1),
            procfs.standing(os.getpid()).value, Family("x").members([]),
        ]  # fmt: skip

    found = isolated(look)
    if isinstance(found, str):
        pytest.skip(found)
    none = [None, "", [], [], None, "", None, [], 0, 0, None]
    assert found == [none[0], "unseen", "gone", *none[1:], "lives", {}]


def exec_with(variables: dict[str, str]) -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    # A quarter of the stack is what arguments and environment may take, and never more than 6 MiB.
    pid = os.fork()
    if pid == 0:
        try:
            most = 64 * MIB if hard == resource.RLIM_INFINITY else hard
            resource.setrlimit(resource.RLIMIT_STACK, (most, hard))
            os.execve("/bin/sleep", ["sleep", "1000"], variables)
        finally:
            os._exit(1)
    wait_for(lambda: procfs.name(pid) == "sleep" or children.peek(pid) is not None)
    return pid


@pytest.mark.parametrize("mib", [0, 1, 4])
def test_a_mark_behind_a_large_environment(mib: int) -> None:
    """Up to what the kernel permits it is found, first or last, and read once only."""
    large = {f"V{number:03d}": "x" * 65000 for number in range(mib * 16)}
    pid = exec_with(large | {"TASKMASTER_INSTANCE": "m", "TASKMASTER_PROCESS": "7"})
    try:
        if children.peek(pid) is not None:
            pytest.skip("so large an environment is not permitted here")
        status = procfs.stat(pid)
        assert status is not None
        wait_for(lambda: procinside.variables(pid, "TASKMASTER_INSTANCE"))
        marks = Marks("m")
        assert marks.borne_by(status) == (True, 7)
        assert Marks("other").borne_by(status) == (False, None)
        killed(pid)
        assert marks.borne_by(status) == (True, 7)  # remembered
        assert marks.borne_by(status._replace(start=status.start + 1)) == (False, None)
    finally:
        if children_of_ours(pid):
            killed(pid)


def children_of_ours(pid: int) -> bool:
    return pid in procfs.children(os.getpid())


def test_an_environment_that_is_not_there_yet_is_read_again() -> None:
    """Of a process in the middle of an exec nothing is remembered."""
    marks = Marks("m")
    pid = forked(lambda: os.execve("/bin/sleep", ["sleep", "1000"], {}))
    try:
        wait_for(lambda: procfs.name(pid) == "sleep")
        status = procfs.stat(pid)
        assert status is not None
        assert marks.borne_by(status) == (False, None)
        assert not marks._known
    finally:
        killed(pid)


CHAIN = (
    "import os, signal, time\n"
    "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
    "while True:\n"
    "    if os.fork(): os._exit(0)\n"
    "    os.setsid()\n"
)


def test_a_chain_is_never_nothing() -> None:
    """Each look at a chain of forks finds a member, or says that something moves: for as long as it lives."""

    def watch() -> list[int]:
        syscalls.become_subreaper()
        pid = os.fork()
        if pid == 0:
            os.execv(sys.executable, [sys.executable, "-S", "-c", CHAIN])
        family = Family("mark")
        found = caught = empty = 0
        for _ in range(300):
            family.look_again()
            members = family.members([])
            if members:
                found += 1
            elif family.moving:
                caught += 1
            else:
                empty += 1
            while (dead := children.peek_any()) is not None:
                children.reap(dead)
        while procfs.children(os.getpid()):
            for one in procfs.children(os.getpid()):
                os.kill(one, signal.SIGKILL)
            while (dead := children.peek_any()) is not None:
                children.reap(dead)
        family.look_again()
        return [found + caught, empty, len(family.members([])), len(family.moving)]

    assert isolated(watch) == [300, 0, 0, 0]
