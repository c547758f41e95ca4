"""A stream over TLS: the same bytes arrive however the kernel cuts them up, and what is no TLS ends it."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Iterator

import pytest
from certificates import Authority, needs_openssl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskmaster.control.tls import TlsChannel
from taskmaster.eventloop import EventLoop
from taskmaster.stream import Stream
from taskmaster.wire.frames import ClientFrames

pytestmark = needs_openssl
Until = Callable[[Callable[[], object]], None]


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Of a server and of its client."""
    authority = Authority(tmp_path_factory.mktemp("ca"))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*authority.issue("server", alt="DNS:localhost"))
    server.load_verify_locations(authority.crt)
    server.verify_mode = ssl.CERT_REQUIRED
    return server, authority.context(authority.issue("anna"))


class Pair:
    """A stream over TLS, which answers each frame with ``reply``, and its peer."""

    def __init__(
        self, loop: EventLoop, contexts: tuple[ssl.SSLContext, ssl.SSLContext], reply: bytes
    ) -> None:
        self.near, theirs = socket.socketpair()
        for one in (self.near, theirs):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
            one.setblocking(False)
        self.read, self.write = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = contexts[1].wrap_bio(self.read, self.write, server_hostname="localhost")
        self.loop = loop
        self.frames: list[bytes] = []
        self.ended: list[str] = []
        channel = TlsChannel(contexts[0])
        done = False
        while not done:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                pass
            self.near.send(self.write.read() or b"")
            done = channel.shake(theirs.fileno())
            try:
                self.read.write(self.near.recv(65536))
            except BlockingIOError:
                pass
        assert channel.name() == "anna"
        assert channel.early() == b""

        def answer(frame: bytes) -> None:
            self.frames.append(frame)
            self.stream.send(reply)

        self.stream = Stream(
            loop, theirs.detach(), ClientFrames(1 << 20), on_frame=answer,
            on_broken=lambda error: self.ended.append(str(error)), on_closed=self.ended.append,
            max_outbound=1 << 24, on_end=lambda: self.stream.end(), channel=channel,
        )  # fmt: skip

    def sent(self, data: bytes) -> bytes:
        """What is on the wire for this."""
        self.tls.write(data)
        return self.write.read()

    def received(self) -> bytes:
        """What has come so far; raises SSLZeroReturnError behind an orderly end."""
        try:
            while chunk := self.near.recv(65536):
                self.read.write(chunk)
        except (BlockingIOError, ConnectionResetError):
            pass
        data = b""
        while True:
            try:
                piece = self.tls.read(65536)
            except ssl.SSLWantReadError:
                return data
            if not piece:
                self.ended.append("orderly")
                return data
            data += piece

    def close(self) -> None:
        self.near.close()
        self.stream.close("the test is over")


@pytest.fixture
def pair(loop: EventLoop, contexts) -> Iterator[Callable[[bytes], Pair]]:  # type: ignore[no-untyped-def]
    made: list[Pair] = []

    def make(reply: bytes) -> Pair:
        made.append(Pair(loop, contexts, reply))
        return made[-1]

    yield make
    for one in made:
        one.close()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    sizes=st.lists(st.integers(0, 40_000), min_size=1, max_size=5),
    cuts=st.lists(st.integers(1, 5000), min_size=1, max_size=20),
    reply=st.integers(0, 100_000),
)
def test_any_cut(pair, until, sizes, cuts, reply):
    """Frames of any size, in any pieces, come as they were sent, and so do the replies and the end."""
    both = pair(b"r" * reply + b";;")
    frames = [b'{"a":"' + b"x" * size + b'"}' for size in sizes]
    wire = b"".join(both.sent(frame + b";;") for frame in frames)
    with pytest.raises(ssl.SSLWantReadError):
        both.tls.unwrap()
    wire += both.write.read()
    got = bytearray()
    turn = 0

    def step() -> bool:
        nonlocal wire, turn
        try:
            wire = wire[both.near.send(wire[: cuts[turn % len(cuts)]]) :]
        except (BlockingIOError, BrokenPipeError):
            pass
        turn += 1
        try:
            got.extend(both.received())
        except ssl.SSLZeroReturnError:
            both.ended.append("orderly")
        return "orderly" in both.ended

    until(step)
    assert both.frames == frames
    assert bytes(got) == (b"r" * reply + b";;") * len(frames)
    both.near.close()
    until(lambda: not both.stream.open)
    assert both.ended[-1] == "ended"


@pytest.mark.parametrize("where", ["header", "body", "behind"])
def test_damage(pair, until, where):
    """A byte that is not what was sent ends the connection, and nothing that came with it is looked at."""
    both = pair(b"")
    both.near.send(both.sent(b'{"first":1};;'))
    until(lambda: both.frames)
    wire = bytearray(both.sent(b'{"second":2};;'))
    if where == "behind":
        wire += b"GET / HTTP/1.1\r\n\r\n"
    else:
        wire[{"header": 0, "body": -1}[where]] ^= 1
    both.near.send(wire)
    until(lambda: both.ended)
    assert both.ended == ["connection lost: Protocol error"]
    assert both.frames == [b'{"first":1}']


def test_a_connection_that_just_ends(pair, until):
    """Half a frame of a client that is gone without a word is nothing; whole ones before it are served."""
    both = pair(b"")
    wire = both.sent(b'{"first":1};;{"sec')
    both.near.send(wire + both.sent(b'ond":2};;')[:-1])
    both.near.close()
    until(lambda: not both.stream.open)
    assert both.frames == [b'{"first":1}']


def test_detached(pair, until):
    """What waits to be sent is handed out as it has to be on the wire, with the last words behind it."""
    both = pair(b"r" * 100_000 + b";;")
    both.near.send(both.sent(b'{"first":1};;'))
    until(lambda: both.frames)
    channel = both.stream._channel
    fd, unsent = both.stream.detach()
    last = channel.seal(b"the end;;", last=True)
    data = both.received()
    os.close(fd)
    both.read.write(unsent + last)
    assert data + both.received() == b"r" * 100_000 + b";;the end;;"
    assert "orderly" in both.ended
    assert channel.seal(b"more", last=True) == b"", "nothing follows the end"
