"""What the daemon says in its messages, by verbosity. It never waits for whoever reads them.

0: nothing; 1: connections; 2: and errors; 3: everything. The audit log does not depend on it. A client that
only reads is not worth a line below 3, and what is said about one client is held to a few lines a minute,
since clients come as often as they like.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import Final

from taskmaster.control.messages import Messages

CONNECTIONS: Final = 1
ERRORS: Final = 2
EVERYTHING: Final = 3
#: A pipe that can be written takes at least this much at once (PIPE_BUF: pipe(7)).
_ATOMIC_BYTES: Final = 4096
#: Lines about one client, at once and a second.
_LINES: Final = 20.0
_A_SECOND: Final = 1 / 30
#: Clients that are told apart; those beyond share what there is for one.
_TOLD_APART: Final = 256


class Say:
    """The messages of a daemon of this verbosity: to ``messages``, without it to standard error."""

    def __init__(
        self,
        verbosity: int,
        messages: Messages | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.verbosity = verbosity
        self._messages = messages
        self._clock = clock
        #: By what lines are about: how many may be said, as of when, and how many were not.
        self._left: dict[str, tuple[float, float, int]] = {}
        self._poll = select.poll()
        self._poll.register(2, select.POLLOUT)

    def connection(self, text: str, about: str = "") -> None:
        """About a client coming, going, or turned away. ``about``: whose lines are counted together."""
        if self.verbosity < CONNECTIONS:
            return
        left_out = self._left_out(about) if about else 0
        if left_out is not None:
            also = f" (and {left_out} lines about {about} that are left out)" if left_out else ""
            self._write(CONNECTIONS, text + also)

    def error(self, text: str, about: str = "") -> None:
        """About something that went wrong, and what happens next. ``about``: as of ``connection``."""
        if self.verbosity < ERRORS:
            return
        left_out = self._left_out(about) if about else 0
        if left_out is not None:
            also = f" (and {left_out} times more, which is left out)" if left_out else ""
            self._write(ERRORS, text + also)

    def everything(self, text: str) -> None:
        """About the rest."""
        self._write(EVERYTHING, text)

    def reopen(self) -> None:
        """The file that messages go to was put aside: go on in a new one."""
        if self._messages is None:
            return
        error = self._messages.reopen()
        if error is not None:
            self.error(
                f"{self._messages.path} cannot be opened anew: {error.strerror}; messages go on where they went"
            )

    def _left_out(self, about: str) -> int | None:
        """How many lines about this were left out, if another may be said; None where not."""
        now = self._clock()
        if about not in self._left and len(self._left) >= _TOLD_APART:
            self._left = {
                one: (left, at, left_out)
                for one, (left, at, left_out) in self._left.items()
                if left_out or left + (now - at) * _A_SECOND < _LINES
            }
            if len(self._left) >= _TOLD_APART:
                about = ""
        left, at, left_out = self._left.get(about, (_LINES, now, 0))
        left = min(_LINES, left + (now - at) * _A_SECOND)
        if left < 1:
            self._left[about] = left, now, left_out + 1
            return None
        self._left[about] = left - 1, now, 0
        return left_out

    def _write(self, level: int, text: str) -> None:
        if self.verbosity < level:
            return
        line = f"taskmasterd: {text}".encode("utf-8", "backslashreplace")
        line = line.replace(b"\n", b"\\n")[: _ATOMIC_BYTES - 1] + b"\n"
        if self._messages is not None:
            self._messages.write(line)
            return
        try:
            if self._poll.poll(0):
                os.write(2, line)
        except OSError:
            pass  # EPIPE, EIO, ENOSPC, EBADF: nobody reads it any more, which stops no job
