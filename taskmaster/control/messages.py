"""The file that the daemon's own messages go to: how large it may get, and that it can be opened anew.

With ``--detach`` it is what descriptors 1 and 2 lead to; with ``logFile`` in the foreground it is a file
beside them, and they stay what the daemon was started with. A file that cannot be rotated is written on
to twice its size, and after that what does not fit is counted. Nothing here waits, and no failure of it
stops the daemon.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

from taskmaster.config.daemon import DaemonConfig
from taskmaster.errors import FileError

NAME: Final = "taskmasterd.log"
_FLAGS: Final = (
    os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
)
_MODE: Final = 0o640
_STANDARD: Final = (1, 2)
#: Mistakes of this program, never the state of the host: these are raised.
_BUGS: Final = frozenset({errno.EBADF, errno.EFAULT})


def path_of(config: DaemonConfig) -> Path:
    """Where the messages of a daemon in the background go."""
    return config.log_file or config.log_directory / NAME


def open_file(path: Path, flags: int = _FLAGS) -> int:
    """Open, or make, the file for appending. Raises OSError, also for what is no regular file."""
    fd = os.open(path, flags, _MODE)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return fd


def of(config: DaemonConfig) -> Messages | None:
    """The file that this daemon's messages go to; None where that is whatever descriptor 2 leads to.

    Raises FileError where ``logFile`` cannot be opened.
    """
    path = path_of(config)
    standard = leads_to(2, path)
    if config.log_file is None and not standard:
        return None
    try:
        os.makedirs(path.parent, 0o750, exist_ok=True)
        return Messages(
            path,
            max_bytes=config.log_file_max_bytes,
            backups=config.log_file_backups,
            standard=standard,
        )
    except OSError as error:
        raise _unusable(path, error) from None


def examine(config: DaemonConfig) -> None:
    """Raises FileError where ``of`` would; nothing is made, and nothing written."""
    path = config.log_file
    if path is None or not os.path.lexists(path):
        return
    try:
        os.close(open_file(path, _FLAGS & ~os.O_CREAT))
    except OSError as error:
        raise _unusable(path, error) from None


def _unusable(path: Path, error: OSError) -> FileError:
    found = f"that it cannot be opened ({error.strerror})"
    return FileError("logFile", str(path), found, "a file that can be written to")


def leads_to(fd: int, path: Path) -> bool:
    """Whether a descriptor leads to this file, under whatever name it has been put aside meanwhile."""
    try:
        found = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:  # ENOENT, EACCES: closed, or no /proc
        return False
    found = found.removesuffix(" (deleted)")
    name, _, number = found.rpartition(".")
    return found == str(path) or (name == str(path) and number.isdigit())


class Messages:
    """The file at ``path``; ``standard``: descriptors 1 and 2 lead to it too. Raises OSError.

    ``max_bytes``: rotated before it grows over this, 0: never; ``backups``: so many older files are kept.
    """

    def __init__(self, path: Path, *, max_bytes: int, backups: int, standard: bool) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._backups = backups
        self._standard = standard
        self._dropped = 0
        self._fd = -1
        self._size = 0
        self._open()

    def fileno(self) -> int:
        """The descriptor to write to."""
        return self._fd

    def reopen(self) -> OSError | None:
        """Go on in the file that is at ``path`` now; the error where there can be none, and all stays."""
        try:
            self._open()
        except OSError as error:
            if error.errno in _BUGS:
                raise
            return error
        return None

    def write(self, line: bytes) -> None:
        """Append a line. What cannot be written is left out."""
        if self._max_bytes and self._size + len(line) > self._max_bytes:
            self._make_room(len(line))
            if self._size + len(line) > 2 * self._max_bytes:
                self._dropped += 1
                return
        if self._dropped:
            line = (
                b"taskmasterd: %d messages did not fit and were left out\n" % self._dropped + line
            )
            self._dropped = 0
        try:
            self._size += os.write(self._fd, line)
        except OSError as error:
            if error.errno in _BUGS:
                raise
            self._dropped += 1  # ENOSPC, EDQUOT, EIO: nobody can be told, and no job stops for it

    def _open(self) -> None:
        fd = open_file(self.path)
        if self._standard:
            for number in _STANDARD:
                os.dup2(fd, number)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self._size = os.fstat(fd).st_size

    def _make_room(self, size: int) -> None:
        # What else goes there (a traceback, the output of a job) is not counted above; nor is a truncation.
        self._size = os.fstat(self._fd).st_size
        if self._size + size <= self._max_bytes:
            return
        try:
            self._rotate()
            self._open()
        except OSError as error:
            if error.errno in _BUGS:
                raise

    def _rotate(self) -> None:
        names = [self.path, *(self._backup(number + 1) for number in range(self._backups))]
        if len(names) == 1:
            os.unlink(self.path)
            return
        for older, newer in zip(reversed(names[1:]), reversed(names[:-1]), strict=True):
            try:
                os.rename(newer, older)
            except FileNotFoundError:
                continue

    def _backup(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")
