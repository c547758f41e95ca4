"""Who is at the other end of a connection, as far as the kernel tells."""

from __future__ import annotations

import functools
import pwd
import socket
import struct
from typing import Final

import msgspec

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
        if self.uid is None:
            return f"{self.transport} {self.address}"
        return f"{self.user or self.uid} (pid {self.pid}, {self.transport})"

    def audit(self) -> dict[str, object]:
        """For a record of the audit log."""
        document: dict[str, object] = msgspec.to_builtins(self)
        return document


def of_unix(connection: socket.socket, path: str) -> Peer:
    """The peer of a Unix socket connection, by SO_PEERCRED."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(data)
    return Peer("unix", path, uid, user_name(uid), pid)


def of_tcp_connection(connection: socket.socket, address: tuple[str, int]) -> Peer:
    """The peer of a TCP connection; small replies are not to wait for the acknowledgement of others."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return of_tcp(address)


def of_tcp(address: tuple[str, int]) -> Peer:
    """Who has this address."""
    host, port = address[0], address[1]
    return Peer("tcp", f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


@functools.lru_cache(maxsize=256)
def user_name(uid: int) -> str | None:
    """The user's name; None where the number has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None
