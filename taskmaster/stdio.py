"""Descriptors 0, 1 and 2: there before anything else opens a file.

A caller that has closed one of them (``<&-``, some init scripts, some ssh one-liners) would have the next file
that is opened, a lock or the audit log, get its number, and then every message be written into that file. So
each that is missing becomes /dev/null, in taskmasterd and in taskmasterctl alike, as their very first act;
watchdogs and jobs have them from there.
"""

from __future__ import annotations

import errno
import io
import os
import sys


def mend() -> None:
    """Open /dev/null in the place of each that is missing. Raises OSError where there is no /dev/null."""
    for fd in (0, 1, 2):
        if _is_open(fd):
            continue
        # The lowest number that is free, and so this one: those below it are open by now.
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        assert null == fd
        os.set_inheritable(fd, True)
    # Python has None for what was missing when it began, which libraries do not expect.
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), "utf-8")
    if sys.stdout is None:
        sys.stdout = _writer(1)
    if sys.stderr is None:
        sys.stderr = _writer(2)


def _writer(fd: int) -> io.TextIOWrapper:
    raw = io.FileIO(fd, "w", closefd=False)
    return io.TextIOWrapper(raw, "utf-8", "backslashreplace", write_through=True)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        return False
    return True
