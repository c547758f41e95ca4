"""``audit``, for clients that cannot read the log's files: its lines in pieces, now or when there are some.

What a reading costs is bounded by one piece; it never waits for the disk longer than that takes, and never
changes the log.
"""

from __future__ import annotations

import errno
from typing import Final

from taskmaster.audit import AuditLog
from taskmaster.audit.pages import END, Page
from taskmaster.control.exchange import Exchange
from taskmaster.errors import TaskmasterError
from taskmaster.wire import replies
from taskmaster.wire.queries import Query
from taskmaster.wire.replies import Reply

#: What stands in each record of a reading itself, and cannot stand within a string of another: there its
#: quotes have backslashes.
_OF_A_READING: Final = b'"command":"audit"'
#: Who may wait at a time; one more is answered at once, with whatever there is.
MAX_WAITING: Final = 64


class Review:
    """The pieces of one log, and who waits for the next."""

    def __init__(self, log: AuditLog) -> None:
        self._log = log
        self._waiting: list[tuple[Exchange, str]] = []
        self._seen = -1

    def page(self, query: Query) -> Reply:
        """The lines after the query's cursor. Raises TaskmasterError where they cannot be read."""
        found = self._read(query.cursor)
        file = str(self._log.path).encode("utf-8", "surrogateescape")
        return replies.audit(found.lines, found.cursor, file, more=found.more)

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
        query = exchange.query
        assert query is not None
        if query.cursor == END:
            # The place is taken now, or what is written until the next look would be left out.
            query.cursor = self._read(END).cursor
        self._waiting = [one for one in self._waiting if one[0].reply is None]
        if len(self._waiting) >= MAX_WAITING:
            exchange.done(self.page(query))
            return
        self._waiting.append((exchange, query.cursor))
        self._seen = -1

    def turn_over(self, at_once: bool) -> bool:
        """Call when what a turn brought is written; whether somebody has an answer now.

        ``at_once``: nobody may wait any longer.
        """
        if not self._waiting or (self._log.written == self._seen and not at_once):
            return False
        self._seen = self._log.written
        waiting, self._waiting = self._waiting, []
        pieces: dict[str, tuple[bool, str]] = {}
        for exchange, cursor in waiting:
            if exchange.reply is not None:
                continue  # its time is over
            query = exchange.query
            assert query is not None
            try:
                if cursor not in pieces:
                    piece = self._read(cursor)
                    pieces[cursor] = _tells(piece.lines), piece.cursor
                has_news, after = pieces[cursor]
                if has_news or at_once:
                    exchange.done(self.page(query))
                else:
                    self._waiting.append((exchange, after))
            except TaskmasterError as error:
                exchange.done(replies.fail(str(error), error.code))
        return len(self._waiting) != len(waiting)


def _tells(lines: bytes) -> bool:
    """Whether there is anything but readings of the log."""
    return any(_OF_A_READING not in line for line in lines.splitlines())
