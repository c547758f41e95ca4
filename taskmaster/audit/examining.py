"""The log and its sealing key as another process has them, looked at before this one would take them over.

It writes to neither and takes no lock that lasts: the daemon that has them may be writing, or sealing.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from taskmaster.audit import generations
from taskmaster.audit.sealing import SealFile
from taskmaster.audit.tail import read_tail
from taskmaster.errors import FileError

#: As ``generations.open_log`` does, but nothing is made.
_FLAGS: Final = generations.FLAGS & ~os.O_CREAT


def examine(path: Path, seal: Path | None, held: tuple[int, int] | None) -> int:
    """Descriptor of a memory file in place of the log, which could be opened and gone on with.

    ``held``: device and inode of the log of the process that this one is to follow. Raises what
    ``generations.open_log`` raises, and FileError for what is at ``seal`` and is no sealing key.
    """
    if seal is not None and os.path.lexists(seal):
        try:
            SealFile(seal).examine()
        except OSError as error:
            found = f"that it cannot be used ({error.strerror})"
            raise FileError(str(seal), "", found, "a sealing key, or no file") from error
    try:
        fd = generations.open_file(path, _FLAGS)
    except FileNotFoundError:
        _check_room(path)
    else:
        try:
            about = os.fstat(fd)
            if (about.st_dev, about.st_ino) != held and not _was_rotated(path, held):
                generations.lock(fd, path)
            read_tail(fd, about.st_size)
        finally:
            os.close(fd)
    return os.memfd_create("taskmaster-audit", os.MFD_CLOEXEC)


def _was_rotated(path: Path, held: tuple[int, int] | None) -> bool:
    """Whether the log ``held`` is a backup of this one by now: then this one is of the same process."""
    for number in generations.backup_numbers(path):
        try:
            about = os.stat(generations.backup(path, number))
        except FileNotFoundError:
            continue  # moved up, or deleted, since they were listed
        if (about.st_dev, about.st_ino) == held:
            return True
    return False


def _check_room(path: Path) -> None:
    """Raises PermissionError where the file could not be made; a folder that is not there is made with it."""
    if path.parent.is_dir() and not os.access(path.parent, os.W_OK | os.X_OK, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
