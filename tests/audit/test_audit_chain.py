"""The chain as the log writes it: one chain through whatever happens to file and disk between two records."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskmaster.audit import AuditLog, Event, read_records
from taskmaster.evidence.chain import NOTHING
from taskmaster.evidence.verification import Verification

MakeLog = Callable[..., AuditLog]
Verified = Callable[..., Verification]
OLD = b"".join(b'{"seq":%d,"timestamp":"T","event":"job.added"}\n' % seq for seq in range(1, 6))

#: What happens to the file between two starts, and how many lines of it are no records then.
BETWEEN: dict[str, tuple[Callable[[bytes], bytes], int]] = {
    "nothing": (lambda content: content, 0),
    "the line end is missing": (lambda content: content[:-1], 0),
    "half a record behind": (lambda content: content + b'{"event":"job.added","jo', 0),
    "rubbish behind": (lambda content: content + b"rubb\xffish\n\nmore\n", 3),
    "rubbish without an end behind": (lambda content: content + b"rubbish\n" + b"x" * 9000, 2),
}


@pytest.mark.parametrize("name", BETWEEN)
@pytest.mark.parametrize("before", [b"", OLD], ids=["new", "older"])
def test_from_one_start_to_the_next(
    path: Path, make_log: MakeLog, verified: Verified, name: str, before: bytes
) -> None:
    """Whatever a crash has left, the next start goes on with the chain; what is no record is told of."""
    damage, lines = BETWEEN[name]
    if before:
        path.write_bytes(before)
        path.chmod(0o600)
    for start in range(3):
        log = make_log()
        log.record(Event.DAEMON_STARTED, pid=start)
        log.record(Event.JOB_ADDED, job=f"job-{start}")
        log.close()
        path.write_bytes(damage(path.read_bytes()))
    log = make_log()
    log.close()
    seen = verified()
    assert seen.unchained == before.count(b"\n")
    assert seen.first is not None
    assert seen.last is not None
    assert (seen.first.link.seq, seen.first.link.prev) == (seen.unchained + 1, NOTHING)
    assert seen.accounted == 3 * lines
    assert seen.last.link.seq >= seen.unchained + 6


def test_a_file_that_is_moved_away(
    path: Path, make_log: MakeLog, tmp_path: Path, verified: Verified
) -> None:
    """The new file goes on from the one moved away: together they are one chain, and each is one."""
    log = make_log()
    for number in range(4):
        log.record(Event.JOB_ADDED, job=f"job-{number}")
        log.flush(durable=True)
        if number % 2:
            path.rename(tmp_path / f"audit.jsonl.{9 - number}")
    log.record(Event.JOB_ADDED, job="last")
    log.close()
    seen = verified()
    assert seen.first is not None
    assert seen.last is not None
    assert (seen.first.link.seq, seen.last.link.seq) == (1, 7)


def test_a_disk_that_fails(
    path: Path, make_log: MakeLog, monkeypatch: pytest.MonkeyPatch, verified: Verified
) -> None:
    """Records that are taken back and written again have the bytes they had; what was dropped has no number."""
    log = make_log()
    log.record(Event.JOB_ADDED, job="first")
    assert log.flush(durable=True)
    form = log.form(Event.COMMAND_REQUESTED, {"command": "list"}, prefix="a-", timed=False)
    done = log.form(Event.COMMAND_COMPLETED, {"command": "list"}, prefix="a-", timed=True)
    assert form is not None
    assert done is not None

    def failing(*arguments: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for call in ("fdatasync", "write"):
        with monkeypatch.context() as broken:
            for number in range(3):
                log.record(Event.JOB_ADDED, job=f"{call}-{number}")
                log.record_read(form, done, number, 0.001)
                assert log.flush(durable=False)
            broken.setattr(os, call, failing)
            assert not log.flush(durable=True) or call == "write"
            for number in range(4_000):
                log.record(Event.JOB_ADDED, job="y" * 1000 + str(number))
                log.record_read(form, done, number, 0.001)
            assert not log.flush(durable=True)
        assert log.flush(durable=True)
    log.close()
    seen = verified()
    assert seen.last is not None
    assert seen.last.link.seq == len(list(read_records(path)))
    lost = [record for record in read_records(path) if record["event"] == "audit.lost"]
    assert sum(record["count"] for record in lost) > 1000


def test_reads_among_others(path: Path, make_log: MakeLog, verified: Verified) -> None:
    """Records made from forms stand in their order among the others, and look as they would without."""
    log = make_log()
    fields: dict[str, object] = {"command": "status", "job": "100%d", "peer": {"uid": 0}}
    asked = log.form(Event.COMMAND_REQUESTED, fields, prefix="ab-", timed=False)
    answered = log.form(Event.COMMAND_COMPLETED, fields, prefix="ab-", timed=True)
    assert asked is not None
    assert answered is not None
    for number in range(40):
        if number % 3 == 0:
            log.record(Event.JOB_ADDED, job=f"job-{number}")
        if number % 5 == 0:
            log.flush(durable=number % 2 == 0)
        log.record_read(asked, answered, number, 0.0125)
    log.close()
    verified()
    found = [json.loads(line) for line in path.read_bytes().splitlines()]
    reads = [record for record in found if record["event"] != "job.added"]
    assert [record["id"] for record in reads] == [f"ab-{n}" for n in range(40) for _ in range(2)]
    assert all(record["job"] == "100%d" for record in reads)
    assert {record.get("durationMs") for record in reads} == {None, 12.5}
    times = [record["timestamp"] for record in reads[:2]]
    assert times == ["2026-11-25T12:00:00.237500Z", "2026-11-25T12:00:00.250000Z"]
