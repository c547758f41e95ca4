"""Job processes for tests, and a function run in a process of its own that may spoil itself."""

from __future__ import annotations

import ctypes
import json
import os
import pwd
import select
import signal
import subprocess
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskmaster import procfs, syscalls
from taskmaster.core.spec import JobSpec
from taskmaster.watchdog import process

DEADLINE_S = 30.0


def capable(*numbers: int) -> bool:
    """Whether this process has all these capabilities: root in a container often has not."""
    mask = syscalls.capabilities().effective
    return all(mask >> number & 1 for number in numbers)


CHOWN, SETGID, SETUID, PTRACE = 0, 6, 7, 19

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
changes_users = pytest.mark.skipif(
    not capable(SETUID, SETGID), reason="needs CAP_SETUID and CAP_SETGID"
)
#: And the pipes of its output are to be given away, the environment of another user's process to be read.
looks_into_users = pytest.mark.skipif(
    not capable(SETUID, SETGID, CHOWN, PTRACE), reason="needs CAP_CHOWN and CAP_SYS_PTRACE too"
)


def wait_for(condition: Callable[[], object]) -> None:
    """Until it holds; fails when it does not in time. Only where there is nothing to wait on."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.002)


def readable(fd: int) -> None:
    """Wait until there is something to read, or the end."""
    ready, _, _ = select.select([fd], [], [], DEADLINE_S)
    assert ready, "nothing came in time"


def plan(directory: int, *argv: str, **changed: Any) -> process.Plan:
    """What to become; keys of the plan itself or of the JobSpec (``limits_``: the job's own)."""
    stdout = changed.pop("stdout", -1)
    stderr = changed.pop("stderr", -1)
    limits = changed.pop("limits", ())
    entrance = changed.pop("entrance", None)
    number = changed.pop("number", 0)
    if "limits_" in changed:
        changed["limits"] = changed.pop("limits_")
    null = os.open("/dev/null", os.O_WRONLY) if -1 in (stdout, stderr) else -1
    return process.Plan(
        JobSpec("web", argv, **changed),
        number,
        "instance-1",
        directory,
        null if stdout == -1 else stdout,
        null if stderr == -1 else stderr,
        limits,
        entrance,
    )


def forked(plan: process.Plan) -> process.Child:
    """The waiting child; a ``/dev/null`` that was opened for it is closed again."""
    try:
        return process.fork(plan)
    finally:
        for fd in {plan.stdout, plan.stderr}:
            if isinstance(fd, int) and os.path.samestat(os.fstat(fd), os.stat("/dev/null")):
                os.close(fd)


def reported(child: process.Child) -> process.Failure | None:
    """What the child says; its descriptor is closed."""
    readable(child.report)
    said = process.read_report(child.report)
    os.close(child.report)
    return said


def executed(child: process.Child) -> int:
    """Release it; it must become its program. Its number."""
    child.release()
    said = reported(child)
    assert said is None, said
    return child.pid


def ended(pid: int) -> int:
    """Wait for our child's end and reap it: the wait status."""
    held = os.pidfd_open(pid)
    readable(held)
    os.close(held)
    _, status = os.waitpid(pid, 0)
    return status


def killed(pid: int) -> None:
    """End a process of the test."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def end_all(pids: list[int]) -> None:
    """SIGKILL to those of them that are still there."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass


def isolated(function: Callable[[], Any]) -> Any:
    """Run in a forked process and return what it returns (as JSON); its failure fails the test."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reading)
            syscalls.become_subreaper()  # whom it leaves behind is then its child and can be seen
            try:
                answer = {"value": function()}
                left = procfs.children(os.getpid())
                assert left == [], f"left behind: {left}"
            except BaseException:  # noqa: BLE001 - whatever it is, the test is to show it
                answer = {"error": traceback.format_exc()}
            with open(writing, "w") as file:
                json.dump(answer, file)
            status = 0
        finally:
            try:
                end_all(procfs.descendants(os.getpid()))
            finally:
                os._exit(status)
    os.close(writing)
    said = b""
    try:
        readable(reading)
        while block := os.read(reading, 65536):
            said += block
            readable(reading)
    finally:
        os.close(reading)
        end_all([*procfs.descendants(pid), pid])
        os.waitpid(pid, 0)
    assert said, "the isolated process said nothing"
    answer = json.loads(said)
    if "error" in answer:
        pytest.fail(answer["error"])
    return answer["value"]


def become_nobody() -> pwd.struct_passwd:
    """For good; call it in an isolated process."""
    entry = pwd.getpwnam("nobody")
    os.setgroups([])
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    return entry


def small_disk(folder: Path, size: str) -> None:
    """Mount a file system of that size in a mount namespace of our own; call it in an isolated process."""
    libc = ctypes.CDLL(None, use_errno=True)
    clone_newns, ms_rec, ms_private = 0x20000, 0x4000, 0x40000
    assert libc.unshare(clone_newns) == 0, os.strerror(ctypes.get_errno())
    assert libc.mount(b"none", b"/", None, ms_rec | ms_private, None) == 0
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)


def can_mount() -> bool:
    """Whether ``small_disk`` works here."""
    if os.geteuid() != 0:
        return False
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            small_disk(Path("/mnt"), "64k")
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1] == 0


mounting = pytest.mark.skipif(not can_mount(), reason="no file system can be mounted here")


def environment_of(pid: int) -> dict[str, str]:
    """The environment that a process was exec'd with."""
    pairs = (one.partition("=") for one in Path(f"/proc/{pid}/environ").read_text().split("\0"))
    return {name: value for name, equals, value in pairs if equals}
