"""The lines of the daemon's audit log: from its files where they can be read, else as the daemon tells them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from taskmaster.cli import outcomes, screen
from taskmaster.cli.audit.lines import LONGEST_LINE, Files
from taskmaster.cli.client import Client
from taskmaster.errors import TaskmasterError, Unavailable

#: For how long the daemon is asked to wait for something new, seconds.
_WAIT_S = 20


class Told:
    """The log of the daemon that ``client`` talks to, in pieces. ``where``: what errors call it."""

    def __init__(self, client: Client, where: str, timeout_s: float) -> None:
        self.where = where
        self._client = client
        self._wait_s = int(min(_WAIT_S, timeout_s))
        self._cursor = ""
        self._more = False
        self._rest = b""

    def lines(self) -> Iterator[bytes]:
        """Every line there is. Raises TaskmasterError."""
        while True:
            # Not until nothing comes: each question is on record itself, so something always does.
            piece = self._piece({})
            yield from self._split(piece)
            if not (self._more and piece):
                return

    def more(self) -> Iterator[bytes]:
        """What was written since. Waits where there is nothing."""
        yield from self._split(self._piece({"wait": self._wait_s}))

    def close(self) -> None:
        """Nothing is held: the connection is the client's."""

    def _piece(self, fields: dict[str, Any]) -> bytes:
        cursor = {"cursor": self._cursor} if self._cursor else {}
        reply, found = _asked(self._client, cursor | fields)
        _refused(found)
        self._more = reply.get("more") is True
        self._cursor = str(reply.get("cursor", ""))
        return found.data

    def _split(self, piece: bytes) -> Iterator[bytes]:
        lines = (self._rest + piece).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            yield line + b"\n"
        while len(self._rest) >= LONGEST_LINE:
            yield self._rest[:LONGEST_LINE]
            self._rest = self._rest[LONGEST_LINE:]


def of_daemon(client: Client, timeout_s: float, *, named: bool) -> Files | Told:
    """The daemon's log. ``named``: the server was named, so no other log will do. Raises TaskmasterError."""
    try:
        reply, found = _asked(client, {"cursor": "end"})
    except Unavailable as error:
        files = None if named else _at_its_place()
        if files is None:
            raise
        screen.complain(f"{error} Reading {files.where}.")
        return files
    _refused(found)
    path = os.fsdecode(outcomes.field(reply, "file"))
    if _is_here(path, str(reply.get("cursor", ""))):
        return Files([path])
    return Told(client, f"the audit log of {client.address}", timeout_s)


def log_path(client: Client) -> str:
    """Where the daemon's log is, on this machine. Raises TaskmasterError, for one elsewhere as well."""
    offline = "audit verify needs no taskmasterd where the log is named: audit verify FILE"
    try:
        reply, found = _asked(client, {"cursor": "end"})
    except Unavailable as error:
        raise Unavailable(f"{error} {offline}.") from None
    _refused(found)
    path = os.fsdecode(outcomes.field(reply, "file"))
    if not _is_here(path, str(reply.get("cursor", ""))):
        raise TaskmasterError(
            f"audit verify: {screen.escape(path)} of {client.address} is no file that can be read here; "
            f"{offline}"
        )
    return path


def _asked(client: Client, fields: dict[str, Any]) -> tuple[dict[str, Any], outcomes.Outcome]:
    reply = next(client.ask([{"command": "audit"} | fields]))
    return reply, outcomes.outcome(None, reply, "audit")


def _refused(found: outcomes.Outcome) -> None:
    if found.status:
        refusal = TaskmasterError(f"audit: {found.error}")
        refusal.exit_status = found.status
        raise refusal


def _is_here(path: str, cursor: str) -> bool:
    """Whether the daemon's file is this machine's, which a forwarded socket does not tell: by its inode."""
    inode, _, rest = cursor.partition("-")
    offset = rest.partition("-")[0]
    try:
        about = os.stat(path)
    except (OSError, ValueError):  # EACCES, ENOENT; a NUL in the path
        return False
    is_it = str(about.st_ino) == inode and offset.isdigit() and about.st_size >= int(offset)
    return is_it and os.access(path, os.R_OK)


def _at_its_place() -> Files | None:
    """The log where a daemon of this user has it by default, if it is there and can be read."""
    from taskmaster.cli.audit import where

    try:
        path = str(where.log_path())
    except TaskmasterError:
        return None
    return Files([path]) if os.access(path, os.R_OK) else None
