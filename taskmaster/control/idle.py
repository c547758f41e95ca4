"""Ends connections on which nothing is asked any more. One timer for all, armed while there are any."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from taskmaster.control.session import Session
from taskmaster.eventloop import EventLoop, Timer

#: Looked at so often within the time that is allowed: a connection ends up to a quarter late.
_LOOKS: Final = 4


class Idle:
    """``sessions`` is looked into, and never changed here; ``timeout_s`` 0: for ever."""

    def __init__(self, loop: EventLoop, sessions: Collection[Session], timeout_s: float) -> None:
        self._loop = loop
        self._sessions = sessions
        self._timeout_s = timeout_s
        self._timer: Timer | None = None

    def watch(self) -> None:
        """There is a connection."""
        if self._timeout_s and self._timer is None:
            self._timer = self._loop.call_in(self._timeout_s / _LOOKS, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._loop.now()
        for session in list(self._sessions):
            if session.heard or session.waits:
                session.heard, session.quiet_since = False, now
            elif now - session.quiet_since >= self._timeout_s:
                session.close(f"nothing was asked for {self._timeout_s:g} s (idleTimeout)")
        if self._sessions:
            self.watch()
