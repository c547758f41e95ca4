"""Groups of processes in the kernel's own books (cgroup version 2), where some are ours to make.

Only below a cgroup that systemd has marked as delegated: anything else, writable or not, is somebody
else's to arrange. The processes of ours are in groups below it, never in it, so the memory controller can
be on for them only if the daemon itself is in a group below it too (``DelegateSubgroup=``) or beside it.

A group has the name of its job and place, so it is found again by whoever comes after a dead watchdog.
"""

from __future__ import annotations

import errno
import os
import re
import zlib
from typing import Final

_MARKS: Final = ("trusted.delegate", "user.delegate")
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


def delegated(proc: str = "/proc/self") -> str | None:
    """The folder of the cgroup below which ours may be made, memory controller included; None: there is none."""
    at = where(proc, proc)
    if at is None:
        return None
    own, top = at
    # Its own one has processes in it, which as a rule keeps controllers out; the one above, if that is it.
    for folder in (own, os.path.dirname(own)):
        if folder.startswith(top) and _is_delegated(folder) and _has_memory(folder):
            return folder
    return None


def where(proc: str, ours: str = "/proc/self") -> tuple[str, str] | None:
    """The folder of the cgroup of the process that ``proc`` is the folder of, and the mount that it is in.

    ``ours``: the folder of this process, which the mounts are asked of: one that has ended has none any more,
    and its cgroup still.
    """
    try:
        mounted = _mount(_text(f"{ours}/mountinfo"))
        lines = _text(f"{proc}/cgroup").splitlines()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH, errno.EACCES):
            return None
        raise
    path = next((line[3:] for line in lines if line.startswith("0::")), None)
    if mounted is None or path is None:
        return None
    point, root = mounted
    if not f"{path}/".startswith(f"{root.rstrip('/')}/"):
        return None  # outside of what is mounted here: a container looks at its host
    return f"{point}/{path[len(root.rstrip('/')) :].strip('/')}".rstrip("/"), point


def _mount(mountinfo: str) -> tuple[str, str] | None:
    """Where the hierarchy of version 2 is mounted, and which part of it."""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        if after.split(" ", 1)[0] == "cgroup2":
            fields = before.split(" ")
            return _plain(fields[4]), _plain(fields[3])
    return None


def _plain(path: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), path)


def _is_delegated(folder: str) -> bool:
    for mark in _MARKS:
        try:
            if os.getxattr(folder, mark) == b"1":
                return True
        except OSError:
            continue  # no such mark, none that this user may read, or a file system without any
    return False


def _has_memory(folder: str) -> bool:
    """Whether groups below it have the memory controller; it is switched on where it is not yet."""
    control = f"{folder}/cgroup.subtree_control"
    try:
        if not os.access(folder, os.W_OK):
            return False
        if "memory" not in _text(control).split():
            _write(control, "+memory")
    except OSError:
        return False  # EBUSY: there are processes in it; ENOENT: no controller to be had
    return True


class Group:
    """The group of one place. ``folder``: where it is, or is to be. All but ``remove`` raises OSError."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def make(self, max_bytes: int) -> None:
        """Have it there, with this limit; what is over it is ended as a whole."""
        try:
            os.mkdir(self.folder, 0o755)
        except FileExistsError:
            pass  # of the process before, or of a dead watchdog
        self.limit(max_bytes)
        _write(f"{self.folder}/memory.oom.group", "1")

    def limit(self, max_bytes: int | None) -> None:
        """Another limit for what is in it already; None: no more."""
        _write(f"{self.folder}/memory.max", "max" if max_bytes is None else str(max_bytes))

    @property
    def entrance(self) -> str:
        """The file that a process writes 0 to, to be in it from then on."""
        return f"{self.folder}/cgroup.procs"

    def current(self) -> int:
        """Bytes that its processes take."""
        return int(_text(f"{self.folder}/memory.current"))

    def kills(self) -> int:
        """How many processes the kernel has ended in it for want of memory."""
        events = dict(
            line.split(" ", 1) for line in _text(f"{self.folder}/memory.events").splitlines()
        )
        return int(events.get("oom_kill", 0))

    def remove(self) -> bool:
        """Whether there is no more to be done about it; it stays as long as anything is in it."""
        try:
            os.rmdir(self.folder)
        except OSError as error:
            # Else it is gone, or has been taken from us: that does not change by trying again.
            return error.errno not in (errno.EBUSY, errno.ENOTEMPTY)
        return True


def name(state: str, job: str, number: int) -> str:
    """What the group of a place is called. ``state``: the job's state directory, which tells two daemons in one
    cgroup apart."""
    return f"taskmaster-{zlib.crc32(os.fsencode(state)):08x}-{job}-{number}"


def _text(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = b""
        while more := os.read(fd, 65536):
            found += more
    finally:
        os.close(fd)
    return found.decode("utf-8", "surrogateescape")


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)
