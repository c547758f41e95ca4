"""Who is at the other end of a connection, as far as the kernel tells.

Of a Unix socket and of TCP within this host it knows, and what it does not know is let in by nobody.
"""

from __future__ import annotations

import functools
import pwd
import socket
import struct
from collections.abc import Callable
from typing import Final

import msgspec

from taskmaster import sockdiag
from taskmaster.control.holders import Holders
from taskmaster.errors import NotPermitted
from taskmaster.sockdiag import SocketDiagnosis
from taskmaster.wire.queries import cut

_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid


class Peer(msgspec.Struct, frozen=True, omit_defaults=True):
    """One client, as the audit log has it; ``address`` of TCP is HOST:PORT, of a Unix socket its path.

    ``certificate``: the name in the certificate that it proved to have the key of.
    """

    transport: str
    address: str
    uid: int | None = None
    user: str | None = None
    pid: int | None = None
    certificate: str | None = None

    def who(self) -> str:
        """For the history of job files, and for people."""
        if self.certificate is not None:
            return f"{cut(self.certificate)} ({self.transport} {self.address})"
        if self.uid is None:
            return f"{self.transport} {self.address}"
        pid = "" if self.pid is None else f"pid {self.pid}, "
        return f"{self.user or self.uid} ({pid}{self.transport})"

    def audit(self) -> dict[str, object]:
        """For a record of the audit log."""
        document: dict[str, object] = msgspec.to_builtins(self)
        if self.certificate is not None:
            document["certificate"] = cut(self.certificate)
        return document


def of_unix(connection: socket.socket, path: str) -> Peer:
    """The peer of a Unix socket connection, by SO_PEERCRED."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(data)
    return Peer("unix", path, uid, user_name(uid), pid)


class Unidentified(NotPermitted):
    """A connection from this host whose owner the kernel does not tell; ``peer`` is what is known of it."""

    def __init__(self, peer: Peer) -> None:
        super().__init__(
            f"Permission denied: it cannot be told whose connection {peer.address} is; its process has "
            "closed it, or is in another network namespace. The Unix socket tells."
        )
        self.peer = peer


class Kernel:
    """Asks the kernel who the peers of TCP connections are. ``clock``: monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._sockets = SocketDiagnosis()
        self._holders = Holders(clock)

    def try_out(self, listener: socket.socket) -> None:
        """Find out with a socket that listens how the kernel can be asked."""
        self._sockets.try_out(listener)

    def of_tcp(self, connection: socket.socket, address: tuple[str, int]) -> Peer:
        """The peer of a TCP connection; one of another host is an address and nothing else.

        Raises Unidentified, and OSError where the connection is gone.
        """
        # Small replies are not to wait for the acknowledgement of others.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        host, port = sockdiag.normal(address[0]), address[1]
        peer = of_address("tcp", address)
        if not sockdiag.is_loopback(host):
            return peer
        own = connection.getsockname()
        owner = self._sockets.owner((host, port, own[0], own[1]))
        # In this order: as long as our end stands, the other could not have become another's.
        if owner is None or not sockdiag.stands(connection):
            raise Unidentified(peer)
        pid = self._holders.find(owner.uid, owner.inode)
        return Peer("tcp", peer.address, owner.uid, user_name(owner.uid), pid)

    def has_left(self, connection: socket.socket) -> bool:
        """Whether a peer that sends no more is not there to read either, as far as the kernel tells: its process
        has closed the connection, and not just its sending side."""
        try:
            if connection.family == socket.AF_UNIX:
                connection.send(
                    b""
                )  # nothing is sent; where nobody can read, it is an error all the same
                return False
            there, own = connection.getpeername(), connection.getsockname()
        except OSError:
            return True
        host = sockdiag.normal(there[0])
        if not sockdiag.is_loopback(host):
            return False
        return self._sockets.owner((host, there[1], own[0], own[1])) is None


def of_address(transport: str, address: tuple[str, int], certificate: str | None = None) -> Peer:
    """A peer that is an address; ``certificate``: the name in a certificate that was accepted."""
    host, port = sockdiag.normal(address[0]), address[1]
    return Peer(
        transport, f"[{host}]:{port}" if ":" in host else f"{host}:{port}", certificate=certificate
    )


@functools.lru_cache(maxsize=256)
def user_name(uid: int) -> str | None:
    """The user's name; None where the number has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None
