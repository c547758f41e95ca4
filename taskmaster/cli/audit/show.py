"""``taskmasterctl audit show ID``: one command, and everything it caused.

What a watchdog did for a command has the command's id as its ``cause``. What else happened to the job
until the last of that is shown too, and marked: it may have been in the way.
"""

from __future__ import annotations

import os
from typing import Any

from taskmaster.cli import screen
from taskmaster.cli.audit import table, times
from taskmaster.cli.audit.entries import COMPLETED, REQUESTED, Entry, Timeline, decode
from taskmaster.cli.audit.review import Source
from taskmaster.errors import TaskmasterError

#: More than a job of a thousand processes leaves for one command.
_KEPT = 20_000
_HEADER: table.Row = ("WHEN", "WHAT", "JOB", "CAUSE", "DETAIL")


def run(log: Source, wanted: str, *, utc: bool, as_json: bool) -> int:
    """Show the command of this id; returns the exit status. Raises TaskmasterError where there is none."""
    try:
        entry, events = _found(log, wanted)
    finally:
        log.close()
    if entry is None:
        raise TaskmasterError(
            f"no command has the id {wanted} in {log.where}; the column ID of 'taskmasterctl audit' has them"
        )
    caused = [one for one in events if one.first.cause == wanted]
    end = max(
        [one.first.seq for one in caused] + ([] if entry.done is None else [entry.done.seq])
        or [entry.first.seq]
    )
    shown = [
        one
        for one in events
        if one.first.cause == wanted or (one.first.cause is None and one.first.seq < end)
    ]
    if as_json:
        document = entry.document()
        document["caused"] = [decode(one.line) for one in shown if one.first.cause == wanted]
        document["meanwhile"] = [decode(one.line) for one in shown if one.first.cause != wanted]
        screen.out_json(document)
        return 0
    _show(entry, shown, wanted, utc)
    return 0


def _found(log: Source, wanted: str) -> tuple[Entry | None, list[Entry]]:
    """The command, and what happened to its job since: all of its causing, and others near it."""
    timeline = Timeline(in_order=False)
    entry: Entry | None = None
    events: list[Entry] = []
    marks = [b'"%s"' % wanted.encode("ascii", "replace")]
    for line in log.lines():
        if not any(mark in line for mark in marks):
            continue
        if len(marks) == 1 and entry is None:
            # Its request comes before all else; a log that begins later has its completion at least.
            entry = _command(line, wanted)
            if entry is not None:
                job = entry.first.job
                if job:
                    marks.append(b'"job":"%s"' % job.encode())
                continue
        for one in timeline.feed(line):
            if one.is_command:
                if entry is not None and one.first.id == wanted and one.done is not None:
                    entry.done = one.done
            elif len(events) < _KEPT:
                events.append(one)
    return entry, events


def _command(line: bytes, wanted: str) -> Entry | None:
    for entry in Timeline(in_order=True).alone(line):
        if entry.first.id == wanted and entry.first.event in (REQUESTED, COMPLETED):
            return entry
    return None


def _show(entry: Entry, events: list[Entry], wanted: str, utc: bool) -> None:
    first, done = entry.first, entry.done
    blank = " " if screen.is_terminal() else "T"

    def when(text: str) -> str:
        return screen.escape(times.shown(text, utc=utc, blank=blank))

    took = "" if done is None or done.duration_ms is None else table.duration(done.duration_ms)
    facts: list[tuple[str, Any]] = [
        ("id", wanted),
        ("command", first.command),
        ("job", first.job),
        ("who", table.who(first)),
        ("from", table.origin(first)),
        ("asked", when(first.timestamp)),
        ("reason", entry.reason),
        ("answered", "" if done is None else f"{when(done.timestamp)}, after {took}"),
        ("outcome", entry.outcome),
        ("error", "" if done is None else done.error),
        ("state", table.change(entry)),
        ("sha256", first.sha256 or ("" if done is None else done.sha256)),
    ]
    lines = [
        f"{name + ':':10}{screen.escape(str(value))}"
        for name, value in facts
        if value not in (None, "", "-")
    ]
    rows = [
        (
            when(one.first.timestamp),
            table.word(one.first.event),
            table.word(one.first.job),
            "it" if one.first.cause == wanted else "-",
            table.cut(table.fields(decode(one.line))) or "-",
        )
        for one in events
    ]
    screen.out_lines(lines, at_once=False)
    if rows:
        colour = screen.has_colour(os.environ)
        screen.out("")
        screen.out_lines(table.lines(_HEADER, rows, colour=colour), at_once=False)
    if first.job and not any(one.first.cause == wanted for one in events):
        screen.complain(f"nothing is on record as caused by {wanted}")
