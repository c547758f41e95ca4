"""Room that is the log's already: nobody else can take it, it is renewed, and it goes on over rotations."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from audit_disk import mounted

from taskmaster import syscalls
from taskmaster.audit import AuditLog, Event, generations, read_records
from taskmaster.audit.reserve import Reserve

MakeLog = Callable[..., AuditLog]
KIB = 1024
RESERVE = 64 * KIB


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    yield from mounted(tmp_path, "2m")


def fill(folder: Path) -> None:
    """Take every byte that can be had."""
    with (folder / "filler").open("ab", buffering=0) as file:
        for size in (65536, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)


def reserved() -> Reserve:
    return Reserve(RESERVE, syscalls.allocate_behind)


def write(log: AuditLog, count: int) -> int:
    """How many records were written, of so many."""
    for number in range(count):
        log.record(Event.JOB_ADDED, job=f"job-{number}", sha256="0" * 64)
        if not log.flush(durable=True):
            return number
    return count


def test_a_full_disk(disk: Path, make_log: MakeLog) -> None:
    """The log is written on although nothing is left for anybody, says that it is, and how much there is."""
    log = make_log(disk / "audit.jsonl", reserve=reserved())
    said: list[str] = []
    log.on_short = said.append
    assert write(log, 10) == 10
    fill(disk)
    assert write(log, 100) == 100
    assert log.on_reserve
    assert log.writable
    used = [one for one in read_records(log.path) if one["event"] == "audit.reserve_used"]
    assert len(used) == len(said) == 1
    assert 0 < used[0]["left"] <= RESERVE
    assert write(log, 10_000) < 10_000, "it has an end"
    assert not log.writable
    (disk / "filler").unlink()
    log._reserve._again_at = 0.0
    assert write(log, 2) == 2
    assert write(log, 2) == 2
    assert not log.on_reserve
    assert "has its reserve again" in said[-1]
    numbers = [one["seq"] for one in read_records(log.path)]
    assert numbers == list(range(1, len(numbers) + 1))


def test_over_a_restart(disk: Path, make_log: MakeLog) -> None:
    """A daemon that starts on a full disk has what the one before has left."""
    log = make_log(disk / "audit.jsonl", reserve=reserved())
    write(log, 10)
    log.close()
    fill(disk)
    again = make_log(disk / "audit.jsonl", reserve=reserved())
    assert again.on_reserve
    assert write(again, 50) == 50


def test_rotation_on_a_full_disk(disk: Path, make_log: MakeLog) -> None:
    """A file that may be deleted makes room for the next; where none may, the log grows on over its size."""
    log = make_log(disk / "audit.jsonl", max_bytes=20_000, backups=2, reserve=reserved())
    write(log, 300)
    assert generations.backup_numbers(log.path) == [1, 2]
    fill(disk)
    assert write(log, 100) == 100
    assert log.writable
    kept = make_log(
        disk / "kept.jsonl", max_bytes=20_000, backups=2, reserve=reserved(), keep_s=1e9
    )
    (disk / "filler").unlink()
    write(kept, 200)
    files = len(generations.backup_numbers(kept.path))
    fill(disk)
    assert write(kept, 60) == 60
    assert len(generations.backup_numbers(kept.path)) == files
    assert not list(disk.glob("*.next"))


def test_old_files_keep_no_reserve(disk: Path, make_log: MakeLog) -> None:
    """What a file has behind its end is given back when another one is the log."""
    log = make_log(disk / "audit.jsonl", max_bytes=20_000, backups=3, reserve=reserved())
    write(log, 300)
    for number in generations.backup_numbers(log.path):
        assert generations.backup(log.path, number).stat().st_blocks * 512 < 20_000 + 8 * KIB
    assert log.path.stat().st_blocks * 512 >= RESERVE


def test_a_truncated_log(disk: Path, make_log: MakeLog) -> None:
    """Somebody truncates the file (copytruncate): the reserve is made anew."""
    log = make_log(disk / "audit.jsonl", reserve=reserved())
    write(log, 100)
    os.truncate(log.path, 0)
    write(log, 3)
    assert log.path.stat().st_blocks * 512 >= RESERVE


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EIO])
def test_no_reserve_here(path: Path, make_log: MakeLog, number: int) -> None:
    """A file system that cannot allocate has a log without a reserve, which is no error."""

    def allocate(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    log = make_log(max_bytes=2000, backups=3, reserve=Reserve(RESERVE, allocate))
    assert write(log, 50) == 50
    assert not log.on_reserve
    assert generations.backup_numbers(path) == [1, 2, 3]
