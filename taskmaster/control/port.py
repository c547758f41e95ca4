"""The TCP port, which any user of the host may have taken first.

That keeps no daemon from starting that has a Unix socket: it serves that, says that the port is somebody
else's, and tries the port again, later each time, until it has it. Without a Unix socket nobody could reach
such a daemon, so then it is an error. Another reason not to have the port (a right that is missing, an address
that is not there) does not pass by itself and always is one.
"""

from __future__ import annotations

import errno
from typing import Final

from taskmaster.audit import AuditLog, Event
from taskmaster.control.say import Say
from taskmaster.control.server import CannotListen, Server
from taskmaster.control.troubles import Troubles
from taskmaster.eventloop import EventLoop, Timer

#: Between two tries: at first, and at most, seconds. In between twice as long each time.
_FIRST_S: Final = 1.0
_LONGEST_S: Final = 60.0
_TROUBLE: Final = "port"


class Port:
    """The port of one server. ``alone``: there is nothing else to be reached by."""

    def __init__(
        self,
        loop: EventLoop,
        server: Server,
        audit: AuditLog,
        say: Say,
        troubles: Troubles,
        *,
        remote: bool,
        alone: bool,
    ) -> None:
        self._loop = loop
        self._server = server
        self._audit = audit
        self._say = say
        self._troubles = troubles
        self._remote = remote
        self._alone = alone
        self._retry_s = _FIRST_S
        self._timer: Timer | None = None

    def listen(self, port: int) -> None:
        """Listen, now or as soon as the port is free. Raises CannotListen."""
        if self._timer is not None:
            self._timer.cancel()
        try:
            self._server.listen_tcp(port, remote=self._remote)
        except CannotListen as error:
            if self._alone or error.number != errno.EADDRINUSE:
                raise
            text = f"port {port} is taken by another program; it is tried again"
            self._say.error(f"{error}. Its Unix socket is served; the port is tried again")
            self._troubles.begin(_TROUBLE, f"{text}. Only the Unix socket is served")
            self._audit.record(Event.LISTENER_FAILED, address=error.address, error=str(error))
            self._later(port)

    def _later(self, port: int) -> None:
        self._timer = self._loop.call_in(self._retry_s, lambda: self._again(port))
        self._retry_s = min(self._retry_s * 2, _LONGEST_S)

    def _again(self, port: int) -> None:
        if self._server.is_over:
            return
        try:
            self._server.listen_tcp(port, remote=self._remote)
        except CannotListen:
            self._later(port)
            return
        address = self._server.addresses[-1]
        self._troubles.end(_TROUBLE)
        self._audit.record(Event.LISTENER_OPENED, address=address)
        self._say.connection(f"serving on {address} as well, which is free now")
