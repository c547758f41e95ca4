"""Records to entries: a command is one, from its request to its completion; every other record is one too.

Reads hostile text: a line that is no record becomes nothing but a count. Memory is bounded: a command
whose completion is not found among so many that follow is told without it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import msgspec

from taskmaster.evidence.chain import Number
from taskmaster.wire.queries import READING

REQUESTED = "command.requested"
COMPLETED = "command.completed"
#: Commands that wait for their completion, and what waits behind them to be told in order.
_KEPT = 10_000
_READING = frozenset(command.value for command in READING)
_DENIED = "Permission denied"


class Peer(msgspec.Struct, gc=False):
    """Who asked, as far as the daemon knew."""

    transport: str | None = None
    address: str | None = None
    uid: int | None = None
    user: str | None = None
    pid: int | None = None
    certificate: str | None = None


class Record(msgspec.Struct, gc=False):
    """What is looked at in every record; the rest is decoded when it is shown."""

    event: str
    timestamp: str
    seq: Number
    hash: str = ""
    id: str | None = None
    command: str | None = None
    job: str | None = None
    peer: Peer | None = None
    outcome: str | None = None
    error: str | None = None
    duration_ms: float | None = msgspec.field(default=None, name="durationMs")
    reason: str | None = None
    before: str | None = None
    after: str | None = None
    sha256: str | None = None
    size: int | None = None
    cause: str | None = None


_decode = msgspec.json.Decoder(Record).decode
_decode_any = msgspec.json.Decoder(dict[str, Any]).decode


class Entry:
    """One row: a command (``asked``, ``done``, or the one of them that is there), or another ``record``."""

    __slots__ = ("asked", "done", "line", "lost", "record")

    def __init__(self, record: Record | None = None, line: bytes = b"") -> None:
        self.asked: Record | None = None
        self.done: Record | None = None
        self.record = record
        #: The line of ``record``.
        self.line = line
        #: No completion will come: the daemon was killed over it.
        self.lost = False

    @property
    def first(self) -> Record:
        """The record that tells when it was, and by whom."""
        found = self.asked or self.done or self.record
        assert found is not None
        return found

    @property
    def is_command(self) -> bool:
        """Whether it is a client's command."""
        return self.record is None

    @property
    def reason(self) -> str:
        """Why, as the client said."""
        return (self.asked.reason if self.asked is not None else None) or ""

    @property
    def outcome(self) -> str:
        """The reply's word; ``denied`` for what was not permitted, ``none`` where none is on record."""
        if self.done is None:
            return "none"
        if self.done.outcome == "fail" and (self.done.error or "").startswith(_DENIED):
            return "denied"
        return self.done.outcome or "none"

    @property
    def only_read(self) -> bool:
        """Whether it changed nothing, and was not refused."""
        return self.first.command in _READING and self.outcome not in ("fail", "denied", "invalid")

    def document(self) -> dict[str, Any]:
        """The entry for ``--json``."""
        if self.record is not None:
            return {"kind": "event"} | decode(self.line)
        first, done = self.first, self.done
        peer = None if first.peer is None else msgspec.to_builtins(first.peer)
        return {
            "kind": "command",
            "seq": first.seq,
            "completedSeq": None if done is None else done.seq,
            "timestamp": first.timestamp,
            "id": first.id,
            "command": first.command,
            "job": first.job,
            "peer": peer,
            "reason": self.reason or None,
            "outcome": self.outcome,
            "error": None if done is None else done.error,
            "durationMs": None if done is None else done.duration_ms,
            "before": None if done is None else done.before,
            "after": None if done is None else done.after,
            "sha256": first.sha256 or (done.sha256 if done is not None else None),
            "size": first.size or (done.size if done is not None else None),
        }


def decode(line: bytes) -> dict[str, Any]:
    """All keys of a line that was a record; {} for one that cannot be read as a whole."""
    try:
        found: dict[str, Any] = _decode_any(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    return found


class Timeline:
    """Lines to entries. ``in_order``: told in the order of their beginnings, else as each is complete."""

    def __init__(self, *, in_order: bool) -> None:
        self._in_order = in_order
        self._pending: dict[str, Entry] = {}
        self._row: deque[Entry] = deque()
        #: A record with a hash came: from there on one without is none of the daemon's.
        self._chained = False
        #: Lines that are no records.
        self.damaged = 0
        self.first_damaged = 0
        self.records = 0
        self._lines = 0

    def feed(self, line: bytes) -> Iterator[Entry]:
        """Take one line; the entries that are complete with it."""
        self._lines += 1
        try:
            record = _decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            record = None
        if record is None or (self._chained and not record.hash):
            self.damaged += 1
            self.first_damaged = self.first_damaged or self._lines
            return
        self._chained = record.hash != ""
        self.records += 1
        if record.event == REQUESTED:
            entry = Entry()
            entry.asked = record
            if record.id:
                self._pending[record.id] = entry
                if len(self._pending) > _KEPT:
                    yield from self._give_up(next(iter(self._pending)))
            if self._in_order:
                self._row.append(entry)
        elif record.event == COMPLETED:
            found = self._pending.pop(record.id or "", None)
            if found is None:
                found = Entry()
                if self._in_order:
                    self._row.append(found)
            found.done = record
            if not self._in_order:
                yield found
        else:
            entry = Entry(record, line)
            if record.event == "daemon.started":
                for name in list(self._pending):
                    yield from self._give_up(name)
            if not self._in_order:
                yield entry
                return
            self._row.append(entry)
        if self._in_order:
            yield from self._told()

    def _give_up(self, name: str) -> Iterator[Entry]:
        """No completion will come, or too late."""
        entry = self._pending.pop(name)
        entry.lost = True
        if not self._in_order:
            yield entry

    def _told(self) -> Iterator[Entry]:
        row = self._row
        while row and (row[0].record is not None or row[0].done is not None or row[0].lost):
            yield row.popleft()
        while len(row) > _KEPT:
            yield row.popleft()

    def rest(self) -> Iterator[Entry]:
        """At the end: those that are not complete."""
        if self._in_order:
            yield from self._row
            self._row.clear()

    def alone(self, line: bytes) -> Iterator[Entry]:
        """The entry of one line, complete or not."""
        yield from self.feed(line)
        yield from self.rest()

    def go_on_as_they_come(self) -> None:
        """What follows is told as it is complete."""
        self._in_order = False
