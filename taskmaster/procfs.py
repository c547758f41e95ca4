"""What ``/proc`` tells about processes: identity and ancestry, and whether they live.

A process is named by its number together with its start time in clock ticks since boot, and both
only within one boot: numbers are recycled, the pair is not. Read directly where exactness matters
(psutil turns the start time into seconds of a wall clock that may be set) and through psutil where
every process of the host has to be looked at.

Two things here mislead. A process whose first thread has ended shows as ``Z`` while its other threads run on:
only one without other threads is dead. And a process that cannot be seen may live: with ``hidepid`` the
folders of other users' processes, and of those that changed their user, cannot be entered (1) or are not there
at all (2). So ``stat`` is None for both, and ``standing`` tells them apart before anybody concludes anything.
"""

from __future__ import annotations

import enum
import functools
import os
import re
from typing import Final, NamedTuple

import psutil

#: All of a ``stat`` file: 52 numbers and a name of 64 bytes.
_STAT_BYTES: Final = 2048


class Standing(enum.Enum):
    """Whether a process is there. UNSEEN: one of that number is, and /proc does not show which."""

    LIVES = "lives"
    DEAD = "dead"
    GONE = "gone"
    UNSEEN = "unseen"


class ProcStat(NamedTuple):
    """The fields of ``/proc/PID/stat`` that matter here; ``start`` in clock ticks since boot, 0: not known."""

    pid: int
    state: str
    ppid: int
    pgrp: int
    session: int
    start: int
    threads: int = 1

    @property
    def dead(self) -> bool:
        """Whether it only waits to be reaped; the state alone is that of its first thread."""
        return self.state in "ZX" and self.threads <= 1


def read(path: str) -> bytes:
    """All of a small file. A file object costs four more system calls, 10 us and 40 kB of private pages."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = b""
        while more := os.read(fd, 65536):
            text += more
        return text
    finally:
        os.close(fd)


def stat(pid: int) -> ProcStat | None:
    """How process ``pid`` stands; None when there is none, or none that can be seen (``standing``)."""
    text = _stat_text(pid)
    if text is None:
        return None
    # The name between the parentheses is the process's own choice and may hold both.
    fields = text[text.rindex(b")") + 2 :].split()
    return ProcStat(
        pid,
        fields[0].decode("ascii"),
        int(fields[1]),
        int(fields[2]),
        int(fields[3]),
        int(fields[19]),
        int(fields[17]),
    )


def _stat_text(pid: int) -> bytes | None:
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    try:
        return os.read(fd, _STAT_BYTES)  # made as a whole by the first read
    except ProcessLookupError:
        return None
    finally:
        os.close(fd)


def standing(pid: int, start: int | None = None) -> Standing:
    """How the process stands that started then, or whichever has the number."""
    status = stat(pid)
    if status is None:
        return Standing.UNSEEN if exists(pid) else Standing.GONE
    if start and status.start != start:
        return Standing.GONE
    return Standing.DEAD if status.dead else Standing.LIVES


def exists(pid: int) -> bool:
    """Whether any process has this number, dead or alive, seen or not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's
    return True


def exit_status(pid: int, start: int) -> int | None:
    """The wait status of a process that has ended and waits to be reaped, by whomever.

    None where it lives, is gone or may not be looked at.
    """
    try:
        # To who may not look the kernel says 0 below. The same right decides here; a dead process's
        # folder is not there, and nobody can have come in its place if it is found after this.
        os.readlink(f"/proc/{pid}/cwd")
    except FileNotFoundError:
        pass
    except (ProcessLookupError, PermissionError):
        return None
    text = _stat_text(pid)
    if text is None:
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    if fields[0] != b"Z" or int(fields[17]) > 1 or int(fields[19]) != start:
        return None
    return int(fields[49])


def signals_not_default() -> list[int]:
    """The numbers of the signals that this process ignores or has a handler for.

    To ask ``signal`` for each of them costs five times as much, and more still in a forked copy, where each
    enum that it makes touches pages that were shared.
    """
    _, _, rest = read("/proc/self/status").partition(b"SigIgn:")
    ignored, _, caught = rest.split(None, 3)[:3]
    mask = int(ignored, 16) | int(caught, 16)
    # 32 and 33 are the C library's own.
    return [number for number in range(1, 65) if mask >> number - 1 & 1 and number not in (32, 33)]


def name(pid: int) -> str:
    """The name the kernel has for the process, at most 15 bytes, of its own choice; empty when it is not seen."""
    try:
        return read(f"/proc/{pid}/comm").rstrip(b"\n").decode("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def executable(pid: int) -> tuple[str, int | None]:
    """The path of the program that the process executes, and who owns that file; ("", None) when not seen."""
    try:
        return os.readlink(f"/proc/{pid}/exe"), os.stat(f"/proc/{pid}/exe").st_uid
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return "", None


def user(pid: int) -> int | None:
    """The real user of the process; None when it is not seen."""
    try:
        found = re.search(rb"^Uid:\s*([0-9]+)", read(f"/proc/{pid}/status"), re.MULTILINE)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    return None if found is None else int(found[1])


def children(pid: int) -> list[int]:
    """The direct children of a process, of all its threads; empty when it is gone."""
    if not _has_children_files():
        return _children_by_scan(pid)
    found = _children_of_thread(pid, pid)
    if pid == os.getpid():
        return found  # daemon and watchdogs have one thread
    if len(threads := threads_of(pid)) > 1:
        for thread in threads:
            if thread != pid:
                found += _children_of_thread(pid, thread)
    return found


def _children_of_thread(pid: int, thread: int) -> list[int]:
    try:
        return [int(word) for word in read(f"/proc/{pid}/task/{thread}/children").split()]
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []


def threads_of(pid: int) -> list[int]:
    try:
        return [int(entry) for entry in os.listdir(f"/proc/{pid}/task")]
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []


@functools.cache
def _has_children_files() -> bool:
    """Whether the kernel was built with CONFIG_PROC_CHILDREN, as all common ones are."""
    own = os.getpid()
    return os.path.exists(f"/proc/{own}/task/{own}/children")


def _children_by_scan(pid: int) -> list[int]:
    found = (stat(other) for other in psutil.pids())
    return [one.pid for one in found if one is not None and one.ppid == pid]


def descendants(pid: int) -> list[int]:
    """All descendants of a process, parents before children; a snapshot that may be old at once."""
    found: list[int] = []
    queue = children(pid)
    while queue:
        one = queue.pop()
        found.append(one)
        queue.extend(children(one))
    return found


def everyone() -> list[int]:
    """The numbers of all processes that can be seen."""
    return psutil.pids()


@functools.cache
def boot_id() -> str:
    """The kernel's random name of this boot."""
    # Not as a text file: every watchdog would import the codec, which costs each 0.5 MB of pages of its own.
    return read("/proc/sys/kernel/random/boot_id").strip().decode("ascii")
