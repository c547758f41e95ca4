"""``history``, ``diff`` and ``rollback``: the versions of a job's file, as the daemon keeps them.

Knows nothing of click; every function returns the exit status or raises TaskmasterError.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterator
from typing import Any

from taskmaster.cli import outcomes, screen
from taskmaster.cli.audit import table, times
from taskmaster.cli.client import Client
from taskmaster.cli.outcomes import Outcome
from taskmaster.errors import TaskmasterError, Unavailable

Version = dict[str, Any]

_HEADER: table.Row = ("VERSION", "NOW", "WHEN", "WHO", "ACTION", "SHA256", "SIZE", "REASON")
_SHA256 = re.compile(r"[0-9a-f]{8,64}", re.ASCII)
_COLOURS = {"+": "32", "-": "31", "@": "36"}
NO_NEWLINE = b"\\ No newline at end of file\n"


def which(text: str) -> int | str:
    """A version as it is asked for: a number, or the first digits of a sha256. Raises ValueError."""
    if text.isascii() and text.isdigit() and len(text) < 8 and int(text) > 0:
        return int(text)
    if _SHA256.fullmatch(text):
        return text
    raise ValueError(
        f"{text!r} is no version; accepted: a number of 'history JOB', or 8 to 64 digits of a sha256"
    )


def history(client: Client, job: str, *, last: int | None, utc: bool, as_json: bool) -> int:
    """Show the versions of a job's file, newest first, at most ``last``."""
    document = _document(client, job)
    versions = list(_versions(client, job, document, last))
    if as_json:
        screen.out_json(document | {"versions": versions, "more": len(versions) == last})
        return 0
    current = document.get("current")
    blank = " " if screen.is_terminal() else "T"
    rows = []
    for one in versions:
        now = current is not None and one.get("sha256") == current
        current = None if now else current  # only the newest of those bytes is in force
        rows.append(
            (
                table.word(one.get("version")),
                "*" if now else "-",
                screen.escape(times.shown(str(one.get("at")), utc=utc, blank=blank)),
                table.word(one.get("by")),
                table.word(one.get("action")),
                table.word(str(one.get("sha256"))[:12]),
                table.word(one.get("size")),
                table.cut(screen.escape(str(one.get("reason") or ""))) or "-",
            )
        )
    screen.out_lines(
        table.lines(_HEADER, rows, colour=screen.has_colour(os.environ)), at_once=False
    )
    if not rows and screen.is_terminal():
        screen.complain(f"{job}: no version is kept")
    return 0


def diff(client: Client, job: str, old: str | None, new: str | None, *, as_json: bool) -> int:
    """Show how two versions differ: without ``new`` from the present file, without ``old`` the one before."""
    document = _document(client, job)
    there = document.get("current") is not None
    newest = next(_versions(client, job, document, 1), None)
    if new is None and not there:
        # Deleted: the file that it had.
        new = None if newest is None else _number(newest)
    before = old
    if old is None:
        sha256 = document.get("current") if there else (newest or {}).get("sha256")
        before = _number(_before(client, job, document, sha256))
    found = _compared(client, job, before or "", new)
    if as_json:
        text = found.decode("utf-8", "backslashreplace")
        screen.out_json({"job": job, "from": before, "to": new, "diff": text})
    else:
        _show(found)
    return 0


def rollback(client: Client, job: str, version: str | None, *, dry_run: bool, as_json: bool) -> int:
    """Have a version put in force again, without ``version`` the one before."""
    fields: dict[str, Any] = {}
    if version is None:
        document = _document(client, job)
        current = document.get("current")
        version = _number(_before(client, job, document, current))
        # What was found here is what is meant, whoever pushes in between.
        fields["ifHash"] = current or ""
    if dry_run:
        found = _compared(client, job, None, version)
        _show(found)
        return 0
    fields["version"] = which(version)
    found_one = next(outcomes.ask(client, "rollback", [outcomes.exactly(job)], fields))
    if as_json:
        screen.out_json(found_one.document() | {"version": fields["version"]})
    elif found_one.status:
        screen.complain(f"{job}: {found_one.error}")
    elif found_one.response == "redundant":
        screen.out(f"{screen.escape(job)}: already the file of version {version}")
    else:
        screen.out(f"{screen.escape(job)}: rolled back to version {version}")
    return found_one.status


def _document(client: Client, job: str, before: int | None = None) -> dict[str, Any]:
    fields = {} if before is None else {"version": before}
    asked = outcomes.ask(client, "history", [outcomes.exactly(job)], fields, expected="history")
    return outcomes.document(_done(next(asked)))


def _done(found: Outcome) -> Outcome:
    if found.status:
        refusal = TaskmasterError(f"{found.job}: {found.error}")
        refusal.exit_status = found.status
        raise refusal
    return found


def _versions(
    client: Client, job: str, document: dict[str, Any], at_most: int | None
) -> Iterator[Version]:
    """The versions, newest first, page by page."""
    given, oldest = 0, math.inf
    while True:
        listed = document.get("versions")
        page = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
        for one in page:
            if given == at_most:
                return
            given += 1
            yield one
        last = page[-1].get("version") if page else None
        if document.get("more") is not True or not isinstance(last, int) or last >= oldest:
            return
        oldest = last
        document = _document(client, job, last)


def _before(client: Client, job: str, document: dict[str, Any], sha256: Any) -> Version:
    """The newest version with other bytes. Raises TaskmasterError where there is none."""
    for one in _versions(client, job, document, None):
        if one.get("sha256") != sha256:
            return one
    raise TaskmasterError(f"{job}: there is no version but the present one")


def _number(version: Version) -> str:
    number = version.get("version")
    if not isinstance(number, int) or number < 1:
        raise Unavailable("taskmasterd's history has a version without a number")
    return str(number)


def _compared(client: Client, job: str, old: str | None, new: str | None) -> bytes:
    """The unified diff of two versions; None: the present file."""
    old_bytes, new_bytes = _content(client, job, old), _content(client, job, new)
    names = [_name(job, one) for one in (old, new)]
    lines = difflib.diff_bytes(
        difflib.unified_diff, _lines(old_bytes), _lines(new_bytes), names[0], names[1]
    )
    return b"".join(lines)


def _name(job: str, version: str | None) -> bytes:
    about = "now" if version is None else f"version {version}"
    return f"{job}.tm.json\t({about})".encode()


def _content(client: Client, job: str, version: str | None) -> bytes:
    fields = {} if version is None else {"version": which(version)}
    asked = outcomes.ask(client, "pull", [outcomes.exactly(job)], fields, expected="file")
    found = next(asked)
    if version is None and found.code == "no-such-job":
        return b""  # deleted: against nothing
    return _done(found).data


def _lines(content: bytes) -> list[bytes]:
    """Lines, the last one with what ``diff`` writes where it has no end."""
    lines = content.split(b"\n")
    last = lines.pop()
    found = [line + b"\n" for line in lines]
    return [*found, last + b"\n" + NO_NEWLINE] if last else found


def _show(found: bytes) -> None:
    if not screen.is_terminal():
        screen.out_bytes(found)
        return
    colour = screen.has_colour(os.environ)
    shown = []
    # At line ends alone: other characters that end a line on a screen are part of it, and shown escaped.
    for line in found.decode("utf-8", "replace").removesuffix("\n").split("\n") if found else []:
        text = "\t".join(screen.escape(cell) for cell in line.split("\t"))
        number = _COLOURS.get(line[:1], "") if colour else ""
        shown.append(f"\x1b[{number}m{text}\x1b[0m" if number else text)
    if shown:
        screen.out("\n".join(shown))
    else:
        screen.complain("nothing differs")
