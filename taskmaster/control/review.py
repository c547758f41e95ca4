"""``audit``, for clients that cannot read the log's files: its lines in pieces, now or when there are some.

What a reading costs is bounded by one piece; it never waits for the disk longer than that takes, and never
changes the log.
"""

from __future__ import annotations

import errno
from typing import Final

from taskmaster.audit import AuditLog
from taskmaster.control.exchange import Exchange
from taskmaster.errors import TaskmasterError
from taskmaster.wire import replies
from taskmaster.wire.queries import Query
from taskmaster.wire.replies import Reply

#: What stands in each record of a reading itself, and cannot stand within a string of another: there its
#: quotes have backslashes.
_OF_A_READING: Final = b'"command":"audit"'


class Review:
    """The pieces of one log, and who waits for the next."""

    def __init__(self, log: AuditLog) -> None:
        self._log = log
        self._waiting: list[tuple[Exchange, str]] = []
        self._seen = -1

    def page(self, query: Query) -> Reply:
        """The lines after the query's cursor. Raises TaskmasterError where they cannot be read."""
        lines, cursor = self._read(query.cursor)
        return replies.audit(lines, cursor, str(self._log.path).encode("utf-8", "surrogateescape"))

    def _read(self, cursor: str) -> tuple[bytes, str]:
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
        cursor = query.cursor
        if cursor == "end":
            # The place is taken now, or what is written until the next look would be left out.
            cursor = self._read(cursor)[1]
            query.cursor = cursor
        self._waiting.append((exchange, cursor))
        self._seen = -1

    def turn_over(self) -> bool:
        """Call when what a turn brought is written; whether somebody has an answer now."""
        if not self._waiting or self._log.written == self._seen:
            return False
        self._seen = self._log.written
        waiting, self._waiting = self._waiting, []
        for exchange, cursor in waiting:
            if exchange.reply is not None:
                continue  # its time is over
            query = exchange.query
            assert query is not None
            try:
                lines, after = self._read(cursor)
                if not any(_OF_A_READING not in line for line in lines.splitlines()):
                    self._waiting.append((exchange, after))
                    continue
                exchange.done(self.page(query))
            except TaskmasterError as error:
                exchange.done(replies.fail(str(error), error.code))
        return len(self._waiting) != len(waiting)
