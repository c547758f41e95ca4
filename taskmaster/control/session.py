"""One client connection: frames in, replies out in the order of the commands.

Commands begin as they come, so that a slow one delays no other; what only reads is answered when all
before it on the same connection have been, so that ``start`` and then ``status`` mean what they say.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from taskmaster.control.exchange import Exchange
from taskmaster.control.peers import Peer
from taskmaster.errors import InvalidQuery
from taskmaster.eventloop import EventLoop
from taskmaster.stream import Stream
from taskmaster.wire import replies
from taskmaster.wire.frames import ClientFrames
from taskmaster.wire.queries import Query, UnusableQuery, parse_query

if TYPE_CHECKING:
    from taskmaster.control.dispatcher import Dispatcher

#: Commands of one client that may be unanswered; while there are as many, nothing more is read from it.
MAX_UNANSWERED: Final = 1024
#: A client that does not read its replies is cut off when so much waits for it.
MAX_OUTBOUND: Final = 8 * 1024 * 1024


class Session:
    """A client. ``on_closed`` is told when the connection is over."""

    def __init__(
        self,
        loop: EventLoop,
        fd: int,
        peer: Peer,
        max_frame_bytes: int,
        dispatcher: Dispatcher,
    ) -> None:
        self.peer = peer
        self.peer_document = peer.audit()
        self._dispatcher = dispatcher
        self._exchanges: deque[Exchange] = deque()
        self._out: list[bytes] = []
        self._end_after = False
        self._held = False
        self._decoder = ClientFrames(max_frame_bytes)
        self._stream = Stream(
            loop,
            fd,
            self._decoder,
            on_frame=self._frame,
            on_broken=self._broken,
            on_closed=self._closed,
            max_outbound=MAX_OUTBOUND,
        )

    def _frame(self, frame: bytes) -> None:
        try:
            query: Query | None = parse_query(frame)
        except UnusableQuery as error:
            exchange = self._dispatcher.begin(self, None, error.query_id, error.command)
            exchange.reply = replies.invalid(str(error))
        except InvalidQuery as error:
            self._broken(error)
            return
        else:
            assert query is not None
            exchange = self._dispatcher.begin(self, query, query.id, query.command.value)
        self._exchanges.append(exchange)
        self._dispatcher.arrived(self, exchange)
        if len(self._exchanges) >= MAX_UNANSWERED:
            self._stream.pause(True)

    def _broken(self, error: InvalidQuery) -> None:
        self._dispatcher.rejected(self, str(error))
        exchange = self._dispatcher.begin(self, None, b"", None)
        exchange.reply = replies.invalid(str(error))
        exchange.last = True
        self._exchanges.append(exchange)
        self._stream.pause(True)
        self._dispatcher.advance_later(self)

    def advance(self) -> bool:
        """Answer all that are at the head and can be; whether one of them changed something."""
        changed = False
        while self._exchanges and not self._end_after:
            exchange = self._exchanges[0]
            if exchange.reply is None and exchange.reads:
                exchange.reply = self._dispatcher.read(exchange)
            if exchange.reply is None:
                break
            self._exchanges.popleft()
            query = exchange.query
            self._dispatcher.complete(exchange)
            self._out.append(
                exchange.reply.frame(exchange.query_id, with_code=query is not None and query.codes)
            )
            self._end_after = exchange.last
            changed = changed or not exchange.reads
        return changed

    def transmit(self) -> None:
        """Send what ``advance`` has answered."""
        if self._out:
            data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
            self._out.clear()
            self._stream.send(data)
        if self._end_after:
            self._stream.end()
        elif len(self._exchanges) < MAX_UNANSWERED // 2 and not self._held:
            self._stream.pause(False)

    # an upgrade -----------------------------------------------------------------------------------

    def hold(self, held: bool) -> None:
        """Read nothing more, or again."""
        self._held = held
        self._stream.pause(held)

    def unanswered(self) -> list[Exchange]:
        """What was asked and not answered yet, in order."""
        return list(self._exchanges)

    def hand_over(self) -> tuple[int, bytes, bytes] | None:
        """Let go of the connection: descriptor, received and not looked at, not yet sent. None: it is over."""
        if self._end_after or not self._stream.open:
            self._stream.close("it was ending")
            return None
        fd, unsent = self._stream.detach()
        return fd, self._decoder.unread(), unsent

    def take_over(self, received: bytes, unsent: bytes) -> None:
        """Go on where the program before has let go."""
        if unsent:
            self._stream.send(unsent)
        self._stream.receive(received)

    def close(self, reason: str) -> None:
        """End the connection at once."""
        self._stream.close(reason)

    def _closed(self, reason: str) -> None:
        self._dispatcher.session_over(self, reason, list(self._exchanges))
        self._exchanges.clear()
