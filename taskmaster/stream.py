"""A non-blocking descriptor with a frame decoder and a capped outbound queue.

Shared by client sessions and watchdog links. It never blocks and never grows without bound: a peer
that does not read is cut off when what waits for it passes the cap.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Final, Protocol

from taskmaster.channel import PLAIN, READ_BYTES, Channel
from taskmaster.errors import InvalidQuery
from taskmaster.eventloop import EventLoop, Timer, Watch

#: Reads after a peer's death: more than a socket's buffers hold (wmem_max is 212992 bytes by default).
READ_OUT_TURNS: Final = 256
_LATER: Final = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR})
#: Errors of a connection that has ended in one way or another; all mean the same here. The last two lines
#: are what Linux makes of ICMP errors (icmp_err_convert) when it gives up sending: any router's doing.
_GONE: Final = frozenset(
    {
        *(errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNABORTED),
        *(errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ECONNREFUSED, errno.ENOPROTOOPT),
        *(errno.EHOSTDOWN, errno.ENONET, errno.EOPNOTSUPP, errno.EACCES, errno.EPROTO),
    }
)
#: What is still read, and thrown away, of a peer that has had its last reply. Closing with unread
#: bytes makes the kernel send a reset, and the reset can overtake the reply.
LINGER_BYTES: Final = 64 * 1024 * 1024
LINGER_S: Final = 5.0


class Decoder(Protocol):
    """What a Stream needs of a framing; see taskmaster.wire.frames."""

    def receive_data(self, data: bytes) -> None: ...

    def next_frame(self) -> bytes | None: ...


class Stream:
    """One connection. It owns ``fd`` and closes it. ``channel``: what its bytes go through.

    ``on_frame`` gets each whole frame; ``on_broken`` the error of a peer whose bytes are no frames
    (reading has stopped by then, sending still works); ``on_closed`` a short reason, once, when the
    connection is over from whichever side.

    ``on_ready``: told when there is something to read, or something was received that is to be looked at;
    nothing is done about it before ``serve`` is called. Without it that is done at once. ``goes_on``: asked
    before each frame whether it shall be looked at now; if not, it waits for the next ``serve``.
    ``frames_a_turn``: after so many the stream lets others have their turn, and goes on of itself; 0: any number.
    ``on_gone``: told when a peer that is not read from has closed its end.

    ``on_data``: gets what one read brought before the decoder does; True: the decoder need not see it.
    ``on_end``: told when the peer sends no more; it may still read, so the stream stays open for that. Without
    it the stream closes. ``on_drained``: told when everything that had to wait has been sent. ``stall_s``: a
    peer that takes nothing for so long, while something waits for it, is cut off.
    """

    def __init__(
        self,
        loop: EventLoop,
        fd: int,
        decoder: Decoder,
        *,
        on_frame: Callable[[bytes], None],
        on_broken: Callable[[InvalidQuery], None],
        on_closed: Callable[[str], None],
        max_outbound: int,
        on_data: Callable[[bytes], bool] | None = None,
        on_end: Callable[[], None] | None = None,
        on_drained: Callable[[], None] | None = None,
        stall_s: float | None = None,
        on_ready: Callable[[], None] | None = None,
        goes_on: Callable[[], bool] | None = None,
        on_gone: Callable[[], None] | None = None,
        frames_a_turn: int = 0,
        channel: Channel = PLAIN,
    ) -> None:
        os.set_blocking(fd, False)
        self._loop = loop
        self._fd = fd
        self._channel = channel
        self._decoder = decoder
        self._on_frame = on_frame
        self._on_broken = on_broken
        self._on_closed = on_closed
        self._max_outbound = max_outbound
        self._on_data = on_data
        self._on_end = on_end
        self._on_drained = on_drained
        self._stall_s = stall_s
        self._on_ready = on_ready if on_ready is not None else self.serve
        self._at_once = on_ready is None
        self._goes_on = goes_on
        self._on_gone = on_gone
        self._frames_a_turn = frames_a_turn
        self._resting = self._minds_gone = False
        self._stall: Timer | None = None
        self._progress = False
        self._out = bytearray()
        self._reading = True
        self._ending = False
        self._deaf = False  # reading has ended for good
        #: There may be whole frames in the decoder.
        self._left = False
        self._delivering = False
        self._discarded = 0
        self._peer_ended = False
        self._said_last = False
        self._linger: Timer | None = None
        self._watch: Watch | None = loop.watch(fd, self._on_ready)

    @property
    def open(self) -> bool:
        """Whether the descriptor is still there."""
        return self._fd >= 0

    def fileno(self) -> int:
        """The descriptor, which stays the stream's; -1 once it is over."""
        return self._fd

    @property
    def reading(self) -> bool:
        """Whether what the peer sends is read."""
        return self._reading

    @property
    def outbound_bytes(self) -> int:
        """How much waits to be sent."""
        return len(self._out) + self._channel.unsent

    def send(self, data: bytes) -> None:
        """Send now what the kernel takes and queue the rest; closes on a queue over the cap."""
        if self._fd < 0 or self._ending:
            return
        if self._out:
            self._out += data
        else:
            try:
                sent = self._channel.write(self._fd, data)
            except OSError as error:
                sent = self._unwritten(data, error)
            if self._fd < 0 or (sent == len(data) and not self._channel.unsent):
                return
            self._out += data[sent:]
        if len(self._out) > self._max_outbound:
            self.close(f"does not read: {len(self._out)} bytes wait for it")
            return
        self._watch_stall()
        self._update()

    def _watch_stall(self) -> None:
        if self._stall_s is not None and self._stall is None:
            self._progress = False
            self._stall = self._loop.call_in(self._stall_s, self._stalled)

    def _stalled(self) -> None:
        self._stall = None
        if not self.outbound_bytes:
            return
        if not self._progress:
            self.close(f"does not read: {self.outbound_bytes} bytes wait for it")
            return
        self._watch_stall()

    def end(self) -> None:
        """Send everything queued, say that no more comes, and close when the peer does the same.

        What the peer still sends is thrown away, for LINGER_S seconds and LINGER_BYTES at most.
        """
        if self._fd < 0 or self._ending:
            return
        self._ending = True
        self._reading = False
        self._linger = self._loop.call_in(LINGER_S, lambda: self.close("ended"))
        if self.outbound_bytes:
            self._update()
        else:
            self._shut()

    def pause(self, paused: bool, *, minds_gone: bool = False) -> None:
        """Stop or resume reading; frames already received are delivered on resuming.

        ``minds_gone``: tell ``on_gone`` should the peer close its end meanwhile.
        """
        if self._fd < 0 or self._ending or self._deaf or self._reading is not paused:
            return
        self._reading = not paused
        self._minds_gone = minds_gone
        self._update()
        if not paused:
            self._look_again()

    def rest(self, resting: bool, *, minds_gone: bool = False) -> None:
        """Do not watch for what comes, until told to again: it is looked at when ``serve`` is called."""
        self._resting, self._minds_gone = resting, minds_gone
        self._update()

    def receive(self, data: bytes) -> None:
        """Treat this as received before anything else."""
        if data:
            self._decoder.receive_data(data)
            self._look_again()

    def _look_again(self) -> None:
        """There may be frames that were received and not delivered."""
        if self._at_once:
            self._deliver()
        else:
            self._left = True
            self._on_ready()

    def read_out(self) -> None:
        """Deliver what a peer that is gone has sent before, to the last byte, then close."""
        for _ in range(READ_OUT_TURNS):
            if self._fd < 0 or not self._reading:
                break
            self.serve()
        self.close("closed by peer")

    def close(self, reason: str) -> None:
        """Close at once; ``on_closed`` is told the reason."""
        if self._fd < 0:
            return
        self._forget()
        os.close(self._fd)
        self._fd = -1
        self._out.clear()
        self._on_closed(reason)

    def detach(self) -> tuple[int, bytes]:
        """Stop using the descriptor and hand it out, with what waits to be sent; nobody is told.

        What waits is as it has to be on the wire: the descriptor can be used without the channel to end it.
        """
        self._forget()
        fd, self._fd = self._fd, -1
        unsent = self._channel.seal(bytes(self._out), last=False)
        self._out.clear()
        return fd, unsent

    def _forget(self) -> None:
        if self._watch is not None:
            self._loop.unwatch(self._watch)
            self._watch = None
        for timer in (self._linger, self._stall):
            if timer is not None:
                timer.cancel()

    def _shut(self) -> None:
        if not self._said_last:
            self._said_last = True
            self._out += self._channel.seal(b"", last=True)
            self._channel = PLAIN
            if self._out:
                self._update()  # _writable comes back here
                return
        connection = socket.socket(fileno=self._fd)
        try:
            connection.shutdown(socket.SHUT_WR)
        except OSError as error:
            connection.detach()
            if error.errno == errno.ENOTCONN:  # it has gone, with all that there was for it
                self.close("ended")
            else:
                self._failed(error)
            return
        connection.detach()
        if self._peer_ended:
            self.close("ended")
        else:
            self._update()

    def _discard(self) -> None:
        try:
            got = len(os.read(self._fd, READ_BYTES))
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._failed(error)
            return
        self._discarded += got
        if self._discarded > LINGER_BYTES or (got == 0 and not self._out):
            self.close("ended")
        elif got == 0:
            self._peer_ended = True  # it may still read what waits for it
            self._update()

    def serve(self) -> None:
        """Deliver what was received before, then read once and deliver that, as far as it may go on."""
        if not self._reading or self._fd < 0 or (self._left and not self._deliver()):
            return
        if self._goes_on is not None and not self._goes_on():
            return
        try:
            data = self._channel.read(self._fd)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._failed(error)
            return
        if not data:
            self._no_more()
            return
        if self._on_data is None or not self._on_data(data):
            self._decoder.receive_data(data)
            self._deliver()
        elif self._channel.at_end:
            self._no_more()

    def _peer_is_gone(self) -> None:
        self._minds_gone = False
        self._update()
        if self._on_gone is not None:
            self._on_gone()

    def _no_more(self) -> None:
        if self._on_end is None:
            self.close("closed by peer")
            return
        self._reading, self._deaf = False, True
        self._update()
        self._on_end()

    def _deliver(self) -> bool:
        """Whether all whole frames that there were are delivered."""
        if self._delivering:
            return False
        self._delivering, self._left = True, True
        goes_on, more = self._goes_on, self._frames_a_turn
        try:
            while self._reading and self._fd >= 0 and (goes_on is None or goes_on()):
                frame = self._decoder.next_frame()
                if frame is None:
                    self._left = False
                    if self._channel.at_end and self._fd >= 0:
                        self._no_more()
                    return self._reading
                self._on_frame(frame)
                more -= 1
                if not more:
                    self._loop.call_in(0, self.serve)
                    break
        except InvalidQuery as error:
            self._reading, self._deaf = False, True
            self._update()
            self._on_broken(error)
        finally:
            self._delivering = False
        return False

    def _writable(self) -> None:
        before = self.outbound_bytes
        sent = self._write(self._out)
        if self._fd < 0:
            return
        del self._out[:sent]
        if self.outbound_bytes:
            self._progress = self._progress or self.outbound_bytes < before
            return
        self._progress = True
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        if self._ending:
            self._shut()
            return
        self._update()
        if self._on_drained is not None:
            self._on_drained()

    def _write(self, data: bytes | bytearray) -> int:
        try:
            return self._channel.write(self._fd, data)
        except OSError as error:
            return self._unwritten(data, error)

    def _unwritten(self, data: bytes | bytearray, error: OSError) -> int:
        """How much counts as sent, after this ``error`` of write."""
        if error.errno in _LATER:
            return 0
        if error.errno in _GONE and self._reading:
            # What it sent before it went is still to be read; the end of that ends it.
            return len(data)
        self._failed(error)
        return 0

    def _failed(self, error: OSError) -> None:
        if error.errno not in _GONE:
            raise error
        self.close(f"connection lost: {os.strerror(error.errno or 0)}")

    def _update(self) -> None:
        """Watch for what there is to do. With nothing to do the descriptor is not watched at all:
        a paused peer that hangs up would else wake the loop without end."""
        if self._fd < 0:
            return
        on_read = self._on_ready if self._reading and not self._resting else None
        if self._ending and not self._peer_ended:
            on_read = self._discard
        on_write = self._writable if self._out or self._channel.unsent else None
        on_gone = None
        if on_read is None and self._minds_gone and not self._deaf and not self._ending:
            on_gone = self._peer_is_gone
        if on_read is None and on_write is None and on_gone is None:
            if self._watch is not None:
                self._loop.unwatch(self._watch)
                self._watch = None
        elif self._watch is None:
            self._watch = self._loop.watch(self._fd, on_read, on_write, on_gone)
        else:
            self._loop.change(self._watch, on_read, on_write, on_gone)


class _Nothing:
    """A framing for what nobody looks at."""

    def receive_data(self, data: bytes) -> None:
        """Drop it."""

    def next_frame(self) -> bytes | None:
        """There is none."""
        return None


def dismiss(
    loop: EventLoop, fd: int, last: bytes, on_closed: Callable[[str], None] = lambda reason: None
) -> Stream:
    """Send a connection its last bytes, as they have to be on the wire, and close it as ``Stream.end`` does."""
    stream = Stream(
        loop,
        fd,
        _Nothing(),
        on_frame=lambda frame: None,
        on_broken=lambda error: None,
        on_closed=on_closed,
        max_outbound=len(last),
    )
    if last:
        stream.send(last)
    stream.end()
    return stream
