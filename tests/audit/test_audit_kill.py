"""A writer that is killed at any moment: what it was told to be on disk is there, once, in order."""

from __future__ import annotations

import json
import os
import random
import select
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from taskmaster.audit import AuditLog, Event
from taskmaster.evidence.verification import Verification

ROUNDS = 40
DEADLINE_S = 30.0


def write_until_killed(path: Path, first: int, acknowledged: int) -> NoReturn:
    """Record numbers without end; tell of each durable one on the pipe."""
    status = 1
    try:
        log = AuditLog(path, max_bytes=3000, backups=5000)
        number = first
        while True:
            for _ in range(number % 4):
                log.record(Event.JOB_ADDED, job="x" * (number % 50), count=number)
                number += 1
                log.flush(durable=False)
            log.record(Event.JOB_ADDED, job="web", count=number)
            number += 1
            if log.flush(durable=True):
                os.write(acknowledged, f"{number}\n".encode())
    except BrokenPipeError:
        status = 0
    finally:
        os._exit(status)


def last_acknowledged(fd: int, at_least: int, child: int) -> int:
    """Read until so many lines came, kill the writer, read the rest; the last number told."""
    told = b""
    while told.count(b"\n") < at_least:
        ready, _, _ = select.select([fd], [], [], DEADLINE_S)
        assert ready, "the writer does not write"
        block = os.read(fd, 65536)
        assert block, "the writer ended by itself"
        told += block
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    while block := os.read(fd, 65536):
        told += block
    return int(told.split(b"\n")[-2])


def test_killed_at_any_moment(
    path: Path,
    records: Callable[[], list[dict[str, Any]]],
    verified: Callable[[], Verification],
) -> None:
    """Over many kills: no gap in seq, whole lines only, one chain, and no record missing that was durable."""
    moments = random.Random(7)
    durable = 0
    for _ in range(ROUNDS):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            write_until_killed(path, durable, writing)
        os.close(writing)
        durable = last_acknowledged(reading, moments.randint(1, 40), child)
        os.close(reading)
        lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
        for line in lines[:-1]:
            json.loads(line)
    log = AuditLog(path, max_bytes=3000, backups=5000)
    log.close()
    written = [record["count"] for record in records() if "count" in record]
    assert set(written) >= set(range(durable))
    seen = verified()
    assert seen.first is not None
    assert seen.last is not None
    assert (seen.first.link.seq, seen.last.link.seq) == (1, len(records()))
