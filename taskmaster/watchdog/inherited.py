"""The daemon's own standard output and error, where a job's output is to go there.

A watchdog has the two as its own descriptors 1 and 2, from the daemon that it was forked from. The job never
gets them: what it prints comes through its pipe, and whoever it runs as, it can neither read the daemon's
terminal nor cut off its file.

Others share these descriptors, the daemon first of all, so their flags are left alone. What they lead to is
opened anew, non-blocking, where that is possible (a pipe, a terminal); a file is written to by the shared
descriptor, whose position is the one that everybody goes by; and a socket is told not to wait with each piece.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
from typing import Final

#: What a pipe takes at once when it says that it can be written to (PIPE_BUF: pipe(7)).
_ATOMIC_BYTES: Final = 4096


class Inherited:
    """Descriptor ``number`` (1 or 2) of the daemon, as a target of output."""

    rotates = False
    regular = False
    size = 0

    def __init__(self, number: int) -> None:
        self._number = number
        self.fd = -1
        self._send: socket.socket | None = None
        self._splices = False
        #: Ours alone, so that writing to it never waits.
        self._own = False

    def open(self) -> None:
        """Raises OSError where the daemon has none."""
        mode = os.fstat(self._number).st_mode
        self._own = False
        if not stat.S_ISREG(mode) and not stat.S_ISSOCK(mode):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            try:
                self.fd = os.open(f"/proc/self/fd/{self._number}", flags)
                self._own = True
            except OSError as error:
                # A pipe of another user, or that nobody reads; no /proc. Of a terminal there is no telling how
                # much it takes without waiting.
                if not stat.S_ISFIFO(mode):
                    raise
                if error.errno not in (errno.EACCES, errno.ENXIO, errno.ENOENT):
                    raise
        if self.fd < 0:
            self.fd = os.dup(self._number)
        self._splices = self._own and stat.S_ISFIFO(mode)
        if stat.S_ISSOCK(mode):
            self._send = socket.socket(fileno=os.dup(self.fd))

    def hold(self) -> None:
        """Be ready for output. Raises OSError."""
        if self.fd < 0:
            self.open()

    def release(self) -> None:
        """There is nothing to be released."""

    def offset(self) -> int | None:
        """See mover.Target."""
        if not self._splices:
            raise LookupError
        return None

    def never_splice(self) -> None:
        """See mover.Target."""
        self._splices = False

    def append(self, data: bytes) -> int:
        """See mover.Target."""
        if self._send is not None:
            return self._send.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        if not self._own:
            poll = select.poll()
            poll.register(self.fd, select.POLLOUT)
            if not poll.poll(0):
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            data = data[:_ATOMIC_BYTES]
        return os.write(self.fd, data)

    def at_line_start(self) -> bool:
        """It is not rotated."""
        return True

    def rotate(self, backups: int) -> None:
        """It is not rotated."""

    def prune(self, backups: int, last: int | None = None) -> None:
        """There are no generations of it."""

    def close_file(self) -> None:
        """Close what is ours."""
        if self._send is not None:
            self._send.close()
            self._send = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def close(self) -> None:
        """Close everything."""
        self.close_file()
