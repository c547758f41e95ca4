"""An audit log in a directory of the test's own, and what its files hold."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskmaster.audit import AuditLog, read_records
from taskmaster.cli.audit import logfiles
from taskmaster.evidence.seals import Keys
from taskmaster.evidence.verification import Verification

NOON = 1795608000.25  # 2026-11-25T12:00:00.250000Z


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the log goes."""
    return tmp_path / "audit.jsonl"


@pytest.fixture
def make_log(path: Path) -> Iterator[Callable[..., AuditLog]]:
    """Open logs; whatever is still open is closed, and no descriptor may remain."""
    before = set(os.listdir("/proc/self/fd"))
    logs: list[AuditLog] = []

    def make(at: Path = path, *, max_bytes: int = 0, backups: int = 0, **more: Any) -> AuditLog:
        log = AuditLog(at, max_bytes=max_bytes, backups=backups, wall_clock=lambda: NOON, **more)
        logs.append(log)
        return log

    yield make
    for log in logs:
        log.close()
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def records(path: Path) -> Callable[[], list[dict[str, Any]]]:
    """All records of the log; fails where a line is damaged or a number is missing."""

    def read(at: Path = path) -> list[dict[str, Any]]:
        found = list(read_records(at))
        assert [record.get("seq") for record in found] == list(range(1, len(found) + 1))
        for file in at.parent.glob("audit.jsonl*"):
            content = file.read_bytes()
            assert content == b"" or content.endswith(b"\n"), file
            for line in content.splitlines():
                json.loads(line)
        return found

    return read


@pytest.fixture
def verified(path: Path) -> Callable[..., Verification]:
    """Verify the log with all its files, as ``taskmasterctl audit verify`` does; fails where it is not good."""

    def verify(at: Path = path, seed: bytes | None = None) -> Verification:
        seen = Verification([] if seed is None else [Keys(seed)], {})
        for one in logfiles.open_all([str(at)]):
            with one.file:
                for number, line in enumerate(one.lines(), 1):
                    seen.feed(line, one.path, number, one.left_out)
        finding = seen.finding()
        assert finding is None, f"{finding.place}: {finding.text}"
        return seen

    return verify
