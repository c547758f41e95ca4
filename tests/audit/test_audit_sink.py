"""The second place for records: it gets every one as it stands in the log, and what it misses is counted."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskmaster.audit import AuditLog, Event, Sink
from taskmaster.audit.sink import JOURNALD, SYSLOG
from taskmaster.evidence.verification import Verification

NOW = "2026-11-25T12:00:00.250000Z"
MakeLog = Callable[..., AuditLog]
Records = Callable[[], list[dict[str, Any]]]
RFC5424 = re.compile(
    rb"<86>1 \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z [!-~]+ taskmasterd \d+ audit - (\{.*\})"
)
NATIVE = re.compile(
    rb"SYSLOG_IDENTIFIER=taskmasterd\nSYSLOG_FACILITY=10\nPRIORITY=6\nTASKMASTER=audit\n"
    rb"MESSAGE=(\{.*\})\n"
)


class Reader:
    """A socket that records are sent to; what is in it, taken out of its frames."""

    def __init__(self, path: Path, form: re.Pattern[bytes]) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)
        self._form = form

    def lines(self) -> list[bytes]:
        found = []
        while True:
            try:
                datagram = self.socket.recv(1 << 20)
            except BlockingIOError:
                return found
            match = self._form.fullmatch(datagram)
            assert match, datagram
            found.append(match[1])


@pytest.fixture
def make_reader(tmp_path: Path) -> Iterator[Callable[..., Reader]]:
    """Readers at one path, each in the place of the one before."""
    readers: list[Reader] = []

    def make(form: re.Pattern[bytes] = RFC5424) -> Reader:
        (tmp_path / "sink").unlink(missing_ok=True)
        readers.append(Reader(tmp_path / "sink", form))
        return readers[-1]

    yield make
    for reader in readers:
        reader.socket.close()


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines()


@pytest.mark.parametrize(("kind", "form"), [(SYSLOG, RFC5424), (JOURNALD, NATIVE)])
def test_every_record_in_its_order(
    path: Path,
    tmp_path: Path,
    make_log: MakeLog,
    make_reader: Callable[..., Reader],
    kind: str,
    form: re.Pattern[bytes],
) -> None:
    """Framed as the protocol has it, each record has the very bytes of its line."""
    reader = make_reader(form)
    sink = Sink(kind, str(tmp_path / "sink"), lambda: NOW)
    log = make_log(sink=sink)
    for number in range(2000):
        log.record(Event.JOB_ADDED, job=f"j\n{number}")
        log.flush(durable=number % 500 == 0)
    assert sink.waits  # more than may wait in the kernel: kept until there is room
    taken = reader.lines()
    while not sink.drain() or len(taken) < 2000:
        taken += reader.lines()
    assert taken == lines_of(path)
    assert (len(taken), sink.lost) == (2000, 0)


def test_a_sink_that_is_not_there_and_comes_back(
    path: Path,
    tmp_path: Path,
    make_log: MakeLog,
    make_reader: Callable[..., Reader],
    records: Records,
    verified: Callable[..., Verification],
) -> None:
    """What it has missed is told of once it takes records again; a reader started again is found by itself."""
    said: list[str] = []
    log = make_log(sink=Sink(SYSLOG, str(tmp_path / "sink"), lambda: NOW, said.append))
    for number in range(7):
        log.record(Event.JOB_ADDED, job=f"lost-{number}")
        assert log.flush(durable=False)
    assert len(said) == 1
    assert "No such file" in said[0]
    reader = make_reader()
    log.record(Event.JOB_ADDED, job="again")
    assert log.flush(durable=False)
    assert reader.lines() == lines_of(path)[-2:]
    told = records()[-1]
    assert (told["event"], told["count"], told["sink"]) == ("audit.sink_lost", 7, SYSLOG)
    assert (told["since"], told["error"]) == (NOW, "No such file or directory")
    reader.socket.close()
    reader = make_reader()
    log.record(Event.JOB_ADDED, job="another reader")
    log.flush(durable=True)
    assert reader.lines() == lines_of(path)[-1:]
    verified()


def test_a_sink_that_does_not_read(
    path: Path,
    tmp_path: Path,
    make_log: MakeLog,
    make_reader: Callable[..., Reader],
    records: Records,
) -> None:
    """Nobody waits for it: its queue is full, records are lost to it and counted, none to the log."""
    reader = make_reader()
    log = make_log(sink=Sink(SYSLOG, str(tmp_path / "sink"), lambda: NOW))
    for number in range(6000):
        log.record(Event.JOB_ADDED, job=f"job-{number}", text="x" * 300)
        log.flush(durable=False)
    taken = reader.lines()
    assert 0 < len(taken) < 6000
    log.close()
    taken += reader.lines()
    found = records()
    told = [record for record in found if record["event"] == "audit.sink_lost"]
    assert len([record for record in found if record["event"] == "job.added"]) == 6000
    # All but the last, which tells of the loss and is as lost to the sink.
    assert sum(record["count"] for record in told) + len(taken) == len(found) - 1
    assert told[-1]["error"] == "Resource temporarily unavailable"


def test_what_is_lost_at_the_end_is_on_record(
    tmp_path: Path, make_log: MakeLog, records: Records
) -> None:
    """A log that is closed while its sink takes nothing says so."""
    log = make_log(sink=Sink(JOURNALD, str(tmp_path / "sink"), lambda: NOW))
    log.record(Event.JOB_ADDED, job="a")
    log.close()
    told = records()[-1]
    assert (told["event"], told["count"]) == ("audit.sink_lost", 1)


def test_a_head_is_told_or_not(tmp_path: Path, make_reader: Callable[..., Reader]) -> None:
    """A head goes out as a notice; where it cannot, why is returned, and nothing is counted."""
    sink = Sink(SYSLOG, str(tmp_path / "sink"), lambda: NOW)
    assert "No such file" in sink.tell("audit head 1:00", "audit-head")
    assert sink.lost == 0
    reader = make_reader()
    assert sink.tell("audit head 1:00", "audit-head") == ""
    datagram = reader.socket.recv(1000)
    assert datagram.startswith(b"<85>1 2026-11-25T12:00:00.250000Z ")
    assert datagram.endswith(b" audit-head - audit head 1:00")
    sink.close()


def test_a_record_that_is_too_long_for_it(
    tmp_path: Path, make_reader: Callable[..., Reader]
) -> None:
    """What the kernel will not take in one piece is lost to the sink, counted, and blocks nothing behind it."""
    reader = make_reader()
    sink = Sink(SYSLOG, str(tmp_path / "sink"), lambda: NOW)
    assert sink.send(b"{" + b"x" * (1 << 20) + b"}")
    assert sink.send(b"{}")
    assert reader.lines() == [b"{}"]
    lost = sink.take_lost()
    assert (lost["count"], lost["error"]) == (1, os.strerror(errno.EMSGSIZE))
    assert sink.lost == 0
    sink.close()
