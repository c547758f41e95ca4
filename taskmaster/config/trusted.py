"""Opening files and folders whose content decides what runs, perhaps as root.

Opened first, looked at by descriptor afterwards: what was checked is what is read. It follows a symbolic link in
the last part of a path only where it is told to, and then judges every folder on the way (``trail``); it never
waits for a FIFO's writer. Problems are FileErrors.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from taskmaster import trail
from taskmaster.config import kinds
from taskmaster.errors import FileError


def complaint(
    status: os.stat_result, uid: int, *, sticky: bool = False, private: bool = False
) -> str | None:
    """What is wrong with owner or mode, in words; None where nothing is.

    ``uid``: the daemon's. ``sticky``: a folder open to all is fine with the sticky bit, which keeps
    others from replacing what is in it. ``private``: nobody else may even read it. Access lists need no
    look: their mask shows as group bits.
    """
    if status.st_uid not in (0, uid):
        return f"owner uid {status.st_uid}"
    mode = stat.S_IMODE(status.st_mode)
    if mode & (stat.S_IWGRP | stat.S_IWOTH) and not (sticky and mode & stat.S_ISVTX):
        return f"mode {mode:04o}"
    if private and mode & 0o077:
        return f"mode {mode:04o}"
    return None


def accepted(uid: int, *, private: bool = False) -> str:
    """What ``complaint`` accepts, in words."""
    owners = "root" if uid == 0 else f"root or uid {uid}"
    if private:
        return f"owned by {owners}, and open to nobody else (chmod 600)"
    return f"owned by {owners}, and not writable by group or others (chmod go-w)"


@contextlib.contextmanager
def folder(
    path: str,
    uid: int,
    *,
    label: str,
    inside: int | None = None,
    follow: bool = False,
    sticky: bool = False,
    linked: bool = False,
) -> Iterator[int]:
    """Descriptor of a trusted folder, open for the time of the ``with``.

    ``inside``: descriptor of the folder that ``path`` is relative to. ``label``: what errors call it.
    ``follow``: it may be a symbolic link. ``linked``: it may, if every folder on the way is trusted too.
    ``sticky``: as in ``complaint``. Raises FileError.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        fd = _opened(path, flags, uid, inside, linked, label)
    except (OSError, ValueError) as error:  # whichever errno: reported in the system's words
        wanted = "a folder" if linked else "a folder, no symbolic link"
        raise FileError(label, "", _words(error), wanted) from None
    try:
        found = complaint(os.fstat(fd), uid, sticky=sticky)
        if found:
            raise FileError(label, "", found, f"a folder {accepted(uid)}")
        yield fd
    finally:
        os.close(fd)


def _opened(path: str, flags: int, uid: int, inside: int | None, linked: bool, label: str) -> int:
    try:
        return os.open(path, flags, dir_fd=inside)
    except OSError as error:
        # ENOTDIR is the kernel's word for a link, too, where a folder is asked for.
        if not linked or error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
    try:
        return trail.walk(path, flags, {0, uid}, inside=inside)
    except trail.Untrusted as error:
        # The path in full: it may be long, and its end is what is to be mended.
        where = "".join(one if one.isprintable() else "?" for one in error.what)
        found = f"a link that others could change: {where}: {error.found}"
        raise FileError(label, "", found, f"folders on the way {accepted(uid)}") from None
    except OSError as error:
        words = {
            errno.ENOENT: "a link that leads to nothing",
            errno.ELOOP: "links that lead in a circle, or more than 40 of them",
        }
        if error.errno not in words:
            raise
        raise FileError(label, "", words[error.errno], "a file or folder") from None


def read(
    name: str,
    uid: int,
    max_bytes: int,
    *,
    label: str,
    inside: int,
    private: bool = False,
    linked: bool = False,
) -> bytes:
    """The bytes of a trusted regular file in the folder open as ``inside``. Raises FileError.

    ``private``: as in ``complaint``; ``linked``: as in ``folder``.
    """
    # O_NONBLOCK: opening a FIFO must not wait for its writer; regular files do not care.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        fd = _opened(name, flags, uid, inside, linked, label)
    except (OSError, ValueError) as error:  # whichever errno: reported in the system's words
        raise FileError(label, "", _words(error), "a readable regular file") from None
    try:
        return _checked(fd, uid, max_bytes, label, private)
    except OSError as error:  # EIO, ESTALE: the disk's own troubles
        raise FileError(label, "", _words(error), "a readable regular file") from None
    finally:
        os.close(fd)


def _checked(fd: int, uid: int, max_bytes: int, label: str, private: bool) -> bytes:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise FileError(label, "", _sort(status.st_mode), "a regular file")
    found = complaint(status, uid, private=private)
    if found:
        raise FileError(label, "", found, f"a file {accepted(uid, private=private)}")
    data = bytearray()
    while len(data) <= max_bytes:
        piece = os.read(fd, max_bytes + 1 - len(data))
        if not piece:
            return bytes(data)
        data += piece
    raise FileError(label, "", f"over {max_bytes} bytes", f"at most {max_bytes} bytes")


def _sort(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a FIFO"
    return "a device or socket"


def _words(error: OSError | ValueError) -> str:
    # ELOOP's own words, "Too many levels of symbolic links", send people looking for a cycle.
    if isinstance(error, OSError):
        if error.errno == errno.ELOOP:
            return "a symbolic link"
        return error.strerror or kinds.printable(str(error))
    return kinds.printable(str(error))
