"""Writing, numbering, rotating and opening a log on a disk that does what it should."""

from __future__ import annotations

import itertools
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskmaster.audit import AuditLog, Event, generations, read_records
from taskmaster.errors import FileError, Held

MakeLog = Callable[..., AuditLog]
Records = Callable[[], list[dict[str, Any]]]


class Killed(BaseException):
    """Stands for SIGKILL at a chosen system call: nothing after it happens."""


def fill(log: AuditLog, count: int) -> None:
    for number in range(count):
        log.record(Event.JOB_ADDED, job=f"job-{number}", sha256="0" * 20)
        assert log.flush(durable=False)


def test_nothing_is_written_before_a_flush(make_log: MakeLog, path: Path, records: Records) -> None:
    """record only puts in line; flush writes everything, in order, with one write."""
    log = make_log()
    log.record(Event.JOB_ADDED, job="a")
    log.record(Event.JOB_REMOVED, job="a")
    assert path.read_bytes() == b""
    assert log.flush(durable=False)
    assert [record["event"] for record in records()] == ["job.added", "job.removed"]
    assert records()[0]["timestamp"] == "2026-11-25T12:00:00.250000Z"


def test_a_file_is_private(make_log: MakeLog, path: Path) -> None:
    """The log has mode 0600 and its descriptor does not survive an exec."""
    log = make_log()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not os.get_inheritable(log._fd)


def test_durable_means_one_fdatasync(make_log: MakeLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """A durable flush syncs what non-durable ones wrote before; with nothing new it costs nothing."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    log = make_log()
    fill(log, 3)
    assert synced == []
    assert log.flush(durable=True)
    assert log.flush(durable=True)
    assert synced == [log._fd]


def test_durable_holds_for_files_rotated_meanwhile(
    make_log: MakeLog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written without a sync into a file that is a backup by now is on disk, too."""
    synced: dict[int, int] = {}

    def sync(fd: int) -> None:
        synced[os.fstat(fd).st_ino] = os.fstat(fd).st_size

    monkeypatch.setattr(os, "fdatasync", sync)
    log = make_log(max_bytes=300, backups=30)
    fill(log, 20)
    assert log.flush(durable=True)
    files = [file.stat() for file in path.parent.iterdir()]
    assert len(files) > 5
    assert synced == {file.st_ino: file.st_size for file in files}


def test_numbers_go_on_after_a_restart(make_log: MakeLog, records: Records) -> None:
    """The next daemon's first record has the next number."""
    for _ in range(3):
        log = make_log()
        fill(log, 2)
        log.close()
    assert len(records()) == 6


def test_a_log_that_was_closed_opens_again(make_log: MakeLog, records: Records) -> None:
    """An upgrade that could not exec goes on with the log it had closed."""
    log = make_log()
    fill(log, 1)
    log.close()
    fill(log, 1)
    assert len(records()) == 2


def test_rotation_keeps_size_and_number_of_files(
    make_log: MakeLog, path: Path, records: Records
) -> None:
    """Files stay below their size, as many as asked for are kept, and what they hold has no gap."""
    log = make_log(max_bytes=1000, backups=3)
    fill(log, 60)
    assert generations.backup_numbers(path) == [1, 2, 3]
    # The record of what was deleted comes on top.
    assert all(file.stat().st_size <= 1000 + 600 for file in path.parent.iterdir())
    found = list(read_records(path))
    numbers = [record["seq"] for record in found]
    assert numbers == list(range(numbers[0], log.seq + 1))
    assert numbers[0] > 1


def test_what_is_deleted_is_told(make_log: MakeLog, path: Path) -> None:
    """Each file that goes leaves a record of its first and last one, which fits to what is left."""
    log = make_log(max_bytes=1000, backups=3)
    fill(log, 60)
    found = list(read_records(path))
    told = [one for one in found if one["event"] == "audit.dropped"]
    assert told
    for before, after in itertools.pairwise(told):
        assert after["firstSeq"] == before["lastSeq"] + 1
    newest = told[-1]
    assert newest["lastSeq"] + 1 == found[0]["seq"]
    assert newest["lastHash"] == found[0]["prev"]
    assert newest["file"] == f"{path}.3"


def test_the_floor_under_the_past(make_log: MakeLog, path: Path) -> None:
    """No file goes whose last record is younger than what is kept, however many there are; older ones do."""
    log = make_log(max_bytes=1000, backups=2, keep_s=86_400.0)
    fill(log, 60)
    assert len(generations.backup_numbers(path)) > 5
    assert next(iter(read_records(path)))["seq"] == 1
    old = generations.backup_numbers(path)[-2:]
    for number in old:
        os.utime(generations.backup(path, number), (0, 0))
    before = len(generations.backup_numbers(path))
    fill(log, 10)
    numbers = generations.backup_numbers(path)
    assert len(numbers) < before + 3
    assert min(generations.backup(path, number).stat().st_mtime for number in numbers) > 0
    records = list(read_records(path))
    assert [one["event"] for one in records].count("audit.dropped") == 2
    assert [one["seq"] for one in records] == list(range(records[0]["seq"], log.seq + 1))


@pytest.mark.parametrize("max_bytes", [1, 50, 300, 700])
def test_tiny_files(make_log: MakeLog, path: Path, max_bytes: int) -> None:
    """What tells of a rotation is no cause for another, be the files ever so small."""
    log = make_log(max_bytes=max_bytes, backups=1)
    fill(log, 20)
    assert log.writable
    assert log.seq < 60


def test_one_flush_of_more_than_a_file(make_log: MakeLog, path: Path, records: Records) -> None:
    """A burst over the size of a file is spread over several."""
    log = make_log(max_bytes=1000, backups=50)
    for number in range(100):
        log.record(Event.JOB_ADDED, job=f"job-{number}")
    assert log.flush(durable=True)
    assert len(records()) == 100
    assert all(file.stat().st_size <= 1000 for file in path.parent.iterdir())


@pytest.mark.parametrize(("max_bytes", "backups"), [(0, 3), (100, 0)])
def test_no_rotation(
    make_log: MakeLog, path: Path, records: Records, max_bytes: int, backups: int
) -> None:
    """0 for size or number: one file, and nothing is ever deleted."""
    fill(make_log(max_bytes=max_bytes, backups=backups), 20)
    assert len(records()) == 20
    assert list(path.parent.iterdir()) == [path]


def test_fewer_backups_than_before(make_log: MakeLog, path: Path) -> None:
    """Files from a time when more were kept go at the next rotation."""
    log = make_log(max_bytes=300, backups=6)
    fill(log, 40)
    log.close()
    fill(make_log(max_bytes=300, backups=2), 10)
    assert generations.backup_numbers(path) == [1, 2]


@pytest.mark.parametrize("surviving", range(12))
def test_a_kill_within_a_rotation_loses_nothing(
    make_log: MakeLog,
    path: Path,
    records: Records,
    monkeypatch: pytest.MonkeyPatch,
    surviving: int,
) -> None:
    """Killed after any number of renames, the next start goes on, with every record in place."""
    log = make_log(max_bytes=600, backups=30)
    fill(log, 13)
    before = len(list(read_records(path)))
    assert len(generations.backup_numbers(path)) == 6
    rename, calls = os.rename, iter(range(100))

    def rename_or_die(source: Path, target: Path) -> None:
        if next(calls) == surviving:
            raise Killed
        rename(source, target)

    monkeypatch.setattr(os, "rename", rename_or_die)
    try:
        fill(log, 4)
    except Killed:
        os.close(log._fd)
        log._fd = -1
        log._backlog.synced()
    else:
        log.close()
    monkeypatch.setattr(os, "rename", rename)
    assert len(records()) >= before
    again = make_log(max_bytes=600, backups=30)
    fill(again, 3)
    assert len(records()) >= before + 3
    assert "audit.rotate_failed" not in [record["event"] for record in records()]


def test_a_rotation_that_fails_is_told_once(
    make_log: MakeLog, path: Path, records: Records
) -> None:
    """The file grows on, one record says why, and the next success rotates again."""
    log = make_log(max_bytes=300, backups=1)
    obstacle = path.with_name("audit.jsonl.1")
    obstacle.mkdir()
    fill(log, 10)
    assert log.writable
    obstacle.rmdir()
    events = [record["event"] for record in records()]
    assert events.count("audit.rotate_failed") == 1
    assert "audit.jsonl" in records()[events.index("audit.rotate_failed")]["error"]
    fill(log, 1)
    assert obstacle.is_file()


@pytest.mark.parametrize("removed", [False, True], ids=["renamed", "deleted"])
def test_somebody_takes_the_file_away(
    make_log: MakeLog, path: Path, tmp_path: Path, removed: bool
) -> None:
    """logrotate, or rm: a new file is begun, says so, and goes on numbering."""
    log = make_log()
    fill(log, 3)
    if removed:
        path.unlink()
    else:
        path.rename(tmp_path / "elsewhere")
    fill(log, 1)
    found = list(read_records(path))
    assert [(record["seq"], record["event"]) for record in found] == [
        (4, "job.added"),
        (5, "audit.reopened"),
    ]


def test_the_directory_goes_and_comes_back(make_log: MakeLog, tmp_path: Path) -> None:
    """rm -r of the log directory: not writable, and written once the directory is there again."""
    folder = tmp_path / "log"
    folder.mkdir()
    log = make_log(folder / "audit.jsonl")
    (folder / "audit.jsonl").unlink()
    folder.rmdir()
    log.record(Event.JOB_ADDED, job="a")
    assert not log.flush(durable=True)
    assert isinstance(log.error, FileNotFoundError)
    folder.mkdir()
    assert log.flush(durable=True)
    assert log.writable
    assert len(list(read_records(folder / "audit.jsonl"))) == 2


def test_copytruncate(make_log: MakeLog, path: Path) -> None:
    """Somebody empties the file in place: no hole, no lost number."""
    log = make_log()
    fill(log, 3)
    os.truncate(path, 0)
    fill(log, 2)
    assert [record["seq"] for record in read_records(path)] == [4, 5]


def obstruct(path: Path, kind: str) -> None:
    if kind == "directory":
        path.mkdir()
    elif kind == "symbolic link":
        path.symlink_to("target")
        (path.parent / "target").touch()
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("directory", "found a directory"),
        ("symbolic link", "found a symbolic link"),
        ("dangling link", "found a symbolic link"),
        ("FIFO", "found a FIFO"),
        ("socket", "found a socket"),
    ],
)
def test_what_is_no_file_is_refused(make_log: MakeLog, path: Path, kind: str, found: str) -> None:
    """The daemon says what is there and what it accepts, and follows no link."""
    obstruct(path, kind)
    with pytest.raises(FileError, match=f"audit.jsonl: {found}; accepted: a regular file of user"):
        make_log()
    assert not (path.parent / "nowhere").exists()
    assert os.listdir(path.parent).count(path.name) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_somebody_elses_file_is_refused(make_log: MakeLog, path: Path) -> None:
    """Whoever owns the file could rewrite it: no evidence is written there."""
    path.touch()
    os.chown(path, 12345, 12345)
    with pytest.raises(FileError, match="found a file of uid 12345"):
        make_log()


def test_a_directory_that_is_not_there(make_log: MakeLog, tmp_path: Path) -> None:
    """A mistake in the configuration is told at the start, with the system's words."""
    with pytest.raises(FileError, match="cannot be opened \\(No such file or directory\\)"):
        make_log(tmp_path / "none" / "audit.jsonl")


def test_a_name_that_is_replaced_while_running(make_log: MakeLog, path: Path) -> None:
    """A link put in the file's place is not followed; records wait until it is gone."""
    log = make_log()
    path.unlink()
    obstruct(path, "symbolic link")
    log.record(Event.JOB_ADDED, job="a")
    assert not log.flush(durable=False)
    assert "symbolic link" in str(log.error)
    assert (path.parent / "target").read_bytes() == b""
    path.unlink()
    assert log.flush(durable=False)


def test_another_process_writes_it(make_log: MakeLog, path: Path) -> None:
    """Two daemons in one log would number twice: the second is refused, until the first is gone."""
    program = (
        "import sys, pathlib; from taskmaster.audit import AuditLog;"
        "log = AuditLog(pathlib.Path(sys.argv[1]), max_bytes=0, backups=0);"
        "print('open', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(Held, match="another process writes this audit log"):
            make_log()
        other.communicate()
    make_log()


def test_reading_while_files_move(make_log: MakeLog, path: Path) -> None:
    """A rotation in the middle of reading shows no record twice and hides none."""
    log = make_log(max_bytes=300, backups=40)
    fill(log, 20)
    reader = read_records(path)
    seen = [next(reader)["seq"]]
    fill(log, 20)
    seen += [record["seq"] for record in reader]
    assert seen[:20] == list(range(1, 21))


def test_reading_leaves_out_a_line_that_is_being_written(path: Path) -> None:
    """The current file's last line counts once it has its line end."""
    line = json.dumps({"seq": 1, "timestamp": "t", "event": "e"})
    path.write_text(f'{line}\n{{"seq":2,"time')
    assert [record["seq"] for record in read_records(path)] == [1]


def test_reading_shows_damage(path: Path) -> None:
    """A line that is no record is neither hidden nor fatal, however long it is."""
    line = json.dumps({"seq": 1, "timestamp": "t", "event": "e"}).encode()
    path.write_bytes(b"x" * 200_000 + b"\n\xff\n" + line + b"\n")
    long, bad, good = read_records(path)
    assert (long["line"], len(long["damaged"])) == (1, 1024)
    assert bad == {"damaged": "\\xff", "file": str(path), "line": 2}
    assert good["seq"] == 1
