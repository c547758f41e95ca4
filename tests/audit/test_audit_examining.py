"""The log of another process is looked at, and taken for what it is, also when that rotates it meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from taskmaster.audit import AuditLog, Event
from taskmaster.audit.examining import examine
from taskmaster.audit.generations import IN_USE

MakeLog = Callable[..., AuditLog]


@pytest.fixture
def written(path: Path, make_log: MakeLog) -> Iterator[tuple[int, int]]:
    """Another process writes the log, and has rotated it; the identity that the first file had."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        log = make_log(max_bytes=2000, backups=3)
        log.record(Event.DAEMON_STOPPED, pid=0)
        log.flush(durable=False)
        assert log.identity is not None
        os.write(writing, b"%d %d" % log.identity)
        while not Path(f"{path}.2").exists():
            log.record(Event.DAEMON_STOPPED, pid=0)
            log.flush(durable=False)
        os.write(writing, b"\n")
        signal.pause()
        os._exit(0)
    said = b""
    while not said.endswith(b"\n"):
        said += os.read(reading, 100)
    device, inode = map(int, said.split())
    yield device, inode
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(reading)
    os.close(writing)


def test_a_log_that_was_rotated_is_still_that_of_its_process(
    path: Path, written: tuple[int, int]
) -> None:
    """Its first file is a backup by now, so whoever wrote that writes this."""
    os.close(examine(path, None, written))


@pytest.mark.parametrize("held", [None, (0, 0)])
def test_a_log_of_another_process(
    path: Path, written: tuple[int, int], held: tuple[int, int] | None
) -> None:
    """The log that was handed over is another one: this one cannot be had."""
    with pytest.raises(OSError, match="another process") as refused:
        examine(path, None, held)
    assert refused.value.errno == IN_USE
