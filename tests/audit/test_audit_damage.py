"""Opening a log whose files are damaged: torn by a power failure, or hostile."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskmaster.audit import AuditLog, Event, read_records
from taskmaster.evidence.verification import Verification

MakeLog = Callable[..., AuditLog]
Records = Callable[[], list[dict[str, Any]]]


def record_line(seq: object) -> bytes:
    return b'{"seq":%s,"timestamp":"t","event":"job.added"}\n' % str(seq).encode()


def reopen(path: Path) -> list[dict[str, Any]]:
    """Open the log, write one record, and give back what is in the files."""
    log = AuditLog(path, max_bytes=0, backups=0)
    try:
        log.record(Event.DAEMON_STARTED, pid=1)
        assert log.flush(durable=True)
        return list(read_records(path))
    finally:
        log.close()


def test_every_torn_length_of_the_last_line(path: Path, records: Records) -> None:
    """Cut anywhere, the whole records stay, the torn bytes are evidence, and numbers have no gap."""
    whole = record_line(1) + record_line(2)
    last = record_line(3)
    for kept in range(1, len(last) - 1):
        path.write_bytes(whole + last[:kept])
        reopen(path)
        found = records()
        assert [record["event"] for record in found[2:]] == ["audit.repaired", "daemon.started"]
        assert found[2]["torn"] == last[:kept].decode()
        assert (found[2]["bytes"], found[2]["resumedAfter"], found[2]["kept"]) == (kept, 2, False)


def test_a_record_that_lacks_only_its_line_end(path: Path, records: Records) -> None:
    """It is complete, so it stays, and nothing needs to be told."""
    path.write_bytes(record_line(1) + record_line(2)[:-1])
    reopen(path)
    assert [record["event"] for record in records()][1:] == ["job.added", "daemon.started"]


def test_zeros_after_a_power_failure(path: Path) -> None:
    """A file that was extended and never filled: few zeros are cut off, many end up as one line."""
    path.write_bytes(record_line(1) + bytes(100))
    assert [record["seq"] for record in reopen(path)] == [1, 2, 3]
    path.write_bytes(record_line(1) + bytes(100_000))
    found = reopen(path)
    assert [record.get("seq") for record in found] == [1, None, 2, 3]
    assert (found[2]["bytes"], found[2]["kept"]) == (100_000, True)


@pytest.mark.parametrize("start", [b"", b'{"seq":'])
def test_somebodys_file_is_not_destroyed(path: Path, start: bytes) -> None:
    """auditFile names something else by mistake: every byte of it is still there."""
    content = start + b"a letter without a line end " * 10_000
    path.write_bytes(content)
    reopen(path)
    assert path.read_bytes().startswith(content + b"\n")


def test_lines_that_are_no_records_are_passed_over(path: Path) -> None:
    """The last record counts, however much follows it; what follows stays and is told."""
    rubbish = b"rubbish\n" * 400_000 + b'{"seq":"9"}\n{"seq":7}\n'
    path.write_bytes(record_line(41) + rubbish)
    found = reopen(path)
    repaired = found[-2]
    assert (repaired["seq"], repaired["event"]) == (42, "audit.repaired")
    assert repaired["skippedBytes"] == len(rubbish)
    assert repaired["resumedAfter"] == 41


def test_a_record_across_two_pieces_of_reading(path: Path) -> None:
    """Files are searched a mebibyte at a time; a record on the border is found at any offset."""
    line = record_line(41)
    for offset in range(len(line) + 2):
        rubbish = b"x" * ((1 << 20) - offset - 1) + b"\n"
        path.write_bytes(b"y\n" + line + rubbish)
        assert reopen(path)[-1]["seq"] == 43, offset


@pytest.mark.parametrize(
    "seq", ["0", "-1", "1.5", "true", "null", '"5"', str(2**53 + 1), "9" * 400, "[" * 5000, "NaN"]
)
def test_a_number_that_is_none(path: Path, seq: str) -> None:
    """A record is one only with a sensible number; the one before counts."""
    path.write_bytes(record_line(5) + record_line(seq))
    assert [record["seq"] for record in reopen(path)[-2:]] == [6, 7]


@pytest.mark.parametrize("current", [None, b"", b"rubbish\n"], ids=["absent", "empty", "rubbish"])
def test_numbers_go_on_from_the_backups(path: Path, current: bytes | None) -> None:
    """Killed between renaming and creating: the newest backup with a record tells the number."""
    if current is not None:
        path.write_bytes(current)
    path.with_name("audit.jsonl.1").write_bytes(b"rubbish\n")
    path.with_name("audit.jsonl.2").mkdir()
    path.with_name("audit.jsonl.3").symlink_to("audit.jsonl.9")
    path.with_name("audit.jsonl.4").write_bytes(record_line(17))
    path.with_name("audit.jsonl.9").write_bytes(record_line(3))
    path.with_name("audit.jsonl.gz").write_bytes(record_line(99))
    log = AuditLog(path, max_bytes=0, backups=0)
    log.record(Event.DAEMON_STARTED, pid=1)
    log.close()
    last = json.loads(path.read_bytes().splitlines()[-1])
    assert last["seq"] == (19 if current else 18)


def test_nothing_to_go_on_from(path: Path) -> None:
    """No record anywhere: numbering starts anew, and says so."""
    path.with_name("audit.jsonl.1").write_bytes(b"rubbish\n")
    repaired, started = reopen(path)[-2:]
    assert (repaired["event"], repaired["resumedAfter"]) == ("audit.repaired", 0)
    assert (repaired["seq"], started["seq"]) == (1, 2)


def test_a_fresh_log_has_nothing_to_repair(path: Path) -> None:
    """The first record of a new log is what was recorded."""
    assert [record["event"] for record in reopen(path)] == ["daemon.started"]


fragments = st.binary(max_size=80) | st.sampled_from(
    [
        record_line(4),
        record_line(2**70),
        b'{"seq":',
        b"\n",
        b"\0" * 5000,
        b"\xff" * 70_000,
        b"[" * 9000,
    ]
)


@settings(deadline=None, max_examples=150)
@given(st.lists(fragments, max_size=8).map(b"".join), st.lists(fragments, max_size=3).map(b"".join))
def test_any_existing_file_is_opened(content: bytes, backup: bytes) -> None:
    """Whatever is in the files, the log opens, keeps every record that was there, and is written to."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "audit.jsonl")
        path.write_bytes(content)
        path.with_name("audit.jsonl.1").write_bytes(backup)
        before = sum("seq" in record for record in read_records(path))
        found = reopen(path)
        assert found[-1]["event"] == "daemon.started"
        assert sum("seq" in record for record in found) >= before + 1
        assert path.read_bytes().endswith(b"\n")
        assert reopen(path)[-1]["seq"] == found[-1]["seq"] + 1


def test_repairs_of_any_length_verify(path: Path, verified: Callable[..., Verification]) -> None:
    """What the daemon has told of is accounted for: lines of any length, torn or whole."""
    whole = b"z" * 70_000 + b"\nx\n"
    for damage in (b"z" * 200_000, whole, b"x\n" + bytes(9000), b'{"event":"jo'):
        reopen(path)
        with path.open("ab") as file:
            file.write(damage)
        reopen(path)
    assert verified().accounted == 5
