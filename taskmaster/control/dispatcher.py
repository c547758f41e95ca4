"""From frames to replies: who asked what is in the audit log before it is done, and what came of it before
the reply is sent.

Root and the daemon's own user are served as they come; all others after them, in turns (``turns``).

A turn of the loop collects commands; ``turn_over`` then writes all their records at once, begins them,
and answers what is answered. One fsync serves every reply of the turn that tells of a change.
"""

from __future__ import annotations

import functools
import itertools
import os
import socket
import time
from collections.abc import Callable
from typing import Final

import msgspec

from taskmaster.audit import AuditLog, Event, Form
from taskmaster.audit.log import GAPS_BYTES
from taskmaster.config.history import sha256
from taskmaster.control.access import Rights
from taskmaster.control.exchange import Exchange
from taskmaster.control.gate import Gate
from taskmaster.control.handshakes import Handshakes
from taskmaster.control.peers import Peer
from taskmaster.control.recording import Recording
from taskmaster.control.rejections import Rejections
from taskmaster.control.say import Say
from taskmaster.control.session import Session
from taskmaster.control.shares import MAX_LEARNED
from taskmaster.control.turns import Turns
from taskmaster.errors import InvalidQuery, TaskmasterError
from taskmaster.wire import replies
from taskmaster.wire.queries import Command, Query
from taskmaster.wire.replies import Reply

#: Commands that are carried out even when the audit log cannot be written: they end things.
_ALWAYS: Final = frozenset({Command.STOP, Command.KILL})
#: Frames of one session whose meaning is remembered: a name of 64 characters makes one of 130 bytes, and records
#: of 800.
_KNOWN: Final = 1024
_KNOWN_BYTES: Final = 512

Reader = Callable[[Query, Rights], Reply]
Handler = Callable[[Exchange], None]


#: The reply, if all is well, of commands that only read and are asked again and again.
_OUTCOMES: Final = {
    Command.STATUS: replies.STATUS,
    Command.PULL: replies.FILE,
    Command.LIST: replies.LIST,
}


class Asked(msgspec.Struct, frozen=True):
    """A query of a client that only reads and was asked before, with its records but for what differs."""

    query: Query
    reader: Reader
    requested: Form
    completed: Form

    @property
    def size(self) -> int:
        """Bytes that its two records take in the log, about."""
        return len(self.requested.text) + len(self.completed.text) + 2 * GAPS_BYTES


class Dispatcher:
    """``readers`` and ``handlers``: what each command does, in two closed tables."""

    def __init__(
        self,
        audit: AuditLog,
        say: Say,
        recording: Recording,
        rejections: Rejections,
        gate: Gate,
        turns: Turns,
    ) -> None:
        self.readers: dict[Command, Reader] = {}
        self.handlers: dict[Command, Handler] = {}
        #: The state of the job of this name, for the record; None where there is none.
        self.state_of: Callable[[str], str | None] = lambda name: None
        #: In the order in which they came.
        self.sessions: dict[Session, None] = {}
        #: Told of a client that is none any more.
        self.on_over: Callable[[Session], object] = lambda session: None
        self.session_numbers = itertools.count()
        #: Of all that are not served at once: who is next.
        self.turns = turns
        #: Why nothing may be changed any more; empty while it may.
        self.closing = ""
        #: Nothing that changes something is begun: what was asked is to be answered soon.
        self.held = False
        #: Whether a client that sends no more is not there to read either.
        self.has_left: Callable[[socket.socket], bool] = lambda connection: False
        #: Where those wait that are no clients yet; None where no TLS is spoken.
        self.handshakes: Handshakes | None = None
        self._audit = audit
        self._say = say
        self._recording = recording
        self._rejections = rejections
        self._gate = gate
        self._prefix = os.urandom(4).hex()
        self._count = 0
        self._arrived: list[Exchange] = []
        self._advanced: dict[Session, None] = {}

    # the way in -----------------------------------------------------------------------------------

    def begin(
        self, session: Session, query: Query | None, query_id: bytes, command: str | None
    ) -> Exchange:
        """A new exchange, on record as requested, and ``refused`` with its reply where it may not be done.

        ``command`` None: nothing that could be one.
        """
        self._count += 1
        exchange_id = f"{self._prefix}-{self._count}"
        exchange = Exchange(
            *(exchange_id, session.peer, session.rights, command, query, query_id, time.monotonic())
        )
        exchange.on_reply = lambda: self.advance_later(session)
        if command is None:
            exchange.completed = True
            return exchange
        fields: dict[str, object] = {"id": exchange.id, "command": command}
        if query is not None:
            fields["job"] = query.job
            if query.data is not None:
                fields["sha256"], fields["size"] = sha256(query.data), len(query.data)
            if query.wait_s is not None:
                fields["wait"] = query.wait_s
            if query.force and query.command is Command.RESTART and query.job is None:
                fields["force"] = True
            if query.reason and not exchange.reads:
                fields["reason"] = query.reason
            exchange.reply = self._gate.refusal(session.rights, query)
            exchange.refused = exchange.reply is not None
        fields["peer"] = session.peer_document
        fields["role"] = _role(session.rights, query)
        self._recording.requested(exchange, fields)
        if query is not None and not (exchange.reads or exchange.refused or session.said):
            session.said = True
            self._say.connection(f"client {session.peer.who()} connected", session.rights.who)
        return exchange

    def learn(self, session: Session, frame: bytes, query: Query) -> None:
        """Remember what a frame means that reads and may well come again from this client."""
        if query.command not in _OUTCOMES or query.wait_s is not None or query.id or query.reason:
            return
        share = session.share
        full = len(session.known) >= _KNOWN or (share is not None and share.learned >= MAX_LEARNED)
        if full:
            session.unlearn()
        if len(frame) > _KNOWN_BYTES or (share is not None and share.learned >= MAX_LEARNED):
            return
        asked = self._asked(session, query)
        if asked is not None:
            session.known[frame] = asked
            if share is not None:
                share.learned += 1

    def _asked(self, session: Session, query: Query) -> Asked | None:
        """None where its records cannot be known beforehand."""
        fields = {
            "command": query.command.value,
            "job": query.job,
            "peer": session.peer_document,
            "role": _role(session.rights, query),
        }
        outcome = {**fields, "outcome": _OUTCOMES[query.command]}
        form, prefix = self._audit.form, f"{self._prefix}-"
        requested = form(Event.COMMAND_REQUESTED, fields, prefix=prefix, timed=False)
        completed = form(Event.COMMAND_COMPLETED, outcome, prefix=prefix, timed=True)
        if requested is None or completed is None:
            return None
        return Asked(query, self.readers[query.command], requested, completed)

    def read_now(self, session: Session, asked: Asked) -> bytes:
        """Answer a query that only reads, on record before and after; the frame of the reply."""
        begun = time.monotonic()
        self._count += 1
        query = asked.query
        try:
            reply = asked.reader(query, session.rights)
        except TaskmasterError as error:
            reply = replies.fail(str(error), error.code)
        if (session.share is not None or self._audit.on_reserve) and not self._recording.may_read(
            session.rights, asked.size
        ):
            # Root's reads are on record one by one, and are not even asked about: they come by the thousand.
            role = _role(session.rights, query)
            self._recording.count_read(
                session.rights, query.command.value, reply, session.peer, role
            )
        elif reply.error is None:
            took_s = time.monotonic() - begun
            self._audit.record_read(asked.requested, asked.completed, self._count, took_s)
        else:
            self._record_failed_read(session, query, reply, time.monotonic() - begun)
        self._advanced[session] = None
        if reply.bare is not None and reply.code is None:
            return reply.bare
        return reply.frame(with_code=query.codes)

    def _record_failed_read(
        self, session: Session, query: Query, reply: Reply, took_s: float
    ) -> None:
        fields: dict[str, object] = {
            "id": f"{self._prefix}-{self._count}",
            "command": query.command.value,
            "job": query.job,
            "peer": session.peer_document,
            "role": _role(session.rights, query),
        }
        self._audit.record(Event.COMMAND_REQUESTED, **fields)
        fields |= {"outcome": reply.response, "error": reply.error}
        self._audit.record(Event.COMMAND_COMPLETED, **fields, durationMs=round(took_s * 1000, 3))

    def arrived(self, exchange: Exchange) -> None:
        """A command is to be begun at the end of this turn."""
        self._arrived.append(exchange)

    def advance_later(self, session: Session) -> None:
        """Something of this session may have its answer."""
        if session.share is None or session is self.turns.serving:
            self._advanced[session] = None
        else:
            self.turns.enter(session)

    def rejected(self, session: Session, reason: str) -> None:
        """A connection is cut for what it sent."""
        self._rejections.add(session.peer, reason, kind=InvalidQuery.code)

    def turned_away(self, peer: Peer, reason: str, kind: str = "") -> None:
        """A connection was not let in at all; ``kind``: the code of what it was told, if any."""
        self._rejections.add(peer, reason, kind=kind)

    def tell_counted(self) -> None:
        """Put on record what is only counted so far: commands, and who was turned away."""
        self._rejections.flush()
        self._recording.flush()

    def forget(self, session: Session) -> None:
        """It is no client of this daemon any more."""
        if session in self.sessions:
            del self.sessions[session]
            self.on_over(session)

    def session_over(self, session: Session, reason: str, unanswered: list[Exchange]) -> None:
        """A client is gone. What it asked for is done all the same, and on record."""
        self.forget(session)
        self._advanced.pop(session, None)
        gone = f"client {session.peer.who()} gone: {reason}"
        if session.said:
            self._say.connection(gone, session.rights.who)
        else:
            self._say.everything(gone)
        for exchange in unanswered:
            if exchange.reply is None and exchange.at_once:
                exchange.reply = replies.fail("The client was gone before its turn came.")
            exchange.on_reply = functools.partial(self._end_of_gone, session, exchange)
            if exchange.reply is not None:
                exchange.on_reply()
            else:
                exchange.abandon()

    def _end_of_gone(self, session: Session, exchange: Exchange) -> None:
        self.complete(exchange)
        share = session.share
        if share is not None and share.answered(exchange.size):
            self.turns.readmit(share)

    # an upgrade -----------------------------------------------------------------------------------

    def hold_all(self) -> None:
        """Begin nothing more that changes something; what only reads is answered as ever."""
        self.held = True
        if self.handshakes is not None:
            self.handshakes.hold(True)
        for session in self.sessions:
            session.hold(True)

    def release_all(self) -> None:
        """Begin again what is asked."""
        self.held = False
        if self.handshakes is not None:
            self.handshakes.hold(False)
        for session in list(self.sessions):
            session.hold(False)

    def quiet(self, but: Exchange) -> bool:
        """Whether everything that was read has been answered, ``but`` aside."""
        if self.handshakes is not None and self.handshakes.under_way:
            return False
        return not (self._arrived or self._advanced) and not any(
            exchange is not but for session in self.sessions for exchange in session.unanswered()
        )

    def answer_rest(self, but: Exchange, goes_on: Reply, not_begun: Reply) -> None:
        """Give all that wait for something their reply, ``but`` aside; wait for no handshake any longer."""
        if self.handshakes is not None:
            self.handshakes.give_up()
        for session in list(self.sessions):
            session.answer_rest(but, goes_on, not_begun)

    # the way out ----------------------------------------------------------------------------------

    def read(self, exchange: Exchange) -> Reply:
        """Answer a command that changes nothing."""
        query = exchange.query
        assert query is not None
        try:
            return self.readers[query.command](query, exchange.rights)
        except TaskmasterError as error:
            return replies.fail(str(error), error.code)

    def complete(self, exchange: Exchange) -> None:
        """Put on record what came of it."""
        if exchange.completed:
            return
        exchange.completed = True
        query, reply = exchange.query, exchange.reply
        assert reply is not None
        fields: dict[str, object] = {"id": exchange.id, "command": exchange.command}
        if query is not None:
            fields["job"] = query.job
        fields["peer"] = exchange.peer.audit()
        fields["role"] = role = _role(exchange.rights, query)
        fields["outcome"] = reply.response
        if reply.error is not None:
            fields["error"] = reply.error
        fields["durationMs"] = round((time.monotonic() - exchange.begun) * 1000, 3)
        if "before" in exchange.outcome:
            assert query is not None
            exchange.outcome["after"] = self.state_of(query.job or "")
        self._recording.completed(exchange, fields | exchange.outcome, role)

    def turn_over(self) -> None:
        """Begin what arrived and answer what can be. Call at the end of each turn of the loop."""
        if self._advanced or self._arrived:
            self._answer()
        if self.turns.waiting:
            self.turns.serve(self._answer)

    def answer_all(self) -> None:
        """Make and send every reply that there is, of everybody; nothing is read any more."""
        self._answer()
        self.turns.serve(self._answer, is_last=True)

    def _answer(self) -> None:
        while self._arrived or self._advanced:
            if self._arrived:
                arrived, self._arrived = self._arrived, []
                on_record = self._audit.flush(durable=False)
                for exchange in arrived:
                    self._begin(exchange, on_record)
            sessions, self._advanced = self._advanced, {}
            changed = False
            for session in sessions:
                changed = session.advance() or changed
            if sessions:
                self._audit.flush(durable=changed)
            for session in sessions:
                session.transmit()

    def _begin(self, exchange: Exchange, on_record: bool) -> None:
        query = exchange.query
        assert query is not None
        command = query.command
        if exchange.reads:
            on_record = True  # it only waits, and then reads
        if self.closing and command not in _ALWAYS:
            exchange.done(replies.refuse(f"{self.closing}; {command.value} is refused.", "closing"))
            return
        if not on_record and command not in _ALWAYS:
            why = (
                self._audit.error.strerror if self._audit.error is not None else "records were lost"
            )
            exchange.done(
                replies.fail(
                    f"The audit log cannot be written ({self._audit.path}: {why}): {command.value} is "
                    "refused, as is everything that changes something; stop, kill and status work.",
                    "audit-unwritable",
                )
            )
            return
        if query.job is not None and not exchange.reads:
            exchange.outcome["before"] = self.state_of(query.job)
        try:
            self.handlers[command](exchange)
        except TaskmasterError as error:
            exchange.done(replies.refuse(str(error), error.code))


def _role(rights: Rights, query: Query | None) -> str | None:
    """The role that a peer has where the command is aimed, for the log."""
    if rights.everything:
        return "admin"
    role = rights.role(None if query is None else query.job)
    return None if role is None else role.word
