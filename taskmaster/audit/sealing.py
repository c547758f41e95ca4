"""The sealing key's file on the disk: read with distrust, evolved, and what it held before overwritten.

Nothing keeps a key in memory between two seals. Every step leaves one of two whole files under the name,
the one before or the one after, whatever dies when.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

from taskmaster.audit import generations
from taskmaster.errors import FileError
from taskmaster.evidence import sealstate
from taskmaster.evidence.sealstate import MAX_BYTES, Seal, SealState

_FLAGS: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_NEW_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


class SealFile:
    """The sealing key at ``path``. Its methods raise FileError for what is no such key, OSError for the rest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._new = path.with_name(f"{path.name}.new")

    def exists(self) -> bool:
        """Whether there is something under the name."""
        return os.path.lexists(self.path)

    def last(self) -> Seal | None:
        """The last seal that was made: perhaps it did not get into the log."""
        self._erase_new()
        fd = self._open()
        try:
            return self._read(fd)[0].last
        finally:
            os.close(fd)

    def examine(self) -> None:
        """Read it and leave everything as it is, also what another process is about to put there."""
        fd = self._open()
        try:
            self._read(fd)
        finally:
            os.close(fd)

    def seal(self, seq: int, last_hash: str, at: str) -> Seal:
        """Seal a log that ends with record ``seq`` of that hash, and evolve the key; the old one is gone then.

        ``at``: the time now, as records have it.
        """
        self._erase_new()
        fd = self._open()
        try:
            state, size = self._read(fd)
            after = sealstate.sealed(state, seq, last_hash, at)
            self._write_new(sealstate.encode(after))
            os.rename(self._new, self.path)
            generations.sync_directory(self.path)
            # No name leads to it any more; what its blocks held goes too.
            os.pwrite(fd, bytes(size), 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        assert after.last is not None
        return after.last

    def _open(self) -> int:
        try:
            fd = os.open(self.path, _FLAGS)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise self._unfit("a link, a folder or a socket") from None
            raise
        about = os.fstat(fd)
        found = ""
        if not stat.S_ISREG(about.st_mode):
            found = "something that is no regular file"
        elif about.st_uid != os.geteuid():
            found = f"a file of {generations.user_name(about.st_uid)}"
        elif about.st_mode & 0o077:
            found = f"mode {stat.S_IMODE(about.st_mode):04o}"
        if found:
            os.close(fd)
            raise self._unfit(found)
        return fd

    def _read(self, fd: int) -> tuple[SealState, int]:
        data = bytearray(os.pread(fd, MAX_BYTES + 1, 0))
        try:
            if len(data) > MAX_BYTES:
                raise ValueError("too long")
            return sealstate.decode(data), len(data)
        except ValueError as error:
            raise self._unfit(f"that it is no sealing key ({error})") from None
        finally:
            data[:] = bytes(len(data))

    def _unfit(self, found: str) -> FileError:
        me = generations.user_name(os.geteuid())
        return FileError(
            str(self.path),
            "",
            found,
            f"a sealing key made by taskmasterctl audit keygen: a regular file of {me}, mode 0600",
        )

    def _write_new(self, data: bytes) -> None:
        fd = os.open(self._new, _NEW_FLAGS, 0o600)
        try:
            if os.write(fd, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._new))
            os.fsync(fd)
        finally:
            os.close(fd)

    def _erase_new(self) -> None:
        """Left by a death before the rename: a key too, though none of the past."""
        try:
            fd = os.open(self._new, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return
        else:
            try:
                about = os.fstat(fd)
                if stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid():
                    os.pwrite(fd, bytes(min(about.st_size, MAX_BYTES)), 0)
            finally:
                os.close(fd)
        os.unlink(self._new)
