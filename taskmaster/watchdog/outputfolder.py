"""The folder that an output file with an absolute path lies in: who may have a hand in it, with whose rights it
is entered.

Root's watchdog opens files by a path that an administrator wrote down once. If another user owns a folder on
the way, they can put something else in its place at any time: a link to ``/etc/cron.d``, say. So the way is gone
one folder after the other, each is judged by its owner and mode, and it stays open from then on:

============  ==================================================  =========================================
folder        owner and mode                                      what is done
============  ==================================================  =========================================
closed        root's or ours, and nobody else may write to it     links in it are followed
sticky        the same, open to others, with the sticky bit       links of root's and ours are followed
shared        the same, open to its group                         no link is followed from here on
foreign       another user's, or open to everybody                the way is gone as the job's user; where
                                                                  that user may not, or there is no other
                                                                  user, no link is followed from here on
============  ==================================================  =========================================

Without links whoever has a hand in a folder can only lead to folders of their own. What else they could lead
to is a file of root's by a second name (a hard link): the file must have one name. A file in a sticky folder
must be root's, ours, or the job's user's.

``..`` means what it means to the kernel: the folder above the one that was reached, not the text before it.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from taskmaster.watchdog.rights import Rights

_FOLDER_FLAGS: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
#: Links that the kernel follows on one way (path_resolution(7)).
_MAX_LINKS: Final = 40


class Standing(enum.IntEnum):
    """Who besides root and us can change what a name in a folder leads to."""

    CLOSED = 0
    STICKY = 1
    SHARED = 2
    FOREIGN = 3


def standing(status: os.stat_result, owners: frozenset[int]) -> Standing:
    """Of a folder; ``owners``: the users who are not others."""
    if status.st_uid not in owners:
        return Standing.FOREIGN
    mode = status.st_mode
    if mode & (stat.S_IWGRP | stat.S_IWOTH) and mode & stat.S_ISVTX:
        return Standing.STICKY
    if mode & stat.S_IWOTH:
        return Standing.FOREIGN
    return Standing.SHARED if mode & stat.S_IWGRP else Standing.CLOSED


class Folder:
    """A folder, open; it owns the descriptor. ``rights``: with whose rights its files are touched, None: ours.

    ``worst``: the worst folder on the way to it, but of sticky ones it alone; ``owners``: who may own a file in
    it where it is sticky.
    """

    def __init__(
        self,
        fd: int,
        rights: Rights | None = None,
        worst: Standing = Standing.CLOSED,
        owners: frozenset[int] = frozenset(),
    ) -> None:
        self.fd = fd
        self.rights = rights
        self._worst = worst
        self._owners = owners

    def _as_they(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext() if self.rights is None else self.rights.taken()

    def open(self, name: str, flags: int) -> int:
        """Open a file, made with mode 0640 where it is not there. Raises OSError."""
        with self._as_they():
            fd = os.open(name, flags, 0o640, dir_fd=self.fd)
        try:
            self._judge(os.fstat(fd))
        except OSError:
            os.close(fd)
            raise
        return fd

    def _judge(self, status: os.stat_result) -> None:
        if self.rights is not None or self._worst is Standing.CLOSED:
            return
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            raise OSError(errno.EMLINK, "has a second name, in a folder that others can change")
        if self._worst is Standing.STICKY and status.st_uid not in self._owners:
            raise PermissionError(errno.EACCES, f"belongs to uid {status.st_uid}")

    def stat(self, name: str) -> os.stat_result:
        """Of a file, or of a link as such. Raises OSError."""
        try:
            # With our own rights: it is asked before each piece of output, and changes nothing.
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except PermissionError:
            # Root's are none on a file system of another host.
            with self._as_they():
                return os.stat(name, dir_fd=self.fd, follow_symlinks=False)

    def rename(self, old: str, new: str) -> None:
        """Within the folder. Raises OSError."""
        with self._as_they():
            os.rename(old, new, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def unlink(self, name: str) -> None:
        """Raises OSError."""
        with self._as_they():
            os.unlink(name, dir_fd=self.fd)

    def close(self) -> None:
        """Harmless when done."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class _Foreign(Exception):
    """There is a foreign folder on the way."""


def enter(path: str, name: str, rights: Callable[[], Rights | None]) -> Folder:
    """The folder ``path``, absolute, to have file ``name`` in it. Raises OSError with the path of what is wrong.

    ``rights``: those of the job's user, asked for only where they are needed; None where that is our own.
    """
    ours = frozenset({0, os.geteuid()})
    try:
        return _Way(ours, links_upto=Standing.CLOSED, stop=True).enter(path, None)
    except _Foreign:
        theirs = rights()
    owners = ours if theirs is None else ours | {theirs.uid}
    if theirs is not None:
        with contextlib.suppress(PermissionError):
            with theirs.taken():
                folder = _Way(owners, links_upto=Standing.SHARED).enter(path, theirs)
            return _tried(folder, name)
    return _Way(ours, links_upto=Standing.CLOSED).enter(path, None, owners)


def _tried(folder: Folder, name: str) -> Folder:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    try:
        os.close(folder.open(name, flags | os.O_CLOEXEC))
    except PermissionError:
        folder.close()
        raise
    except OSError:
        pass  # said when it is opened in earnest
    return folder


class _Way:
    """One way from ``/``. ``owners``: the users who are not others; ``links_upto``: the worst folder whose links
    are followed; ``stop``: raise _Foreign at the first foreign folder."""

    def __init__(self, owners: frozenset[int], *, links_upto: Standing, stop: bool = False) -> None:
        self._owners = owners
        self._links_upto = links_upto
        self._stop = stop
        #: The worst folder on the way. A sticky one does not count: what is ours in it stays in its place.
        self._worst = Standing.CLOSED
        self._here = Standing.CLOSED
        self._links = 0

    def enter(
        self, path: str, rights: Rights | None, file_owners: frozenset[int] | None = None
    ) -> Folder:
        """Raises OSError with the path of what is wrong, and _Foreign."""
        self._fd, self._at = os.open("/", _FOLDER_FLAGS), "/"
        try:
            self._arrive()
            left = _parts(path)
            while left:
                left = self._step(left.pop(), left)
        except BaseException:
            os.close(self._fd)
            raise
        return Folder(self._fd, rights, max(self._worst, self._here), file_owners or self._owners)

    def _step(self, name: str, left: list[str]) -> list[str]:
        path = os.path.join(self._at, name)
        try:
            fd = os.open(name, _FOLDER_FLAGS, dir_fd=self._fd)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None
        status = os.fstat(fd)
        if stat.S_ISLNK(status.st_mode):
            try:
                return self._follow(fd, status, path, left)
            finally:
                os.close(fd)
        if not stat.S_ISDIR(status.st_mode):
            os.close(fd)
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        self._move(fd, path)
        return left

    def _follow(self, fd: int, status: os.stat_result, path: str, left: list[str]) -> list[str]:
        planted = self._here is Standing.STICKY and status.st_uid not in self._owners
        if planted or self._worst > self._links_upto:
            raise OSError(
                errno.ELOOP, "is a symbolic link, in a folder that others can change", path
            )
        self._links += 1
        if self._links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = os.readlink("", dir_fd=fd)
        if target.startswith("/"):
            self._move(os.open("/", _FOLDER_FLAGS), "/")
        return left + _parts(target)

    def _move(self, fd: int, path: str) -> None:
        os.close(self._fd)
        self._fd, self._at = fd, path
        self._arrive()

    def _arrive(self) -> None:
        found = standing(os.fstat(self._fd), self._owners)
        if found is Standing.FOREIGN and self._stop:
            raise _Foreign
        self._here = found
        if found is not Standing.STICKY:
            self._worst = max(self._worst, found)


def _parts(path: str) -> list[str]:
    """The names in a path, the last one first."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]
