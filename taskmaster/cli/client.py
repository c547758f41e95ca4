"""One connection to taskmasterd: queries out, replies in, in order, each with a deadline.

Knows frames, not commands; prints nothing. Every byte from the other end may be anyone's: the port
may belong to another program. Never blocks without a deadline, and never stops reading while it
writes: two ends that both only write wait for each other for ever.
"""

from __future__ import annotations

import errno
import json
import math
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, Protocol

from taskmaster.cli import listener
from taskmaster.cli.address import SSH, TLS, Address
from taskmaster.errors import NotPermitted, TaskmasterError, TimedOut, Unavailable


class Connection(Protocol):
    """What the client needs of a socket; also TLS and ssh have it."""

    def fileno(self) -> int: ...

    def send(self, data: bytes | bytearray, /) -> int: ...

    def recv(self, size: int, /) -> bytes: ...

    def close(self) -> None: ...


Query = dict[str, Any]
Reply = dict[str, Any]

END = b";;"
MAX_REPLY_BYTES = 64 * 1024 * 1024
CONNECT_TIMEOUT_S = 10.0  # a lost SYN is sent again after 1, 3 and 7 s
UNIX_PATH_MAX_BYTES = 107  # sun_path holds 108 with its NUL: unix(7)
_SEND_AHEAD_BYTES = 65536
_BLANKS = b" \t\r\n"


def loads(text: bytes) -> Any:
    """Parse JSON as the standard has it; raises ValueError for anything else, however hostile.

    No NaN, and no 1e999: both would leave ``--json`` as something no other parser reads.
    """
    try:
        return json.loads(text.decode("utf-8"), parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no JSON number")
    return value


class Client:
    """Asks one server; connects when first asked, so that what fails before costs no connection."""

    def __init__(
        self,
        address: Address,
        reply_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.address = address
        self.reason = ""  # goes with every query
        self.asked: set[str] = set()  # the commands that may have reached the server
        self.lost: TaskmasterError | None = None  # why nothing more can be asked
        self._reply_timeout_s = reply_timeout_s
        self._clock = clock
        self._socket: Connection | None = None
        self._received = bytearray()
        self._scanned = 0
        self._last_id = 0
        self._asked_again = False

    def close(self) -> None:
        """Drop the connection; may be called twice."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def open(self) -> None:
        """Connect, if not connected yet; raises Unavailable or NotPermitted."""
        if self._socket is None:
            self._socket = connect(self.address)

    def server_pid(self) -> int:
        """Who listens at the other end; 0 where the system does not tell, as over TCP."""
        if not isinstance(self._socket, socket.socket) or not self.address.path:
            return 0
        import struct

        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int(struct.unpack("3i", credentials)[0])

    def closed_within(self, timeout_s: float) -> bool:
        """Wait for the server to end the connection; False where the time is over before.

        Nothing may be asked after this. Raises Unavailable where the connection breaks instead.
        """
        assert self._socket is not None
        end = self._clock() + timeout_s
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        while poll.poll(max(end - self._clock(), 0) * 1000):
            try:
                if not self._socket.recv(262144):
                    return True
            except BlockingIOError:
                continue
            except OSError as error:  # ECONNRESET, ETIMEDOUT, EHOSTUNREACH
                self._lost(f"the connection broke: {error.strerror}")
            if self._clock() >= end:
                return False
        return False

    def ask(self, queries: Sequence[Query], window: int | None = None) -> Iterator[Reply]:
        """Send every query over the one connection and yield the reply to each, in order.

        ``window`` bounds how many are unanswered at a time: for queries with large replies, which
        would else pile up in the server. Raises Unavailable, NotPermitted, and TimedOut where
        ``reply_timeout_s`` passes without the next reply; ``lost`` is what was raised, and nothing
        may be asked after that: late replies would be taken for those of the next queries.
        """
        total, queued, answered = len(queries), 0, 0
        outgoing = bytearray()
        self.open()
        self._asked_again = False
        first_id = self._last_id + 1
        self._last_id += total
        deadline = self._clock() + self._reply_timeout_s
        while answered < total:
            while (
                queued < total
                and len(outgoing) < _SEND_AHEAD_BYTES
                and (window is None or queued - answered < window)
            ):
                query = queries[queued] | {"codes": True, "id": first_id + queued}
                if self.reason:
                    query["reason"] = self.reason
                asked = json.dumps(query, separators=(",", ":")).encode("ascii")
                # Only a string can hold it: a reason, say.
                outgoing += asked.replace(END, b";\\u003b") + END
                self.asked.add(query["command"])
                queued += 1
            frame = self._take_frame()
            if frame is None and self._is_sent_away():
                # An upgrade, mostly: what is not answered was not begun, and is asked again, once.
                self._asked_again = True
                self.close()
                self.open()
                outgoing.clear()
                queued = answered
                continue
            if frame is None:
                self._exchange(outgoing, deadline)
                continue
            reply = self._reply(frame, first_id + answered)
            answered += 1
            yield reply
            # After the yield: a slow reader of our output must not count against the server.
            deadline = self._clock() + self._reply_timeout_s

    def _is_sent_away(self) -> bool:
        """Whether the server has ended the connection in the one way that says what it has not begun."""
        ended = getattr(self._socket, "ended", False)
        return ended and not self._asked_again and not self._received.strip(_BLANKS)

    def _exchange(self, outgoing: bytearray, deadline: float) -> None:
        """Wait until the socket can do something, then let it; takes what was sent off ``outgoing``."""
        sock = self._socket
        assert sock is not None
        poll = select.poll()
        poll.register(sock, select.POLLIN | (select.POLLOUT if outgoing else 0))
        remaining_s = deadline - self._clock()
        events = poll.poll(max(remaining_s, 0) * 1000)
        if not events:
            if remaining_s > 0:
                return
            self._lost(
                f"none within {self._reply_timeout_s:g} s; what was begun there goes on", TimedOut
            )
        if outgoing and events[0][1] & select.POLLOUT:
            try:
                del outgoing[: sock.send(outgoing)]
            except BlockingIOError:
                return
            except OSError:  # EPIPE, ECONNRESET: closed; what it said before is still to be read
                outgoing.clear()
        if events[0][1] & ~select.POLLOUT:
            self._receive(sock)

    def _receive(self, sock: Connection) -> None:
        try:
            chunk = sock.recv(262144)
        except BlockingIOError:
            return
        except TaskmasterError as error:  # of TLS or ssh, which know why, and say with whom
            self.close()
            self.lost = error
            raise
        except OSError as error:  # ECONNRESET, ETIMEDOUT, EHOSTUNREACH
            self._lost(f"the connection broke: {error.strerror}")
        if not chunk and self._is_sent_away():
            return
        if not chunk and self._received.strip(_BLANKS):
            self._lost(f"it closed the connection in the middle of a reply ({self._glimpse()})")
        if not chunk:
            self._lost("it closed the connection without answering")
        self._received += chunk

    def _take_frame(self) -> bytes | None:
        """The next whole frame of what was received, or None; raises Unavailable for another protocol."""
        received = self._received
        start = 0
        while start < len(received) and received[start] in _BLANKS:
            start += 1
        del received[:start]
        self._scanned = max(self._scanned - start, 0)
        if received and not received.startswith(b"{"):
            # Told by the first byte: a banner (ssh, smtp) never ends in ;; and would cost the
            # whole deadline.
            self._lost(f"what answers there is not taskmasterd ({self._glimpse()})")
        end = received.find(END, self._scanned)
        if end > MAX_REPLY_BYTES or (end < 0 and len(received) > MAX_REPLY_BYTES):
            self._lost(f"its reply is over {MAX_REPLY_BYTES} bytes")
        if end < 0:
            # One byte back: the first of the two semicolons may be the last byte we have.
            self._scanned = max(len(received) - 1, 0)
            return None
        frame = bytes(received[:end])
        del received[: end + len(END)]
        self._scanned = 0
        return frame

    def _reply(self, frame: bytes, expected_id: int) -> Reply:
        try:
            reply = loads(frame)
        except ValueError:
            reply = None
        if not isinstance(reply, dict) or not isinstance(reply.get("response"), str):
            shown = self._glimpse(frame)
            self._lost(f"what answers there is not taskmasterd ({shown})")
        if reply.get("id", expected_id) != expected_id:
            self._lost("its answers do not belong to what was asked")
        return reply

    def _glimpse(self, data: bytes | bytearray | None = None) -> str:
        sent = self._received if data is None else data
        text = ascii(bytes(sent[:60]).decode("latin-1"))
        return f"it sent {text}{' …' if len(sent) > 60 else ''}"

    def _lost(self, why: str, kind: type[TaskmasterError] = Unavailable) -> NoReturn:
        self.close()
        self.lost = kind(f"no usable answer from taskmasterd at {self.address}: {why}")
        raise self.lost


def connect(address: Address, timeout_s: float = CONNECT_TIMEOUT_S) -> Connection:
    """A connection that does not block; raises Unavailable, NotPermitted or FileError, naming the address."""
    if address.scheme == SSH:
        from taskmaster.cli.ssh import SshConnection

        return SshConnection(address, timeout_s)
    if address.scheme == TLS:
        from taskmaster.cli.tls import secure

        # Who the server is, its certificate proves.
        return secure(_reach(address, timeout_s), address, timeout_s)
    return connect_plain(address, timeout_s)


def connect_plain(address: Address, timeout_s: float = CONNECT_TIMEOUT_S) -> socket.socket:
    """A connected, non-blocking socket to a server that is to be trusted, as far as the kernel tells.

    Raises Unavailable or NotPermitted, naming the address.
    """
    sock = _reach(address, timeout_s)
    try:
        listener.check(sock, str(address), os.environ, os.geteuid())
    except OSError as error:  # ENOTCONN, ECONNRESET: gone before it was looked at
        sock.close()
        _unreachable(address, error)
    except NotPermitted:
        sock.close()
        raise
    return sock


def _reach(address: Address, timeout_s: float) -> socket.socket:
    """A connected, non-blocking socket, whoever is at the other end."""
    try:
        sock = (
            _connect_unix(address.path, timeout_s)
            if address.path
            else _connect_tcp(address, timeout_s)
        )
    except (OSError, UnicodeError) as error:
        # OSError: ENOENT, ECONNREFUSED, EACCES, ETIMEDOUT, …, and getaddrinfo's own;
        # UnicodeError: a host name that IDNA cannot encode.
        _unreachable(address, error)
    sock.setblocking(False)
    return sock


def _unreachable(address: Address, error: OSError | UnicodeError) -> NoReturn:
    where = f"{address} ({address.origin})" if address.origin else str(address)
    number = error.errno if isinstance(error, OSError) else None
    reason = error.strerror if isinstance(error, OSError) else None
    if number == errno.EAGAIN:  # what an expired SO_SNDTIMEO gives
        reason = "it accepts no connections (its queue is full)"
    said = f"cannot reach taskmasterd at {where}: {reason or error}."
    if address.path and number in (errno.EACCES, errno.EPERM):
        raise NotPermitted(
            f"{said} Its socket is open to the user that runs taskmasterd only: "
            "use that account, or sudo."
        ) from None
    doctor = " taskmasterctl doctor looks." if address.path else ""
    raise Unavailable(
        f"{said} Is taskmasterd running?{doctor} Another server is named with -c or TASKMASTER_SERVER."
    ) from None


def _connect_unix(path: str, timeout_s: float) -> socket.socket:
    import struct

    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    directory = -1
    try:
        # Not settimeout: a non-blocking connect to a full queue is EAGAIN at once, while this
        # option lets the kernel wait for room.
        seconds = struct.pack("@ll", int(timeout_s), int(timeout_s % 1 * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
        name = os.fsencode(path)
        if len(name) > UNIX_PATH_MAX_BYTES:
            folder, name = os.path.split(name)
            directory = os.open(folder or b".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            name = b"/proc/self/fd/%d/%s" % (directory, name)
        if len(name) > UNIX_PATH_MAX_BYTES:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        sock.connect(name)
    except OSError:  # whatever it is, connect() above words it
        sock.close()
        raise
    finally:
        if directory >= 0:
            os.close(directory)
    return sock


def _connect_tcp(address: Address, timeout_s: float) -> socket.socket:
    # Bytes where they do: getaddrinfo encodes a str with IDNA, whose tables cost 4 ms to import.
    host = address.host.encode("ascii") if address.host.isascii() else address.host
    found = socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM)
    last: OSError = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    for family, kind, protocol, _, where in found:
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as error:  # EAFNOSUPPORT: a name with an IPv6 address, a host without IPv6
            last = error
            continue
        try:
            sock.settimeout(timeout_s)
            sock.connect(where)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:  # ECONNREFUSED of ::1 where only 127.0.0.1 listens: try the next
            sock.close()
            last = error
        else:
            return sock
    raise last
