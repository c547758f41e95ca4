"""A raw client of a daemon, as little as can be since its time is part of every figure, and how it is timed."""

from __future__ import annotations

import base64
import json
import socket
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

DEADLINE_S: Final = 60.0


class Missed(Exception):
    """Something that was waited for did not come: the row has no figure."""


def interleaved(
    count: int, ours: Callable[[], float], theirs: Callable[[], float]
) -> tuple[float, float, float]:
    """Medians of ``count`` measurements of each, taken in turns, and the ratio of these.

    In turns, since a shared machine is faster at one moment than at the next. The median of many short ones
    is what the programs take where most of them meet no other program.
    """
    pairs = [(ours(), theirs()) for _ in range(count)]
    mine = statistics.median(first for first, _ in pairs)
    other = statistics.median(second for _, second in pairs)
    return mine, other, mine / other


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def frame(command: str, job: str | None = None, **fields: Any) -> bytes:
    """The bytes of a query."""
    query = {"command": command} | ({} if job is None else {"job": b64(job)}) | fields
    return json.dumps(query, separators=(",", ":")).encode() + b";;"


class Client:
    """One raw connection to a Unix socket: as little as can be, since its time is part of every figure."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(DEADLINE_S)
        self.socket.connect(str(path))

    def round_trip(self, query: bytes) -> bytes:
        """Send one frame, return the one reply with its end mark."""
        self.socket.sendall(query)
        reply = self.socket.recv(65536)
        while not reply.endswith(b";;"):
            more = self.socket.recv(65536)
            if not more:
                raise Missed("the connection has ended")
            reply += more
        return reply

    def many(self, queries: Sequence[bytes]) -> list[bytes]:
        """Send all frames at once, return the replies without their end marks."""
        self.socket.sendall(b"".join(queries))
        chunks: list[bytes] = []
        left = len(queries)
        while left > 0 or not chunks[-1].endswith(b";"):
            chunk = self.socket.recv(1 << 20)
            if not chunk:
                raise Missed("the connection has ended")
            left -= chunk.count(b";;")
            if chunks and chunks[-1].endswith(b";") and chunk.startswith(b";"):
                left -= 1  # the mark lies in both
            chunks.append(chunk)
        return b"".join(chunks).split(b";;")[:-1]

    def ask(self, command: str, job: str | None = None, **fields: Any) -> dict[str, Any]:
        """One query and its reply, decoded."""
        return _decoded(self.round_trip(frame(command, job, **fields))[:-2])

    def statuses(self, jobs: Iterable[str]) -> list[dict[str, Any]]:
        """The status documents of these jobs."""
        replies = self.many([frame("status", job) for job in jobs])
        return [json.loads(_decoded(reply)["data"]) for reply in replies]


def _decoded(reply: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(reply)
    for key in ("data", "error"):
        if key in found:
            found[key] = base64.b64decode(found[key]).decode()
    return found
