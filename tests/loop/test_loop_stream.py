"""A stream never blocks and never grows without bound, whatever its peer does."""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from taskmaster import stream
from taskmaster.errors import InvalidQuery
from taskmaster.eventloop import EventLoop
from taskmaster.stream import Stream
from taskmaster.wire.frames import ClientFrames, LinkFrames, link_frame

Until = Callable[[Callable[[], object]], None]

#: What Linux makes of the ICMP errors that routers send (net/ipv4/icmp.c, net/ipv6/icmp.c); a read of
#: a connection whose retransmissions were answered with one fails with it.
ICMP_ERRORS = (
    *(errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNREFUSED, errno.ENOPROTOOPT),
    *(errno.EOPNOTSUPP, errno.EHOSTDOWN, errno.ENONET, errno.EACCES, errno.EPROTO),
)


class Peers:
    """A Stream of ours, what it told, and the socket of its peer."""

    def __init__(
        self,
        loop: EventLoop,
        ours: socket.socket,
        theirs: socket.socket,
        cap: int,
        link: bool,
        **more: Any,
    ) -> None:
        self.peer = theirs
        self.frames: list[bytes] = []
        self.broken: list[InvalidQuery] = []
        self.closed: list[str] = []
        self.on_frame: Callable[[bytes], None] = lambda frame: None
        self.stream = Stream(
            loop,
            ours.detach(),
            LinkFrames() if link else ClientFrames(1000),
            on_frame=self._framed,
            on_broken=self.broken.append,
            on_closed=self.closed.append,
            max_outbound=cap,
            **more,
        )

    def _framed(self, frame: bytes) -> None:
        self.frames.append(frame)
        self.on_frame(frame)

    def fill(self) -> None:
        """Send until the kernel takes no more and something is queued."""
        while self.stream.open and not self.stream.outbound_bytes:
            self.stream.send(bytes(100_000))

    def receive_all(self, loop: EventLoop) -> bytes:
        """What the peer gets until the end; the loop runs meanwhile."""
        got = bytearray()
        self.peer.setblocking(False)
        end = loop.now() + 45
        while True:
            assert loop.now() < end
            tick = loop.call_in(0.002, lambda: None)
            loop.turn()
            tick.cancel()
            try:
                while block := self.peer.recv(65536):
                    got += block
                return bytes(got)
            except BlockingIOError:
                pass


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of one connection on the loopback; little fits between them."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    with socket.create_server(("127.0.0.1", 0)) as server:
        client.connect(server.getsockname())
        accepted, _ = server.accept()
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    return accepted, client


@pytest.fixture
def peers(loop: EventLoop) -> Iterator[Callable[..., Peers]]:
    """Make a Stream and its peer; both are closed afterwards."""
    made: list[Peers] = []

    def make(*, tcp: bool = False, cap: int = 1_000_000, link: bool = False, **more: Any) -> Peers:
        ours, theirs = tcp_pair() if tcp else socket.socketpair()
        made.append(Peers(loop, ours, theirs, cap, link, **more))
        return made[-1]

    yield make
    for one in made:
        one.stream.close("the test is over")
        one.peer.close()


def turns_within(loop: EventLoop, seconds: float) -> int:
    """How often the loop wakes in that time."""
    turns = []
    loop.after_turn = lambda: turns.append(1)
    loop.call_in(seconds, loop.stop)
    loop.run()
    loop.after_turn = None
    return len(turns)


# reading ------------------------------------------------------------------------------------------


def test_half_a_frame_costs_nothing(
    loop: EventLoop, peers: Callable[..., Peers], until: Until
) -> None:
    """Many peers stop within a frame: the loop sleeps, another peer is served, and later the rest comes."""
    stuck = [peers() for _ in range(20)]
    for one in stuck:
        one.peer.send(b'{"command":')
    other = peers()
    other.peer.send(b"{};;")
    until(lambda: other.frames)
    assert turns_within(loop, 0.05) <= 3
    assert all(one.frames == [] and one.stream.open for one in stuck)
    for one in stuck:
        one.peer.send(b'"list"};;')
    until(lambda: all(one.frames == [b'{"command":"list"}'] for one in stuck))


def test_pausing_keeps_what_has_come(
    loop: EventLoop, peers: Callable[..., Peers], until: Until
) -> None:
    """While paused nothing is delivered, nothing read, and not even the peer's end wakes the loop."""
    one = peers()
    one.on_frame = lambda frame: one.stream.pause(True)
    one.peer.sendall(b'{"n":1};;{"n":2};;{"n":')
    until(lambda: one.frames)
    one.peer.sendall(b"3};;")
    one.peer.close()
    assert turns_within(loop, 0.05) <= 3
    assert (one.frames, one.closed) == ([b'{"n":1}'], [])
    one.stream.pause(True)
    one.stream.pause(False)
    assert one.frames == [b'{"n":1}', b'{"n":2}']
    one.on_frame = lambda frame: None
    one.stream.pause(False)
    until(lambda: one.closed)
    assert one.frames == [b'{"n":1}', b'{"n":2}', b'{"n":3}']
    assert one.closed == ["closed by peer"]


def test_pausing_and_resuming_within_a_frame(peers: Callable[..., Peers], until: Until) -> None:
    """Thousands of frames, each answered at once between pause and resume: in order, not nested."""
    one = peers()
    depth = [0]

    def answer(frame: bytes) -> None:
        depth[0] += 1
        assert depth[0] == 1
        one.stream.pause(True)
        one.stream.pause(False)
        depth[0] -= 1

    one.on_frame = answer
    expected = [b'{"n":%d}' % n for n in range(3000)]
    one.peer.sendall(b";;".join(expected) + b";;")
    until(lambda: len(one.frames) == len(expected))
    assert one.frames == expected


@pytest.mark.parametrize(
    ("link", "good", "bad"),
    [
        (False, b"{};;", b"GET / HTTP/1.1\r\n{};;"),
        (False, b"{};;", b"{" + b"x" * 2000),
        (True, link_frame(b"{}"), b"\xff\xff\xff\xff{}"),
    ],
    ids=["another protocol", "too long", "impossible length"],
)
def test_broken_frames(
    loop: EventLoop, peers: Callable[..., Peers], until: Until, link: bool, good: bytes, bad: bytes
) -> None:
    """What came before is served; told once; nothing more is read; an answer can still be sent."""
    one = peers(link=link)
    one.peer.sendall(good + bad + good)
    until(lambda: one.broken)
    one.peer.sendall(good)
    assert turns_within(loop, 0.02) <= 3
    assert one.frames == [b"{}"]
    assert [error.fatal for error in one.broken] == [True]
    one.stream.send(b"no")
    one.stream.end()
    assert one.receive_all(loop) == b"no"
    assert one.closed == []
    one.peer.close()
    until(lambda: one.closed)
    assert one.closed == ["ended"]
    assert len(one.broken) == 1


def test_broken_is_for_good(loop: EventLoop, peers: Callable[..., Peers], until: Until) -> None:
    """A session that pauses and resumes around its other answers does not read a dead stream again."""
    one = peers(link=True)
    one.peer.sendall(b"\xff\xff\xff\xff")
    until(lambda: one.broken)
    one.stream.pause(True)
    one.stream.pause(False)
    one.peer.sendall(link_frame(b"{}"))
    turns_within(loop, 0.02)
    assert len(one.broken) == 1
    assert one.frames == []
    assert one.stream.open


def test_closed_by_the_one_who_is_served(peers: Callable[..., Peers], until: Until) -> None:
    """A frame that makes us close the connection is the last one, although more have come."""
    one = peers()
    one.on_frame = lambda frame: one.stream.close("enough")
    one.peer.sendall(b"{};;" * 5)
    until(lambda: one.closed)
    assert one.frames == [b"{}"]
    assert one.closed == ["enough"]
    assert not one.stream.open
    for call in (one.stream.end, lambda: one.stream.pause(True), lambda: one.stream.close("twice")):
        call()
    one.stream.send(b"x")
    assert (one.closed, one.stream.outbound_bytes) == (["enough"], 0)
    assert one.peer.recv(1) == b""


def test_read_out(peers: Callable[..., Peers], loop: EventLoop) -> None:
    """What a peer sent before it died is delivered to the last whole frame, in one go, without the loop."""
    one = peers()
    expected = [b'{"n":%d,"x":"%s"}' % (n, b"x" * (n % 700)) for n in range(400)]
    one.peer.setblocking(False)
    one.peer.sendall(b";;".join(expected) + b";;{half")
    one.peer.close()
    one.stream.read_out()
    assert one.frames == expected
    assert one.closed == ["closed by peer"]
    broken = peers()
    broken.peer.sendall(b"{};;no frame;;{};;")
    broken.stream.read_out()
    assert (broken.frames, len(broken.broken), broken.closed) == ([b"{}"], 1, ["closed by peer"])
    ended = peers()
    ended.on_frame = lambda frame: ended.stream.close("enough")
    ended.peer.sendall(b"{};;{};;")
    ended.stream.read_out()
    assert (ended.frames, ended.closed) == ([b"{}"], ["enough"])


# sending ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_a_slow_reader_gets_everything(
    loop: EventLoop, peers: Callable[..., Peers], tcp: bool
) -> None:
    """Blocks of any size, queued and sent as the peer reads: all bytes, in order, then the end."""
    dice = random.Random(5)
    one = peers(tcp=tcp, cap=50_000_000)
    sent = bytearray()
    for number in range(200):
        block = bytes([number]) * dice.choice([1, 10, 1000, 70_000])
        one.stream.send(block)
        sent += block
    one.stream.end()
    assert one.stream.outbound_bytes > 0
    assert one.receive_all(loop) == sent
    assert one.stream.outbound_bytes == 0


def test_who_does_not_read_is_cut_off(loop: EventLoop, peers: Callable[..., Peers]) -> None:
    """At the cap it is still open; one byte more closes it and frees what was queued."""
    one = peers(cap=300_000)
    one.fill()
    one.stream.send(bytes(300_000 - one.stream.outbound_bytes))
    assert one.stream.outbound_bytes == 300_000
    assert one.closed == []
    one.stream.send(b"x")
    assert one.closed == ["does not read: 300001 bytes wait for it"]
    assert not one.stream.open
    assert one.stream.outbound_bytes == 0
    assert turns_within(loop, 0.02) <= 3


def test_a_paused_stream_still_sends(loop: EventLoop, peers: Callable[..., Peers]) -> None:
    """The answers that wait go out although nothing is read."""
    one = peers(cap=10_000_000)
    one.stream.pause(True)
    one.fill()
    one.stream.send(b"last")
    one.stream.end()
    assert one.receive_all(loop).endswith(b"last")


def test_told_when_all_is_sent(loop: EventLoop, peers: Callable[..., Peers]) -> None:
    """Once for each time that something had to wait, when the last of it is gone, and not before."""
    drained: list[int] = []
    one = peers(cap=10_000_000, on_drained=lambda: drained.append(one.stream.outbound_bytes))
    one.stream.send(b"at once")
    loop.call_in(0, lambda: None)
    loop.turn()
    assert drained == []
    for times in (1, 2):
        one.fill()
        one.stream.send(b"and more")
        one.peer.setblocking(False)
        while one.stream.outbound_bytes:
            assert len(drained) == times - 1
            try:
                one.peer.recv(1 << 20)
            except BlockingIOError:
                pass
            loop.call_in(0, lambda: None)
            loop.turn()
        assert drained == [0] * times


def test_a_peer_that_stalls(
    loop: EventLoop, peers: Callable[..., Peers], until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing taken for so long: cut off. Slow, but taking: not. All taken in the end: the clock is off."""
    now = [loop.now()]
    monkeypatch.setattr(loop, "now", lambda: now[0])

    def pass_time(seconds: float) -> None:
        now[0] += seconds
        loop.call_in(0, lambda: None)
        loop.turn()

    stalled = peers(cap=10_000_000, stall_s=10.0)
    slow = peers(cap=10_000_000, stall_s=10.0)
    idle = peers(cap=10_000_000, stall_s=10.0)
    idle.stream.send(b"x")
    for one in (stalled, slow):
        one.fill()
        one.stream.send(bytes(2_000_000))
    for _ in range(4):
        pass_time(6.0)
        slow.peer.recv(300_000)
        pass_time(0)
    assert len(stalled.closed) == 1
    assert stalled.closed[0].startswith("does not read: ")
    assert (slow.closed, idle.closed) == ([], [])
    slow.peer.setblocking(False)
    while slow.stream.outbound_bytes:
        slow.peer.recv(1 << 20)
        pass_time(0)
    pass_time(100.0)
    pass_time(100.0)
    assert slow.closed == []


# the end ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_the_last_answer_is_not_lost(
    loop: EventLoop, peers: Callable[..., Peers], until: Until, tcp: bool
) -> None:
    """The peer has sent much that is never used: it gets the answer and the end, not a reset."""
    one = peers(tcp=tcp, cap=10_000_000)
    one.on_frame = lambda frame: (one.stream.send(b"x" * 3_000_000), one.stream.end())
    one.peer.sendall(b"{};;" + b"{}" * 40_000)
    until(lambda: one.frames)
    assert one.receive_all(loop) == b"x" * 3_000_000
    one.peer.setblocking(True)
    one.peer.sendall(b"{};;" * 5000)
    assert one.closed == []
    one.stream.end()
    one.stream.pause(False)
    one.peer.shutdown(socket.SHUT_WR)
    until(lambda: one.closed)
    assert one.closed == ["ended"]
    assert one.frames == [b"{}"]


def test_an_answer_that_comes_after_the_end(
    loop: EventLoop, peers: Callable[..., Peers], until: Until
) -> None:
    """Said that no more comes: what a late caller still sends is nothing, and does not cut the rest."""
    one = peers(tcp=True)
    one.peer.sendall(b"{};;" + b"{}" * 40_000)
    one.on_frame = lambda frame: (one.stream.send(b"last"), one.stream.end())
    until(lambda: one.frames)
    one.stream.send(b"too late")
    assert (one.closed, one.stream.open) == ([], True)
    assert one.receive_all(loop) == b"last"


def test_lingering_is_limited(
    loop: EventLoop, peers: Callable[..., Peers], until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that never closes, and one that never stops sending, are closed all the same."""
    monkeypatch.setattr(stream, "LINGER_S", 0.05)
    silent = peers()
    silent.fill()
    silent.stream.end()
    until(lambda: silent.closed)
    assert silent.closed == ["ended"]
    monkeypatch.setattr(stream, "LINGER_S", 3600.0)
    monkeypatch.setattr(stream, "LINGER_BYTES", 100_000)
    chatty = peers()
    chatty.peer.setblocking(False)
    chatty.stream.end()
    sent = 0
    while not chatty.closed:
        try:
            sent += chatty.peer.send(bytes(10_000))
        except BlockingIOError:
            pass
        except OSError as error:
            assert error.errno in (errno.EPIPE, errno.ECONNRESET)  # noqa: PT017
        loop.turn()
    assert chatty.closed == ["ended"]
    assert sent > 100_000


def test_a_peer_that_has_said_all(
    loop: EventLoop, peers: Callable[..., Peers], until: Until
) -> None:
    """``echo query | nc``: it sends no more and still waits for the answer. Told once, and it gets it."""
    ends: list[int] = []
    one = peers(cap=10_000_000, on_end=lambda: ends.append(len(one.frames)))
    one.peer.sendall(b"{};;{};;")
    one.peer.shutdown(socket.SHUT_WR)
    until(lambda: ends)
    assert turns_within(loop, 0.02) <= 3
    one.stream.pause(True)
    one.stream.pause(False)
    assert turns_within(loop, 0.02) <= 3
    assert (ends, one.closed) == ([2], [])
    one.stream.send(b"answer" * 500_000)
    one.stream.end()
    assert one.receive_all(loop) == b"answer" * 500_000
    until(lambda: one.closed)
    assert one.closed == ["ended"]


def test_the_last_words_of_one_that_is_gone(peers: Callable[..., Peers], until: Until) -> None:
    """It sent and went; that it cannot be written to must not lose what it said."""
    one = peers(link=True)
    for number in range(3):
        one.peer.sendall(link_frame(b"%d" % number))
    one.peer.close()
    one.stream.send(b"into the void")
    one.stream.send(b"again")
    until(lambda: one.closed)
    assert one.frames == [b"0", b"1", b"2"]


@pytest.mark.parametrize("when", ["reading", "sending", "ending"])
def test_a_reset_is_an_ordinary_end(
    loop: EventLoop, peers: Callable[..., Peers], until: Until, when: str
) -> None:
    """A peer that is killed with data on the way, whatever we do at that time."""
    one = peers(tcp=True)
    if when != "reading":
        one.fill()
    if when == "ending":
        one.stream.end()
    one.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.peer.close()
    until(lambda: one.closed)
    assert len(one.closed) == 1
    assert one.closed[0] in {
        "connection lost: Connection reset by peer",
        "connection lost: Broken pipe",
    }
    assert not one.stream.open


@pytest.mark.parametrize(
    "number",
    [errno.ECONNRESET, errno.ETIMEDOUT, *ICMP_ERRORS],
    ids=lambda number: errno.errorcode[number],
)
@pytest.mark.parametrize("call", ["read", "write"])
def test_whatever_the_network_says_ends_only_this_connection(
    peers: Callable[..., Peers],
    until: Until,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    call: str,
) -> None:
    """A router that drops a client must not be able to end the daemon."""
    one = peers()
    ours = one.stream._fd
    real = getattr(os, call)

    def fail(fd: int, *rest: object) -> object:
        if fd == ours:
            raise OSError(number, os.strerror(number))
        return real(fd, *rest)

    with monkeypatch.context() as broken:
        broken.setattr(os, call, fail)
        if call == "read":
            one.peer.send(b"x")
            until(lambda: one.closed)
        else:
            one.stream.send(b"x")
    if call == "write":
        one.peer.close()  # an error that a write was told of reads as an end
        until(lambda: one.closed)
    assert one.closed in ([f"connection lost: {os.strerror(number)}"], ["closed by peer"])
    assert call == "write" or one.closed[0].startswith("connection lost")


def test_a_mistake_of_ours_is_not_hidden(loop: EventLoop, peers: Callable[..., Peers]) -> None:
    """A descriptor that somebody else closed is a bug, not a lost connection."""
    one = peers()
    ours, one.stream._fd = one.stream._fd, 99999
    with pytest.raises(OSError, match="Bad file descriptor"):
        one.stream.send(b"x")
    one.stream._fd = ours
    assert one.closed == []


def test_detached(loop: EventLoop, peers: Callable[..., Peers]) -> None:
    """The descriptor goes to its new owner, open; nobody is told, nothing is read any more."""
    one = peers()
    fd, unsent = one.stream.detach()
    assert unsent == b""
    one.peer.send(b"{};;")
    assert turns_within(loop, 0.02) <= 3
    assert (one.frames, one.closed, one.stream.open) == ([], [], False)
    one.stream.close("nothing to close")
    assert one.closed == []
    assert os.read(fd, 10) == b"{};;"
    os.close(fd)


def test_handed_to_a_successor(loop: EventLoop, peers: Callable[..., Peers], until: Until) -> None:
    """An upgrade in the middle of everything: half a query and half a reply are continued by the next one."""
    old = peers(cap=10_000_000)
    old.peer.sendall(b'{"n":1};;{"n":')
    until(lambda: old.frames)
    old.fill()
    old.stream.send(b"the end of it")
    fd, unsent = old.stream.detach()
    assert old.stream.outbound_bytes == 0
    new = Peers(loop, socket.socket(fileno=fd), old.peer, 10_000_000, False)
    new.stream.receive(b'{"n":')
    new.stream.receive(b"")
    new.stream.send(unsent)
    assert new.frames == []
    old.peer.sendall(b"2};;")
    until(lambda: new.frames)
    assert new.frames == [b'{"n":2}']
    new.stream.end()
    received = new.receive_all(loop)
    assert received.endswith(b"the end of it")
    assert len(received) % 100_000 == len(b"the end of it")
    new.stream.close("done")
    assert old.closed == []
