"""All outputs of one job: what becomes of them when their files cannot be opened, or are other ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from taskmaster import fifos
from taskmaster.core.spec import JobSpec
from taskmaster.eventloop import EventLoop
from taskmaster.watchdog.captures import Captures


class Job:
    """Captures with a loop of their own, and the job's ends of its pipes."""

    def __init__(self, directory: int, logs: Path) -> None:
        self.loop = EventLoop()
        self.dropped: list[tuple[str, int]] = []
        self.null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
        self.captures = Captures(
            self.loop,
            directory,
            str(logs / "jobs/web"),
            self.null,
            lambda number, stream, count, why: self.dropped.append((stream, count)),
        )
        self.ends = {stream: fifos.hold(directory, f"0.{stream}") for stream in fifos.STREAMS}

    def write(self, stream: str, data: bytes) -> None:
        """As the job, and until it is out of the pipe."""
        os.write(self.ends[stream], data)
        self.loop.call_in(0.01, self.loop.stop)
        self.loop.run()

    def close(self) -> None:
        """End of all."""
        self.captures.remove(0)
        for fd in (*self.ends.values(), self.null):
            os.close(fd)
        self.loop.close()


@pytest.fixture
def job(directory: int, tmp_path: Path) -> Iterator[Job]:
    """One that runs already."""
    job = Job(directory, tmp_path / "log")
    yield job
    job.close()


def spec(folder: Path, **changed: object) -> JobSpec:
    """stdout in that folder, stderr in the job's own."""
    return JobSpec("web", ("true",), stdout=f"{folder}/out", **changed)


def test_a_file_that_cannot_be_opened_holds_no_job_up(job: Job, tmp_path: Path) -> None:
    """Of a process that runs already output is dropped and counted, and kept as soon as that can be; a new process
    is not begun without."""
    folder = tmp_path / "later"
    job.captures.resume(0, spec(folder))
    job.write("stdout", b"lost\n" * 1000)
    job.write("stderr", b"kept\n")
    assert job.dropped == [("stdout", 0), ("stdout", 5000)]
    with pytest.raises(FileNotFoundError) as missing:
        job.captures.prepare(0, spec(folder))
    assert missing.value.filename == str(folder)
    folder.mkdir()
    job.write("stdout", b"kept\n")
    job.captures.prepare(0, spec(folder)).close()
    assert (folder / "out").read_bytes() == b"kept\n"
    assert (tmp_path / "log/jobs/web/0_stderr.log").read_bytes() == b"kept\n"


def test_another_file_that_cannot_be_opened(job: Job, tmp_path: Path) -> None:
    """A definition with a folder that is not there: output goes on where it went."""
    job.captures.resume(0, spec(tmp_path))
    job.write("stdout", b"one\n")
    job.captures.reconfigure(0, spec(tmp_path / "missing"))
    job.write("stdout", b"two\n")
    assert (tmp_path / "out").read_bytes() == b"one\ntwo\n"
    (tmp_path / "new").mkdir()
    job.captures.reconfigure(0, spec(tmp_path / "new"))
    job.write("stdout", b"three\n")
    assert (tmp_path / "new/out").read_bytes() == b"three\n"


def test_fewer_backups(job: Job, tmp_path: Path) -> None:
    """In force with the definition, not with the next line."""
    first = spec(tmp_path, log_max_bytes=5, log_backups=5)
    job.captures.resume(0, first)
    for _ in range(6):
        job.write("stdout", b"1234\n")
    assert len(list(tmp_path.glob("out*"))) == 6
    job.captures.reconfigure(0, msgspec.structs.replace(first, log_backups=1))
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out", "out.1"]


def test_fewer_backups_since_it_ran(job: Job, tmp_path: Path) -> None:
    """In the job's own folder they go at the start; elsewhere what has such names may be somebody else's."""
    own = tmp_path / "log/jobs/web"
    own.mkdir(parents=True)
    for number in range(1, 6):
        (own / f"0_stderr.log.{number}").touch()
        (tmp_path / f"out.{number}").touch()
    job.captures.prepare(0, spec(tmp_path, log_backups=2)).close()
    names = sorted(path.name for path in own.iterdir())
    assert names == ["0_stderr.log", "0_stderr.log.1", "0_stderr.log.2"]
    assert len(list(tmp_path.glob("out.*"))) == 5
