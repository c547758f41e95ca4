"""The lines of an audit log, oldest first, over its rotated files; then those that come.

Reads files, never writes; whatever they hold, a line has an end here: what is longer comes in pieces.
"""

from __future__ import annotations

import functools
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from typing import IO

from taskmaster.cli.audit.logfiles import open_all
from taskmaster.errors import NotPermitted, TaskmasterError

#: Twice what the daemon writes at most.
LONGEST_LINE = 128 * 1024
#: How long ``follow`` waits before it looks again, seconds.
LOOK_AGAIN_S = 0.5
_NUMBER = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)


class UnreadableLog(TaskmasterError):
    """A file that is no log, or cannot be read."""

    code = "bad-file"
    exit_status = 78


class Files:
    """The logs at ``paths``, each with its rotated files before it. ``where``: what errors call them."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.where = ", ".join(paths)
        self._paths = list(paths)
        self._seen: set[tuple[int, int]] = set()
        self._last: tuple[str, IO[bytes]] | None = None

    def lines(self) -> Iterator[bytes]:
        """Every line there is. Raises UnreadableLog, NotPermitted."""
        for path in self._paths:
            checked = _opened(path, optional=False)
            assert checked is not None
            checked.close()
        # PATH.2 and PATH may be named side by side: the order is that of the log.
        opened = [(one.path, one.file) for one in open_all(self._paths)]
        for _, file in opened:
            about = os.fstat(file.fileno())
            self._seen.add((about.st_dev, about.st_ino))
        for number, (path, file) in enumerate(opened):
            yield from self._whole_lines(file, last=number == len(opened) - 1)
            if number == len(opened) - 1:
                self._last = path, file
            else:
                file.close()

    def more(self) -> Iterator[bytes]:
        """What was written since, also into a new file. Waits a moment where there is nothing."""
        assert self._last is not None
        path, file = self._last
        found = False
        for line in self._whole_lines(file, last=True):
            found = True
            yield line
        if not found and not _is(path, file):
            newer = self._unread(path)
            yield from self._whole_lines(file, last=False)  # what came before it was moved away
            for one in newer:
                file.close()
                file = one
                yield from self._whole_lines(file, last=one is newer[-1])
            found = bool(newer)
            self._last = path, file
        if not found:
            time.sleep(LOOK_AGAIN_S)

    def close(self) -> None:
        """Let go of the last file."""
        if self._last is not None:
            self._last[1].close()

    def _whole_lines(self, file: IO[bytes], *, last: bool) -> Iterator[bytes]:
        """Lines to the end of the file; one without its end is left for later in the ``last`` file."""
        for line in iter(functools.partial(file.readline, LONGEST_LINE), b""):
            if last and not line.endswith(b"\n") and len(line) < LONGEST_LINE:
                file.seek(-len(line), os.SEEK_CUR)
                return
            yield line

    def _unread(self, path: str) -> list[IO[bytes]]:
        """Files of this log that were not read yet, oldest first. Newest opened first: none is missed."""
        opened = []
        for name in [path, *generations(path)]:
            file = _opened(name, optional=True)
            if file is None:
                continue
            about = os.fstat(file.fileno())
            if (about.st_dev, about.st_ino) in self._seen:
                file.close()
                break  # and all that are older
            self._seen.add((about.st_dev, about.st_ino))
            opened.append(file)
        return opened[::-1]


def generations(path: str) -> list[str]:
    """The rotated files of the log at ``path``, newest first."""
    folder, name = os.path.split(path)
    try:
        names = os.listdir(folder or ".")
    except OSError:  # EACCES: a folder may be searched and not listed; the file itself is tried
        return []
    prefix = f"{name}."
    numbers = (n[len(prefix) :] for n in names if n.startswith(prefix))
    return [f"{path}.{n}" for n in sorted((n for n in numbers if _NUMBER.fullmatch(n)), key=int)]


def _opened(path: str, *, optional: bool) -> IO[bytes] | None:
    try:
        # Non-blocking: to open a FIFO without a writer would hang.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError as error:
        if optional:
            return None
        raise UnreadableLog(f"cannot read {path}: {error.strerror}") from None
    except PermissionError as error:
        raise NotPermitted(
            f"cannot read {path}: {error.strerror}. It is the file of the user that runs taskmasterd: "
            "use that account, or sudo."
        ) from None
    except OSError as error:  # ELOOP, ENXIO (a socket), EIO
        raise UnreadableLog(f"cannot read {path}: {error.strerror}") from None
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return open(fd, "rb", buffering=1 << 18)
    os.close(fd)
    if optional:
        return None
    raise UnreadableLog(f"cannot read {path}: it is not a regular file")


def _is(path: str, file: IO[bytes]) -> bool:
    """Whether this is still the file of that name."""
    about = os.fstat(file.fileno())
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return True  # being rotated: a new one comes
    return (there.st_dev, there.st_ino) == (about.st_dev, about.st_ino)
