"""Waiting for children without blocking, and looking at how one ended before it is reaped.

A status that is only in the kernel is safe from the death of whoever waits for it, so it is looked at
first (``peek``), written down, and then reaped.
"""

from __future__ import annotations

import os


def peek(pid: int) -> int | None:
    """The wait status of our child ``pid`` if it has ended, without reaping it; None while it lives.

    Raises ChildProcessError where it is not our child.
    """
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return _wait_status(os.waitid(os.P_PID, pid, flags))


def peek_any() -> int | None:
    """The number of some child that has ended and is not reaped; None without one."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return None if found is None else found.si_pid


def reap(pid: int) -> int | None:
    """Reap our child ``pid``, which has ended; its wait status, or None if there was nothing to reap."""
    try:
        reaped, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return status if reaped else None


def _wait_status(found: os.waitid_result | None) -> int | None:
    if found is None:
        return None
    if found.si_code == os.CLD_EXITED:
        return (found.si_status & 0xFF) << 8
    return found.si_status & 0x7F


def exit_of(status: int) -> tuple[int | None, int | None]:
    """Exit code and signal number of a wait status; one of them is None."""
    if os.WIFSIGNALED(status):
        return None, os.WTERMSIG(status)
    return os.WEXITSTATUS(status), None
