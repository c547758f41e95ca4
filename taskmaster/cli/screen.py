"""Standard output and error: what is written there, and what happens when it cannot be.

Knows no command. Nothing that came from a daemon may reach a terminal unescaped: a job's reason or
an error text with an escape sequence in it could else retitle, clear or type into an
administrator's terminal.
"""

from __future__ import annotations

import errno
import functools
import io
import json
import os
import sys
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from taskmaster.errors import TaskmasterError

PROGRAM = "taskmasterctl"
#: Lines that are written together.
_LINES = 1000


def escape(text: str) -> str:
    r"""``text`` on one line with everything that is not plainly visible as ``\xNN``, ``\uNNNN``.

    ``isprintable`` leaves out C0, DEL, C1 (0x9b is an escape sequence's start), line separators,
    lone surrogates, and the format characters that turn text round.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    short = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(character)
    number = ord(character)
    wide = f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
    return short or (f"\\x{number:02x}" if number < 0x100 else wide)


def prepare() -> None:
    """Make no text unwritable or unreadable: a C locale must not turn an umlaut into a failure."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


def is_terminal() -> bool:
    """Whether standard output is one (it may be closed: then it is None)."""
    return sys.stdout is not None and sys.stdout.isatty()


def has_colour(environ: Mapping[str, str]) -> bool:
    """Whether to colour: a terminal that can, and nobody who asked for none (no-color.org)."""
    return is_terminal() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def out(text: str) -> None:
    """Write one or more lines to standard output, at once: a pipe sees each job as it is done."""
    if sys.stdout is not None:
        _written(lambda: sys.stdout.write(text + "\n"))


def out_bytes(data: bytes) -> None:
    """Write exact bytes to standard output; escaped, but for newline and tab, on a terminal."""
    if is_terminal():
        lines = data.decode("utf-8", "replace").split("\n")
        text = "\n".join("\t".join(escape(cell) for cell in line.split("\t")) for line in lines)
        _written(lambda: sys.stdout.write(text))
    elif sys.stdout is not None:
        _written(lambda: sys.stdout.buffer.write(data))


def out_json(document: Any) -> None:
    """Write a JSON document: one line in a pipe, indented on a terminal, ASCII in both.

    ASCII, so that neither a locale nor a lone surrogate can make it unwritable; DEL is the one
    control character that JSON does not escape by itself.
    """
    text = json.dumps(document, indent=2 if is_terminal() else None)
    out(text.replace("\x7f", "\\u007f"))


def json_line(document: Any) -> str:
    """A JSON document as ``out_json`` has it in a pipe: one line."""
    return json.dumps(document).replace("\x7f", "\\u007f")


def out_lines(lines: Iterable[str], *, at_once: bool) -> bool:
    """Write lines as they come, one by one with ``at_once``; whether there were any.

    Ends early where nobody reads any more.
    """
    every, some = iter(lines), False
    while piece := list(islice(every, 1 if at_once else _LINES)):
        some = True
        text = "\n".join(piece) + "\n"
        if sys.stdout is None or not _written(functools.partial(sys.stdout.write, text)):
            break
    return some


def complain(message: str) -> None:
    """Write one escaped line to standard error; a closed standard error is no failure of ours."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(f"{PROGRAM}: {escape(message)}\n")
        sys.stderr.flush()
    except OSError:  # EPIPE, ENOSPC, EIO of a gone terminal: nowhere left to say it
        _discard(sys.stderr)


def _written(write: Any) -> bool:
    """Whether somebody may have read it."""
    try:
        write()
        sys.stdout.flush()
    except OSError as error:  # EPIPE, ENOSPC, EIO, EAGAIN
        said = unwritable(error)
        # EPIPE is `| head`: the reader has enough, and the exit status still tells the outcome.
        if error.errno != errno.EPIPE:
            raise said from None
        return False
    return True


def unwritable(error: OSError) -> TaskmasterError:
    """Give standard output up; returns what to say about it.

    Without this Python would try the same bytes again at exit, and print its own complaint.
    """
    _discard(sys.stdout)
    return TaskmasterError(f"cannot write the output: {error.strerror}")


def _discard(stream: Any) -> None:
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, stream.fileno())
    os.close(null)


def can_ask() -> bool:
    """Whether somebody sits there who can be asked: not in a script."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr is not None


def agreed(question: str) -> bool:
    """Ask on the terminal, escaped, and read the answer; True, unasked, where there is none.

    Not click.confirm: it cannot tell Ctrl-D (no) from Ctrl-C (interrupted).
    """
    if not can_ask():
        return True
    assert sys.stderr is not None
    sys.stderr.write(f"{escape(question)} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
