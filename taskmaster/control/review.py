"""``audit``, for clients that cannot read the log's files: its lines in pieces, now or when there are some.

What a reading costs is bounded by one piece; it never waits for the disk longer than that takes, and never
changes the log.
"""

from __future__ import annotations

import errno
import functools
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from taskmaster.audit import AuditLog
from taskmaster.audit.pages import END, Page
from taskmaster.control.exchange import Exchange
from taskmaster.errors import TaskmasterError
from taskmaster.eventloop import EventLoop
from taskmaster.wire import replies
from taskmaster.wire.queries import Query
from taskmaster.wire.replies import Reply

#: What stands in each record of a reading itself, and cannot stand within a string of another: there its
#: quotes have backslashes.
_OF_A_READING: Final = b'"command":"audit"'
#: Queries of one identity that may wait at a time; one more is answered at once, with whatever there is.
MAX_WAITING: Final = 16
#: How long a turn of the loop looks for news, seconds.
LOOK_S: Final = 0.001
_GONE: Final = "Nobody waits for it any more: the client is gone."


class Review:
    """The pieces of one log, and who waits for the next."""

    def __init__(self, loop: EventLoop, log: AuditLog) -> None:
        self._loop = loop
        #: Why nothing may be changed any more; empty while it may.
        self.closing: Callable[[], str] = lambda: ""
        self._log = log
        #: Where each has been looked for news, and how many wait of each identity.
        self._waiting: dict[Exchange, str] = {}
        self._held: dict[str, int] = {}
        #: Those that have not been looked for since something was written.
        self._due: deque[Exchange] = deque()
        self._seen = -1

    def page(self, query: Query) -> Reply:
        """The lines after the query's cursor. Raises TaskmasterError where they cannot be read."""
        found = self._read(query.cursor)
        file = str(self._log.path).encode("utf-8", "surrogateescape")
        state = self._state() if query.cursor == END else b""
        return replies.audit(found.lines, found.cursor, file, more=found.more, state=state)

    def _state(self) -> bytes:
        """How it is with the log, for whoever looks after it: nothing has to be tried for that."""
        error = self._log.error
        return msgspec.json.encode(
            {
                "writable": error is None,
                "error": "" if error is None else error.strerror or "",
                "onReserve": self._log.on_reserve,
                "reserveLeft": self._log.reserve_left,
                "closing": self.closing(),
            }
        )

    def _read(self, cursor: str) -> Page:
        try:
            return self._log.page(cursor)
        except ValueError:
            raise TaskmasterError(
                f"The cursor {cursor} is not one that a reply to audit gave."
            ) from None
        except OSError as error:  # EIO, ESTALE, EACCES, EMFILE
            words = error.strerror or errno.errorcode.get(error.errno or 0, "")
            raise TaskmasterError(f"The audit log {self._log.path}: {words}") from None

    def wait(self, exchange: Exchange) -> None:
        """Answer as soon as something other than readings of the log follows the cursor."""
        query, identity = exchange.query, exchange.rights.identity
        assert query is not None
        if query.cursor == END:
            # The place is taken now, or what is written until the next look would be left out.
            query.cursor = self._read(END).cursor
        if self._held.get(identity, 0) >= MAX_WAITING:
            exchange.done(self.page(query))
            return
        self._held[identity] = self._held.get(identity, 0) + 1
        self._waiting[exchange] = query.cursor
        self._due.append(exchange)
        exchange.on_end = functools.partial(self._over, exchange)
        exchange.on_gone = lambda: exchange.done(replies.fail(_GONE))
        if exchange.gone:
            exchange.on_gone()

    def _over(self, exchange: Exchange) -> None:
        del self._waiting[exchange]
        identity = exchange.rights.identity
        self._held[identity] -= 1
        if not self._held[identity]:
            del self._held[identity]

    def turn_over(self, at_once: bool) -> bool:
        """Call when what a turn brought is written; whether somebody has an answer now.

        ``at_once``: nobody may wait any longer. A look takes LOOK_S; those not reached have it in the next turn.
        """
        if at_once or (self._waiting and self._log.written != self._seen):
            self._seen = self._log.written
            self._due = deque(self._waiting)
        if not self._due:
            return False
        told, end = False, self._loop.now() + LOOK_S
        pieces: dict[str, tuple[bool, str]] = {}
        while self._due and (at_once or self._loop.now() < end):
            exchange = self._due.popleft()
            if exchange in self._waiting:
                told = self._look(exchange, pieces, at_once) or told
        if self._due:
            self._loop.call_in(0, lambda: None)
        return told

    def _look(self, exchange: Exchange, pieces: dict[str, tuple[bool, str]], at_once: bool) -> bool:
        cursor = self._waiting[exchange]
        try:
            if cursor not in pieces:
                piece = self._read(cursor)
                pieces[cursor] = _tells(piece.lines), piece.cursor
        except TaskmasterError as error:
            exchange.done(replies.fail(str(error), error.code))
            return True
        has_news, self._waiting[exchange] = pieces[cursor]
        if has_news or at_once:
            # Read when its turn has come, and paid for by whom it is for.
            exchange.wait_no_longer()
        return has_news or at_once


def _tells(lines: bytes) -> bool:
    """Whether there is anything but readings of the log."""
    return any(_OF_A_READING not in line for line in lines.splitlines())
