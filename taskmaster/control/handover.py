"""What a daemon hands to the program that it re-executes itself as: descriptors, and what belongs to them.

It goes through a memory file whose number is in one environment variable, so nothing of it is ever on
a disk or visible to others.
"""

from __future__ import annotations

import os
from typing import Final

import msgspec

from taskmaster.control.peers import Peer
from taskmaster.control.removals import Removal

VARIABLE: Final = "TASKMASTER_HANDOVER"
_MAX_BYTES: Final = 1 << 30


class HandedListener(msgspec.Struct, frozen=True):
    """A listening socket; ``kind`` is tcp or unix, ``address`` what it listens on.

    ``file``: device and inode of a Unix socket's file.
    """

    kind: str
    fd: int
    address: str
    file: tuple[int, int] | None = None


class HandedSession(msgspec.Struct, frozen=True):
    """A client's connection, what it had sent and nobody has looked at, what it has not been sent yet.

    ``last``: what is sent to it before it is closed, where it cannot go on: TLS has a state of its own that is
    not handed over. All bytes are as they have to be on the wire.
    """

    fd: int
    peer: Peer
    received: bytes
    unsent: bytes
    last: bytes | None = None


class HandedConnection(msgspec.Struct, frozen=True):
    """A connection of which nothing was read yet, and where it is from."""

    fd: int
    address: tuple[str, int]


class Asked(msgspec.Struct, frozen=True):
    """Who asked for the upgrade and waits for the reply: a session by its place, and the query's own id.

    ``sealed``: the reply of a new program is among the last bytes of that session already.
    """

    session: int
    query_id: str
    exchange: str
    took_s: float
    codes: bool
    sealed: bool = False


class Holdings(msgspec.Struct, frozen=True):
    """What a daemon stands on, by device and inode, so that a program that stands elsewhere can be refused.

    ``lock``: the file in the state directory; ``log``: the audit log's, None where it has none; ``folder``:
    where its job files are, and which folder that was when it started; ``jobs``: those that have a definition.
    """

    uid: int
    lock: tuple[int, int]
    log: tuple[int, int] | None
    folder: str
    folder_id: tuple[int, int] | None
    jobs: tuple[str, ...]


class OldProgram(msgspec.Struct, frozen=True):
    """What it takes to execute the program that hands over again, should the next one not be able to start.

    ``interpreter``: the file that is executed; ``code``: a memory file with its source; ``command``: its command
    line then; ``installed``: that of the program that is installed; ``config``: its configuration, as it was read
    from ``config_file``.
    """

    interpreter: int
    code: int
    command: tuple[str, ...]
    installed: tuple[str, ...]
    config: str
    config_file: str | None


class HandOver(msgspec.Struct, frozen=True):
    """Everything that a re-executed daemon needs of the one before.

    ``reaped``: pid, start time and wait status; ``inherited``: by job, pid and start time of what its dead
    watchdogs had (by "" what may be of several); ``held``: by job, pid, start time and a pidfd of those whose
    status nobody else may be able to tell; ``not_begun``: by job, verb and cause of what was asked of a watchdog
    and not taken up; ``removals``: the jobs that are being removed; ``failed``: why this is not for the program
    that was to come, but for the one before, executed again. What has a default is not there in what an older
    program hands over.
    """

    version: str
    lock: int
    limits: tuple[tuple[int, tuple[int, int]], ...]
    listeners: tuple[HandedListener, ...]
    sessions: tuple[HandedSession, ...]
    reaped: list[tuple[int, int, int]]
    inherited: dict[str, list[tuple[int, int]]]
    held: dict[str, list[tuple[int, int, int]]]
    asked: Asked | None
    waiting: tuple[HandedConnection, ...] = ()
    holdings: Holdings | None = None
    not_begun: dict[str, list[tuple[str, str]]] = {}
    removals: dict[str, Removal] = {}
    old: OldProgram | None = None
    failed: str = ""

    def descriptors(self) -> list[int]:
        """All that has to survive the exec."""
        return [
            self.lock,
            *(one.fd for one in self.listeners),
            *(one.fd for one in self.sessions),
            *(one.fd for one in self.waiting),
            *(pidfd for processes in self.held.values() for _, _, pidfd in processes),
            *(() if self.old is None else (self.old.interpreter, self.old.code)),
        ]


def save(handed: HandOver) -> int:
    """A memory file that holds it, to be inherited. Raises OSError."""
    fd = os.memfd_create("taskmaster-handover", 0)
    try:
        os.set_inheritable(fd, True)
        data = memoryview(msgspec.json.encode(handed))
        while data:
            data = data[os.write(fd, data) :]
        os.lseek(fd, 0, os.SEEK_SET)
    except OSError:
        os.close(fd)
        raise
    return fd


def load(variable: str) -> HandOver | None:
    """What was handed to this program; None where nothing was.

    ``variable``: of the environment, which has the descriptor.
    """
    text = os.environ.pop(variable, "")
    if not text:
        return None
    with open(int(text), "rb") as file:
        return msgspec.json.decode(file.read(_MAX_BYTES), type=HandOver)


def inheritable(handed: HandOver, inherit: bool) -> None:
    """Have its descriptors go on to the next program, or to no other. Raises OSError."""
    for fd in handed.descriptors():
        os.set_inheritable(fd, inherit)
