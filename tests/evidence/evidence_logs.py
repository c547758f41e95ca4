"""Logs made line by line, as the daemon would have written them, and what an attacker makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from taskmaster.evidence import sealstate
from taskmaster.evidence.anomaly import Finding
from taskmaster.evidence.chain import NOTHING, canonical, link_of, linked
from taskmaster.evidence.seals import Keys
from taskmaster.evidence.sealstate import SealState
from taskmaster.evidence.verification import Verification

SEED = bytes(range(16))


class Writer:
    """Writes records, each linked to the one before, and seals."""

    def __init__(self, first: int = 1, prev: str = NOTHING) -> None:
        self.lines: list[bytes] = []
        self.seq, self.hash = first - 1, prev
        self.seals = sealstate.begin(SEED)

    def record(self, event: str = "job.added", **fields: object) -> None:
        self.seq += 1
        common = {"event": event, "seq": self.seq, "prev": self.hash, "timestamp": f"T{self.seq}"}
        line, digest = linked(canonical({**fields, **common}))
        self.lines.append(line)
        self.hash = digest.decode()

    def seal(self) -> None:
        state: SealState = sealstate.sealed(self.seals, self.seq, self.hash)
        last = state.last
        assert last is not None
        self.seals = state
        fields = {name: getattr(last, name) for name in last.__struct_fields__}
        self.record("audit.sealed", **fields)


def log(records: int) -> list[bytes]:
    """The lines of so many records."""
    writer = Writer()
    for number in range(records):
        writer.record(job=f"job-{number}", text='a "quoted" \\ text')
    return writer.lines


def hash_at(line: bytes) -> str:
    link = link_of(line)
    assert link is not None
    return link.hash


def again(line: bytes, prev: str | None = None, **changes: tuple[bytes, bytes]) -> bytes:
    """The record of ``line`` with its hash made to fit, after ``changes``, and linked to ``prev``."""
    link = link_of(line)
    assert link is not None
    body = line[: line.rindex(b',"hash"')] + b"}"
    for old, new in changes.values():
        assert old in body
        body = body.replace(old, new)
    if prev is not None:
        body = body.replace(link.prev.encode(), prev.encode())
    return linked(body)[0]


def rechained(lines: Sequence[bytes]) -> list[bytes]:
    """All hashes made anew: what anybody can do who can write the file."""
    made: list[bytes] = []
    for line in lines:
        made.append(again(line, hash_at(made[-1]) if made else None))
    return made


def verify(
    lines: Iterable[bytes],
    *,
    seed: bytes | None = None,
    heads: dict[int, str] | None = None,
    seal_s: float | None = None,
) -> tuple[Finding | None, Verification]:
    """What the verification finds in the lines of one file."""
    seen = Verification([] if seed is None else [Keys(seed)], heads or {}, seal_s)
    # What was a line end may be none any more, and the other way round.
    for number, line in enumerate(b"".join(lines).splitlines(keepends=True), 1):
        seen.feed(line, "audit.jsonl", number)
    return seen.finding(), seen
