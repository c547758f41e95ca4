"""Entries as rows for people, and what is known of one in words. Text in, text out.

Everything in a record may be somebody else's text: whatever a terminal would act upon is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from taskmaster.cli.audit import times
from taskmaster.cli.audit.entries import Entry, Record, decode
from taskmaster.cli.screen import escape

Row = tuple[str, ...]

HEADER: Row = ("WHEN", "WHO", "FROM", "WHAT", "JOB", "OUTCOME", "STATE", "TOOK", "ID", "DETAIL")
_OUTCOME = HEADER.index("OUTCOME")
_COLOURS = {"fail": "31", "denied": "31", "invalid": "31", "none": "33"}
_BOLD = "1"
#: Rows that decide how wide the columns are: a million need not be in memory for that.
_MEASURED = 500
#: Longer cells are cut; ``audit show ID`` and --json have all of it.
_LONGEST = 200
_BLANKS = str.maketrans({" ": "_"})
#: Of a record, what a row shows elsewhere.
_SHOWN = frozenset({"seq", "timestamp", "event", "job", "prev", "hash", "cause", "peer"})


def rows(entries: Iterable[Entry], *, utc: bool, blank: str) -> Iterator[Row]:
    """A row for each entry. ``blank`` stands between day and time."""
    for entry in entries:
        yield command_row(entry, utc, blank) if entry.is_command else event_row(entry, utc, blank)


def command_row(entry: Entry, utc: bool, blank: str) -> Row:
    """Who asked for what, and what came of it."""
    first, done = entry.first, entry.done
    took = done.duration_ms if done is not None else None
    return (
        escape(times.shown(first.timestamp, utc=utc, blank=blank)),
        who(first),
        origin(first),
        word(first.command),
        word(first.job),
        word(entry.outcome),
        change(entry),
        "-" if took is None else duration(took),
        word(first.id),
        cut("; ".join(details(entry))) or "-",
    )


def event_row(entry: Entry, utc: bool, blank: str) -> Row:
    """What happened, and how, as the record has it."""
    record = entry.first
    cause = f"for {record.cause}" if record.cause else ""
    said = fields(decode(entry.line))
    return (
        escape(times.shown(record.timestamp, utc=utc, blank=blank)),
        *("-", "-"),
        word(record.event),
        word(record.job),
        *("-", "-", "-", "-"),
        cut(" ".join(part for part in (said, cause) if part)) or "-",
    )


def who(record: Record) -> str:
    """The person: the certificate's name, the user's, else the number."""
    peer = record.peer
    if peer is None:
        return "-"
    return word(peer.certificate or peer.user or (None if peer.uid is None else f"uid {peer.uid}"))


def origin(record: Record) -> str:
    """Where it came from: transport or address, and the process."""
    peer = record.peer
    if peer is None:
        return "-"
    place = peer.transport if peer.transport == "unix" else peer.address or peer.transport
    return word(place) + ("" if peer.pid is None else f",pid={peer.pid}")


def change(entry: Entry) -> str:
    """The job's state before and after; ``none`` as one of them where there was no such job."""
    done = entry.done
    if done is None or (done.before is None and done.after is None):
        return "-"
    before, after = word(done.before or "none"), word(done.after or "none")
    return before if before == after else f"{before}->{after}"


def details(entry: Entry) -> Iterator[str]:
    """Error, reason, and what was pushed."""
    first, done = entry.first, entry.done
    if entry.lost:
        yield "no answer on record: taskmasterd ended meanwhile"
    elif done is None:
        yield "no answer on record yet"
    elif entry.asked is None:
        yield "asked before the first record here"
    if done is not None and done.error:
        yield escape(done.error)
    if entry.reason:
        yield f"reason: {escape(entry.reason)}"
    sha256 = first.sha256 or (done.sha256 if done is not None else None)
    if sha256:
        yield f"sha256 {escape(sha256[:12])}"


def fields(record: dict[str, Any]) -> str:
    """The keys of a record that stand nowhere else, as ``key=value``."""
    shown = (
        f"{escape(key)}={_value(value)}"
        for key, value in record.items()
        if key not in _SHOWN and value is not None
    )
    peer = record.get("peer")
    by = f"{peer.get('transport')} {peer.get('address')}" if isinstance(peer, dict) else ""
    return " ".join([*shown, *([f"client={escape(by)}"] if by else [])])


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return ",".join(_value(one) for one in value) or "none"
    text = escape(str(value))
    return f'"{text}"' if " " in text or not text else text


def duration(milliseconds: float) -> str:
    """``0.4ms``, ``31ms``, ``2.1s``."""
    if milliseconds < 10:
        return f"{milliseconds:.1f}ms"
    return f"{milliseconds:.0f}ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f}s"


def word(value: Any) -> str:
    """A cell that is one word."""
    text = value if isinstance(value, str) else "" if value is None else str(value)
    if text.isprintable() and " " not in text and len(text) <= _LONGEST:
        return text or "-"
    return cut(escape(text)).translate(_BLANKS)


def cut(text: str) -> str:
    """At most a few lines of a terminal: a client chooses how long the name of a job is."""
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


def lines(
    header: Row, found: Iterable[Row], *, colour: bool, known: int | None = None
) -> Iterator[str]:
    """Rows in columns, two blanks apart, as wide as the first rows need; the header only where there are any.

    ``known``: so many rows are there, for the others one has to wait; the header comes in any case.
    """
    row_of = iter(found)
    measured = list(islice(row_of, _MEASURED if known is None else min(known, _MEASURED)))
    if not measured and known is None:
        return
    widths = [max(len(row[i]) for row in [header, *measured]) for i in range(len(header))]
    yield _line(header, widths, _BOLD if colour else "")
    for some in (measured, row_of):
        for row in some:
            yield _coloured_line(row, widths, colour)


def _coloured_line(row: Row, widths: Sequence[int], colour: bool) -> str:
    text = _line(row, widths, "")
    number = _COLOURS.get(row[_OUTCOME], "") if colour and len(row) > _OUTCOME else ""
    return f"\x1b[{number}m{text}\x1b[0m" if number else text


def _line(row: Row, widths: Sequence[int], number: str) -> str:
    text = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    return f"\x1b[{number}m{text}\x1b[0m" if number else text
