"""How the doctor looks: at files and processes that may be anybody's, and never changing anything.

Files are read with a cap, without following a link and without waiting for the other end of a FIFO.
What may not be looked at is Unusable, or missing, and never an exception of another kind.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import struct
from collections.abc import Iterator
from typing import Any

OK, WARNING, PROBLEM = "ok", "warning", "problem"
STATE = "state directory"  # what several parts find something about

FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_MAX_PROC_BYTES = 262144
#: The kernel gives arguments and environment together less than this.
_MAX_ENVIRON_BYTES = 8 << 20
_FLOCK = struct.Struct("hhqqi4x")
#: Of a lock whose holder is in another pid namespace.
SOMEBODY = -1


class Finding:
    """One line of the doctor's: how bad, about what, what it is, and the command that mends it."""

    __slots__ = ("about", "level", "mend", "text")

    def __init__(self, level: str, about: str, text: str, mend: str = "") -> None:
        self.level, self.about, self.text, self.mend = level, about, text, mend

    def document(self) -> dict[str, Any]:
        """The finding for ``--json``."""
        mend = self.mend or None
        return {"level": self.level, "about": self.about, "text": self.text, "mend": mend}


class Unusable(Exception):
    """Something that is there and cannot be used; the message says why."""


def open_folder(path: str, inside: int | None = None) -> int:
    """A descriptor of a folder, which is no symbolic link. Raises OSError."""
    return os.open(path, FOLDER_FLAGS, dir_fd=inside)


def read(folder: int, name: str, limit: int) -> bytes | None:
    """The bytes of a regular file; None where there is none. Raises Unusable."""
    fd = _open(folder, name)
    if fd is None:
        return None
    try:
        size = os.fstat(fd).st_size
        if size > limit:
            raise Unusable(f"{size} bytes, over {limit}")
        data = b""
        while chunk := os.read(fd, 1 << 20):
            data += chunk
            if len(data) > limit:
                raise Unusable(f"over {limit} bytes")
        return data
    except OSError as error:  # EIO
        raise Unusable(error.strerror or "") from None
    finally:
        os.close(fd)


def _open(folder: int, name: str) -> int | None:
    try:
        fd = os.open(name, _FILE_FLAGS, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError as error:  # EACCES, ENXIO (a socket)
        is_link = error.errno == errno.ELOOP
        raise Unusable("a symbolic link" if is_link else error.strerror or "") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Unusable("not a regular file")
    return fd


def entry(folder: int, name: str) -> os.stat_result | None:
    """What kind of file there is of this name; None where there is none, or it may not be seen."""
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:  # ENOENT, EACCES
        return None


def lock_holder(folder: int) -> int | None:
    """The process that holds the lock in this folder, SOMEBODY, or None. Raises Unusable."""
    fd = _open(folder, "lock")
    if fd is None:
        return None
    try:
        answer = fcntl.fcntl(fd, fcntl.F_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError as error:  # ENOLCK of a network file system
        raise Unusable(error.strerror or "") from None
    finally:
        os.close(fd)
    kind, _, _, _, pid = _FLOCK.unpack(answer)
    if kind == fcntl.F_UNLCK:
        return None
    return int(pid) if pid > 0 else SOMEBODY


class Process:
    """A process as ``/proc/PID/stat`` has it; ``start``: kernel start time, clock ticks."""

    __slots__ = ("pid", "ppid", "session", "start", "state", "threads")

    def __init__(
        self, pid: int, state: str, ppid: int, session: int, start: int, threads: int
    ) -> None:
        self.pid, self.state, self.ppid = pid, state, ppid
        self.session, self.start, self.threads = session, start, threads

    @property
    def dead(self) -> bool:
        """Whether it only waits to be reaped; the state alone is that of its first thread."""
        return self.state in "ZX" and self.threads <= 1

    @property
    def stopped(self) -> bool:
        """Whether it was stopped by a signal or a debugger."""
        return self.state in "Tt"


def process(pid: int) -> Process | None:
    """How a process stands; None where there is none that can be seen."""
    text = _proc(f"{pid}/stat")
    if not text:
        return None
    # The name between the parentheses is the process's own choice and may hold both.
    fields = text[text.rindex(b")") + 2 :].split()
    state, ppid, _, session = fields[:4]
    start, threads = int(fields[19]), int(fields[17])
    return Process(pid, state.decode("ascii"), int(ppid), int(session), start, threads)


def exists(pid: int) -> bool:
    """Whether any process has this number, also one that /proc hides."""
    try:
        os.kill(pid, 0)
    except OSError as error:  # ESRCH; EPERM of somebody else's
        return error.errno == errno.EPERM
    return True


def _folders(pid: int) -> Iterator[str]:
    """Where descriptors and environment of a process are: a first thread that has ended shows none."""
    yield f"{pid}"
    found = process(pid)
    if found is not None and found.state in "ZX" and not found.dead:
        try:
            threads = os.listdir(f"/proc/{pid}/task")
        except OSError:  # ENOENT, ESRCH, EACCES
            return
        yield from (f"{pid}/task/{thread}" for thread in threads if thread != str(pid))


def everyone() -> list[int]:
    """The numbers of all processes that can be seen."""
    try:
        return sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit())
    except OSError:  # ENOENT: no /proc, which the doctor says elsewhere
        return []


def name(pid: int) -> str:
    """The kernel's name of a process."""
    return _proc(f"{pid}/comm").decode("utf-8", "replace").rstrip("\n") or "unknown"


def command_line(pid: int) -> list[str]:
    """The words a process was started with."""
    return os.fsdecode(_proc(f"{pid}/cmdline")).split("\0")[:-1]


def is_ours(pid: int) -> bool:
    """Whether a process was started as taskmasterd; its watchdogs have the same command line."""
    return any("taskmaster" in word for word in command_line(pid))


def user(pid: int) -> int | None:
    """The effective user of a process."""
    for line in _proc(f"{pid}/status").splitlines():
        if line.startswith(b"Uid:"):
            return int(line.split()[2])
    return None


def open_files_limit(pid: int) -> int | None:
    """How many descriptors a process may have, if that may be seen."""
    match = re.search(rb"^Max open files +([0-9]+) ", _proc(f"{pid}/limits"), re.MULTILINE)
    return int(match[1]) if match else None


def variable(pid: int, name: str) -> str | None:
    """A variable of the environment that a process was started with, if it may be seen."""
    for folder in _folders(pid):
        for entry in _proc(f"{folder}/environ", _MAX_ENVIRON_BYTES).split(b"\0"):
            if entry.startswith(name.encode() + b"="):
                return entry.partition(b"=")[2].decode("utf-8", "replace")
    return None


def opened(pid: int) -> dict[int, str]:
    """Where the descriptors of a process lead; empty where that may not be seen."""
    found = {}
    try:
        entries = os.listdir(f"/proc/{pid}/fd")
    except OSError:  # ENOENT, ESRCH, EACCES
        return {}
    for entry in entries:
        path = leads_to(pid, int(entry))
        if path:  # else closed meanwhile
            found[int(entry)] = path
    return found


def leads_to(pid: int, fd: int) -> str:
    """Where a descriptor of a process leads, in words; empty where that may not be seen."""
    for folder in _folders(pid):
        try:
            return os.readlink(f"/proc/{folder}/fd/{fd}")
        except OSError:  # ENOENT, ESRCH, EACCES
            continue
    return ""


def path_of(fd: int) -> str:
    """The path of a file that this process has open."""
    return os.readlink(f"/proc/self/fd/{fd}")


def flags(pid: int, fd: int) -> int:
    """How a process has a descriptor open: O_APPEND and the like."""
    match = re.search(rb"^flags:\s*([0-7]+)", _proc(f"{pid}/fdinfo/{fd}"), re.MULTILINE)
    return int(match[1], 8) if match else 0


def working_directory(pid: int) -> str:
    """Where a process is; / where that may not be seen."""
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:  # ENOENT, ESRCH, EACCES
        return "/"


def unit(pid: int) -> str:
    """The systemd unit of taskmaster's that a process belongs to; empty where it does to none."""
    match = re.search(rb"/([\w@.:-]*taskmaster[\w@.:-]*\.service)", _proc(f"{pid}/cgroup"))
    return match[1].decode("ascii", "replace") if match else ""


def owner(path: str) -> str:
    """Whose a file is: the user's name, else the number; empty where it may not be seen."""
    import pwd

    try:
        uid = os.stat(path).st_uid
    except OSError:  # ENOENT, EACCES
        return ""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def mounts() -> str:
    """What is mounted where."""
    return _proc("self/mounts").decode("utf-8", "replace")


def boot_id() -> str:
    """The kernel's random name of this boot."""
    return _proc("sys/kernel/random/boot_id").decode("ascii", "replace").strip()


def _proc(path: str, limit: int = _MAX_PROC_BYTES) -> bytes:
    try:
        with open(f"/proc/{path}", "rb") as file:
            return file.read(limit)
    except OSError:  # ENOENT, ESRCH, EACCES, EPERM (hidepid)
        return b""
