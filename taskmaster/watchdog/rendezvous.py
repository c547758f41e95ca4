"""A watchdog's link to its control plane, and the socket where the next one finds it.

The first link is the pipe it was born with. When that ends the watchdog goes on by itself, and another
control plane connects to ``link.sock`` in the job's state directory. The newest link wins: whoever holds
the state directory's lock connects last. Only the same user is let in.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import Final

from taskmaster.eventloop import EventLoop, Watch
from taskmaster.stream import Stream
from taskmaster.wire import link
from taskmaster.wire.frames import LinkFrames
from taskmaster.wire.link import ToControl, ToWatchdog

NAME: Final = "link.sock"
#: A control plane that is stopped lets this much pile up; then the link is cut and everything is told anew
#: to the one that connects next.
_MAX_OUTBOUND: Final = 32 * 1024 * 1024
_PEER: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid


class Rendezvous:
    """At most one link at a time. ``on_message`` gets what comes, ``on_attached`` is told of a new link."""

    def __init__(
        self,
        loop: EventLoop,
        directory: int,
        on_message: Callable[[ToWatchdog], None],
        on_attached: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._directory = directory
        self._on_message = on_message
        self._on_attached = on_attached
        self._stream: Stream | None = None
        self._bound = (0, 0)
        self._listener, self._watch = self._listen()

    def is_reachable(self) -> bool:
        """Whether the socket in the folder is the one that is listened on."""
        return _identity(self._directory) == self._bound

    def listen_anew(self) -> None:
        """Listen at a new socket in the folder, which may be another by now."""
        self._loop.unwatch(self._watch)
        os.close(self._listener)
        self._listener, self._watch = self._listen()

    def _listen(self) -> tuple[int, Watch]:
        try:
            os.unlink(NAME, dir_fd=self._directory)
        except FileNotFoundError:
            pass
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        # A path of a socket holds 107 bytes; through the descriptor, the directory may be deeper.
        listener.bind(f"/proc/self/fd/{self._directory}/{NAME}")
        listener.listen(4)
        fd = listener.detach()
        self._bound = _identity(self._directory)
        return fd, self._loop.watch(fd, self._accept)

    @property
    def up(self) -> bool:
        """Whether there is a link."""
        return self._stream is not None

    def attach(self, fd: int) -> None:
        """Use this connection from now on, and no other."""
        if self._stream is not None:
            old, self._stream = self._stream, None
            old.close("replaced by a newer link")
        stream = Stream(
            self._loop,
            fd,
            LinkFrames(),
            on_frame=self._received,
            on_broken=lambda error: self._broken(stream, str(error)),
            on_closed=lambda reason: self._closed(stream),
            max_outbound=_MAX_OUTBOUND,
        )
        self._stream = stream
        self._on_attached()

    def send(self, message: ToControl) -> None:
        """Send if there is a link."""
        if self._stream is not None:
            self._stream.send(link.encode(message))

    def _received(self, frame: bytes) -> None:
        self._on_message(link.decode_for_watchdog(frame))

    def _broken(self, stream: Stream, reason: str) -> None:
        stream.close(reason)

    def _closed(self, stream: Stream) -> None:
        if self._stream is stream:
            self._stream = None

    def _accept(self) -> None:
        listener = socket.socket(fileno=self._listener)
        try:
            connection, _ = listener.accept()
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ECONNABORTED, errno.EINTR):
                return
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                self._drop_one()
                return
            raise
        finally:
            listener.detach()
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        _, uid, _ = _PEER.unpack(peer)
        if uid != os.geteuid():
            connection.close()
            return
        self.attach(connection.detach())

    def _drop_one(self) -> None:
        """No descriptor for a new link: what waits must not wake the loop for ever, so make room for it."""
        if self._stream is not None:
            old, self._stream = self._stream, None
            old.close("room for a newer link")


def _identity(directory: int) -> tuple[int, int]:
    """Device and inode of the socket in the folder; zeros where there is none."""
    try:
        found = os.stat(NAME, dir_fd=directory, follow_symlinks=False)
    except OSError:  # ENOENT, in a folder that was removed as well
        return 0, 0
    return found.st_dev, found.st_ino
