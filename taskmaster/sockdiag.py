"""Whose the other end of a loopback TCP connection is: the kernel's own answer, one question a connection.

The daemon asks who its client is (``owner``), and taskmasterctl who its server is (``server``).

NETLINK_SOCK_DIAG is asked for the client's socket by its two addresses, which costs the same however many
sockets there are, and is answered before the question's ``send`` returns. Where there is no such netlink
(some containers) ``/proc/net/tcp`` says the same, slowly.

Never an answer that is not certain. A socket that its process has closed lives on in the kernel for a while
and counts as root's there: it has no inode, and is nobody's here. And an owner holds only while the
connection it was asked for still stands: whoever asks looks at its own end afterwards (``stands``), since
both addresses can have been taken by another connection as soon as the first is gone.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Final, NamedTuple

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST: Final = 1

_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, pid
_QUESTION: Final = struct.Struct("=BBBBI")  # struct inet_diag_req_v2 without its id; states
_PORTS: Final = struct.Struct("!HH")  # struct inet_diag_sockid: source and destination, then
_ADDRESSES: Final = struct.Struct("!16s16s")  # their addresses, then
_REST: Final = struct.Struct("=III")  # interface, and a cookie of two words
_NO_COOKIE: Final = 0xFFFFFFFF
_ANSWER: Final = struct.Struct(
    "=BBBB48sIIIII"
)  # struct inet_diag_msg: family, state, …, uid, inode

#: States (net/tcp_states.h) in which the client's process may still hold its socket: ESTABLISHED, FIN_WAIT1
#: and FIN_WAIT2 (it sends no more), CLOSE_WAIT.
_HELD: Final = frozenset({1, 4, 5, 8})
#: In which ours still keeps both addresses to itself: ESTABLISHED, CLOSE_WAIT.
_STANDS: Final = frozenset({1, 8})
#: Of one table of ``/proc/net``: 28 000 sockets. What is not found within is not known.
_TABLE_BYTES: Final = 4 * 1024 * 1024

#: In which a socket sends no more, and has nobody who reads if it has no inode: FIN_WAIT1, FIN_WAIT2.
_FINISHED: Final = frozenset({4, 5})
#: In which one may be that nobody has accepted yet: ESTABLISHED, SYN_RECV and its newer form.
_YOUNG: Final = frozenset({1, 3, 12})
_LISTEN: Final = 10
#: Of a connection that its process has closed: nobody reads what is sent to it.
NOBODY: Final = -1

Ends = tuple[str, int, str, int]


class _Found(NamedTuple):
    """A socket as the kernel has it."""

    state: int
    uid: int
    inode: int


class Owner(NamedTuple):
    """The user who made a socket, and the number by which ``/proc/PID/fd`` shows it."""

    uid: int
    inode: int


def normal(host: str) -> str:
    """An address as one text whatever form it came in: an IPv4 one within IPv6 is IPv4."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def is_loopback(host: str) -> bool:
    """Whether an address is one of this host's own, 127.0.0.0/8 or ::1, in any form."""
    return ipaddress.ip_address(normal(host)).is_loopback


def stands(connection: socket.socket) -> bool:
    """Whether our end of a connection is connected still; while it is, nobody else can have its addresses."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)
    return info[0] in _STANDS


class SocketDiagnosis:
    """Asks the kernel. One netlink socket is held for all questions."""

    def __init__(self) -> None:
        self._netlink: socket.socket | None = None
        self._sequence = 0
        try:
            self._netlink = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG
            )
            self._netlink.bind((0, 0))
        except OSError:
            self.close()  # EPROTONOSUPPORT, EPERM, EAFNOSUPPORT: /proc/net it is

    def close(self) -> None:
        """Give back the netlink socket; ``/proc/net`` is read from now on."""
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None

    @property
    def by_netlink(self) -> bool:
        """Whether the kernel is asked directly."""
        return self._netlink is not None

    def try_out(self, listener: socket.socket) -> None:
        """See whether netlink tells of a socket that is there, one that listens; else do without it."""
        host, port = listener.getsockname()[:2]
        any_host = "::" if ":" in host else "0.0.0.0"
        if self._netlink is not None and self._asked((host, port, any_host, 0)) is None:
            self.close()

    def owner(self, ends: Ends) -> Owner | None:
        """Who holds the socket that is bound to the first host and port and connected to the second.

        None where nobody does, or the kernel does not say.
        """
        found = self._connected((normal(ends[0]), ends[1], normal(ends[2]), ends[3]))
        if found is None or found.state not in _HELD or found.inode == 0:
            return None
        return Owner(found.uid, found.inode)

    def server(self, ends: Ends) -> int | None:
        """Whose the server is that is bound to the first host and port and connected to the second: a uid.

        That of who has accepted the connection, else of who listens; NOBODY where it is closed at that end, and
        None where the kernel does not say. It holds as long as our own end stands. A connection that nobody has
        accepted is reset with its listener, so who listens is who will get it, if it is not accepted meanwhile:
        that is looked at once more afterwards.
        """
        ends = (normal(ends[0]), ends[1], normal(ends[2]), ends[3])
        listener: _Found | None = None
        for _ in range(2):
            found = self._connected(ends)
            if found is None:
                return None
            if found.inode != 0:
                return found.uid
            if found.state in _FINISHED:
                return NOBODY
            if found.state not in _YOUNG:
                return None
            listener = listener or self._listening(ends[0], ends[1])
        return None if listener is None else listener.uid

    def _connected(self, ends: Ends) -> _Found | None:
        if self._netlink is None:
            return _in_tables(ends)
        answer = self._asked(ends)
        if answer is None or not _is_of(answer[0], answer[4], ends):
            return None
        return _Found(answer[1], answer[8], answer[9])

    def _listening(self, host: str, port: int) -> _Found | None:
        if self._netlink is None:
            return _listening_in_tables(host, port)
        answer = self._asked((host, port, "::" if ":" in host else "0.0.0.0", 0))
        if answer is None or answer[1] != _LISTEN or answer[9] == 0:
            return None
        return _Found(answer[1], answer[8], answer[9])

    def _asked(
        self, ends: Ends
    ) -> tuple[int, int, int, int, bytes, int, int, int, int, int] | None:
        netlink = self._netlink
        assert netlink is not None
        self._sequence = self._sequence + 1 & 0xFFFFFFFF
        family = socket.AF_INET6 if ":" in ends[0] else socket.AF_INET
        question = b"".join(
            (
                _QUESTION.pack(family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF),
                _PORTS.pack(ends[1], ends[3]),
                _ADDRESSES.pack(_packed(ends[0]), _packed(ends[2])),
                _REST.pack(0, _NO_COOKIE, _NO_COOKIE),
            )
        )
        header = _HEADER.pack(
            _HEADER.size + len(question), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, self._sequence, 0
        )
        try:
            netlink.sendto(header + question, socket.MSG_DONTWAIT, (0, 0))
            while True:
                data, sender = netlink.recvfrom(4096, socket.MSG_DONTWAIT)
                if sender[0] != 0 or len(data) < _HEADER.size:
                    continue  # from a process and not from the kernel
                _, kind, _, sequence, _ = _HEADER.unpack_from(data)
                if sequence == self._sequence:
                    break
        except OSError:
            return None  # EAGAIN: no answer; ENOBUFS
        if kind != _SOCK_DIAG_BY_FAMILY or len(data) < _HEADER.size + _ANSWER.size:
            return None  # NLMSG_ERROR, ENOENT: there is no such socket
        return _ANSWER.unpack_from(data, _HEADER.size)


def _packed(host: str) -> bytes:
    return ipaddress.ip_address(host).packed.ljust(16, b"\0")


def _is_of(family: int, sockid: bytes, ends: Ends) -> bool:
    """Whether an answer is about the socket asked for: the kernel offers one that listens instead."""
    ports = _PORTS.unpack_from(sockid)
    size = 16 if family == socket.AF_INET6 else 4
    found = [
        str(ipaddress.ip_address(sockid[at : at + size])) for at in (_PORTS.size, _PORTS.size + 16)
    ]
    return ports == (ends[1], ends[3]) and [normal(one) for one in found] == [ends[0], ends[2]]


def _in_tables(ends: Ends) -> _Found | None:
    """The same from ``/proc/net/tcp``, and ``tcp6``, where an IPv4 connection may be as well."""
    wanted = {_hexadecimal(ends, mapped) for mapped in (False, True)}
    return next((found for own, other, found in _table() if (own, other) in wanted), None)


def _listening_in_tables(host: str, port: int) -> _Found | None:
    wanted = {
        _hexadecimal((one, port, any_host, 0), mapped)[0]
        for one, any_host in ((host, host), ("0.0.0.0", "0.0.0.0"), ("::", "::"))
        for mapped in (False, True)
    }
    return next(
        (one for own, _, one in _table() if own in wanted and one.state == _LISTEN and one.inode),
        None,
    )


def _table() -> Iterator[tuple[bytes, bytes, _Found]]:
    """All TCP sockets: own end, other end, and what it is."""
    for table in ("tcp", "tcp6"):
        for line in _lines(f"/proc/net/{table}"):
            fields = line.split()
            if len(fields) > 9 and fields[1] != b"local_address":
                found = _Found(int(fields[3], 16), int(fields[7]), int(fields[9]))
                yield fields[1], fields[2], found


def _lines(path: str) -> Iterator[bytes]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return  # no IPv6, no /proc
    try:
        left, rest = _TABLE_BYTES, b""
        while left > 0 and (piece := os.read(fd, 65536)):
            left -= len(piece)
            *lines, rest = (rest + piece).split(b"\n")
            yield from lines
    finally:
        os.close(fd)


def _hexadecimal(ends: Ends, mapped: bool) -> tuple[bytes, bytes]:
    """Both ends as the tables have them: words of the host's byte order in hexadecimal."""
    texts = []
    for host, port in ((ends[0], ends[1]), (ends[2], ends[3])):
        packed = ipaddress.ip_address(host).packed
        if mapped and len(packed) == 4:
            packed = b"\0" * 10 + b"\xff\xff" + packed
        words = [packed[at : at + 4] for at in range(0, len(packed), 4)]
        text = "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)
        texts.append(f"{text}:{port:04X}".encode("ascii"))
    return texts[0], texts[1]
