"""Room on the disk that is the log's already: blocks allocated behind its end, before anybody else has them.

Whoever fills the file system (a job's output, say) must not keep root from changing anything, and nothing is
changed without a record. So the file of the log has blocks beyond its end (``fallocate`` with
``FALLOC_FL_KEEP_SIZE``), which no other file can get. They are renewed as records take them; when that fails,
the log lives on what is left. A separate file would not do: what it gives back others may take first.

It writes nothing, and where the file system cannot allocate there is simply no reserve.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

#: Allocates blocks of a descriptor: from where, how many bytes. Raises OSError.
Allocate = Callable[[int, int, int], object]
#: Renewed when so much of it is used.
_USED_PART: Final = 8
#: On a small file system it is no larger than this part of that, and not worth it below so much.
_DISK_PART: Final = 16
_LEAST: Final = 16_384
#: How often it is tried again while the disk is full, seconds.
_AGAIN_S: Final = 1.0
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
#: Mistakes of this program, never the state of the host: these are raised.
_BUGS: Final = frozenset({errno.EBADF, errno.EFAULT})


class Reserve:
    """The reserve of one log. ``wanted``: bytes; 0: none. ``allocate``: None where it cannot be done."""

    def __init__(self, wanted: int, allocate: Allocate | None) -> None:
        self.wanted = 0 if allocate is None else wanted
        self._allocate = allocate
        self._got = 0
        self._to = 0
        self._again_at = 0.0
        #: It cannot be renewed: the disk is full, and the log lives on it.
        self.error: OSError | None = None
        #: Above this size of the file it is to be renewed; a log without a reserve never is that large.
        self.renew_at = 0 if self.wanted else 1 << 62

    def begin(self) -> None:
        """Another file is the log now, or it was made shorter, which gives blocks back."""
        self._to = 0
        self.renew_at = 0 if self.wanted else 1 << 62

    def left(self, size: int) -> int:
        """Bytes behind the end of a file of this size."""
        return max(0, self._to - size)

    def renew(self, fd: int, size: int) -> bool:
        """Allocate behind the end of the file; whether ``error`` is another state than before."""
        if self.error is not None and time.monotonic() < self._again_at:
            return False
        before = self.error
        try:
            self._take(fd, size)
        except OSError as error:
            if error.errno in _BUGS:
                raise
            if error.errno in _FULL:
                self.error = error
                self._again_at = time.monotonic() + _AGAIN_S
                self._to = max(self._to, os.fstat(fd).st_blocks * 512)
                self.renew_at = 0
            else:  # EOPNOTSUPP, ENOSYS, EINVAL, EIO: no reserve here
                self.error, self.wanted, self.renew_at = None, 0, 1 << 62
        return (before is None) != (self.error is None)

    def _take(self, fd: int, size: int) -> None:
        disk = os.fstatvfs(fd)
        room = min(self.wanted, disk.f_blocks * disk.f_frsize // _DISK_PART)
        if room < _LEAST:
            self.error, self.renew_at = None, 1 << 62
            return
        assert self._allocate is not None
        self._allocate(fd, size, room)
        self.error = None
        self._to = size + room
        self.renew_at = size + room // _USED_PART

    def prepare(self, path: Path) -> Path | None:
        """A file that has its reserve already, to become the log at ``path``; None without a reserve.

        Raises OSError, ENOSPC among others, where it can have none.
        """
        if not self.wanted:
            return None
        made = path.with_name(f"{path.name}.next")
        made.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(made, flags, 0o600)
        try:
            self.begin()
            self.error = None
            if self.renew(fd, 0) and self.error is not None:
                raise self.error
        except OSError:
            made.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
        return made


def give_back(fd: int) -> None:
    """Free what is allocated behind the end of a file that is the log no longer. Raises OSError."""
    os.ftruncate(fd, os.fstat(fd).st_size)
