"""Whose a process of taskmaster is, when the state directory that would tell has been removed.

Daemon and watchdogs each hold a memory file whose name says which state directory, and which job, they are for.
The name is in ``/proc/PID/fd`` as long as the process lives, whatever becomes of any folder. So a daemon that
starts with an empty state directory finds those that are still there, instead of starting everything twice.

Only processes of this very user and pid namespace are believed: who could hold such a file as this user
could do worse. It only looks; what to do about it is decided elsewhere.
"""

from __future__ import annotations

import hashlib
import os
from typing import Final, NamedTuple

_PREFIX: Final = "taskmaster:"
_DELETED: Final = " (deleted)"


class Seen(NamedTuple):
    """Of one state directory: the daemon's pid, those of watchdogs by job, and the jobs of processes that
    write into pipes which are gone."""

    daemon: int | None
    watchdogs: dict[str, int]
    orphaned: frozenset[str]


def light(state: str, job: str = "") -> int:
    """Show that this process is the watchdog of ``job``, or the daemon, of this state directory.

    A descriptor that has to stay open; -1 where the kernel refuses.
    """
    try:
        return os.memfd_create(_name(state, job), os.MFD_CLOEXEC)
    except OSError:
        return -1  # ENOSYS, EPERM: told at the start; EMFILE: then it is not found, as before


def is_lit(pid: int, state: str, job: str = "") -> bool:
    """Whether process ``pid`` shows this."""
    return f"/memfd:{_name(state, job)}{_DELETED}" in _descriptors(pid)


def look(state: str) -> Seen:
    """Look at all processes, but this one."""
    before = f"/memfd:{_name(state, '')}"
    pipes = f"{state}/jobs/"
    daemon, watchdogs, orphaned = None, {}, set()
    space = _space("self")
    for pid in _others():
        for end in (1, 2):
            leads = _link(f"/proc/{pid}/fd/{end}")
            if leads.startswith(pipes) and leads.endswith(_DELETED):
                orphaned.add(leads[len(pipes) :].partition("/")[0])
        if not _may_be_ours(pid):
            continue
        for leads in _descriptors(pid):
            if leads.startswith(before) and leads.endswith(_DELETED) and _space(pid) == space:
                job = leads[len(before) : -len(_DELETED)]
                if job:
                    watchdogs[job] = pid
                else:
                    daemon = pid
    return Seen(daemon, watchdogs, frozenset(orphaned))


def _name(state: str, job: str) -> str:
    # A name has at most 249 bytes, and a path may have more.
    return f"{_PREFIX}{hashlib.sha256(os.fsencode(state)).hexdigest()[:32]}:{job}"


def _others() -> list[int]:
    own = os.getpid()
    found = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return [pid for pid in found if pid != own]


def _may_be_ours(pid: int) -> bool:
    """Whether it is worth while to look at its descriptors."""
    try:
        if os.stat(f"/proc/{pid}").st_uid != os.geteuid():
            return False
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read().startswith((b"watchdog ", b"taskmasterd"))
    except OSError:  # ENOENT, ESRCH: gone; EACCES, EPERM: hidden
        return False


def _descriptors(pid: int) -> list[str]:
    try:
        return [_link(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
    except OSError:  # ENOENT, ESRCH, EACCES
        return []


def _space(pid: int | str) -> str:
    return _link(f"/proc/{pid}/ns/pid")


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:  # ENOENT, ESRCH, EACCES
        return ""
