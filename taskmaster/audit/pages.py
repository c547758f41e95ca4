"""The log in pieces, for who cannot open its files: what follows a cursor, over all files, oldest first.

A cursor is ``INODE-OFFSET-CHECK``: a file keeps its inode over rotations, and since a number is used again
once its file was deleted, the check is a sum of the file's first bytes, which never change. Nothing
here writes, and the one piece is all that is ever in memory.
"""

from __future__ import annotations

import os
import re
import stat
import zlib
from pathlib import Path
from typing import Final, NamedTuple

from taskmaster.audit import generations

#: At most so much at a time: a fraction of a millisecond of the daemon's time.
PAGE_BYTES: Final = 256 * 1024
END: Final = "end"
_CURSOR: Final = re.compile(r"(\d{1,20})-(\d{1,20})-([0-9a-f]{8})", re.ASCII)
_HEAD_BYTES: Final = 256


class Page(NamedTuple):
    """Whole lines, the cursor after them, and whether there are more already."""

    lines: bytes
    cursor: str
    more: bool


def page(path: Path, cursor: str, current: int) -> Page:
    """What follows ``cursor`` ("": from the oldest; ``END``: what will be written from now on).

    ``current``: the log's own descriptor, -1 without one; this process must not open that file again
    (see ``generations.open_log``). Raises ValueError for what is no cursor, OSError.
    """
    if cursor == END:
        return Page(b"", _cursor(current, os.fstat(current).st_size) if current >= 0 else "", False)
    inode, offset, check = _parse(cursor)
    files = [] if cursor and _is(current, inode, offset, check) else _older(path, current)
    fds = [*reversed(files), *([current] if current >= 0 else [])]
    try:
        start = next((n for n, fd in enumerate(fds) if _is(fd, inode, offset, check)), None)
        if start is None:
            # Without a cursor, or its file was deleted: from the oldest there is.
            start, offset = 0, 0
        for fd in fds[start:]:
            lines = _lines(fd, offset, is_last=fd == current)
            offset += len(lines)
            if lines or fd == fds[-1]:
                more = fd != fds[-1] or offset < os.fstat(fd).st_size
                return Page(lines, _cursor(fd, offset), more and bool(lines))
            offset = 0
        return Page(b"", cursor, False)
    finally:
        for fd in files:
            os.close(fd)


def _parse(cursor: str) -> tuple[int, int, str]:
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        if cursor:
            raise ValueError(cursor)
        return -1, 0, ""
    return int(match[1]), int(match[2]), match[3]


def _cursor(fd: int, offset: int) -> str:
    return f"{os.fstat(fd).st_ino}-{offset}-{_check(fd, offset)}"


def _check(fd: int, offset: int) -> str:
    return f"{zlib.crc32(os.pread(fd, min(offset, _HEAD_BYTES), 0)):08x}"


def _is(fd: int, inode: int, offset: int, check: str) -> bool:
    """Whether this is the file that the cursor is of."""
    if fd < 0:
        return False
    about = os.fstat(fd)
    return about.st_ino == inode and about.st_size >= offset and _check(fd, offset) == check


def _lines(fd: int, offset: int, *, is_last: bool) -> bytes:
    """Whole lines from there; what has no line end only where none will come."""
    block = os.pread(fd, PAGE_BYTES, offset)
    end = block.rfind(b"\n") + 1
    if end or (is_last and len(block) < PAGE_BYTES):
        return block[:end]
    return block


def _older(path: Path, current: int) -> list[int]:
    """Descriptors of the log's older files, newest first. Raises OSError, but not for what is no file."""
    own = os.fstat(current).st_ino if current >= 0 else -1
    opened: list[int] = []
    try:
        for number in generations.backup_numbers(path):
            try:
                place = os.open(
                    generations.backup(path, number), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
                )
            except FileNotFoundError:
                continue
            try:
                about = os.fstat(place)
                # Looked at before it is opened: to close another descriptor of the current file, which
                # somebody may have linked there, would give up the log's lock.
                if stat.S_ISREG(about.st_mode) and about.st_ino != own:
                    opened.append(os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC))
            finally:
                os.close(place)
    except OSError:
        for fd in opened:
            os.close(fd)
        raise
    return opened
