"""Which commands are put on record one by one, and which are counted.

The rule, in the order it is asked:

- What root and the daemon's own user ask is on record one by one.
- Of everybody else, a change is on record one by one, or it is refused: nothing is done without a record.
- Everything else (reads, refusals, frames that are no query) is on record one by one as long as the
  identity's share of the log (``allotment``) lasts, and counted beyond it (``tally``). The first of each
  kind is on record while there is any room for it.
- While the log lives on its reserve, reads are counted whoever asks, and nobody but root changes anything:
  the reserve is there so that root can.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from taskmaster.audit import AuditLog, Event
from taskmaster.control.access import Rights
from taskmaster.control.allotment import Allotment, Allotments
from taskmaster.control.exchange import Exchange
from taskmaster.control.peers import Peer
from taskmaster.control.tally import Kind, Tally
from taskmaster.errors import SlowDown
from taskmaster.wire import replies
from taskmaster.wire.queries import Command
from taskmaster.wire.replies import Reply

#: Commands whose consequences are charged to whoever gave them, the last ones.
_CAUSES: Final = 4096
#: Whoever may do everything, to count by.
_EVERYTHING: Final = "everything"
#: What is done all the same where the log has nothing but its reserve.
_ENDS: Final = frozenset({Command.STOP, Command.KILL})


class Recording:
    """Puts commands on record in ``audit``, or counts them in ``tally``."""

    def __init__(self, audit: AuditLog, allotments: Allotments, tally: Tally) -> None:
        self._audit = audit
        self._allotments = allotments
        self._tally = tally
        #: By the id of a command: whom its consequences are charged to.
        self._causes: dict[str, Allotment] = {}
        audit.on_caused = self._caused
        #: What else counts for the log, and is told with it.
        self.also_flushed: Callable[[], object] = lambda: None

    def flush(self) -> None:
        """Tell what was counted."""
        self._tally.flush()
        self.also_flushed()

    def requested(self, exchange: Exchange, fields: dict[str, object]) -> None:
        """Put on record that a command was asked; or mark it as counted, or answer that it cannot be."""
        allotment = self._allotments.of(exchange.rights)
        short = self._audit.on_reserve
        if short or allotment is not None:
            changes = exchange.reply is None and exchange.query is not None and not exchange.reads
            if changes:
                exchange.reply = self._no_room(exchange, allotment, short=short)
                exchange.refused = exchange.counted = exchange.reply is not None
            else:
                exchange.counted = not self._is_recorded(exchange, allotment, short=short)
        if exchange.counted:
            return
        size = self._audit.put(Event.COMMAND_REQUESTED, fields)
        if allotment is not None:
            allotment.take(size)
            if exchange.query is not None and not (exchange.reads or exchange.refused):
                self._charge(exchange.id, allotment)

    def _no_room(
        self, exchange: Exchange, allotment: Allotment | None, *, short: bool
    ) -> Reply | None:
        """The reply to a change that cannot be put on record; None where it can."""
        if allotment is None:
            return None
        command, rights = exchange.command, exchange.rights
        if not allotment.has_room():
            return replies.fail(
                f"Slow down: the records of {rights.who} take more than their share of the audit log "
                f"({self._allotments.a_day} bytes a day, auditBytesPerDay); {command} was not begun, and may "
                f"be asked again in {allotment.empty_for_s() + 1:.0f} s.",
                SlowDown.code,
            )
        query = exchange.query
        if short and query is not None and query.command not in _ENDS:
            return replies.fail(
                f"The file system of the audit log ({self._audit.path}) is full, and what is in reserve is for "
                f"root and the user of taskmasterd: {command} is refused; stop, kill and status work.",
                "audit-unwritable",
            )
        return None

    def _is_recorded(self, exchange: Exchange, allotment: Allotment | None, *, short: bool) -> bool:
        if allotment is None:
            return not short
        if allotment.has_room_for_more() and not short:
            return True
        kind = (_word(exchange), "", "" if exchange.reply is None else exchange.reply.code or "")
        return allotment.has_room_for_a_first() and self._tally.is_first(allotment.name, kind)

    def completed(self, exchange: Exchange, fields: dict[str, object], role: str | None) -> None:
        """Put on record, or count, what came of a command."""
        allotment = self._allotments.of(exchange.rights)
        if exchange.counted:
            reply = exchange.reply
            assert reply is not None
            self._count(allotment, _word(exchange), reply, exchange.peer, role)
            return
        size = self._audit.put(Event.COMMAND_COMPLETED, fields)
        if allotment is not None:
            allotment.take(size)

    def may_read(self, rights: Rights, size: int) -> bool:
        """Whether a read is to be put on record: two records of so many bytes together."""
        if self._audit.on_reserve:
            return False
        allotment = self._allotments.of(rights)
        if allotment is None:
            return True
        if not allotment.has_room_for_more():
            return False
        allotment.take(size)
        return True

    def count_read(
        self, rights: Rights, command: str, reply: Reply, peer: Peer, role: str | None
    ) -> None:
        """Count a read that was answered."""
        self._count(self._allotments.of(rights), command, reply, peer, role)

    def _count(
        self,
        allotment: Allotment | None,
        command: str,
        reply: Reply,
        peer: Peer,
        role: str | None,
    ) -> None:
        kind: Kind = (command, reply.response, reply.code or "")
        self._tally.add(_EVERYTHING if allotment is None else allotment.name, kind, peer, role)

    def _charge(self, cause: str, allotment: Allotment) -> None:
        if len(self._causes) >= _CAUSES:
            del self._causes[next(iter(self._causes))]
        self._causes[cause] = allotment

    def _caused(self, cause: str, size: int) -> None:
        """Something was recorded that happened because of a command."""
        allotment = self._causes.get(cause)
        if allotment is not None:
            allotment.take(size)


def _word(exchange: Exchange) -> str:
    """The command, as it is counted: a word that is none is the client's own, and there is no end to those."""
    return "" if exchange.query is None else exchange.query.command.value
