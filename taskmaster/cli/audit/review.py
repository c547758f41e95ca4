"""``taskmasterctl audit``: who did what to which job, when, from where, was it allowed, what came of it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain

from taskmaster.cli import screen
from taskmaster.cli.audit import table
from taskmaster.cli.audit.criteria import Criteria
from taskmaster.cli.audit.entries import Entry, Timeline
from taskmaster.cli.audit.lines import Files
from taskmaster.cli.audit.remote import Told, of_daemon
from taskmaster.cli.client import Client

Source = Files | Told
#: Rows before those that come, where nobody says how many.
FOLLOWED = 10


def source(client: Client, files: Sequence[str], timeout_s: float, *, named: bool) -> Source:
    """The log to be read: these files, else the daemon's. Raises TaskmasterError."""
    return Files(files) if files else of_daemon(client, timeout_s, named=named)


def run(
    log: Source,
    criteria: Criteria,
    *,
    follow: bool,
    last: int | None,
    utc: bool,
    as_json: bool,
) -> int:
    """Show what matches, the ``last`` so many of it, then with ``follow`` what comes. Returns the exit status."""
    if follow and last is None and not criteria.since:
        last = FOLLOWED
    # main.py turns the collector off for short commands; nothing here makes cycles.
    timeline = Timeline(in_order=True)
    hidden = _Count()
    try:
        entries = _matching(log, criteria, timeline, hidden)
        found: Iterator[Entry] = entries if last is None else iter(deque(entries, last))
        if follow:
            # Before anything is waited for, what there is has to be on the screen.
            shown = list(found)
            _show(chain(shown, _coming(log, criteria, timeline)), utc, as_json, known=len(shown))
        else:
            some = _show(found, utc, as_json)
            _tell(timeline, hidden, log, some)
    finally:
        log.close()
    return 0


class _Count:
    """How many commands that only read were left out."""

    reads = 0


def _matching(
    log: Source, criteria: Criteria, timeline: Timeline, hidden: _Count
) -> Iterator[Entry]:
    needed = criteria.needed()
    feed, match, hides = timeline.feed, criteria.match, criteria.hides
    for line in log.lines():
        if needed(line):
            for entry in feed(line):
                if match(entry):
                    if hides(entry):
                        hidden.reads += 1
                    else:
                        yield entry
    for entry in timeline.rest():
        if match(entry):
            yield entry


def _coming(log: Source, criteria: Criteria, timeline: Timeline) -> Iterator[Entry]:
    timeline.go_on_as_they_come()
    needed = criteria.needed()
    while True:
        for line in log.more():
            if needed(line):
                for entry in timeline.feed(line):
                    if criteria.match(entry) and not criteria.hides(entry):
                        yield entry


def _show(entries: Iterator[Entry], utc: bool, as_json: bool, known: int | None = None) -> bool:
    """Show entries, of which ``known`` are there already; whether there were any."""
    live = known is not None
    if as_json:
        return screen.out_lines(
            (screen.json_line(entry.document()) for entry in entries), at_once=live
        )
    rows = table.rows(entries, utc=utc, blank=" " if screen.is_terminal() else "T")
    colour = screen.has_colour(os.environ)
    return screen.out_lines(
        table.lines(table.HEADER, rows, colour=colour, known=known), at_once=live
    )


def _tell(timeline: Timeline, hidden: _Count, log: Source, some: bool) -> None:
    if timeline.damaged:
        screen.complain(
            f"{timeline.damaged} lines of {log.where} are no records, the first of them is the "
            f"{timeline.first_damaged}. that was looked at; 'taskmasterctl audit verify' says more"
        )
    if not screen.is_terminal():
        return
    if not some:
        screen.complain(f"nothing in {log.where} matches ({timeline.records} records looked at)")
    if hidden.reads:
        screen.complain(f"{hidden.reads} commands that only read are not shown; --all shows them")
