"""Who listens at the other end: asked of the kernel before anything is said to a taskmasterd of this host.

While no daemon runs, any user of the host can listen at its port, and would be handed the secrets in what root
pushes. So a server has to be root's or this very user's (or the one that TASKMASTER_DAEMON_USER names), as
SO_PEERCRED tells of a Unix socket, and the owner of the server's socket of TCP. A server of another host is
not asked about: who it is, TLS or ssh tells.

It never sends or reads a byte, and where the kernel does not tell, it is a refusal.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from typing import Final

from taskmaster.errors import NotPermitted

#: Another user whose daemon this user means to talk to: a name or a number, or ANYBODY.
VARIABLE: Final = "TASKMASTER_DAEMON_USER"
ANYBODY: Final = "*"
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid


def check(connection: socket.socket, where: str, environ: Mapping[str, str], euid: int) -> None:
    """Raise NotPermitted unless the server at the other end is to be trusted; ``where`` is its address."""
    meant = environ.get(VARIABLE, "")
    if meant == ANYBODY:
        return
    if connection.family == socket.AF_UNIX:
        data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        uid: int | None = _CREDENTIALS.unpack(data)[1]
    else:
        asked = _of_tcp(connection)
        if asked is _ELSEWHERE:
            return
        assert asked is None or isinstance(asked, int)
        uid = asked
    if uid not in (0, euid) and not (uid is not None and _is(uid, meant)):
        raise NotPermitted(_refusal(uid, where))


class _Elsewhere:
    """The type of ``_ELSEWHERE``."""


#: The server is on another host, or has closed the connection: there is nobody here to be asked about.
_ELSEWHERE: Final = _Elsewhere()


def _of_tcp(connection: socket.socket) -> int | _Elsewhere | None:
    from taskmaster import sockdiag

    own, peer = connection.getsockname(), connection.getpeername()
    if not sockdiag.is_loopback(peer[0]) and sockdiag.normal(peer[0]) != sockdiag.normal(own[0]):
        return _ELSEWHERE
    ends = (peer[0], peer[1], own[0], own[1])
    kernel = sockdiag.SocketDiagnosis()
    try:
        uid = kernel.server(ends)
        if uid is None:
            kernel.close()  # some sandboxes have a netlink that knows of nothing; /proc/net is asked then
            uid = kernel.server(ends)
    finally:
        kernel.close()
    # In this order: as long as our end stands, the other could not have become somebody else's.
    if uid == sockdiag.NOBODY or not sockdiag.stands(connection):
        return _ELSEWHERE
    return uid


def _is(uid: int, meant: str) -> bool:
    if meant.isascii() and meant.isdigit():
        return uid == int(meant)
    return bool(meant) and _name(uid) == meant


def _name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _refusal(uid: int | None, where: str) -> str:
    if uid is None:
        return (
            f"refused to talk to {where}: the kernel does not tell whose that server is (it is in another "
            f"network namespace, say). Nothing was sent. Use the Unix socket, or set {VARIABLE}={ANYBODY} "
            "if whoever answers there may have what you send"
        )
    return (
        f"refused to talk to {where}: user {_name(uid)} (uid {uid}) answers there, who is neither root nor "
        f"this user. Nothing was sent. If that user's taskmasterd is meant, set {VARIABLE}={_name(uid)}"
    )
