"""What ``/proc`` tells about processes: identity, ancestry, environment.

A process is named by its number together with its start time in clock ticks since boot, and both
only within one boot: numbers are recycled, the pair is not. Read directly where exactness matters
(psutil turns the start time into seconds of a wall clock that may be set) and through psutil where
every process of the host has to be looked at.
"""

from __future__ import annotations

import functools
import os
import re
from typing import NamedTuple

import psutil

#: More of an environment than this is not looked at; the kernel's own limit is about 2 MB.
_ENVIRON_BYTES = 262144
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class ProcStat(NamedTuple):
    """The fields of ``/proc/PID/stat`` that matter here; ``start`` in clock ticks since boot."""

    pid: int
    state: str
    ppid: int
    pgrp: int
    session: int
    start: int

    @property
    def dead(self) -> bool:
        """Whether it only waits to be reaped."""
        return self.state in "ZX"


def _read(path: str) -> bytes:
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
    """How process ``pid`` stands; None when there is none."""
    try:
        text = _read(f"/proc/{pid}/stat")
    except (FileNotFoundError, ProcessLookupError):
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
    )


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
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    if fields[0] != b"Z" or int(fields[19]) != start:
        return None
    return int(fields[49])


def signals_not_default() -> list[int]:
    """The numbers of the signals that this process ignores or has a handler for.

    To ask ``signal`` for each of them costs five times as much, and more still in a forked copy, where each
    enum that it makes touches pages that were shared.
    """
    _, _, rest = _read("/proc/self/status").partition(b"SigIgn:")
    ignored, _, caught = rest.split(None, 3)[:3]
    mask = int(ignored, 16) | int(caught, 16)
    # 32 and 33 are the C library's own.
    return [number for number in range(1, 65) if mask >> number - 1 & 1 and number not in (32, 33)]


def name(pid: int) -> str:
    """The name the kernel has for the process, at most 15 bytes; empty when it is gone."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read().rstrip(b"\n").decode("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def environment(pid: int) -> dict[str, str]:
    """The environment the process was exec'd with; empty when gone, not ours to read, or erased."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            text = file.read(_ENVIRON_BYTES)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return {}
    pairs = (entry.partition(b"=") for entry in text.split(b"\0"))
    return {
        key.decode("utf-8", "replace"): value.decode("utf-8", "replace")
        for key, equals, value in pairs
        if equals
    }


def resident(pid: int) -> int:
    """Bytes of the process in RAM, those that it shares with others included; 0 when it is gone."""
    try:
        return int(_read(f"/proc/{pid}/statm").split()[1]) * _PAGE_BYTES
    except (FileNotFoundError, ProcessLookupError):
        return 0


def proportional(pid: int) -> int:
    """Bytes of the process in RAM, of those that it shares only its share; 0 when it is gone.

    Where the kernel does not let us look into it, ``resident``.
    """
    try:
        found = re.search(rb"^Pss: *([0-9]+) kB", _read(f"/proc/{pid}/smaps_rollup"), re.MULTILINE)
    except ProcessLookupError:
        return 0
    except (FileNotFoundError, PermissionError):
        found = None
    return resident(pid) if found is None else int(found[1]) * 1024


def outputs(pid: int) -> list[str]:
    """What standard output and error of a process lead to; empty when gone or not ours to look at."""
    found = []
    for fd in (1, 2):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def children(pid: int) -> list[int]:
    """The direct children of a process, of all its threads; empty when it is gone."""
    if not _has_children_files():
        return _children_by_scan(pid)
    found = _children_of_thread(pid, pid)
    if pid == os.getpid():
        return found  # daemon and watchdogs have one thread
    if len(threads := _threads(pid)) > 1:
        for thread in threads:
            if thread != pid:
                found += _children_of_thread(pid, thread)
    return found


def _children_of_thread(pid: int, thread: int) -> list[int]:
    try:
        return [int(word) for word in _read(f"/proc/{pid}/task/{thread}/children").split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _threads(pid: int) -> list[int]:
    try:
        return [int(entry) for entry in os.listdir(f"/proc/{pid}/task")]
    except (FileNotFoundError, ProcessLookupError):
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
    return _read("/proc/sys/kernel/random/boot_id").strip().decode("ascii")
