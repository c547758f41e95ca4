"""What the daemon says on standard error, by verbosity. It never waits for whoever reads that.

0: nothing; 1: connections; 2: and errors; 3: everything. The audit log does not depend on it.
"""

from __future__ import annotations

import os
import select
from typing import Final

CONNECTIONS: Final = 1
ERRORS: Final = 2
EVERYTHING: Final = 3
#: A pipe that can be written takes at least this much at once (PIPE_BUF: pipe(7)).
_ATOMIC_BYTES: Final = 4096


class Say:
    """Standard error of a daemon of this verbosity."""

    def __init__(self, verbosity: int) -> None:
        self.verbosity = verbosity
        self._poll = select.poll()
        self._poll.register(2, select.POLLOUT)

    def connection(self, text: str) -> None:
        """About a client coming, going, or turned away."""
        self._write(CONNECTIONS, text)

    def error(self, text: str) -> None:
        """About something that went wrong, and what happens next."""
        self._write(ERRORS, text)

    def everything(self, text: str) -> None:
        """About the rest."""
        self._write(EVERYTHING, text)

    def _write(self, level: int, text: str) -> None:
        if self.verbosity < level:
            return
        line = f"taskmasterd: {text}".encode("utf-8", "backslashreplace")
        line = line.replace(b"\n", b"\\n")[: _ATOMIC_BYTES - 1] + b"\n"
        try:
            if self._poll.poll(0):
                os.write(2, line)
        except OSError:
            pass  # EPIPE, EIO, ENOSPC, EBADF: nobody reads it any more, which stops no job
