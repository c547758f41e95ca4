"""Where connections wait until it is known who they are: for how long, how many, and what becomes of them."""

from __future__ import annotations

import itertools
import os
import select
import socket
import ssl

import pytest
from certificates import Authority, needs_openssl, raw_hello

from taskmaster.control import handshakes
from taskmaster.control.handshakes import Handshakes
from taskmaster.eventloop import EventLoop

pytestmark = needs_openssl


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Room:
    """The room, who connects to it, and what came of each."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.clock = Clock()
        self.loop = EventLoop(self.clock)
        self.plain: list[socket.socket] = []
        self.welcome: list[str | None] = []
        self.rejected: list[str] = []
        self.ours: list[socket.socket] = []
        self.room = Handshakes(
            self.loop,
            context,
            plain=lambda connection, _: self.plain.append(connection),
            welcome=self._welcomed,
            rejected=lambda peer, reason: self.rejected.append(reason),
        )

    def _welcomed(self, fd: int, peer: object, channel: object) -> None:
        self.welcome.append(getattr(peer, "certificate", None))
        os.close(fd)

    def connect(
        self, data: bytes = b"", *, local: bool = False, host: str = "127.0.0.1"
    ) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", 0))
        ours = socket.create_connection(listener.getsockname())
        theirs, address = listener.accept()
        listener.close()
        ours.sendall(data)
        if data:
            select.select([theirs], [], [], 30)
        self.ours.append(ours)
        self.room.receive(theirs, (host, address[1]), local=local)
        return ours

    def turns(self, seconds: float = 0.0) -> None:
        """Let time pass, and the loop do all that there is to do."""
        self.clock.now += seconds
        for _ in range(20):
            timer = self.loop.call_in(0, lambda: None)
            self.loop.turn()
            timer.cancel()

    def is_over(self, ours: socket.socket) -> bool:
        ours.setblocking(False)
        try:
            while ours.recv(65536):
                pass
        except BlockingIOError:
            return False
        except ConnectionResetError:
            pass
        return True

    def close(self) -> None:
        self.room.close()
        for one in [*self.ours, *self.plain]:
            one.close()
        self.loop.close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def context(authority: Authority) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(*authority.issue("server", alt="DNS:localhost"))
    made.load_verify_locations(authority.crt)
    made.verify_mode = ssl.CERT_REQUIRED
    return made


@pytest.fixture
def room(context: ssl.SSLContext, leaves_nothing: None):
    room = Room(context)
    yield room
    room.close()


def test_deadline(room: Room, authority: Authority) -> None:
    """Whoever says nothing, half a hello, or a hello and nothing more, is cut off at the deadline, not before."""
    hello = raw_hello(authority.context(None))
    waiting = [room.connect(data) for data in (b"", hello[:1], hello[:100], hello)]
    room.turns()
    room.turns(handshakes.DEADLINE_S - 0.1)
    assert not any(room.is_over(one) for one in waiting)
    assert room.rejected == []
    room.turns(0.2)
    assert all(room.is_over(one) for one in waiting)
    assert room.rejected == [f"no handshake within {handshakes.DEADLINE_S:g} s"] * 4


def test_silence_of_this_host_is_no_handshake(room: Room) -> None:
    """A client of this host that says nothing is a plain one at the deadline, or when room is needed."""
    first, second = room.connect(local=True), room.connect(local=True)
    second.sendall(b"{")
    room.turns()
    assert [one.getpeername() for one in room.plain] == [second.getsockname()]
    assert room.plain[0].recv(10) == b"{", "what was looked at is still there"
    for _ in range(handshakes.MAX_WAITING):
        room.connect()
    assert room.plain[-1].getpeername() == first.getsockname()
    third = room.connect(local=True)
    room.turns(handshakes.DEADLINE_S)
    assert room.plain[-1].getpeername() == third.getsockname()
    assert not room.is_over(third)


def test_the_oldest_goes_first(room: Room) -> None:
    """One more than may wait costs the oldest its place; who is rejected and lingers counts too."""
    plain = room.connect(b"GET / HTTP/1.1\r\n\r\n")
    room.turns()
    assert room.rejected == ["this is no TLS"]
    others = [
        room.connect(host=f"10.0.0.{number // 30}") for number in range(handshakes.MAX_WAITING)
    ]
    room.turns()
    assert room.is_over(plain)
    assert [number for number, one in enumerate(others) if room.is_over(one)] == [0]
    room.connect(host="10.0.0.9")
    assert [number for number, one in enumerate(others) if room.is_over(one)] == [0, 30]
    assert "handshakes wait" in room.rejected[-1]


@pytest.mark.parametrize(
    ("theirs", "other"), [("10.0.0.1", "10.0.0.2"), ("2001:db8::1", "2001:db8:0:1::1")]
)
def test_one_network_has_a_part(room: Room, theirs: str, other: str) -> None:
    """One network that floods loses its own oldest, and never those of another."""
    kept = room.connect(host=other)
    share = handshakes.MAX_WAITING // handshakes._NETWORKS
    hosts = [theirs, f"{theirs}2"] if ":" in theirs else [theirs]
    crowd = [room.connect(host=hosts[number % len(hosts)]) for number in range(3 * share)]
    room.turns()
    assert not room.is_over(kept)
    assert [room.is_over(one) for one in crowd] == [True] * 2 * share + [False] * share
    assert "wait" in room.rejected[-1]


def test_a_probe_is_nothing(room: Room) -> None:
    """Who connects and closes without a word is let go and is not recorded."""
    for local in (False, True):
        room.connect(local=local).close()
    room.turns()
    assert (room.rejected, room.plain, room.room.under_way) == ([], [], False)


def test_computing_is_shared_out(room: Room, authority: Authority) -> None:
    """A crowd of hellos is not computed in one turn of the loop, and each has its turn."""
    hello = raw_hello(authority.context(None))
    crowd = [room.connect(hello) for _ in range(30)]
    steps = 0

    def ticking() -> float:
        nonlocal steps
        steps += 1
        return room.clock.now + steps * 0.001  # each look at the clock costs a millisecond

    room.loop.now = ticking  # type: ignore[method-assign]
    answered = [0]
    while answered[-1] < 30:
        timer = room.loop.call_in(0, lambda: None)
        room.loop.turn()
        timer.cancel()
        answered.append(len(select.select(crowd, [], [], 0)[0]))
    assert max(b - a for a, b in itertools.pairwise(answered)) <= 3


def test_held(room: Room, authority: Authority) -> None:
    """While an upgrade is prepared no handshake begins; what nobody has read from is handed over."""
    hello = raw_hello(authority.context(None))
    begun = room.connect(hello)
    room.turns()
    assert room.room.under_way
    room.room.hold(True)
    waiting = [room.connect(hello), room.connect()]
    room.turns()
    assert select.select([begun, *waiting], [], [], 0)[0] == [begun]
    room.room.give_up()
    assert not room.room.under_way
    handed = room.room.hand_over()
    with socket.socket(fileno=handed[0][0]) as first, socket.socket(fileno=handed[1][0]) as second:
        assert first.recv(65536) == hello
        assert second.getpeername() == waiting[1].getsockname() == handed[1][1]
    room.room.hold(False)


def test_released(room: Room, authority: Authority) -> None:
    """Where the upgrade is not to be, handshakes that were held back are gone on with."""
    room.room.hold(True)
    one = room.connect(raw_hello(authority.context(None)))
    room.turns()
    assert not select.select([one], [], [], 0)[0]
    room.room.hold(False)
    room.turns()
    assert select.select([one], [], [], 0)[0]
