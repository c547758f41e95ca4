"""Letting go of everything that the next program goes on with, and going on with it.

The two belong together: what ``collect`` lets go of, ``take_over`` takes up again, in the new program, or in the
old one where the new one could not be executed. It decides nothing about when.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from msgspec import structs

from taskmaster import __version__
from taskmaster.control.exchange import Exchange
from taskmaster.control.handover import Asked, HandedSession, HandOver, OldProgram
from taskmaster.control.lifetime import identity, listeners
from taskmaster.control.lifetime.parts import Parts
from taskmaster.control.server import CannotListen
from taskmaster.stream import dismiss
from taskmaster.wire import replies
from taskmaster.wire.replies import Reply

Limits = tuple[tuple[int, tuple[int, int]], ...]


class Handing:
    """What one daemon would hand over. ``old``: what it takes to run it again.

    ``listen`` opens a listener of a kind; it raises CannotListen.
    """

    def __init__(
        self,
        parts: Parts,
        limits: Limits,
        old: OldProgram | None,
        listen: Callable[[str], None],
    ) -> None:
        self._loop = parts.loop
        self._config = parts.config
        self._premises = parts.premises
        self._supervisor = parts.supervisor
        self._dispatcher = parts.dispatcher
        self._server = parts.server
        self._removing = parts.removing
        self._say = parts.say
        self._limits = limits
        self._old = old
        self._listen = listen
        self._folder_id = identity.of(parts.config.config_directory)

    def describe(self) -> HandOver:
        """All but the clients; nothing is let go of."""
        supervisor, lock = self._supervisor, self._premises.statedir.lock
        return HandOver(
            version=__version__,
            lock=lock,
            limits=self._limits,
            listeners=self._server.listening(),
            sessions=(),
            reaped=supervisor.statuses(),
            inherited=supervisor.orphans.known(),
            held=supervisor.hand_over(),
            asked=None,
            not_begun=supervisor.not_begun(),
            old=self._old,
            holdings=identity.holdings(
                self._config,
                lock,
                self._premises.audit,
                self._folder_id,
                list(supervisor.jobs.values()),
            ),
        )

    def collect(self, exchange: Exchange) -> HandOver:
        """Let go of everything; ``exchange`` is the command that asked for it."""
        described, removals = self.describe(), self._removing.keep()
        sessions: list[HandedSession] = []
        asked = None
        for session in list(self._dispatcher.sessions):
            self._dispatcher.forget(session)
            if not session.is_open:
                continue
            query = exchange.query
            if exchange in session.unanswered():
                asked = Asked(
                    len(sessions),
                    exchange.query_id.decode("utf-8", "replace"),
                    exchange.id,
                    time.monotonic() - exchange.begun,
                    query is not None and query.codes,
                    session.is_sealed,
                )
                sealed = replies.success().frame(exchange.query_id, with_code=asked.codes)
            else:
                sealed = b""
            fd, received, unsent, last = session.hand_over(exchange, sealed)
            sessions.append(HandedSession(fd, session.peer, received, unsent, last))
        self._dispatcher.tell_counted()
        self._premises.audit.close()
        self._server.hand_over()
        return structs.replace(
            described,
            sessions=tuple(sessions),
            asked=asked,
            waiting=self._server.let_go(),
            removals=removals,
        )

    def take_over(self, handed: HandOver, reply: Reply) -> None:
        """Go on with listeners and clients; whoever asked for the upgrade gets ``reply``."""
        planned = listeners.plan(self._config, handed.listeners)
        for listener in planned.kept:
            self._server.take_over(listener)
            self._set_mode(listener.kind)
        upgraded = reply.response == replies.SUCCESS
        handed_sessions = _with_reply(handed, reply)
        kept = [one for one in handed_sessions if one.last is None]
        sessions = [self._server.serve(one.fd, one.peer) for one in kept]
        for session, one in zip(sessions, kept, strict=True):
            session.take_over(one.received, one.unsent)
        for one in handed_sessions:
            if one.last is not None:
                dismiss(self._loop, one.fd, one.unsent + (one.last if upgraded else b""))
        for connection in handed.waiting:
            self._server.take_in(connection)
        for listener in planned.closed:
            self._server.let_in_and_close(listener)
            listeners.remove_file(listener)
        for kind in planned.opened:
            try:
                self._listen(kind)
            except CannotListen as error:
                self._say.error(f"{error}; clients are served by what there is")

    def _set_mode(self, kind: str) -> None:
        path = self._config.socket
        if kind != listeners.UNIX or path is None:
            return
        try:
            os.chmod(path, self._config.socket_mode)
        except OSError as error:  # ENOENT: removed by somebody; EROFS
            self._say.error(f"{path}: its mode stays as it is: {error.strerror}")


def _with_reply(handed: HandOver, reply: Reply) -> list[HandedSession]:
    """The sessions; the one that asked has its reply behind what it has not been sent yet."""
    sessions, asked = list(handed.sessions), handed.asked
    if asked is not None and not asked.sealed:
        one = sessions[asked.session]
        frame = reply.frame(asked.query_id.encode(), with_code=asked.codes)
        sessions[asked.session] = structs.replace(one, unsent=one.unsent + frame)
    return sessions
