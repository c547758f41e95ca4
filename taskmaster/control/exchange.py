"""One command of one client, from its frame to its reply."""

from __future__ import annotations

from collections.abc import Callable

from taskmaster.control.peers import Peer
from taskmaster.wire.queries import READING, Query
from taskmaster.wire.replies import Reply


class Exchange:
    """A command and what becomes of it. ``id`` is the audit log's; ``begun`` is monotonic.

    ``query`` is None for a frame that was no valid query: ``reply`` says so from the beginning.
    """

    __slots__ = (
        "begun",
        "completed",
        "id",
        "last",
        "on_reply",
        "peer",
        "query",
        "query_id",
        "reply",
    )

    def __init__(
        self, exchange_id: str, peer: Peer, query: Query | None, query_id: bytes, begun: float
    ) -> None:
        self.id = exchange_id
        self.peer = peer
        self.query = query
        self.query_id = query_id
        self.begun = begun
        self.reply: Reply | None = None
        #: The connection ends after this reply.
        self.last = False
        self.completed = False
        self.on_reply: Callable[[], None] = lambda: None

    @property
    def reads(self) -> bool:
        """Whether it changes nothing; it is then answered when its turn has come on its connection."""
        return self.query is not None and self.query.command in READING

    def done(self, reply: Reply) -> None:
        """The command has its reply; a second one is ignored."""
        if self.reply is None:
            self.reply = reply
            self.on_reply()
