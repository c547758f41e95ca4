"""What a process has in it, as far as ``/proc`` lets one look: environment, output, memory.

All of it is read through a thread that lives: of a process whose first thread has ended that one shows nothing.
None of it is evidence by itself: a process may have erased or changed its environment, and closed its output.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from typing import Final

from taskmaster import procfs

#: The kernel gives arguments and environment together three quarters of 8 MiB at most (fs/exec.c), so more than
#: this is only what a process has pretended since (PR_SET_MM).
_ENVIRON_BYTES: Final = 8 << 20
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
#: The process is gone, hidden, or its memory cannot be read.
_NOT_SEEN: Final = frozenset({errno.ENOENT, errno.ESRCH, errno.EACCES, errno.EPERM, errno.EIO})


def _folders(pid: int) -> Iterator[str]:
    """Where memory and descriptors of the process are told of: of its first thread, else of one that lives."""
    yield f"/proc/{pid}"
    status = procfs.stat(pid)
    if status is not None and status.state in "ZX":
        yield from (
            f"/proc/{pid}/task/{thread}" for thread in procfs.threads_of(pid) if thread != pid
        )


def variables(pid: int, *names: str) -> dict[str, str] | None:
    """Those of the named variables that the process was exec'd with; None where there is nothing to read.

    Read until all are found, so that who puts them first pays for little; a large environment is read to its end.
    """
    for folder in _folders(pid):
        found = _variables(f"{folder}/environ", [f"\0{name}=".encode() for name in names])
        if found is not None:
            return found
    return None


def _variables(path: str, wanted: list[bytes]) -> dict[str, str] | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    block = bytearray(b"\0")
    try:
        size = 65536
        while more := os.read(fd, size):
            block += more
            size = 1 << 20  # else a large one is searched many times over
            if len(block) > _ENVIRON_BYTES or all(
                _value(block, name) is not None for name in wanted
            ):
                break
    except OSError as error:
        if error.errno not in _NOT_SEEN:
            raise
        return None
    finally:
        os.close(fd)
    if len(block) == 1:
        return None  # in the middle of an exec, a kernel thread, or erased
    block += b"\0"
    values = ((name, _value(block, name)) for name in wanted)
    return {
        name[1:-1].decode(): value.decode("utf-8", "replace")
        for name, value in values
        if value is not None
    }


def _value(block: bytearray, name: bytes) -> bytearray | None:
    at = block.find(name)
    end = -1 if at < 0 else block.find(b"\0", at + 1)
    return None if end < 0 else block[at + len(name) : end]


def resident(pid: int) -> int:
    """Bytes of the process in RAM, those that it shares with others included; 0 when it is gone."""
    for folder in _folders(pid):
        try:
            pages = int(procfs.read(f"{folder}/statm").split()[1])
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if pages:
            return pages * _PAGE_BYTES
    return 0


def proportional(pid: int) -> int:
    """Bytes of the process in RAM, of those that it shares only its share; 0 when it is gone.

    Where the kernel does not let us look into it, ``resident``.
    """
    for folder in _folders(pid):
        try:
            text = procfs.read(f"{folder}/smaps_rollup")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        found = re.search(rb"^Pss: *([0-9]+) kB", text, re.MULTILINE)
        if found is not None:
            return int(found[1]) * 1024
    return resident(pid)


def outputs(pid: int) -> list[str]:
    """What standard output and error of a process lead to; empty when gone or not ours to look at."""
    for folder in _folders(pid):
        found = []
        for fd in (1, 2):
            try:
                found.append(os.readlink(f"{folder}/fd/{fd}"))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
        if found:
            return found
    return []
