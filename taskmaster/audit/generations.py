"""The files of one audit log: the current one, and ``.1`` (newest) to ``.N`` beside it.

Opening, naming and renaming only; nothing here reads or writes a record. Every step leaves a directory
from which the next start goes on: a rename is the only thing that ever happens to a written file.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import pwd
import re
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Final

from taskmaster.errors import FileError, Held, TaskmasterError

_NUMBER: Final = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
_KINDS: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

#: errno of what ``open_log`` refuses for what it is; no waiting makes it a log.
UNFIT: Final = errno.EBADFD
#: errno when another process writes this log.
IN_USE: Final = errno.EBUSY
#: The state of the host: taskmasterd starts in spite of it, and refuses changes until it is over.
_PASSING: Final = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.EFBIG,
    }
)
#: Of ``open_log``. O_NONBLOCK: open must not wait for the other end of a FIFO; on a file it means nothing.
FLAGS: Final = (os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC) | (
    os.O_NOCTTY | os.O_NONBLOCK | os.O_NOFOLLOW
)


def user_name(uid: int) -> str:
    """``user NAME``, or ``uid N`` where the number has no name."""
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"uid {uid}"


def open_log(path: Path) -> int:
    """Open, or make, the current file for reading and appending, and lock it. Returns the descriptor.

    Raises OSError: ``UNFIT`` with what was found there, ``IN_USE`` where another process has the lock,
    else what the system says.

    The lock is a POSIX one: a child forked meanwhile does not hold it, and re-executing the program
    gives it up with the descriptor. It goes, too, when this process closes any other descriptor of the
    same file, so the daemon itself must not read its own log.
    """
    fd = open_file(path, FLAGS)
    try:
        lock(fd, path)
        if os.fstat(fd).st_size == 0:
            sync_directory(path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_file(path: Path, flags: int) -> int:
    """Descriptor of a regular file of ours. Raises OSError: ``UNFIT``, else what the system says."""
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        # ELOOP: a symbolic link; EISDIR; ENXIO: a socket, or a device without a driver.
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            found = _kind(os.lstat(path).st_mode)
            raise OSError(UNFIT, found, str(path)) from error
        raise
    about = os.fstat(fd)
    found = "" if stat.S_ISREG(about.st_mode) else _kind(about.st_mode)
    if not found and about.st_uid != os.geteuid():
        found = f"a file of {user_name(about.st_uid)}"
    if found:
        os.close(fd)
        raise OSError(UNFIT, found, str(path))
    return fd


def refusal(path: Path, error: OSError) -> TaskmasterError | None:
    """What to tell the administrator of an ``error`` of ``open_log``; None where it may pass by itself."""
    if error.errno in _PASSING:
        return None
    found = error.strerror or str(error)
    if error.errno == IN_USE:
        return Held(f"{path}: {found}; give each taskmasterd an auditFile of its own")
    if error.errno != UNFIT:
        found = f"that it cannot be opened ({found})"
    me = user_name(os.geteuid())
    accepted = f"a regular file of {me}, or none yet, in a directory that {me} can write to"
    return FileError(str(path), "", found, accepted)


def _kind(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "something that is no regular file")


def lock(fd: int, path: Path) -> None:
    """Take the log's lock. Raises OSError: ``IN_USE``."""
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise OSError(IN_USE, "another process writes this audit log", str(path)) from error
        # A file system without locks: the lock of the state directory has to do.
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise


def sync_directory(path: Path) -> None:
    """Make the name of ``path`` durable: fsync of a file says nothing of its directory's entry.

    Raises OSError, but not where the file system has no fsync of directories.
    """
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(directory)


def backup(path: Path, number: int) -> Path:
    """The path of one backup; 1 is the newest."""
    return path.with_name(f"{path.name}.{number}")


def backup_numbers(path: Path) -> list[int]:
    """The numbers of the backups that exist, newest first; there may be gaps. Raises OSError."""
    prefix = f"{path.name}."
    return sorted(
        int(name[len(prefix) :])
        for name in os.listdir(path.parent)
        if name.startswith(prefix) and _NUMBER.fullmatch(name[len(prefix) :])
    )


def shift(path: Path, dropped: Collection[int]) -> None:
    """Make way for a new current file: ``.1`` becomes ``.2`` and so on, the current one ``.1``.

    Numbers only grow with age, whatever happens: files move up from the oldest, and only as far as the
    first gap, which is what a crash between two renames leaves. So nothing is ever overwritten; the
    backups of the numbers in ``dropped`` are deleted. Raises OSError.
    """
    for number in dropped:
        backup(path, number).unlink(missing_ok=True)
    numbers = set(backup_numbers(path)) - set(dropped)
    gap = next(number for number in itertools.count(1) if number not in numbers)
    for number in range(gap, 1, -1):
        os.rename(backup(path, number - 1), backup(path, number))
    os.rename(path, backup(path, 1))
