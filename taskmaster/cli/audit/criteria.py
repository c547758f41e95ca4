"""Which entries are asked for: by time, person, job, command, outcome, id and event.

Nothing here reads or prints. A pattern is that of the shell (``web-*``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

import msgspec

from taskmaster.cli.audit.entries import Entry, Record

OUTCOMES = (
    *("success", "redundant", "fail", "denied", "invalid", "status", "file", "list"),
    *("history", "audit", "none"),
)


class Criteria(msgspec.Struct, frozen=True):
    """What was asked for; empty: no matter. ``since`` and ``until`` as records have them.

    ``everything``: also commands that only read and were not refused. ``events``: also what is no command.
    """

    since: str = ""
    until: str = ""
    users: Sequence[str] = ()
    jobs: Sequence[str] = ()
    commands: Sequence[str] = ()
    outcomes: Sequence[str] = ()
    ids: Sequence[str] = ()
    event: Sequence[str] = ()
    everything: bool = False
    events: bool = False

    def needed(self) -> Callable[[bytes], bool]:
        """Whether a line can be of an entry that is asked for: a quick look, before it is decoded.

        Names of jobs and commands, ids and user names stand in a line as they are, if they are plain.
        """
        groups = [
            [b'"%s":"%s"' % (key, word.encode()) for word in words]
            for key, words in (
                (b"job", self.jobs),
                (b"command", self.commands),
                (b"id", self.ids),
                (b"event", self.event),
            )
            if words and all(_is_plain(word) for word in words)
        ]
        if not groups:
            return lambda line: True
        marks = groups[0] if len(groups) == 1 else max(groups, key=lambda group: len(group[0]))
        # The start of a daemon ends the commands that wait for an answer; a line without an event is damaged.
        keep = (b'"event":"daemon.started"',)
        if len(marks) == 1:
            (mark,) = marks
            return lambda line: mark in line or keep[0] in line or b'"event":"' not in line
        return lambda line: (
            any(mark in line for mark in marks) or keep[0] in line or b'"event":"' not in line
        )

    def match(self, entry: Entry) -> bool:
        """Whether this entry is asked for, if it is not hidden."""
        first = entry.first
        if self.since and first.timestamp < self.since:
            return False
        if self.until and first.timestamp >= self.until:
            return False
        if self.jobs and not _any(self.jobs, first.job):
            return False
        if not entry.is_command:
            return self._match_event(first)
        if self.event:
            return False
        if self.commands and first.command not in self.commands:
            return False
        if self.ids and first.id not in self.ids:
            return False
        if self.users and not any(_any(self.users, name) for name in people(first)):
            return False
        if self.outcomes:
            return entry.outcome in self.outcomes or (
                entry.outcome == "denied" and "fail" in self.outcomes
            )
        return True

    def hides(self, entry: Entry) -> bool:
        """Whether an entry that matches is left out for having only read."""
        asked_for = self.everything or self.commands or self.ids or self.outcomes
        return not asked_for and entry.is_command and entry.only_read

    def _match_event(self, record: Record) -> bool:
        if self.event:
            return _any(self.event, record.event)
        if self.events:
            return True
        # Of a job's own story they are a part; of a person's, or of an outcome's, they are none.
        return bool(self.jobs) and not (self.users or self.commands or self.outcomes or self.ids)


def people(record: Record) -> list[str]:
    """By which words the client of a command may be asked for."""
    peer = record.peer
    if peer is None:
        return []
    uid = None if peer.uid is None else str(peer.uid)
    return [name for name in (peer.user, peer.certificate, uid) if name]


def _any(patterns: Sequence[str], text: str | None) -> bool:
    return text is not None and any(text == p or fnmatchcase(text, p) for p in patterns)


def _is_plain(word: str) -> bool:
    return word.isascii() and all(c.isalnum() or c in "._-" for c in word) and bool(word)
