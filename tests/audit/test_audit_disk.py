"""A disk that is full, fails, or may not grow: nothing crashes, nothing is torn, nothing is silent."""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from audit_disk import mounted

from taskmaster.audit import AuditLog, Event, read_records
from taskmaster.audit.backlog import MAX_BYTES, MAX_RECORDS

MakeLog = Callable[..., AuditLog]
Records = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    yield from mounted(tmp_path, "64k")


@pytest.fixture
def small_file() -> Iterator[Callable[[int], None]]:
    """Limit how large this process's files may grow, with RLIMIT_FSIZE; lifted afterwards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size < 0 else size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fail(number: int) -> Callable[..., Any]:
    """A system call that answers with this errno."""

    def call(*_: object) -> Any:
        raise OSError(number, os.strerror(number))

    return call


def test_a_full_disk_and_room_again(small_disk: Path, make_log: MakeLog, records: Records) -> None:
    """Full: not writable, whole lines only. Room again: everything that waited, in order, no gap."""
    path = small_disk / "audit.jsonl"
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(40_000))
    log = make_log(path)
    written = 0
    while log.record(Event.JOB_ADDED, job=f"job-{written}") or log.flush(durable=True):
        written += 1
    assert log.error is not None
    assert log.error.errno == errno.ENOSPC
    assert not log.writable
    assert len(records(path)) == written
    for number in range(written + 1, written + 100):
        log.record(Event.JOB_ADDED, job=f"job-{number}")
        assert not log.flush(durable=True)
    assert len(records(path)) == written
    ballast.unlink()
    assert log.flush(durable=True)
    assert log.writable
    assert [record["job"] for record in records(path)] == [
        f"job-{number}" for number in range(written + 100)
    ]


def test_a_disk_that_is_full_at_the_start(
    small_disk: Path, make_log: MakeLog, records: Records
) -> None:
    """taskmasterd must come up on a full disk: its watchdogs run and wait for it."""
    path = small_disk / "audit.jsonl"
    ballast = small_disk / "ballast"
    log = make_log(path)
    log.record(Event.DAEMON_STARTED, pid=1)
    log.close()
    with open(ballast, "wb", buffering=0) as filler:
        try:
            while filler.write(b"x" * 1024):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017
    path.write_bytes(path.read_bytes()[:-1])
    path.rename(path.with_name("audit.jsonl.1"))
    again = make_log(path)
    again.record(Event.DAEMON_STARTED, pid=2)
    assert not again.flush(durable=True)
    ballast.unlink()
    assert again.flush(durable=True)
    assert [record["pid"] for record in read_records(path)] == [2]
    assert next(read_records(path))["seq"] == 2


def test_a_write_that_ends_within_a_line(
    make_log: MakeLog, small_file: Callable[[int], None], path: Path, records: Records
) -> None:
    """At every length at which the disk may end, the file has whole lines, then all of them."""
    for limit in range(1, 300, 7):
        path.unlink(missing_ok=True)
        log = make_log()
        for number in range(3):
            log.record(Event.JOB_ADDED, job=f"job-{number}")
        small_file(limit)
        done = log.flush(durable=True)
        small_file(-1)
        whole = len(records())
        assert done == (whole == 3)
        if not done:
            assert log.error is not None
            assert log.error.errno == errno.EFBIG
        assert log.flush(durable=True)
        assert [record["job"] for record in records()] == ["job-0", "job-1", "job-2"]
        log.close()


def test_a_torn_line_in_a_file_that_was_emptied(
    make_log: MakeLog, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    """Somebody emptied the file in place before: what is cut off is the torn line and nothing else."""
    log = make_log()
    for number in range(3):
        log.record(Event.JOB_ADDED, job=f"job-{number}")
    assert log.flush(durable=True)
    os.truncate(path, 0)
    log.record(Event.JOB_ADDED, job="job-3")
    log.record(Event.JOB_ADDED, job="job-4")
    write = os.write

    def until_full(fd: int, block: bytes) -> int:
        room = 350 - os.fstat(fd).st_size
        return write(fd, block[:room]) if room > 0 else fail(errno.ENOSPC)()

    with monkeypatch.context() as full:
        full.setattr(os, "write", until_full)
        assert not log.flush(durable=True)
    assert [line["seq"] for line in map(json.loads, path.read_bytes().splitlines())] == [4]
    assert log.flush(durable=True)
    assert [record["seq"] for record in read_records(path)] == [4, 5]


def test_a_torn_line_that_cannot_be_cut_is_completed(
    make_log: MakeLog,
    small_file: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    records: Records,
) -> None:
    """Where the file cannot be shortened, the next write that works ends the line begun."""
    log = make_log()
    for number in range(3):
        log.record(Event.JOB_ADDED, job=f"job-{number}")
    with monkeypatch.context() as broken:
        broken.setattr(os, "ftruncate", fail(errno.EIO))
        small_file(150)
        assert not log.flush(durable=True)
        small_file(-1)
    assert log.path.stat().st_size == 150
    assert log.flush(durable=True)
    assert len(records()) == 3


def test_a_torn_line_in_a_file_that_was_moved_away(
    make_log: MakeLog,
    small_file: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The line begun in the old file is whole in the new one."""
    log = make_log()
    for number in range(3):
        log.record(Event.JOB_ADDED, job=f"job-{number}")
    with monkeypatch.context() as broken:
        broken.setattr(os, "ftruncate", fail(errno.EIO))
        small_file(150)
        assert not log.flush(durable=True)
        small_file(-1)
    log.path.rename(tmp_path / "old")
    assert log.flush(durable=True)
    old = [record["seq"] for record in read_records(tmp_path / "old")]
    assert old + [record["seq"] for record in read_records(log.path)] == [1, 2, 3, 4]


@pytest.mark.parametrize("truncates", [True, False], ids=["cut at once", "cut at the next flush"])
def test_a_sync_that_failed_is_not_believed_later(
    make_log: MakeLog, monkeypatch: pytest.MonkeyPatch, records: Records, truncates: bool
) -> None:
    """After a failed fdatasync the kernel would say yes without writing: the records are written anew."""
    log = make_log()
    log.record(Event.JOB_ADDED, job="a")
    assert log.flush(durable=True)
    log.record(Event.JOB_ADDED, job="b")
    assert log.flush(durable=False)
    log.record(Event.JOB_ADDED, job="c")
    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", fail(errno.EIO))
        if not truncates:
            broken.setattr(os, "ftruncate", fail(errno.EIO))
        assert not log.flush(durable=True)
    assert not log.writable
    written: list[bytes] = []
    write = os.write

    def observed(fd: int, block: bytes) -> int:
        written.append(block)
        return write(fd, block)

    monkeypatch.setattr(os, "write", observed)
    assert log.flush(durable=True)
    assert [json.loads(line)["job"] for line in b"".join(written).splitlines()] == ["b", "c"]
    assert [record["job"] for record in records()] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENOMEM]
)
def test_the_host_may_fail_at_the_start(
    path: Path, make_log: MakeLog, monkeypatch: pytest.MonkeyPatch, records: Records, number: int
) -> None:
    """What may pass does not keep the daemon from starting; what it records meanwhile is kept."""
    path.write_bytes(b'{"seq":1,"timestamp":"t","event":"e"}\n')
    with monkeypatch.context() as broken:
        broken.setattr(os, "open", fail(number))
        log = make_log()
        log.record(Event.DAEMON_STARTED, pid=1)
        assert not log.flush(durable=True)
        assert log.error is not None
        assert log.error.errno == number
    assert log.flush(durable=True)
    assert log.error is None
    assert len(records()) == 2


def test_a_mistake_of_ours_is_not_hidden(make_log: MakeLog) -> None:
    """A descriptor that somebody closed is a bug, not a full disk."""
    log = make_log()
    log.record(Event.JOB_ADDED, job="a")
    fd, log._fd = log._fd, 9999
    with pytest.raises(OSError, match="Bad file descriptor"):
        log.flush(durable=False)
    log._fd = fd


def test_what_does_not_fit_is_counted(
    make_log: MakeLog, monkeypatch: pytest.MonkeyPatch, records: Records
) -> None:
    """Past the cap records are dropped, oldest kept; one record says how many; numbers have no gap."""
    log = make_log()
    with monkeypatch.context() as broken:
        broken.setattr(os, "write", fail(errno.ENOSPC))
        assert log.flush(durable=False)
        for number in range(MAX_RECORDS + 25):
            log.record(Event.PROCESS_EXITED, job=f"job-{number}")
            if number % 1000 == 0:
                assert not log.flush(durable=False)
        assert not log.flush(durable=True)
    assert log.flush(durable=True)
    found = records()
    assert [record["job"] for record in found[:-1]] == [f"job-{n}" for n in range(MAX_RECORDS)]
    lost = found[-1]
    assert (lost["event"], lost["count"], lost["commands"]) == ("audit.lost", 25, 0)
    assert lost["since"] == lost["until"] == lost["timestamp"]


def test_waiting_records_are_capped_in_bytes(
    make_log: MakeLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few huge records do not take more memory than many small ones."""
    log = make_log()
    with monkeypatch.context() as broken:
        broken.setattr(os, "write", fail(errno.ENOSPC))
        for _ in range(200):
            log.record(Event.PROCESS_FATAL, reason="x" * 60_000)
            assert not log.flush(durable=False)
    assert log.flush(durable=False)
    assert MAX_BYTES - 70_000 < log.path.stat().st_size < MAX_BYTES + 1000


def test_refused_commands_leave_room_for_what_happens(
    make_log: MakeLog, monkeypatch: pytest.MonkeyPatch, records: Records
) -> None:
    """A client that asks over and over takes half of the room; the exit of a process still fits."""
    log = make_log()
    with monkeypatch.context() as broken:
        broken.setattr(os, "write", fail(errno.ENOSPC))
        for _ in range(MAX_RECORDS):
            log.record(Event.COMMAND_REQUESTED, command="start")
        log.record(Event.PROCESS_EXITED, job="web")
        log.flush(durable=True)
    log.flush(durable=True)
    *_, exited, lost = records()
    assert exited["event"] == "process.exited"
    assert (lost["count"], lost["commands"]) == (MAX_RECORDS // 2, MAX_RECORDS // 2)


def test_a_dropped_record_is_not_called_durable(
    make_log: MakeLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flush after a drop says no, although all that waited is written: that command is refused."""
    log = make_log()
    with monkeypatch.context() as broken:
        broken.setattr(os, "write", fail(errno.ENOSPC))
        for _ in range(MAX_RECORDS):
            log.record(Event.PROCESS_EXITED, job="web")
        log.flush(durable=True)
        log.record(Event.COMMAND_REQUESTED, command="start")
    assert not log.flush(durable=True)
    assert log.writable
    assert log.flush(durable=True)


def test_a_burst_on_a_working_disk_is_not_dropped(make_log: MakeLog, records: Records) -> None:
    """More records than may wait, without a flush in between: they are written, not lost."""
    log = make_log()
    for _ in range(MAX_RECORDS + 10):
        log.record(Event.COMMAND_REQUESTED, command="list")
    assert log.flush(durable=True)
    assert len(records()) == MAX_RECORDS + 10
