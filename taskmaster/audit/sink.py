"""A second place for every record: syslog (RFC 5424) or journald, over a local datagram socket.

It never blocks. While its reader is behind (Linux lets ten datagrams wait, many systems 512), records are kept,
up to a cap; over it, or when there is no reader, they are lost to it, and counted. The log itself is not
concerned; it says what was lost once the socket takes records again.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Final

SYSLOG: Final = "syslog"
JOURNALD: Final = "journald"
SOCKETS: Final = {SYSLOG: "/dev/log", JOURNALD: "/run/systemd/journal/socket"}
#: authpriv: what ordinary users are not to read.
_FACILITY: Final = 10
_INFO: Final = 6
_NOTICE: Final = 5
#: The reader is behind: some turns of the loop later it will not be.
_BEHIND: Final = frozenset({errno.EAGAIN, errno.ENOBUFS})
#: So much waits for it at most: a burst, not a reader that has stopped.
MAX_WAITING: Final = 4096
MAX_WAITING_BYTES: Final = 2 << 20
#: The reader was started again: its socket is another one of the same name.
_RESTARTED: Final = frozenset({errno.ECONNREFUSED, errno.ENOTCONN, errno.ECONNRESET, errno.EPIPE})
#: How often the daemon says that records are lost, seconds.
_SAY_EVERY_S: Final = 60.0
#: Mistakes of this program, never the state of the host: these are raised.
_BUGS: Final = frozenset({errno.EBADF, errno.EFAULT})


class Sink:
    """One such socket. ``kind``: ``syslog`` or ``journald``; ``path``: of the socket.

    ``now`` gives the time as text (ISO 8601). ``on_loss`` is told in words that records are lost, at most once a
    minute.
    """

    def __init__(
        self,
        kind: str,
        path: str,
        now: Callable[[], str],
        on_loss: Callable[[str], object] = lambda text: None,
    ) -> None:
        self.kind, self.path = kind, path
        self._now = now
        self._on_loss = on_loss
        self._say_at = 0.0
        self._socket: socket.socket | None = None
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        #: Told before the descriptor is closed.
        self.on_close: Callable[[], object] = lambda: None
        self._host = re.sub(r"[^!-~]", "", socket.gethostname())[:255] or "-"
        #: What was not taken: how many records, when the first and the last of them, and why the last.
        self.lost = 0
        self.since = self.until = self.error = ""

    @property
    def waits(self) -> bool:
        """Whether something waits for the socket to become writable."""
        return bool(self._waiting)

    def fileno(self) -> int:
        """The descriptor to watch while something waits."""
        return -1 if self._socket is None else self._socket.fileno()

    def send(self, text: bytes) -> bool:
        """Offer a record, without line end; whether all that was offered so far is taken or lost."""
        datagram = self._framed(text, "audit", _INFO)
        if (
            len(self._waiting) >= MAX_WAITING
            or self._waiting_bytes + len(datagram) > MAX_WAITING_BYTES
        ):
            self._count(1, OSError(errno.EAGAIN, ""))
        else:
            self._waiting.append(datagram)
            self._waiting_bytes += len(datagram)
        return self.drain()

    def drain(self) -> bool:
        """Offer what waits; whether nothing waits any more and the last was taken."""
        while self._waiting:
            datagram = self._waiting[0]
            try:
                self._offer(datagram)
            except OSError as error:
                if error.errno in _BUGS:
                    raise
                if error.errno in _BEHIND:
                    return False
                if error.errno != errno.EMSGSIZE:
                    self.give_up(error)
                    return False
                self._count(1, error)
            self._waiting.popleft()
            self._waiting_bytes -= len(datagram)
        return True

    def give_up(self, error: OSError) -> None:
        """What waits is lost, for this reason."""
        if self._waiting:
            self._count(len(self._waiting), error)
            self._waiting.clear()
            self._waiting_bytes = 0

    def tell(self, text: str, about: str) -> str:
        """Offer a line that is no record, as a notice; "" or why it was not taken. Not counted."""
        try:
            self._offer(self._framed(text.encode(), about, _NOTICE))
        except OSError as error:
            if error.errno in _BUGS:
                raise
            return os.strerror(error.errno or 0)
        return ""

    def take_lost(self) -> dict[str, object]:
        """What was lost so far, as the record that tells of it has it; counting begins anew."""
        fields: dict[str, object] = {
            "sink": self.kind,
            "count": self.lost,
            "since": self.since,
            "until": self.until,
            "error": self.error,
        }
        self.lost, self.since, self.until, self.error = 0, "", "", ""
        return fields

    def close(self) -> None:
        """Give back the descriptor; a later record opens it again."""
        if self._socket is not None:
            self.on_close()
            self._socket.close()
            self._socket = None

    def _count(self, count: int, error: OSError) -> None:
        self.lost += count
        self.until = self._now()
        self.since = self.since or self.until
        self.error = os.strerror(error.errno or 0)
        now = time.monotonic()
        if now >= self._say_at:
            self._say_at = now + _SAY_EVERY_S
            self._on_loss(
                f"audit records do not reach {self.kind} ({self.path}: {self.error}); they are in the log "
                "itself, and the next one is tried again"
            )

    def _offer(self, datagram: bytes) -> None:
        if self._socket is None:
            self._connect()
        assert self._socket is not None
        try:
            self._socket.send(datagram)
        except OSError as error:
            if error.errno not in _RESTARTED:
                raise
            self._connect()
            self._socket.send(datagram)

    def _connect(self) -> None:
        self.close()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            connection.setblocking(False)
            connection.connect(self.path)
        except OSError:
            connection.close()
            raise
        self._socket = connection

    def _framed(self, text: bytes, about: str, severity: int) -> bytes:
        if self.kind == JOURNALD:
            return (
                b"SYSLOG_IDENTIFIER=taskmasterd\nSYSLOG_FACILITY=%d\nPRIORITY=%d\nTASKMASTER=%b\n"
                b"MESSAGE=%b\n" % (_FACILITY, severity, about.encode(), text)
            )
        # <PRI>VERSION TIMESTAMP HOSTNAME APP-NAME PROCID MSGID STRUCTURED-DATA MSG
        head = f"<{_FACILITY * 8 + severity}>1 {self._now()} {self._host} taskmasterd {os.getpid()} {about} - "
        return head.encode() + text
