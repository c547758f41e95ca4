"""The files of a log as somebody names them: each with its older generations, oldest first, line by line."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from typing import IO

from taskmaster.errors import FileError
from taskmaster.evidence.chain import LONGEST_LINE

_NUMBERED = re.compile(r"(.+)\.([1-9][0-9]{0,8})", re.ASCII | re.DOTALL)
_BUFFER_BYTES = 1 << 20


class OpenFile:
    """One file, opened: its daemon may rotate it while it is read."""

    __slots__ = ("file", "left_out", "path")

    def __init__(self, path: str, file: IO[bytes]) -> None:
        self.path, self.file = path, file
        #: How many bytes of the line that came last were cut off.
        self.left_out = 0

    def lines(self) -> Iterator[bytes]:
        """The lines, each with its line end but perhaps the last; an endless line comes cut off."""
        readline = self.file.readline
        while line := readline(LONGEST_LINE + 1):
            self.left_out, piece = 0, line
            while len(piece) > LONGEST_LINE and not piece.endswith(b"\n"):
                piece = readline(LONGEST_LINE + 1)
                self.left_out += len(piece)
            yield line


def open_all(paths: Sequence[str]) -> list[OpenFile]:
    """Every file of ``paths`` and ``PATH.N`` beside it, once each, oldest first.

    Raises FileError for one that is named and cannot be read.
    """
    numbers: dict[str, set[int]] = {}
    for path in paths:
        named = _NUMBERED.fullmatch(path)
        base = named[1] if named is not None else path
        found = numbers.setdefault(base, set())
        found |= {0} | _generations(path) if named is None else {int(named[2])}
    opened: list[OpenFile] = []
    seen: set[tuple[int, int]] = set()
    # Newest first: a rotation in between can only show a file twice, never hide one.
    for base in reversed(numbers):
        for number in sorted(numbers[base]):
            path = f"{base}.{number}" if number else base
            file = _open(path, seen, named=path in paths)
            if file is not None:
                opened.append(OpenFile(path, file))
    opened.reverse()
    return opened


def _generations(path: str) -> set[int]:
    folder, name = os.path.split(path)
    try:
        beside = os.listdir(folder or ".")
    except OSError:
        return set()  # to open the file itself says why
    found = (_NUMBERED.fullmatch(one) for one in beside if one.startswith(f"{name}."))
    return {int(one[2]) for one in found if one is not None and one[1] == name}


def _open(path: str, seen: set[tuple[int, int]], *, named: bool) -> IO[bytes] | None:
    try:
        # Non-blocking: to open a FIFO without a writer would hang.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ENOENT and not named:
            return None
        found = f"that it cannot be opened ({error.strerror})"
        raise FileError(path, "", found, "an audit log that may be read") from None
    about = os.fstat(fd)
    if not stat.S_ISREG(about.st_mode):
        os.close(fd)
        raise FileError(path, "", "something that is no regular file", "an audit log")
    if (about.st_dev, about.st_ino) in seen:
        os.close(fd)
        return None
    seen.add((about.st_dev, about.st_ino))
    return open(fd, "rb", buffering=_BUFFER_BYTES)
