"""Output where the usual way is barred: no rename, no splice, others at the same file, readers that stop."""

from __future__ import annotations

import errno
import os
import resource
import select
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from watchdog_children import DEADLINE_S, ended, isolated, killed, mounting, small_disk
from watchdog_pump import LOG, PIPE, MakePump, Pump, content, files, numbered

from taskmaster import syscalls
from taskmaster.watchdog.inherited import Inherited
from taskmaster.watchdog.mover import PIPE_BYTES
from taskmaster.watchdog.output import UNREAD_S
from taskmaster.watchdog.outputfolder import Folder


def refuse(number: int) -> Callable[..., Any]:
    """A system call that is not to be had."""

    def call(*arguments: object, **more: object) -> Any:
        raise OSError(number, os.strerror(number))

    return call


# a file that cannot be rotated ---------------------------------------------------------------------

BARRED = [
    *(errno.EBUSY, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTEMPTY, errno.EISDIR),
    *(errno.ENOSPC, errno.EDQUOT, errno.EXDEV, errno.EIO, errno.ESTALE),
]


@pytest.mark.parametrize("number", BARRED, ids=errno.errorcode.get)
@pytest.mark.parametrize("backups", [0, 3])
def test_no_rename(
    pump: MakePump, folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, backups: int
) -> None:
    """Output goes on in the file that there is, told once; when it can be moved again, it is."""
    one = pump(100, backups)
    with monkeypatch.context() as barred:
        barred.setattr(Folder, "unlink" if backups == 0 else "rename", refuse(number))
        for at in range(0, 300, 3):
            one.put(numbered(at, at + 3))
        one.late_s += 1.5
        one.put(numbered(300, 310))
    assert files(folder) == {0: numbered(0, 310)}
    assert one.not_rotated == [number]
    one.late_s += 600
    one.put(numbered(310, 312))
    assert files(folder)[0] == numbered(310, 312)
    assert (one.dropped, len(one.not_rotated)) == (0, 1)


def test_rotations_that_fail_come_less_and_less_often(
    pump: MakePump, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No storm: within an hour of lines, a handful of attempts."""
    attempts: list[int] = []

    def rename(*names: str) -> None:
        attempts.append(1)
        raise OSError(errno.EBUSY, "")

    monkeypatch.setattr(Folder, "rename", rename)
    one = pump(100, 1)
    for at in range(3600):
        one.late_s += 1
        one.put(numbered(at, at + 1))
    assert 10 < len(attempts) < 25
    assert one.dropped == 0


@pytest.mark.parametrize("name", [f"{LOG}.1", f"{LOG}.2"])
def test_a_folder_called_like_a_generation(pump: MakePump, folder: Path, name: str) -> None:
    """It stays where it is, with what is in it; nothing is dropped."""
    (folder / f"{LOG}.1").write_text("older\n")
    (folder / name).unlink(missing_ok=True)
    (folder / name / "kept").mkdir(parents=True)
    one = pump(100, 2)
    one.put(numbered(0, 50))
    assert (folder / LOG).read_bytes() == numbered(0, 50)
    assert (folder / name / "kept").is_dir()
    assert (one.dropped, one.not_rotated) == (0, [errno.EISDIR])


@mounting
def test_a_file_that_is_mounted(folder: Path, state: Path) -> None:
    """A single file mounted into a container: the kernel will not have it renamed."""
    (folder / LOG).touch()

    def watchdog() -> None:
        small_disk(Path("/mnt"), "64k")  # for its mount namespace
        subprocess.run(
            ["mount", "--bind", str(folder / LOG), str(folder / LOG)], check=True, timeout=30
        )
        one = Pump(folder, state, 100, 3)
        for at in range(0, 100, 5):
            one.put(numbered(at, at + 5))
        assert files(folder) == {0: numbered(0, 100)}
        assert (one.dropped, one.not_rotated) == (0, [errno.EBUSY])
        one.close()

    isolated(watchdog)


def test_no_descriptor_for_the_next_file(folder: Path, state: Path) -> None:
    """A rotation does not give up the file that it has before it has the next one."""

    def watchdog() -> None:
        one = Pump(folder, state, 100, 3)
        one.put(numbered(0, 5))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        one.put(numbered(5, 50))
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert files(folder) == {0: numbered(0, 50)}
        assert (one.dropped, one.not_rotated) == (0, [errno.EMFILE])
        one.late_s += 600
        one.put(numbered(50, 52))
        assert files(folder) == {0: numbered(50, 52), 1: numbered(0, 50)}
        one.close()

    isolated(watchdog)


def test_a_limit_of_the_daemon_on_the_size_of_files(folder: Path, state: Path) -> None:
    """RLIMIT_FSIZE below logMaxBytes: the next file is begun early, nothing is dropped, no SIGXFSZ ends it."""

    def watchdog() -> None:
        one = Pump(folder, state, 1 << 20, 1000)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        one.put(numbered(0, 400))
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert one.dropped == 0
        assert content(folder) == numbered(0, 400)
        one.close()

    isolated(watchdog)


def test_an_append_only_file(folder: Path, state: Path) -> None:
    """``chattr +a``: neither to be opened as usual nor to be renamed; output is appended all the same."""
    (folder / LOG).write_text("before\n")
    if subprocess.run(["chattr", "+a", str(folder / LOG)], capture_output=True).returncode:
        pytest.skip("no append-only files here")
    try:
        one = Pump(folder, state, 100, 3)
        one.put(numbered(0, 20))
        assert files(folder) == {0: b"before\n" + numbered(0, 20)}
        assert (one.dropped, one.not_rotated) == (0, [errno.EPERM])
        one.close()
    finally:
        subprocess.run(["chattr", "-a", str(folder / LOG)], check=True)


@pytest.mark.parametrize("in_its_place", ["link", "folder"])
def test_something_else_in_its_place(pump: MakePump, folder: Path, in_its_place: str) -> None:
    """Somebody moves the file away and puts there what is no log: it goes on in the one that it has."""
    one = pump(1000)
    one.put(numbered(0, 3))
    (folder / LOG).rename(folder / "moved")
    if in_its_place == "link":
        (folder / LOG).symlink_to(folder / "victim")
    else:
        (folder / LOG).mkdir()
    one.put(numbered(3, 5))
    assert (folder / "moved").read_bytes() == numbered(0, 5)
    assert not (folder / "victim").exists()
    assert one.dropped == 0


# generations that are too many ---------------------------------------------------------------------


def test_fewer_backups_delete_what_is_too_many(pump: MakePump, folder: Path) -> None:
    """Ours alone: neither a folder nor what follows on a gap, and nothing beyond the old number."""
    one = pump(100, 6)
    one.put(numbered(0, 50))
    (folder / f"{LOG}.7").write_text("of somebody else")
    assert set(files(folder)) == {*range(7), 7} - {0} | {0}
    one.output.keep(2)
    assert set(files(folder)) == {0, 1, 2, 7}
    one.output.keep(4)
    assert set(files(folder)) == {0, 1, 2, 7}


def test_what_is_too_many_goes_with_the_next_rotation(pump: MakePump, folder: Path) -> None:
    """The number was lowered while nothing ran."""
    for number in range(1, 9):
        (folder / f"{LOG}.{number}").write_text(f"{number}\n")
    (folder / f"{LOG}.5").unlink()
    one = pump(100, 2)
    one.put(numbered(0, 7))
    assert set(files(folder)) == {0, 1, 2, 6, 7, 8}


# no splice -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number", [errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP], ids=errno.errorcode.get
)
@pytest.mark.parametrize("tee_too", [False, True], ids=["tee", "no tee"])
@pytest.mark.parametrize("limit", [0, 300, 100_000])
def test_no_splice(
    pump: MakePump,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    tee_too: bool,
    limit: int,
) -> None:
    """A file system or a sandbox that has none: every line once, whole, whatever the error is."""
    monkeypatch.setattr(os, "splice", refuse(number))
    if tee_too:
        monkeypatch.setattr(syscalls, "tee", refuse(number))
    one = pump(limit)
    text = numbered(0, 3000 if limit == 300 else 30_000)
    one.put(text)
    os.write(one.job, numbered(0, 40))
    one.close()
    assert content(folder) == text + numbered(0, 40)
    assert one.dropped == 0
    if limit == 300:
        assert all(len(data) <= 300 for data in files(folder).values())


@pytest.mark.parametrize("call", ["splice", "nothing"])
def test_nothing_is_dropped_in_memory(
    pump: MakePump, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A full device without splice: counted to the byte, and the job is not held up."""
    if call == "splice":
        monkeypatch.setattr(os, "splice", refuse(errno.ENOSYS))
        monkeypatch.setattr(syscalls, "tee", refuse(errno.ENOSYS))
    one = pump(0, folder="/dev", name="full")
    one.put(numbered(0, 15_000))
    assert (one.dropped, set(one.errors)) == (300_000, {errno.ENOSPC})


# others at the same file ---------------------------------------------------------------------------


def append_lines(path: Path, count: int, told: int) -> None:
    """As another program: open, append, close, as ``echo >> file`` does; then with one descriptor."""
    for number in range(count):
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"other %06d\n" % number)
        os.close(fd)
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    for number in range(count, 2 * count):
        os.write(fd, b"other %06d\n" % number)
    os.write(told, b"x")


@pytest.mark.parametrize("splices", [True, False], ids=["splice", "no splice"])
def test_what_another_program_appends_is_not_overwritten(
    pump: MakePump, folder: Path, monkeypatch: pytest.MonkeyPatch, splices: bool
) -> None:
    """Both write as fast as they can: every line of both is there, whole, in its order."""
    if not splices:
        monkeypatch.setattr(os, "splice", refuse(errno.EINVAL))
    one = pump(0)
    one.put(b"first\n")
    told, telling = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            append_lines(folder / LOG, 3000, telling)
        finally:
            os._exit(0)
    number = 0
    while not select.select([told], [], [], 0)[0]:
        one.put(numbered(number, number + 1))
        number += 1
    ended(pid)
    os.close(told)
    os.close(telling)
    lines = content(folder).splitlines(keepends=True)
    assert [line for line in lines if line.startswith(b"other")] == [
        b"other %06d\n" % at for at in range(6000)
    ]
    assert b"".join(line for line in lines if line.startswith(b"0")) == numbered(0, number)
    assert len(lines) == 6001 + number


def test_whoever_only_reads_changes_nothing(pump: MakePump, folder: Path) -> None:
    """``tail -f`` has the file open all the time: no lease is to be had, every line comes once."""
    one = pump(5000)
    one.put(numbered(0, 10))
    with open(folder / LOG, "rb") as reader:
        one.put(numbered(10, 2000))
        assert reader.read().startswith(numbered(0, 100))
    one.put(numbered(2000, 2300))
    assert content(folder) == numbered(0, 2300)
    # Given back each time: whoever opens the file is not kept waiting.
    os.close(os.open(folder / LOG, os.O_WRONLY | os.O_NONBLOCK))


def test_killed_while_it_copies(folder: Path, state: Path) -> None:
    """With a reader at the file, a watchdog that is killed may repeat a piece; every line is there, in order."""
    holder = Pump(folder, state, 0)
    (folder / LOG).touch()
    writer = os.fork()
    if writer == 0:
        try:
            job = os.open(state / PIPE, os.O_RDWR)
            for number in range(0, 60_000, 10):
                os.write(job, numbered(number, number + 10))
        finally:
            os._exit(0)
    with open(folder / LOG, "rb"):
        for _ in range(25):
            before = (folder / LOG).stat().st_size
            reader = os.fork()
            if reader == 0:
                try:
                    pump = Pump(folder, state, 0)
                    while pump.dropped == 0:
                        pump.loop.turn()
                finally:
                    os._exit(1)
            held = os.pidfd_open(reader)
            while (folder / LOG).stat().st_size == before and not select.select([held], [], [], 0)[
                0
            ]:
                if os.waitpid(writer, os.WNOHANG)[0]:
                    writer = 0
                    break
            os.close(held)
            killed(reader)
            if not writer:
                break
        while writer and os.waitpid(writer, os.WNOHANG) == (0, 0):
            holder.loop.call_in(0.01, lambda: None)
            holder.loop.turn()
        holder.run()
    holder.close()
    assert holder.dropped == 0
    whole = dict.fromkeys(line for line in content(folder).splitlines(keepends=True))
    assert set(numbered(0, 60_000).splitlines(keepends=True)) <= set(whole)


# readers that stop ---------------------------------------------------------------------------------


def test_a_pipe_that_is_full_makes_the_job_wait(pump: MakePump, folder: Path) -> None:
    """Its reader is slow: nothing is dropped, the loop sleeps, and all of it arrives."""
    os.mkfifo(folder / LOG)
    reading = os.open(folder / LOG, os.O_RDONLY | os.O_NONBLOCK)
    one = pump(0)
    text = numbered(0, 60_000)
    got, at = b"", 0
    while len(got) < len(text):
        try:
            at += os.write(one.job, text[at : at + 65536])
        except BlockingIOError:
            pass
        tick = one.loop.call_in(0.001, lambda: None)
        one.loop.turn()
        tick.cancel()
        try:
            got += os.read(reading, 3000 if len(got) < 50_000 else 1 << 20)
        except BlockingIOError:
            pass
    assert got == text
    assert one.dropped == 0
    os.close(reading)


def test_a_pipe_that_nobody_reads_any_more(pump: MakePump, folder: Path) -> None:
    """The job waits for UNREAD_S, then its output is dropped and counted; with a reader again it is kept."""
    os.mkfifo(folder / LOG)
    reading = os.open(folder / LOG, os.O_RDONLY | os.O_NONBLOCK)
    one = pump(0)
    full = False
    while not full:
        try:
            os.write(one.job, numbered(0, 100))
        except BlockingIOError:
            full = True
        tick = one.loop.call_in(0, lambda: None)
        one.loop.turn()
        tick.cancel()
    assert one.dropped == 0
    turns: list[int] = []
    one.loop.after_turn = lambda: turns.append(1)
    one.loop.call_in(0.1, one.loop.stop)
    one.loop.run()
    assert len(turns) < 5, "the loop does not sleep"
    one.late_s += UNREAD_S
    one.run(lambda: one.dropped)
    while select.select([reading], [], [], 0)[0]:
        os.read(reading, 1 << 20)
    one.put(b"again\n")
    assert os.read(reading, 100) == b"again\n"
    os.close(reading)


# the daemon's own output ---------------------------------------------------------------------------


def with_stdout(fd: int, state: Path, folder: Path, then: Callable[[Pump], None]) -> None:
    """In a process whose standard output that is."""

    def watchdog() -> None:
        os.dup2(fd, 1)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        one = Pump(folder, state, 10, file=Inherited(1))
        then(one)
        one.close()

    isolated(watchdog)


def test_inherited_file(folder: Path, state: Path) -> None:
    """``taskmasterd > file`` without appending: the daemon's lines and the job's follow on each other."""
    fd = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT)

    def both(one: Pump) -> None:
        for number in range(50):
            os.write(1, b"daemon\n")
            one.put(numbered(number, number + 1))

    with_stdout(fd, state, folder, both)
    os.close(fd)
    expected = b"".join(b"daemon\n" + numbered(number, number + 1) for number in range(50))
    assert (folder / LOG).read_bytes() == expected


@pytest.mark.parametrize("kind", ["pipe", "socket", "terminal"])
def test_inherited_and_full(folder: Path, state: Path, kind: str) -> None:
    """Nobody reads the daemon's output: its watchdog never blocks, nor does the descriptor become another."""
    if kind == "pipe":
        reading, writing = os.pipe()
    elif kind == "socket":
        ends = socket.socketpair()
        reading, writing = ends[0].detach(), ends[1].detach()
    else:
        reading, writing = os.openpty()

    def fill(one: Pump) -> None:
        for _ in range(40):
            try:
                os.write(one.job, numbered(0, 2000))
            except BlockingIOError:
                pass
            tick = one.loop.call_in(0, lambda: None)
            one.loop.turn()
            tick.cancel()
        assert one.dropped == 0
        assert one.waiting() > 0
        assert os.get_blocking(1)
        one.late_s += UNREAD_S
        one.run(lambda: one.dropped)

    with_stdout(writing, state, folder, fill)
    assert select.select([reading], [], [], DEADLINE_S)[0]
    assert os.read(reading, 20) in (numbered(0, 1), numbered(0, 1)[:-1] + b"\r")
    os.close(reading)
    os.close(writing)


def test_inherited_and_gone(folder: Path, state: Path) -> None:
    """The reader of the daemon's output has ended: what the job prints is counted, and nothing dies of it."""
    reading, writing = os.pipe()
    os.close(reading)

    def write(one: Pump) -> None:
        one.put(numbered(0, 3000))
        assert (one.dropped, set(one.errors)) == (60_000, {errno.EPIPE})

    with_stdout(writing, state, folder, write)
    os.close(writing)


def test_inherited_throughput_is_by_blocks(folder: Path, state: Path) -> None:
    """A pipe with a reader: all of it, in order."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writing)
        with open(reading, "rb") as file:
            os._exit(0 if file.read() == numbered(0, 3 * PIPE_BYTES // 20) else 1)
    os.close(reading)

    def write(one: Pump) -> None:
        os.close(writing)
        one.put(numbered(0, 3 * PIPE_BYTES // 20))
        os.close(1)

    with_stdout(writing, state, folder, write)
    os.close(writing)
    assert ended(pid) == 0
