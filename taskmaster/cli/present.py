"""What the administrator reads: words for replies, tables for status documents.

Pure text in, text out. A status document is another program's word: any field may be missing or of
another type, and shows as ``-`` then; later daemons may add fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from taskmaster.cli.screen import escape

Row = tuple[str, ...]

DIRECTORY_READ = (
    "configuration directory read again: new, changed and removed job files are applied"
)
_DONE = {
    "start": "started",
    "stop": "stopped",
    "kill": "killed",
    "repair": "repaired",
    "push": "stored and applied",
    "delete": "deleted",
    "reload": "job file read again",
    "restart": "restarted",
}
#: With --no-wait the reply says no more than this.
_BEGUN = {
    "start": "started, its outcome not waited for",
    "stop": "stop begun",
    "restart": "restart begun",
}
_REDUNDANT = {"start": "already running", "stop": "already stopped", "kill": "already stopped"}

JOB_HEADER: Row = ("JOB", "STATE", "PIDS", "UPTIME", "RESTARTS", "REASON")
PROCESS_HEADER: Row = ("JOB", "PROCESS", "STATE", "PID", "UPTIME", "RESTARTS", "REASON")
#: Sparingly: green is well, red needs a person, yellow is being worked on; all else is plain.
_COLOURS = {"RUNNING": "32", "FATAL": "31", "UNKNOWN": "31", "BACKOFF": "33", "UNRESPONSIVE": "31"}
_BOLD = "1"


def done(command: str, response: str, waited: bool) -> str:
    """What became of a command that was not refused, in words."""
    if response == "redundant":
        return _REDUNDANT.get(command, "nothing to do")
    if not waited and command in _BEGUN:
        return _BEGUN[command]
    return _DONE.get(command, "done")


def duration(seconds: Any) -> str:
    """Seconds as two units without a blank between: ``12s``, ``4m05s``, ``3h12m``, ``2d07h``."""
    if not isinstance(seconds, (int, float)) or not 0 <= seconds < 1e11:
        return "-"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def job_row(name: str, document: dict[str, Any]) -> Row:
    """The one line of a job. UPTIME is that of the process that started last: a restart shows."""
    processes = _processes(document)
    uptimes = [p["uptime"] for p in processes if _is_number(p.get("uptime"))]
    restarts = [p["restarts"] for p in processes if _is_number(p.get("restarts"))]
    return (
        escape(name),
        _word(document.get("state")),
        f"{_word(document.get('alive'))}/{_word(document.get('of'))}",
        duration(min(uptimes, default=None)),
        _word(sum(restarts) if restarts else None),
        "; ".join(_reasons(document)) or "-",
    )


def process_rows(name: str, document: dict[str, Any]) -> Iterator[Row]:
    """One line for each process; one that shows the job itself where it has none."""
    processes = _processes(document)
    if not processes:
        state, reason = _word(document.get("state")), "; ".join(_reasons(document)) or "-"
        yield (escape(name), "-", state, "-", "-", "-", reason)
    for process in processes:
        yield (
            escape(name),
            _word(process.get("number")),
            _word(process.get("state")),
            _word(process.get("pid")),
            duration(process.get("uptime")),
            _word(process.get("restarts")),
            _process_reason(process),
        )


def table(header: Row, rows: Iterable[Row], colour: bool) -> str:
    """Columns aligned by two blanks and never cut; the last one may hold blanks."""
    every = [header, *rows]
    widths = [max(len(row[i]) for row in every) for i in range(len(header))]
    state = header.index("STATE")
    lines = []
    for number, row in enumerate(every):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        if colour and number and row[state] in _COLOURS:
            cells[state] = _coloured(_COLOURS[row[state]], row[state], cells[state])
        line = "  ".join(cells).rstrip()
        lines.append(_coloured(_BOLD, line, line) if colour and not number else line)
    return "\n".join(lines)


def _coloured(number: str, text: str, padded: str) -> str:
    # The padding stays outside, or the trailing blanks of a line could not be taken off.
    return f"\x1b[{number}m{text}\x1b[0m{padded[len(text) :]}"


def _reasons(document: dict[str, Any]) -> Iterator[str]:
    reason = document.get("reason")
    if isinstance(reason, str) and reason:
        yield escape(reason)
    if document.get("state") == "RUNNING" and document.get("ready") is False:
        yield "not ready"
    watchdog = document.get("watchdog")
    state = watchdog.get("state", "ATTACHED") if isinstance(watchdog, dict) else "ATTACHED"
    if state != "ATTACHED" and not reason:
        yield f"watchdog {_word(state)}"
    definition = document.get("definition")
    if isinstance(definition, dict) and definition.get("stale") is True:
        yield "definition stale: reload applies the job file"


def _process_reason(process: dict[str, Any]) -> str:
    reason = process.get("reason")
    if isinstance(reason, str) and reason:
        return escape(reason)
    if process.get("signal") is not None:
        why = process.get("exitReason")
        because = f", {escape(why)}" if isinstance(why, str) and why else ""
        return f"last ended by signal {_word(process['signal'])}{because}"
    if process.get("exitCode") is not None:
        return f"last exit code {_word(process['exitCode'])}"
    return "-"


def _processes(document: dict[str, Any]) -> list[dict[str, Any]]:
    found = document.get("processes")
    return [p for p in found if isinstance(p, dict)] if isinstance(found, list) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _word(value: Any) -> str:
    """A cell that is one word: columns have to stay countable for whoever splits them at blanks."""
    if isinstance(value, str) and value:
        return "_".join(escape(value).split(" "))
    return str(value) if _is_number(value) else "-"
