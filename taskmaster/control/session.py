"""One client connection: frames in, replies out in the order of the commands.

Commands begin as they come, so that a slow one delays no other; what only reads is answered when all
before it on the same connection have been, so that ``start`` and then ``status`` mean what they say. And a
change waits for what was asked before it and reads the same thing, for the same reason.

A client that does not take its replies gets no further ones, is not read from, and is cut off at last.

One of an identity with a share (all but root and the daemon's own user) does nothing of itself: it enters the
``turns``, and reads, answers and sends when it is served, for as long as it is told. What it may not do now, for
want of time, commands or room, stays where it is: unread in the kernel.
"""

from __future__ import annotations

import math
import socket
from collections import deque
from typing import TYPE_CHECKING, Final

from taskmaster.channel import PLAIN, Channel
from taskmaster.control.access import Rights
from taskmaster.control.exchange import Exchange
from taskmaster.control.peers import Peer
from taskmaster.control.shares import Share
from taskmaster.control.turns import Wish
from taskmaster.errors import InvalidQuery
from taskmaster.eventloop import EventLoop, Timer
from taskmaster.stream import Stream
from taskmaster.wire import replies
from taskmaster.wire.frames import END, Allowance, ClientFrames
from taskmaster.wire.queries import READING, Command, Query, UnusableQuery, parse_query
from taskmaster.wire.replies import Reply

if TYPE_CHECKING:
    from taskmaster.control.dispatcher import Asked, Dispatcher

#: Commands of one client that may be unanswered, and bytes of theirs; past either, nothing is read from it.
MAX_UNANSWERED: Final = 1024
MAX_UNANSWERED_BYTES: Final = 8 * 1024 * 1024
#: While so many bytes wait to be sent to a client, no further reply is made for it: to one of root or the
#: daemon's own user, and to one of others, who may have many connections.
ENOUGH_OUTBOUND: Final = 1024 * 1024
ENOUGH_OF_A_SHARE: Final = 64 * 1024
#: Frames of root that are looked at before others have their turn: 2 ms of the cheapest. Each turn costs a write
#: to the log and one to the client, so that fewer frames would cost more each.
FRAMES_A_TURN: Final = 256
#: The cap of what may wait: one reply more, of the largest file (1 MiB, in base64) or 1000 processes.
MAX_OUTBOUND: Final = 8 * 1024 * 1024
#: A client that takes nothing for so long, seconds, while replies wait for it, is cut off.
STALL_S: Final = 10.0
#: How long a client that has sent its last query, and perhaps has gone, may wait for outcomes, seconds.
HALF_CLOSED_S: Final = 15.0
#: Characters of a command that there is not, in the log.
_WORD: Final = 64


class Session:
    """A client. It tells the dispatcher when it is over."""

    def __init__(
        self,
        loop: EventLoop,
        fd: int,
        peer: Peer,
        max_frame_bytes: int,
        allowance: Allowance,
        dispatcher: Dispatcher,
        rights: Rights,
        share: Share | None,
        channel: Channel = PLAIN,
    ) -> None:
        self.number = next(dispatcher.session_numbers)
        self.peer = peer
        self.rights = rights
        #: Whether anything was asked since it was last looked at, and when that was first not so; see Idle.
        self.heard = True
        self.quiet_since = 0.0
        #: Whether it was said that this client is here: of those that only read, it is not.
        self.said = False
        self.share = share
        #: What it waits for since it was served last; see ``turns``.
        self.wish = Wish.NOTHING
        self._until = 0.0
        self._unsent = 0
        #: Queries that only read and were asked before, by their frames.
        self.known: dict[bytes, Asked] = {}
        self.peer_document = peer.audit()
        self._loop = loop
        self._channel = channel
        self._dispatcher = dispatcher
        self._exchanges: deque[Exchange] = deque()
        self._waiting_bytes = 0
        #: Changes that wait for reads before them.
        self._behind: list[Exchange] = []
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._end_after = False
        self._ended_by_peer: Timer | None = None
        #: Nothing that changes something may be begun.
        self._held = dispatcher.held
        #: A frame that came while nothing may be begun: for later, or for the next program.
        self._kept = b""
        #: An upgrade was asked for here: whatever comes behind it is for who answers that.
        self._asks_upgrade = False
        self._left_unread: Timer | None = None
        self._enough = ENOUGH_OUTBOUND if share is None else ENOUGH_OF_A_SHARE
        self._decoder = ClientFrames(max_frame_bytes, allowance)
        self._stream = Stream(
            loop,
            fd,
            self._decoder,
            on_frame=self._frame,
            on_broken=self._broken,
            on_closed=self._closed,
            max_outbound=MAX_OUTBOUND,
            on_data=self._data,
            on_end=self._no_more,
            on_drained=self._drained,
            stall_s=STALL_S,
            on_ready=None if share is None else lambda: dispatcher.turns.enter(self),
            goes_on=None if share is None else self._goes_on,
            on_gone=self._gone,
            frames_a_turn=FRAMES_A_TURN if share is None else 0,
            channel=channel,
        )

    # in turns -------------------------------------------------------------------------------------

    @property
    def transport(self) -> str:
        """The way in."""
        return self.peer.transport

    @property
    def is_stranger(self) -> bool:
        """Whether no rule is for it."""
        return not (self.rights.everything or self.rights.rules)

    @property
    def is_open(self) -> bool:
        """Whether there is a connection."""
        return self._stream.open

    def serve(self, until: float) -> None:
        """Read, and begin what was read, until this time at most; what is answered, ``advance`` answers."""
        self._until, self.wish = until, Wish.NOTHING
        self._dispatcher.advance_later(self)
        self._stream.serve()

    @property
    def unfinished_bytes(self) -> int:
        """What is held of frames that have not come whole."""
        return self._decoder.pending_bytes()

    def rest(self, resting: bool) -> None:
        """Do not watch the connection, until it is served; or again."""
        assert self.share is not None
        self._stream.rest(resting, minds_gone=resting and self in self.share.crowded)

    def _goes_on(self) -> bool:
        """Whether one frame more is looked at now."""
        share = self.share
        assert share is not None
        if self._until == math.inf:
            pass  # the last turn: what is not read by now is not begun
        elif self._loop.now() >= self._until:
            self.wish = Wish.TURN
        elif not share.takes_queries:
            self.wish = Wish.ROOM
        elif not share.may_take():
            self.wish = Wish.COMMANDS
        else:
            return True
        return False

    # in -------------------------------------------------------------------------------------------

    def _data(self, data: bytes) -> bool:
        """What monitors ask all day: the same bytes, nothing before them to wait for, one frame and no more."""
        if self._exchanges or self._decoder.pending_bytes():
            return False
        known = self.known.get(data[: -len(END)])
        if known is None or not data.endswith(END) or not self._takes_more():
            return False
        self.heard = True
        if self.share is not None:
            self.share.take()
        reply = self._dispatcher.read_now(self, known)
        self._out.append(reply)
        self._out_bytes += len(reply)
        return True

    def unlearn(self) -> None:
        """Forget what queries mean that were asked before."""
        if self.share is not None:
            self.share.learned -= len(self.known)
        self.known.clear()

    def _frame(self, frame: bytes) -> None:
        dispatcher = self._dispatcher
        known = None if self._exchanges else self.known.get(frame)
        if known is not None and self._takes_more():
            # As in _data: monitors send these by the hundred.
            self.heard = True
            if self.share is not None:
                self.share.take()
            reply = dispatcher.read_now(self, known)
            self._out.append(reply)
            self._out_bytes += len(reply)
            return
        self.heard = True
        share = self.share
        if share is not None:
            share.take()
        try:
            query: Query | None = parse_query(frame)
        except UnusableQuery as error:
            word = ascii(error.command)[1:-1][:_WORD]
            exchange = dispatcher.begin(self, None, error.query_id, word)
            exchange.reply = replies.invalid(str(error))
            if share is not None:
                share.refused()  # it is on record as a refusal is
        except InvalidQuery as error:
            self._broken(error)
            return
        else:
            assert query is not None
            if self._held and not _while_held(query):
                self._kept = frame + END
                self._stream.pause(True)
                return
            exchange = dispatcher.begin(self, query, query.id, query.command.value)
            if exchange.refused:
                if share is not None:
                    share.refused()
            else:
                dispatcher.learn(self, frame, query)
        self._take_up(exchange, len(frame))

    def _take_up(self, exchange: Exchange, size: int) -> None:
        dispatcher = self._dispatcher
        exchange.size = size
        self._waiting_bytes += size
        if self.share is not None:
            self.share.asked(size)
        self._exchanges.append(exchange)
        if exchange.command == Command.UPGRADE and exchange.reply is None:
            self._asks_upgrade = True
        if (
            exchange.reply is None
            and exchange.at_once
            and len(self._exchanges) == 1
            and self._takes_more()
        ):
            # Now and not at the end of the turn: what comes behind it may change what it reads.
            exchange.reply = dispatcher.read(exchange)
        if exchange.reply is not None or exchange.at_once:
            dispatcher.advance_later(self)
        elif any(_sees(before, exchange) for before in self._exchanges):
            self._behind.append(exchange)
        else:
            dispatcher.arrived(exchange)
        if self._is_full():
            self._stream.pause(True, minds_gone=True)

    def _is_full(self) -> bool:
        return (
            len(self._exchanges) >= MAX_UNANSWERED
            or self._waiting_bytes >= MAX_UNANSWERED_BYTES
            or self._asks_upgrade
            or bool(self._kept)
        )

    def _broken(self, error: InvalidQuery) -> None:
        self._dispatcher.rejected(self, str(error))
        exchange = self._dispatcher.begin(self, None, b"", None)
        exchange.reply = replies.invalid(str(error))
        exchange.last = True
        self._exchanges.append(exchange)
        if self.share is not None:
            self.share.refused()
            self.share.asked(0)
        self._stream.pause(True)
        self._dispatcher.advance_later(self)

    def _no_more(self) -> None:
        """The client sends no more; it may be there to read (``nc -N``), or gone."""
        if self._has_left():
            self._stream.close("closed by peer")
            return
        self._ended_by_peer = self._loop.call_in(
            HALF_CLOSED_S, lambda: self._stream.close("closed by peer")
        )
        self._dispatcher.advance_later(self)

    def _gone(self) -> None:
        """The client has closed its end while nothing is read from it: it may still be there to read."""
        if self._has_left():
            self._stream.close("closed by peer")
        elif self._left_unread is None:
            self._left_unread = self._loop.call_in(HALF_CLOSED_S, self._still_unread)

    def _has_left(self) -> bool:
        """Whether there is nobody to send to any more."""
        connection = socket.socket(fileno=self._stream.fileno())
        try:
            return self._dispatcher.has_left(connection)
        finally:
            connection.detach()

    def _still_unread(self) -> None:
        self._left_unread = None
        if self._is_full() or (self.share is not None and self in self.share.crowded):
            self._stream.close("closed by peer")

    # out ------------------------------------------------------------------------------------------

    def _takes_more(self) -> bool:
        if self._stream.outbound_bytes + self._out_bytes >= self._enough:
            return False
        return self.share is None or self.share.takes_replies

    def advance(self) -> bool:
        """Answer all that are at the head and can be; whether one of them changed something."""
        if not self._exchanges:
            return False  # what was known by heart is answered already
        changed, share, first = False, self.share, True
        while self._exchanges and not self._end_after and self._takes_more():
            exchange = self._exchanges[0]
            if exchange.reply is None and exchange.at_once:
                if share is not None and not first and self._loop.now() >= self._until:
                    self.wish = Wish.TURN
                    break
                exchange.reply = self._dispatcher.read(exchange)
                first = False
            if exchange.reply is None:
                break
            self._exchanges.popleft()
            self._waiting_bytes -= exchange.size
            if exchange.command == Command.UPGRADE:
                self._asks_upgrade = False
            if share is not None and share.answered(exchange.size):
                self._dispatcher.turns.readmit(share)
            query = exchange.query
            self._dispatcher.complete(exchange)
            frame = exchange.reply.frame(
                exchange.query_id, with_code=query is not None and query.codes
            )
            self._out.append(frame)
            self._out_bytes += len(frame)
            self._end_after = exchange.last
            changed = changed or exchange.changes
            if self._behind and exchange.reads:
                self._let_go()
        if share is not None and self._exchanges and not share.takes_replies:
            self.wish = Wish.ROOM
        return changed

    def _let_go(self) -> None:
        """A read was answered: begin the changes that waited for nothing else."""
        behind, self._behind = self._behind, []
        for exchange in behind:
            before = []
            for one in self._exchanges:
                if one is exchange:
                    break
                before.append(one)
            if any(_sees(one, exchange) for one in before):
                self._behind.append(exchange)
            else:
                self._dispatcher.arrived(exchange)

    def transmit(self) -> None:
        """Send what ``advance`` has answered."""
        if self._out:
            data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
            self._out.clear()
            self._out_bytes = 0
            self._stream.send(data)
            if self.share is not None:
                self._count_unsent()
            if len(data) >= self._enough and not self._stream.outbound_bytes:
                # All is gone at once, so nothing will be drained: go on when others have had their turn.
                self._loop.call_in(0, lambda: self._dispatcher.advance_later(self))
        if self._stream.reading and not self._end_after:
            return
        if self._end_after or (self._ended_by_peer is not None and not self._exchanges):
            self._stream.end()
        elif self._ended_by_peer is None and not self._is_full():
            if self._left_unread is not None:
                self._left_unread.cancel()
                self._left_unread = None
            self._stream.pause(False)

    def _drained(self) -> None:
        self._count_unsent()
        self._dispatcher.advance_later(self)

    def _count_unsent(self) -> None:
        """What waits for this client counts for all of its identity."""
        share = self.share
        if share is None:
            return
        unsent = self._stream.outbound_bytes if self._stream.open else 0
        if unsent != self._unsent:
            change, self._unsent = unsent - self._unsent, unsent
            if share.unsent(change):
                self._dispatcher.turns.readmit(share)

    # an upgrade -----------------------------------------------------------------------------------

    def hold(self, held: bool) -> None:
        """Take nothing more that would change something, or again; what only reads is answered as ever."""
        self._held = held
        if held:
            return
        kept, self._kept = self._kept, b""
        if kept:
            self._frame(kept[: -len(END)])
            self._dispatcher.advance_later(self)
        if not self._is_full() and self._ended_by_peer is None:
            self._stream.pause(False)

    def answer_rest(self, but: Exchange, goes_on: Reply, not_begun: Reply) -> None:
        """Give all that wait for something their reply, ``but`` aside."""
        behind, self._behind = self._behind, []
        for exchange in self._exchanges:
            if exchange is not but and not exchange.at_once:
                exchange.done(not_begun if exchange in behind else goes_on)

    @property
    def waits(self) -> bool:
        """Whether anything that was asked is not answered yet."""
        return bool(self._exchanges)

    def unanswered(self) -> list[Exchange]:
        """What was asked and not answered yet, in order."""
        return list(self._exchanges)

    def hand_over(self, but: Exchange, reply: bytes) -> tuple[int, bytes, bytes, bytes | None]:
        """Let go of the connection: descriptor, received and not looked at, not yet sent, and the last bytes
        of one that cannot go on elsewhere.

        ``reply``: what a connection over TLS has still to be told, if the new program runs; any other is told
        then. What is not answered by now, ``but`` aside, is nobody's any more.
        """
        fd, unsent = self._stream.detach()
        unread = self._kept + self._decoder.unread()
        self._leave_share()
        self._kept = b""
        unanswered = [one for one in self._exchanges if one is not but]
        is_ending = self._end_after or self._ended_by_peer is not None or bool(unanswered)
        for timer in (self._ended_by_peer, self._left_unread):
            if timer is not None:
                timer.cancel()
        for exchange in unanswered:
            exchange.done(_NOT_TAKEN)
            self._dispatcher.complete(exchange)
        if self.share is not None:
            for exchange in self._exchanges:
                self.share.answered(exchange.size)
        self._exchanges.clear()
        if self._channel is not PLAIN:
            # What it sent and nobody has looked at was not begun; the orderly end says as much.
            return fd, b"", unsent, self._channel.seal(reply, last=True)
        if is_ending:
            return fd, b"", unsent, b""
        return fd, unread, unsent, None

    @property
    def is_sealed(self) -> bool:
        """Whether only this program can write to the connection."""
        return self._channel is not PLAIN

    def take_over(self, received: bytes, unsent: bytes) -> None:
        """Go on where the program before has let go."""
        if unsent:
            self._stream.send(unsent)
        self._stream.receive(received)

    def _leave_share(self) -> None:
        """What was kept for it counts for nobody any more."""
        self._decoder.forget()
        self.unlearn()
        self._count_unsent()
        if self.share is not None:
            self.share.leave()
            self._dispatcher.turns.leave(self)

    def close(self, reason: str) -> None:
        """End the connection at once."""
        self._stream.close(reason)

    def _closed(self, reason: str) -> None:
        for timer in (self._ended_by_peer, self._left_unread):
            if timer is not None:
                timer.cancel()
        self._leave_share()
        for exchange in self._behind:
            self._dispatcher.arrived(exchange)
        self._behind.clear()
        self._dispatcher.session_over(self, reason, list(self._exchanges))
        self._exchanges.clear()


#: For a client that had stopped reading before the upgrade.
_NOT_TAKEN: Final = replies.fail(
    "The client did not take its replies before taskmasterd was upgraded; this one was not sent."
)
#: What must not wait for an upgrade: it is over soon, or it ends that.
_ALWAYS: Final = frozenset({Command.STOP, Command.KILL, Command.SHUTDOWN})


def _while_held(query: Query) -> bool:
    """Whether a query is served while an upgrade waits for those before it."""
    return query.command in _ALWAYS or (query.command in READING and query.wait_s is None)


def _sees(before: Exchange, change: Exchange) -> bool:
    """Whether ``before`` reads what ``change`` may change, and has not yet."""
    if before.reply is not None or not before.at_once:
        return False
    assert before.query is not None
    assert change.query is not None
    if before.query.command is Command.LIST:
        return change.query.command in _CHANGES_LIST
    return change.query.job is None or change.query.job == before.query.job


_CHANGES_LIST: Final = frozenset(
    {Command.PUSH, Command.DELETE, Command.RELOAD, Command.RESTART, Command.ROLLBACK}
)
