"""One command of one client, from its frame to its reply."""

from __future__ import annotations

from collections.abc import Callable

from taskmaster.control.access import Rights
from taskmaster.control.peers import Peer
from taskmaster.eventloop import Timer
from taskmaster.wire.queries import READING, Query
from taskmaster.wire.replies import Reply


def _nothing() -> None:
    pass


class Exchange:
    """A command and what becomes of it. ``id`` is the audit log's; ``begun`` is monotonic.

    ``command`` is the word that was asked, None where there was none. ``query`` is None for a frame that was
    no valid query: ``reply`` says so from the beginning. ``size``: bytes of the frame.
    """

    __slots__ = (
        *("begun", "command", "completed", "counted", "gone", "id", "last", "on_end", "on_gone"),
        *("on_reply", "outcome", "peer", "query", "query_id", "refused", "reply", "rights", "size"),
        "timer",
    )

    def __init__(
        self,
        exchange_id: str,
        peer: Peer,
        rights: Rights,
        command: str | None,
        query: Query | None,
        query_id: bytes,
        begun: float,
    ) -> None:
        self.id = exchange_id
        self.peer = peer
        self.rights = rights
        self.command = command
        self.query = query
        self.query_id = query_id
        self.begun = begun
        self.size = 0
        self.reply: Reply | None = None
        #: When the time to wait for the outcome is over.
        self.timer: Timer | None = None
        #: The connection ends after this reply.
        self.last = False
        #: It was not acted upon at all.
        self.refused = False
        #: It is counted for the log, not recorded by itself.
        self.counted = False
        #: What came of it is on record.
        self.completed = False
        #: What the record of its completion has beside the reply: states before and after, sha256.
        self.outcome: dict[str, object] = {}
        self.on_reply: Callable[[], None] = _nothing
        #: Nobody waits for the reply any more.
        self.gone = False
        #: Called when that is so, and when there is a reply: what waits for a state lets go of it.
        self.on_gone: Callable[[], None] = _nothing
        self.on_end: Callable[[], None] = _nothing

    @property
    def reads(self) -> bool:
        """Whether it changes nothing."""
        return self.query is not None and self.query.command in READING

    @property
    def at_once(self) -> bool:
        """Whether it is answered, from what is known, when its turn has come on its connection."""
        return self.reads and self.query is not None and self.query.wait_s is None

    def done(self, reply: Reply) -> None:
        """The command has its reply; a second one is ignored."""
        if self.reply is None:
            self.reply = reply
            if self.timer is not None:
                self.timer.cancel()
            on_end, self.on_end, self.on_gone = self.on_end, _nothing, _nothing
            on_end()
            self.on_reply()

    @property
    def changes(self) -> bool:
        """Whether something is another by it: its record is to be on disk before its reply is sent."""
        reply = self.reply
        return not (self.reads or self.refused or reply is None or reply.unchanged)

    def wait_no_longer(self) -> None:
        """What only reads is answered, from what is known, when its turn comes on its connection."""
        assert self.query is not None
        self.query.wait_s = None
        if self.timer is not None:
            self.timer.cancel()
        on_end, self.on_end, self.on_gone = self.on_end, _nothing, _nothing
        on_end()
        self.on_reply()

    def abandon(self) -> None:
        """Its client is gone. What it asked for is done, but nobody waits for what becomes of it."""
        self.gone = True
        self.on_gone()
