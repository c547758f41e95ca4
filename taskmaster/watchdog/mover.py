"""Moves bytes out of a job's pipe into a descriptor, by the best way that this kernel and this file allow.

1. ``splice`` moves them inside the kernel: a SIGKILL at any moment finds each byte either still in the pipe
   or already in the file. It writes at an offset, so it is for files that nobody else has open.
2. ``tee`` copies the head of the pipe, ``write`` appends the copy, and only then is it taken out of the pipe.
   A SIGKILL between the last two, some microseconds, leaves a piece to be written twice; none is lost.
3. Without ``tee`` (a sandbox that refuses the call) the head is read, and lost if a SIGKILL comes before it
   is written. Nothing better is left there.

It never decides where the bytes go, and never waits.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import termios
from typing import Final, Protocol

from taskmaster import syscalls

#: What the pipe is asked to hold: 1 MiB moved 1.3 times as much per second as the default 64 KiB.
PIPE_BYTES: Final = 262144
#: Copied at once to find the end of a line.
PEEK_BYTES: Final = 65536
#: The call is not to be had: an old kernel, a sandbox, a file system or a file that does not know it.
UNSUPPORTED: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP})
#: These speak of the call, not of the file.
_NOWHERE: Final = frozenset({errno.ENOSYS, errno.EPERM})
_NO_DESCRIPTOR: Final = frozenset({errno.EMFILE, errno.ENFILE})


class Target(Protocol):
    """Where the bytes go."""

    fd: int

    def offset(self) -> int | None:
        """Where ``splice`` may write; None: where the descriptor stands. Raises LookupError where it may not."""

    def never_splice(self) -> None:
        """``splice`` does not work with it."""

    def append(self, data: bytes) -> int:
        """Write behind whatever is there; how much of it was. Raises BlockingIOError and OSError."""


class Mover:
    """One pipe, which it owns. ``null``: a descriptor of ``/dev/null``, open beforehand because it is needed
    when there may be none left to open."""

    def __init__(self, pipe: int, null: int) -> None:
        self.pipe = pipe
        self._null = null
        self._can_splice = True
        self._can_tee = True
        self._scratch: tuple[int, int] | None = None
        #: Read out of the pipe, and not written yet: only where ``tee`` is not to be had.
        self._held = b""
        self.capacity = _enlarged(pipe)

    def waiting(self) -> int:
        """How many bytes are to be moved."""
        count = array.array("i", [0])
        fcntl.ioctl(self.pipe, termios.FIONREAD, count)
        return count[0] + len(self._held)

    def move(self, target: Target, count: int) -> int:
        """Move up to ``count`` bytes; how many were. Raises BlockingIOError where there are none, or no room
        for now, and OSError."""
        if self._can_splice and not self._held:
            try:
                at = target.offset()
            except LookupError:
                return self._copy(target, count)
            try:
                return os.splice(
                    self.pipe, target.fd, count, offset_dst=at, flags=os.SPLICE_F_NONBLOCK
                )
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                if error.errno in _NOWHERE:
                    self._can_splice = False
                else:
                    target.never_splice()
        return self._copy(target, count)

    def _copy(self, target: Target, count: int) -> int:
        moved = target.append(self.head(count))
        self._take(moved)
        return moved

    def head(self, count: int) -> bytes:
        """A copy of the next ``count`` bytes, or fewer. Raises BlockingIOError when there are none."""
        if self._held:
            return self._held[:count]
        try:
            if self._can_tee:
                return self._tee(count)
        except OSError as error:
            if error.errno in UNSUPPORTED:
                self._can_tee = False
            elif error.errno not in _NO_DESCRIPTOR:
                raise
        self._held = os.read(self.pipe, min(count, PEEK_BYTES))
        return self._held

    def _tee(self, count: int) -> bytes:
        if self._scratch is None:
            self._scratch = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            _enlarged(self._scratch[1])
        copied = syscalls.tee(self.pipe, self._scratch[1], count)
        head = os.read(self._scratch[0], copied)
        while len(head) < copied:
            head += os.read(self._scratch[0], copied - len(head))
        return head

    def _take(self, count: int) -> None:
        """Take out what is written."""
        if self._held:
            self._held = self._held[count:]
            return
        while count > 0:
            count -= self._discard(count)

    def drop(self) -> int:
        """Throw away what there is, up to the pipe's capacity; how much that was."""
        if self._held:
            dropped, self._held = len(self._held), b""
            return dropped
        try:
            return self._discard(self.capacity)
        except BlockingIOError:
            return 0

    def _discard(self, count: int) -> int:
        if self._can_splice:
            try:
                return os.splice(self.pipe, self._null, count, flags=os.SPLICE_F_NONBLOCK)
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                self._can_splice = False
        return len(os.read(self.pipe, min(count, PEEK_BYTES)))

    def close(self) -> None:
        """Give everything back."""
        os.close(self.pipe)
        for fd in self._scratch or ():
            os.close(fd)
        self._scratch = None


def _enlarged(pipe: int) -> int:
    """Have the pipe hold more, as far as this user may; what it holds."""
    try:
        return fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EBUSY, errno.ENOMEM, *UNSUPPORTED):
            raise
    try:
        return fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return PEEK_BYTES
