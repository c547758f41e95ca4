"""One output file and its rotated generations ``NAME.1`` (newest) and up.

Other programs may have the file open as well (``tail``, ``logrotate``, a second writer), rename it, delete it
or empty it. What they append is never overwritten: either a lease (``F_SETLEASE``) says that at this moment
nobody else has the file open, and whoever opens it waits the microseconds until the lease is given back; or
what is written is appended by the kernel (``O_APPEND``). The kernel says SIGIO when somebody wants a file that
is leased: the process has to ignore it, which by default ends it.

A file that was renamed or deleted is left with the next output, for a new one of its name; where that cannot
be made, it goes on in the old one.

A rotation never gives up the file that it has before it has the next one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from typing import Final

from taskmaster.watchdog.outputfolder import Folder

_FLAGS: Final = os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class LogFile:
    """A file called ``name`` in ``folder``, which this object owns. ``reopen`` enters the folder where it is None,
    and anew where somebody has removed it."""

    rotates = True

    def __init__(
        self, folder: Folder | None, name: str, reopen: Callable[[], Folder] | None = None
    ) -> None:
        self._folder = folder
        self._name = name
        self._reopen = reopen
        self.fd = -1
        self.size = 0
        self.regular = True  # a device can be written but neither measured nor rotated
        self._identity = (0, 0)
        self._appends = False
        self._splices = True
        self._leased = False
        self._leases = True

    @property
    def folder(self) -> Folder:
        """Where it is. Raises OSError where that cannot be entered."""
        if self._folder is None:
            assert self._reopen is not None
            self._folder = self._reopen()
        return self._folder

    # opening ---------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open for writing behind what is there. Raises OSError; a symbolic link is refused (ELOOP)."""
        try:
            fd, appends = self._open()
        except FileNotFoundError:
            if self._reopen is None:
                raise
            folder = self._reopen()
            self.folder.close()
            self._folder = folder
            fd, appends = self._open()
        self._use(fd, appends)

    def _open(self) -> tuple[int, bool]:
        try:
            return self.folder.open(self._name, os.O_RDWR | _FLAGS), False
        except PermissionError:
            # One that may only be appended to (chattr +a), or not be read.
            return self.folder.open(self._name, os.O_WRONLY | os.O_APPEND | _FLAGS), True

    def _use(self, fd: int, appends: bool) -> None:
        self.close_file()
        status = os.fstat(fd)
        self.fd = fd
        self.regular = stat.S_ISREG(status.st_mode)
        self.size = status.st_size if self.regular else 0
        self._identity = status.st_dev, status.st_ino
        self._appends = appends
        self._splices = not appends
        self._leases = self.regular and not appends

    def hold(self) -> None:
        """Be ready for output: the file is open, is the one of its name, and its size is known. Raises OSError."""
        if self.fd < 0:
            self.open()
        if self._leases:
            self._lease()
        if not self._is_in_place():
            self.release()
            self._find_again()
            if self._leases:
                self._lease()
            self.size = os.fstat(self.fd).st_size if self.regular else 0

    def release(self) -> None:
        """Others may open the file again. Harmless when they may already."""
        if self._leased:
            self._leased = False
            fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    def _lease(self) -> None:
        try:
            fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            self._leased = True
        except OSError as error:
            # Whichever it is (not our user's file, unknown to the file system or the sandbox), there is another
            # way; only that others have the file open just now may be over the next time.
            self._leases = error.errno in (errno.EAGAIN, errno.ENOMEM)

    def _is_in_place(self) -> bool:
        try:
            status = (self._folder or self.folder).stat(self._name)
        except FileNotFoundError:
            return False
        except PermissionError:
            status = os.fstat(self.fd)  # the folder was closed to us; the file was not
        if self.regular:
            self.size = status.st_size
        return (status.st_dev, status.st_ino) == self._identity

    def _find_again(self) -> None:
        """The file was renamed, deleted or replaced: open the one of its name, or keep this one."""
        try:
            self.open()
        except OSError:
            if os.fstat(self.fd).st_nlink == 0:
                # What is written into it would be gone with it.
                self.close_file()
                raise

    # writing ---------------------------------------------------------------------------------------

    def offset(self) -> int | None:
        """See mover.Target."""
        if not self._splices or (self.regular and not self._leased):
            raise LookupError
        if self._appends:
            try:
                self._append(False)
            except PermissionError:  # it was made append-only meanwhile
                self.never_splice()
                raise LookupError from None
        return self.size if self.regular else None

    def never_splice(self) -> None:
        """See mover.Target."""
        self._splices = self._leases = False
        self.release()

    def append(self, data: bytes) -> int:
        """See mover.Target."""
        if self.regular and not self._appends:
            self._append(True)
        return os.write(self.fd, data)

    def _append(self, on: bool) -> None:
        flags = fcntl.fcntl(self.fd, fcntl.F_GETFL)
        fcntl.fcntl(self.fd, fcntl.F_SETFL, flags | os.O_APPEND if on else flags & ~os.O_APPEND)
        self._appends = on

    def at_line_start(self) -> bool:
        """Whether the last byte ends a line, or there is none."""
        if self.size == 0:
            return True
        try:
            return os.pread(self.fd, 1, self.size - 1) in (b"\n", b"")
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            return True  # it may not be read

    # rotating --------------------------------------------------------------------------------------

    def rotate(self, backups: int) -> None:
        """Move the file to ``NAME.1`` and open a new one; ``backups`` are kept. Raises OSError, and goes on
        with the file that it has."""
        self.release()
        if backups == 0:
            try:
                self.folder.unlink(self._name)
            except FileNotFoundError:
                pass  # somebody has moved it away
        else:
            self._shift(backups)
            self._rename(self._name, self._generation(1))
        try:
            fd, appends = self._open()
        except OSError:
            if backups:
                self._rename(self._generation(1), self._name)
            raise
        self._use(fd, appends)
        self.prune(backups)

    def _shift(self, backups: int) -> None:
        # Only up to the first gap: if a kill interrupted the last rotation halfway, the gap takes what comes
        # next and nothing is lost that was to be kept.
        top = 1
        while top < backups and self._exists(top):
            top += 1
        for number in range(top, 1, -1):
            self._rename(self._generation(number - 1), self._generation(number))

    def prune(self, backups: int, last: int | None = None) -> None:
        """Delete the generations above ``backups``, up to number ``last`` or to the first that is none of ours:
        missing, no plain file, or of another owner."""
        number = backups + 1
        try:
            owner = os.fstat(self.fd).st_uid if self.fd >= 0 else None
            while last is None or number <= last:
                status = self.folder.stat(self._generation(number))
                foreign = owner is not None and status.st_uid != owner
                if foreign or not stat.S_ISREG(status.st_mode):
                    return
                self.folder.unlink(self._generation(number))
                number += 1
        except FileNotFoundError:
            pass
        except OSError as error:
            # It stays, and is tried again with the next rotation.
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EIO):
                raise

    def _generation(self, number: int) -> str:
        return f"{self._name}.{number}"

    def _exists(self, number: int) -> bool:
        name = self._generation(number)
        try:
            status = self.folder.stat(name)
        except FileNotFoundError:
            return False
        if stat.S_ISDIR(status.st_mode):
            # It is nobody's output, and is not moved about.
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
        return True

    def _rename(self, old: str, new: str) -> None:
        try:
            self.folder.rename(old, new)
        except FileNotFoundError:
            pass

    def close_file(self) -> None:
        """Close the file, not the folder."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd, self._leased = -1, False

    def close(self) -> None:
        """Close everything."""
        self.close_file()
        if self._folder is not None:
            self._folder.close()
