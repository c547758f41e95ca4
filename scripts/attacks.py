"""Attacks of an ordinary user on a daemon of the same host: the bench measures under them, a storm has them in it.

    attacks.py NAME UID PORT SECONDS SHARE JOB UNSETTLED OWN

Runs one attack as that user, on no more than SHARE of one CPU, and prints one JSON object at its end: what it
took. JOB is running, UNSETTLED is waited for in vain, and OWN is the job that an operator may command.

An attack is a row of a table, not a program: so many connections, what each sends, whether it sends that over
and over, whether it reads what comes back, and when it hangs up. Only the standard library: it runs as a user
who may not be able to read anything of this checkout.
"""

from __future__ import annotations

import base64
import errno
import json
import math
import os
import select
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

_WEEK_S: Final = 604_800
_CHUNK: Final = 1 << 18
#: Frames sent in one piece, so that the attacker is not busier than the attacked.
_BURST_BYTES: Final = 60_000
#: A hang-up waits so long for a server that does not read.
_PATIENCE_S: Final = 5.0
_TICK_S: Final = 0.02


class Jobs(NamedTuple):
    """Whom the attacks ask about."""

    running: str
    unsettled: str
    own: str


class Attack(NamedTuple):
    """One attack. ``role`` None: of a user without any rule; ``users``: as so many users at once.

    ``opens_s``: connections a second at most; ``stays_s``: how long each stays.
    """

    role: str | None
    connections: int
    sends: Callable[[Jobs], bytes]
    again: bool = True
    reads: bool = True
    stays_s: float = math.inf
    opens_s: float = 200.0
    users: int = 1


def frame(command: str, job: str | None = None, **fields: Any) -> bytes:
    """The bytes of a query."""
    named = {} if job is None else {"job": base64.b64encode(job.encode()).decode()}
    return (
        json.dumps({"command": command, **named, **fields}, separators=(",", ":")).encode() + b";;"
    )


def _many(one: bytes) -> bytes:
    return one * max(1, _BURST_BYTES // len(one))


def _refused_push(jobs: Jobs) -> bytes:
    return frame(
        "push", jobs.running, data=base64.b64encode(b'{"cmd":"true"}'.ljust(750_000)).decode()
    )


ATTACKS: Final[dict[str, Attack]] = {
    "flood": Attack(None, 128, lambda jobs: _many(frame("status", jobs.running))),
    "flood-history": Attack("viewer", 16, lambda jobs: _many(frame("history", jobs.running))),
    "flood-pull": Attack("viewer", 16, lambda jobs: _many(frame("pull", jobs.running))),
    "flood-audit": Attack("viewer", 16, lambda jobs: _many(frame("audit"))),
    "flood-stop": Attack("operator", 4, lambda jobs: _many(frame("stop", jobs.own))),
    "flood-restart": Attack(
        "operator", 4, lambda jobs: _many(frame("start", jobs.own) + frame("stop", jobs.own))
    ),
    "refused-push": Attack("viewer", 8, _refused_push),
    "long-names": Attack("viewer", 4, lambda jobs: frame("status", "a" * 62_000)),
    "gone-waits": Attack(
        "viewer",
        2,
        lambda jobs: frame("status", jobs.unsettled, wait=_WEEK_S, id="i" * 4_000_000) * 2,
        again=False,
        stays_s=0.05,
    ),
    "waits": Attack(
        "viewer", 16, lambda jobs: frame("status", jobs.unsettled, wait=_WEEK_S) * 1000, again=False
    ),
    "unread": Attack(
        # One character that is not ASCII: in memory, each of the others then takes four bytes.
        None, 32, lambda jobs: frame("status", "\U0001f600" + "a" * 48_600), reads=False
    ),
    "unfinished": Attack(
        "viewer", 16, lambda jobs: b'{"command":"status","job":"'.ljust(4_190_000, b"A"), again=False
    ),
    "descriptors": Attack(None, 128, lambda jobs: b"", again=False, users=3),
    # No faster: each leaves a port in TIME_WAIT for a minute, and honest clients need some too.
    "churn": Attack(None, 25, lambda jobs: b"", again=False, stays_s=0.012, opens_s=500.0),
}  # fmt: skip


class _Pace:
    """Keeps this process at a share of one CPU."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._began = time.monotonic()

    def rest(self) -> None:
        """Sleep until what was used is no more than the share."""
        due = self._began + time.process_time() / self._share
        if (left := due - time.monotonic()) > 0:
            time.sleep(left)


class _Connection:
    """One connection, and how much of what it sends is sent."""

    def __init__(self, port: int, reads: bool) -> None:
        self.socket = socket.socket()
        if not reads:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.setblocking(False)
        code = self.socket.connect_ex(("127.0.0.1", port))
        if code not in (0, errno.EINPROGRESS):
            self.socket.close()
            raise OSError(code, os.strerror(code))
        self.began = time.monotonic()
        self.sent = 0


class Crowd:
    """The connections of one attack. ``took`` says what they came to."""

    def __init__(self, attack: Attack, port: int, data: bytes) -> None:
        self._attack = attack
        self._port = port
        self._data = memoryview(data)
        self._poll = select.epoll()
        self._open: dict[int, _Connection] = {}
        self._may_open_at = 0.0
        self.took = {"connections": 0, "ended": 0, "bytes": 0}

    def run(self, until: float, share: float) -> None:
        """Attack until then."""
        pace = _Pace(share)
        while time.monotonic() < until:
            self.turn()
            pace.rest()

    def turn(self) -> None:
        """Connect, send, read and hang up, each as far as can be done at once."""
        self._fill()
        for fd, events in self._poll.poll(_TICK_S):
            self._serve(fd, events)
        self._hang_up()

    def end(self) -> None:
        """Hang up everywhere."""
        for fd in list(self._open):
            self._close(fd)
        self._poll.close()

    def _fill(self) -> None:
        now = time.monotonic()
        self._may_open_at = max(self._may_open_at, now - _TICK_S)
        while len(self._open) < self._attack.connections and self._may_open_at <= now:
            self._may_open_at += 1 / self._attack.opens_s
            try:
                one = _Connection(self._port, self._attack.reads)
            except OSError as error:
                if error.errno not in (errno.ECONNREFUSED, errno.EADDRNOTAVAIL, errno.EMFILE):
                    raise
                self._may_open_at = now + 0.1  # the daemon is not there, or the host is short
                return
            self.took["connections"] += 1
            self._open[one.socket.fileno()] = one
            self._poll.register(one.socket, self._wanted(one))

    def _wanted(self, one: _Connection) -> int:
        reads = select.EPOLLIN if self._attack.reads else 0
        return reads | (select.EPOLLOUT if one.sent < len(self._data) else 0)

    def _serve(self, fd: int, events: int) -> None:
        one = self._open[fd]
        try:
            if events & select.EPOLLIN and not one.socket.recv(_CHUNK):
                self._close(fd)
                return
            if events & select.EPOLLOUT:
                self._send(one)
            elif events & (select.EPOLLHUP | select.EPOLLERR):
                self._close(fd)
        except BlockingIOError:
            pass
        except (ConnectionError, TimeoutError):
            self._close(fd)

    def _send(self, one: _Connection) -> None:
        count = one.socket.send(self._data[one.sent : one.sent + _CHUNK])
        one.sent += count
        self.took["bytes"] += count
        if one.sent == len(self._data) and self._attack.again:
            one.sent = 0
        self._poll.modify(one.socket, self._wanted(one))

    def _hang_up(self) -> None:
        if self._attack.stays_s == math.inf:
            return
        now = time.monotonic()
        for fd, one in list(self._open.items()):
            all_sent = one.sent == len(self._data)
            if now - one.began >= (self._attack.stays_s if all_sent else _PATIENCE_S):
                self._close(fd)

    def _close(self, fd: int) -> None:
        self.took["ended"] += 1
        self._open.pop(fd).socket.close()


def become(uid: int) -> None:
    """Be this user from now on; it needs no account."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def main(name: str, uid: str, port: str, seconds: str, share: str, *jobs: str) -> None:
    """One attack, from its arguments to its account."""
    attack = ATTACKS[name]
    become(int(uid))
    crowd = Crowd(attack, int(port), attack.sends(Jobs(*jobs)))
    crowd.run(time.monotonic() + float(seconds), float(share))
    crowd.end()
    print(json.dumps({"attack": name, "uid": int(uid), "cpu": time.process_time(), **crowd.took}))


if __name__ == "__main__":
    main(*sys.argv[1:])
