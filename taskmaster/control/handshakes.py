"""Where connections wait that are no clients yet: until it is known whether they speak TLS, and who they are.

A connection of another host has to speak TLS; one of this host may, and its first byte says whether it does.
So many may wait, and so long; the oldest goes first. None of them counts as a client, and those that are
clients do not notice them: handshakes, which are the only thing that an unknown connection makes the daemon
compute, get a millisecond or so of a turn, and half of all time at most.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from taskmaster import sockdiag
from taskmaster.control.peers import Peer, of_address
from taskmaster.control.tls import HandshakeFailed, TlsChannel
from taskmaster.eventloop import EventLoop, Timer, Watch
from taskmaster.stream import Stream, dismiss
from taskmaster.wire import replies

#: Connections that may wait. One of them, in the middle of its handshake, costs 46 KB (OpenSSL 3.0).
MAX_WAITING: Final = 128
#: What those of one network may have of that: one part of so many.
_NETWORKS: Final = 4
#: How long one may take from its beginning to the end of the handshake, seconds.
DEADLINE_S: Final = 10.0
#: How long handshakes may compute in one turn of the loop, seconds; one takes 0.8 ms, in two steps.
_TURN_S: Final = 0.001
_TLS_HELLO: Final = b"\x16"

NOT_TLS: Final = "Other hosts have to speak TLS here: taskmasterctl -c tls://HOST, with --tls-cert."

Address = tuple[str, int]


class Welcome(Protocol):
    """What becomes of a connection whose handshake is done: a client, over its channel."""

    def __call__(self, fd: int, peer: Peer, channel: TlsChannel) -> None: ...


class _Arrival:
    """One connection that waits."""

    def __init__(self, fd: int, address: Address, local: bool) -> None:
        self.fd = fd
        self.address = address
        self.local = local
        self.network = network_of(address[0])
        self.watch: Watch | None = None
        self.timer: Timer | None = None
        self.channel: TlsChannel | None = None
        #: Its last words are being sent.
        self.leaving: Stream | None = None


class Handshakes:
    """``plain`` gets connections of this host that do not speak TLS, ``welcome`` those that do and have a
    name, ``rejected`` is told of the others: peer and reason."""

    def __init__(
        self,
        loop: EventLoop,
        context: ssl.SSLContext,
        *,
        plain: Callable[[socket.socket, Address], None],
        welcome: Welcome,
        rejected: Callable[[Peer, str], None],
        at_most: int = MAX_WAITING,
    ) -> None:
        #: For handshakes that begin from now on.
        self.context = context
        self._loop = loop
        self._plain = plain
        self._welcome = welcome
        self._rejected = rejected
        self._at_most = min(at_most, MAX_WAITING)
        self._waiting: dict[_Arrival, None] = {}
        #: The same by network, the longest first.
        self._of_network: dict[str, dict[_Arrival, None]] = {}
        self._ready: deque[_Arrival] = deque()
        self._stepping: Timer | None = None
        self._held = False
        self._held_back: list[_Arrival] = []

    def receive(self, connection: socket.socket, address: Address, *, local: bool) -> None:
        """A new connection; ``local``: of this host."""
        connection.setblocking(False)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            connection.close()  # EINVAL: gone before it was looked at
            return
        arrival = _Arrival(connection.detach(), address, local)
        self._make_room(arrival.network)
        self._waiting[arrival] = None
        self._of_network.setdefault(arrival.network, {})[arrival] = None
        arrival.timer = self._loop.call_in(
            DEADLINE_S,
            lambda: self._out_of_time(arrival, f"no handshake within {DEADLINE_S:g} s"),
        )
        arrival.watch = self._loop.watch(arrival.fd, lambda: self._readable(arrival))

    def _make_room(self, network: str) -> None:
        """The oldest goes: of its own network where that has its share, else of the one that has most."""
        share = max(self._at_most // _NETWORKS, 1)
        while len(self._of_network.get(network, ())) >= share:
            oldest = next(iter(self._of_network[network]))
            self._out_of_time(oldest, f"more than {share} handshakes of {network} wait")
        while len(self._waiting) >= self._at_most:
            most = max(self._of_network, key=lambda one: len(self._of_network[one]))
            oldest = next(iter(self._of_network[most]))
            self._out_of_time(oldest, f"more than {self._at_most} handshakes wait")

    def _forget(self, arrival: _Arrival) -> None:
        if arrival in self._waiting:
            del self._waiting[arrival]
            kin = self._of_network[arrival.network]
            del kin[arrival]
            if not kin:
                del self._of_network[arrival.network]

    # what they send -------------------------------------------------------------------------------

    def _readable(self, arrival: _Arrival) -> None:
        if arrival.channel is None and not self._is_tls(arrival):
            return
        # It has its turn when there is time for it; until then nothing of it is looked at.
        self._unwatch(arrival)
        self._ready.append(arrival)
        self._step_soon()

    def _step_soon(self, delay_s: float = 0.0) -> None:
        if self._stepping is None and self._ready:
            self._stepping = self._loop.call_in(delay_s, self._step_some)

    def _is_tls(self, arrival: _Arrival) -> bool:
        """Look at its first byte; what is no TLS is dealt with here."""
        connection = socket.socket(fileno=arrival.fd)
        try:
            first = connection.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            first = b""
        finally:
            connection.detach()
        if first == _TLS_HELLO:
            return True
        if not first:
            self._leave(arrival)
            os.close(arrival.fd)  # it came and went, as port scanners and health checks do
        elif arrival.local:
            self._is_plain(arrival)
        else:
            self._reject(arrival, "this is no TLS", replies.invalid(NOT_TLS).frame())
        return False

    def _is_plain(self, arrival: _Arrival) -> None:
        self._leave(arrival)
        self._plain(socket.socket(fileno=arrival.fd), arrival.address)

    def _step_some(self) -> None:
        """Let as many compute as there is time for, then leave as much time to others."""
        began = self._loop.now()
        spent_s = 0.0
        while self._ready and spent_s < _TURN_S:
            self._step(self._ready.popleft())
            spent_s = self._loop.now() - began
        self._stepping = None
        self._step_soon(spent_s)

    def _step(self, arrival: _Arrival) -> None:
        if arrival not in self._waiting:
            return
        channel = arrival.channel
        if channel is None:
            if self._held:
                self._held_back.append(arrival)
                return
            channel = arrival.channel = TlsChannel(self.context)
        try:
            done = channel.shake(arrival.fd)
        except HandshakeFailed as failed:
            # The alert, if it came to one, tells the client.
            self._reject(arrival, str(failed), channel.seal(b"", last=False))
            return
        if not done:
            self._watch(arrival, channel)
            return
        try:
            name = channel.name()
        except HandshakeFailed as failed:
            told = replies.fail(f"Permission denied: {failed}.", failed.code).frame(with_code=True)
            self._reject(arrival, str(failed), channel.seal(told, last=True))
            return
        self._leave(arrival)
        _acknowledge(arrival.fd)
        self._welcome(arrival.fd, of_address("tls", arrival.address, name), channel)

    def _watch(self, arrival: _Arrival, channel: TlsChannel) -> None:
        def writable() -> None:
            try:
                channel.write(arrival.fd, b"")
            except OSError as error:
                self._reject(arrival, f"connection lost: {error.strerror}", b"")
                return
            if not channel.unsent and arrival.watch is not None:
                self._loop.change(arrival.watch, readable, None)

        def readable() -> None:
            self._readable(arrival)

        arrival.watch = self._loop.watch(arrival.fd, readable, writable if channel.unsent else None)

    # the ways out ---------------------------------------------------------------------------------

    def _unwatch(self, arrival: _Arrival) -> None:
        if arrival.watch is not None:
            self._loop.unwatch(arrival.watch)
            arrival.watch = None

    def _leave(self, arrival: _Arrival) -> None:
        """It waits no more; its descriptor is somebody else's."""
        self._unwatch(arrival)
        if arrival.timer is not None:
            arrival.timer.cancel()
        self._forget(arrival)

    def _out_of_time(self, arrival: _Arrival, reason: str) -> None:
        if arrival.leaving is not None:
            arrival.leaving.close("no time is left")
        elif arrival.local and arrival.channel is None:
            self._is_plain(arrival)  # a client of this host that has not said anything yet
        else:
            self._record(arrival, reason)
            self._leave(arrival)
            os.close(arrival.fd)

    def _reject(self, arrival: _Arrival, reason: str, last: bytes) -> None:
        """Send ``last`` and close. Until it is closed it waits with the others."""
        self._record(arrival, reason)
        self._unwatch(arrival)
        if arrival.timer is not None:
            arrival.timer.cancel()

        def closed(reason: str) -> None:
            self._forget(arrival)

        arrival.leaving = dismiss(self._loop, arrival.fd, last, closed)

    def _record(self, arrival: _Arrival, reason: str) -> None:
        transport = "tcp" if arrival.channel is None else "tls"
        self._rejected(of_address(transport, arrival.address), reason)

    # an upgrade -----------------------------------------------------------------------------------

    def hold(self, held: bool) -> None:
        """Begin no handshake, or again: what nobody has begun, the next program can."""
        self._held = held
        if not held:
            self._ready.extend(self._held_back)
            self._held_back.clear()
            self._step_soon()

    @property
    def under_way(self) -> bool:
        """Whether there are handshakes that only this program can go on with."""
        return any(one.channel is not None and one.leaving is None for one in self._waiting)

    def give_up(self) -> None:
        """Wait for those no longer."""
        for arrival in list(self._waiting):
            if arrival.channel is not None and arrival.leaving is None:
                self._out_of_time(arrival, "the daemon is upgraded")

    def hand_over(self) -> list[tuple[int, Address]]:
        """Let go of all; those of whose bytes nothing was read can go on elsewhere."""
        handed = []
        for arrival in list(self._waiting):
            if arrival.leaving is not None:
                arrival.leaving.close("the daemon is upgraded")
                continue
            self._leave(arrival)
            if arrival.channel is None:
                handed.append((arrival.fd, arrival.address))
            else:
                os.close(arrival.fd)
        self._ready.clear()
        return handed

    def close(self) -> None:
        """Close all that wait."""
        for fd, _ in self.hand_over():
            os.close(fd)


def network_of(host: str) -> str:
    """What one host may have addresses in: of IPv6 the first 64 bits."""
    plain = sockdiag.normal(host)
    if ":" not in plain:
        return plain
    try:
        packed = socket.inet_pton(socket.AF_INET6, plain.partition("%")[0])
    except OSError:
        return plain
    return f"{socket.inet_ntop(socket.AF_INET6, packed[:8] + bytes(8))}/64"


def _acknowledge(fd: int) -> None:
    """Nothing is to be said at the end of a handshake, but the kernel of a client that has not switched Nagle's
    algorithm off keeps the first query back until it hears something: 40 ms, were the kernel to decide."""
    connection = socket.socket(fileno=fd)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    except OSError:
        pass  # it has gone, as will be seen
    finally:
        connection.detach()
