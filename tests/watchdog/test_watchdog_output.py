"""Output: every byte, once, in order; lines whole; files limited; what cannot be kept is counted."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import pty
import random
import resource
import tempfile
import tty
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from watchdog_children import isolated, killed, mounting, root_only, small_disk
from watchdog_pump import LOG, MakePump, Pump, content, files, numbered, opened

from taskmaster.watchdog.mover import PIPE_BYTES
from taskmaster.watchdog.output import LONGEST_LINE


def check_files(folder: Path, limit: int) -> None:
    """No line is torn, no file is longer than its last line makes it, none was ended too early."""
    found = files(folder)
    assert sorted(found) == list(range(len(found)))
    newest_first = [found[number] for number in range(len(found))]
    for newer, older in itertools.pairwise(newest_first):
        assert older.endswith(b"\n")
        assert older.rfind(b"\n", 0, -1) + 1 <= limit
        assert len(older) + len(newer.partition(b"\n")[0]) + 1 > limit
    last = newest_first[0]
    assert last[:-1].rfind(b"\n") + 1 <= limit


# every byte, once, whole lines ---------------------------------------------------------------------

Line = st.integers(0, 40) | st.integers(0, 6000)
Block = st.integers(1, 30) | st.integers(1, 20_000)


@settings(deadline=None, max_examples=60)
@given(
    lines=st.lists(Line, min_size=1, max_size=60),
    blocks=st.lists(Block, min_size=1, max_size=20),
    limits=st.lists(st.integers(1, 60) | st.integers(1, 9000), min_size=1, max_size=1),
    turns=st.lists(st.booleans(), min_size=1, max_size=10),
    tail=st.integers(0, 50),
    restart=st.booleans(),
)
def test_any_lines_in_any_blocks(
    lines: list[int],
    blocks: list[int],
    limits: list[int],
    turns: list[bool],
    tail: int,
    restart: bool,
) -> None:
    """Lines shorter and longer than the limit, written in blocks that end anywhere; pumped now and then."""
    text = (
        b"".join(b"%d:" % n + b"x" * length + b"\n" for n, length in enumerate(lines)) + b"t" * tail
    )
    with tempfile.TemporaryDirectory() as place:
        folder, state = Path(place, "log"), Path(place, "state")
        folder.mkdir()
        state.mkdir()
        pump = Pump(folder, state, limits[0])
        at, step = 0, 0
        while at < len(text):
            block = text[at : at + blocks[step % len(blocks)]]
            pump.write(block)
            at += len(block)
            if turns[step % len(turns)] and pump.waiting():
                pump.loop.turn()
            if restart and step == 3:
                job = os.dup(pump.job)  # the job holds its pipe while its watchdog is replaced
                pump.close()
                pump = Pump(folder, state, limits[0])
                os.close(job)
            step += 1
        pump.run()
        pump.close()
        assert content(folder) == text
        assert (pump.dropped, pump.errors) == (0, [])
        check_files(folder, limits[0])


@pytest.mark.parametrize("limit", [1, 997, 65_536, 300_000])
def test_many_writers(pump: MakePump, limit: int) -> None:
    """Processes that write at the same time, each its lines: each has all of its lines, whole, in order."""
    one = pump(limit, 10_000)
    os.set_blocking(one.job, True)
    writers = 4
    lines = 400 if limit > 1000 else 40  # a file a line: each rotation renames them all
    pids = []
    for writer in range(writers):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                dice = random.Random(writer)
                for number in range(lines):
                    line = b"%d %d %s\n" % (writer, number, b"." * dice.choice([0, 9, 300, 4000]))
                    os.write(one.job, line)
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    left = set(pids)
    while left:
        one.loop.call_in(0.01, lambda: None)
        one.loop.turn()
        for pid in list(left):
            if os.waitpid(pid, os.WNOHANG)[0]:
                left.discard(pid)
    one.run()
    seen: dict[int, int] = dict.fromkeys(range(writers), 0)
    for file in files(one_folder(one)).values():
        assert file == b"" or file.endswith(b"\n")
    for line in content(one_folder(one)).splitlines():
        writer, number, dots = line.split(b" ")
        assert int(number) == seen[int(writer)]
        assert dots.strip(b".") == b""
        seen[int(writer)] += 1
    assert set(seen.values()) == {lines}
    check_files(one_folder(one), limit)


def one_folder(pump: Pump) -> Path:
    """Where a pump writes."""
    return Path(os.readlink(f"/proc/self/fd/{pump.output._file.folder.fd}"))


def test_a_long_line(pump: MakePump, folder: Path) -> None:
    """The longest line that is promised is whole in any file; a longer one is divided, and nothing lost."""
    before, longest = numbered(0, 40), b"a" * (LONGEST_LINE - 1) + b"\n"
    one = pump(1000)
    one.put(before + longest + numbered(0, 5))
    check_files(folder, 1000)
    assert content(folder) == before + longest + numbered(0, 5)
    endless = b"b" * (3 * LONGEST_LINE) + b"\n"
    one.put(endless + numbered(0, 5))
    assert content(folder) == before + longest + numbered(0, 5) + endless + numbered(0, 5)
    assert max(map(len, files(folder).values())) <= 1000 + LONGEST_LINE + PIPE_BYTES
    assert one.dropped == 0


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_without_rotation(pump: MakePump, folder: Path, limit: int) -> None:
    """A limit of 0 is none: one file, behind what was there."""
    (folder / LOG).write_bytes(b"of last week\n")
    one = pump(limit)
    one.put(numbered(0, 30_000))
    assert files(folder) == {0: b"of last week\n" + numbered(0, 30_000)}


def test_a_new_file_is_not_for_everybody(pump: MakePump, folder: Path) -> None:
    """Mode 0640: output may hold secrets."""
    umask = os.umask(0)
    try:
        pump(100).put(numbered(0, 10))
    finally:
        os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o640}


@pytest.mark.parametrize(("size", "lines"), [(1, 100), (100, 400), (300, 1000)])
def test_closing_moves_all_that_is_left(
    pump: MakePump, folder: Path, size: int, lines: int
) -> None:
    """The job has ended, its pipe is full, files are small: every line of it is in a file at the end."""
    one = pump(size)
    text = numbered(0, lines)
    os.write(one.job, text)
    assert one.waiting() == len(text)
    one.close()
    assert content(folder) == text
    assert one.dropped == 0


def test_into_another_file(pump: MakePump, folder: Path, tmp_path: Path) -> None:
    """A changed definition: what came before is in the old file, what comes after in the new one."""
    other = tmp_path / "other"
    other.mkdir()
    one = pump(0)
    one.put(b"first\n")
    os.write(one.job, b"second\n")
    one.output.use(opened(other, "new.log"))
    one.put(b"third\n")
    assert content(folder) == b"first\nsecond\n"
    assert content(other, "new.log") == b"third\n"


def test_other_limits_at_any_time(pump: MakePump, folder: Path) -> None:
    """Smaller, none, fewer files: in force with the next line."""
    one = pump(0)
    one.put(numbered(0, 100))
    one.output.max_bytes = 100
    one.put(numbered(100, 107))
    assert files(folder) == {
        2: numbered(0, 100),
        1: numbered(100, 105),
        0: numbered(105, 107),
    }
    one.output.backups = 0
    one.put(numbered(107, 112))
    assert files(folder)[0] == numbered(110, 112)
    one.output.max_bytes = 0
    one.put(numbered(112, 200))
    assert files(folder)[0] == numbered(110, 200)


def test_a_chatty_job_does_not_hold_up_its_own_stop(pump: MakePump) -> None:
    """Output without end: the timer that stops it is served all the same."""
    one = pump(0, folder="/dev", name="null")
    os.set_blocking(one.job, True)
    pid = os.fork()
    if pid == 0:
        try:
            block = b"x" * 65536
            while True:
                os.write(one.job, block)
        finally:
            os._exit(1)
    fired: list[int] = []
    one.run(lambda: one.waiting() > 0)
    one.loop.call_in(0, lambda: fired.append(1))
    one.loop.turn()
    one.loop.turn()
    killed(pid)
    assert fired == [1]
    assert one.dropped == 0


# rotation ------------------------------------------------------------------------------------------


def expected_after(numbers: set[int], backups: int) -> dict[int, bytes]:
    """What the files hold after a rotation, said in another way: the newest move up to the first gap, and what
    follows on the last one that is kept goes."""
    surplus = set(itertools.takewhile(lambda number: number in numbers, range(backups + 1, 100)))
    old = {number: b"%d\n" % number for number in numbers - surplus}
    if backups == 0:
        return {**old, 0: b""}
    gap = next(number for number in range(1, 100) if number not in numbers or number == backups)
    moved = {number + 1: b"%d\n" % number for number in range(1, gap)}
    return {**old, **moved, 1: b"0\n", 0: b""}


@pytest.mark.parametrize("backups", range(6))
def test_numbers_after_a_rotation(tmp_path: Path, backups: int) -> None:
    """From any set of predecessors, with gaps or without: the newest are kept, in order."""
    for bits in range(16):
        numbers = {number for number in range(1, 5) if bits >> (number - 1) & 1}
        folder = tmp_path / f"log-{bits}"
        folder.mkdir()
        for number in numbers:
            (folder / f"{LOG}.{number}").write_text(f"{number}\n")
        (folder / LOG).write_text("0\n")
        log = opened(folder)
        log.open()
        log.rotate(backups)
        assert (log.size, log.at_line_start()) == (0, True)
        log.close()
        assert files(folder) == expected_after(numbers, backups)


class Killed(BaseException):
    """Stands for a SIGKILL between two system calls."""


@pytest.mark.parametrize("survived", range(4))
def test_a_rotation_that_was_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    """Killed after any of its renames: the next one loses nothing that was to be kept."""
    names = [LOG, *(f"{LOG}.{number}" for number in (1, 2, 3))]
    for number, name in enumerate(names):
        (tmp_path / name).write_text(f"{number}\n")
    rename = os.rename
    calls = []

    def until_killed(*names: str, **places: int) -> None:
        if len(calls) == survived:
            raise Killed
        calls.append(names)
        rename(*names, **places)

    log = opened(tmp_path)
    log.open()
    with monkeypatch.context() as dying:
        dying.setattr(os, "rename", until_killed)
        with pytest.raises(Killed):
            log.rotate(4)
    log.close()
    log = opened(tmp_path)
    log.open()
    log.rotate(4)
    log.close()
    found = files(tmp_path)
    assert b"".join(found[number] for number in sorted(found)) == b"0\n1\n2\n3\n"


# what is in the way --------------------------------------------------------------------------------


@pytest.mark.parametrize("exists", [True, False], ids=["to a file", "dangling"])
def test_a_symbolic_link_is_refused(
    pump: MakePump, folder: Path, tmp_path: Path, exists: bool
) -> None:
    """Who may write to the log folder must not choose what root writes to; output is counted meanwhile."""
    victim = tmp_path / "victim"
    if exists:
        victim.write_text("precious")
    (folder / LOG).symlink_to(victim)
    one = pump(100)
    one.put(numbered(0, 20))
    assert (one.dropped, set(one.errors)) == (400, {errno.ELOOP})
    assert victim.exists() == exists
    if exists:
        assert victim.read_text() == "precious"
    (folder / LOG).unlink()
    one.put(numbered(0, 3))
    assert files(folder) == {0: numbered(0, 3)}
    assert one.dropped == 400


def test_a_folder_of_that_name(pump: MakePump, folder: Path) -> None:
    """Counted, and the job is not held up."""
    (folder / LOG).mkdir()
    one = pump(100)
    one.put(numbered(0, 20_000))
    assert (one.dropped, set(one.errors)) == (400_000, {errno.EISDIR})


@pytest.mark.parametrize("limit", [0, 100])
def test_a_deleted_file_is_made_anew(pump: MakePump, folder: Path, limit: int) -> None:
    """An administrator removes the log of a running job: the next line is in a new one."""
    one = pump(limit)
    one.put(b"first\n")
    (folder / LOG).unlink()
    one.put(b"second\n")
    assert files(folder) == {0: b"second\n"}
    assert one.dropped == 0


@pytest.mark.parametrize("again", [True, False], ids=["made anew", "gone"])
def test_a_folder_that_was_removed(tmp_path: Path, state: Path, again: bool) -> None:
    """``rm -r`` of the logs of a running job: with a way to the folder it is made anew, else counted."""
    folder = tmp_path / "log"
    folder.mkdir()

    def reopen() -> int:
        folder.mkdir(exist_ok=True)
        return os.open(folder, os.O_RDONLY)

    one = Pump(folder, state, 100, reopen=reopen if again else None)
    one.put(numbered(0, 3))
    (folder / LOG).unlink()
    folder.rmdir()
    one.put(numbered(3, 20))
    if again:
        assert content(folder) == numbered(3, 20)
        assert one.dropped == 0
    else:
        assert not folder.exists()
        assert (one.dropped, set(one.errors)) == (340, {errno.ENOENT})
    one.close()


@pytest.mark.parametrize("backups", [0, 1, 3])
def test_a_file_that_was_moved_away(
    pump: MakePump, folder: Path, tmp_path: Path, backups: int
) -> None:
    """As a logrotate that renames does it: the next line is in a new file, and nothing is dropped."""
    one = pump(100, backups)
    one.put(numbered(0, 3))
    (folder / LOG).rename(tmp_path / "moved")
    one.put(numbered(3, 5))
    one.put(numbered(5, 9))
    assert (tmp_path / "moved").read_bytes() == numbered(0, 3)
    found = files(folder)
    assert found[0] == numbered(8, 9)
    assert found.get(1, numbered(3, 8)) == numbered(3, 8)
    assert (1 in found) == (backups > 0)
    assert one.dropped == 0


def test_a_file_that_was_emptied(pump: MakePump, folder: Path) -> None:
    """``: > file``, or logrotate's copytruncate: the next line is at its start, without a hole."""
    one = pump(10_000)
    one.put(numbered(0, 100))
    os.truncate(folder / LOG, 0)
    one.put(numbered(100, 103))
    assert files(folder) == {0: numbered(100, 103)}
    with open(folder / LOG, "ab") as file:
        file.write(b"a note of the administrator\n")
    one.put(b"next\n")
    assert files(folder)[0].endswith(b"a note of the administrator\nnext\n")


def test_devices(pump: MakePump) -> None:
    """/dev/null takes everything; /dev/full nothing, which is counted."""
    for name, dropped in (("null", 0), ("full", 300_000)):
        one = pump(100, folder="/dev", name=name)
        one.put(numbered(0, 15_000))
        assert one.dropped == dropped
        assert (one.errors == []) == (dropped == 0)
        one.close()


def received(fd: int) -> int:
    """How many bytes there are to be read."""
    os.set_blocking(fd, False)
    got = 0
    try:
        while block := os.read(fd, 65536):
            got += len(block)
    except BlockingIOError:
        pass
    return got


@pytest.mark.parametrize("what", ["pipe", "terminal"])
def test_a_log_that_nobody_reads(pump: MakePump, folder: Path, what: str) -> None:
    """A pipe or a terminal as the log, full: the loop sleeps, and every byte is accounted for."""
    if what == "pipe":
        os.mkfifo(folder / LOG)
        reading = os.open(folder / LOG, os.O_RDONLY | os.O_NONBLOCK)
        ends = [reading]
        one = pump(0)
    else:
        reading, terminal = pty.openpty()
        ends = [reading, terminal]
        tty.setraw(terminal)
        one = pump(0, folder="/dev/pts", name=os.path.basename(os.ttyname(terminal)))
    written = 0
    for _ in range(20):
        try:
            written += os.write(one.job, bytes(65536))
        except BlockingIOError:
            pass
        tick = one.loop.call_in(0.01, lambda: None)
        one.loop.turn()
        tick.cancel()
    turns: list[int] = []
    one.loop.after_turn = lambda: turns.append(1)
    one.loop.call_in(0.1, one.loop.stop)
    one.loop.run()
    assert written > 65536
    assert received(reading) + one.dropped + one.waiting() == written
    for fd in ends:
        os.close(fd)
    assert len(turns) <= 20


# no room -------------------------------------------------------------------------------------------


@mounting
@pytest.mark.parametrize("limit", [0, 7000, 1 << 20])
def test_a_full_disk_and_room_again(tmp_path: Path, state: Path, limit: int) -> None:
    """What does not fit is counted to the byte, the job runs on; with room again the next line is kept."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def watchdog() -> None:
        small_disk(disk, "64k")
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(20_000))
        pump = Pump(disk, state, limit)
        text = numbered(0, 20_000)
        pump.put(text)
        kept = content(disk)
        assert len(kept) + pump.dropped == len(text)
        assert pump.dropped > 300_000
        assert set(pump.errors) == {errno.ENOSPC}
        assert text.startswith(kept[: 20 * (len(kept) // 20)])
        dropped = pump.dropped
        ballast.unlink()
        pump.put(b"\n" + numbered(0, 100))
        assert pump.dropped == dropped
        assert content(disk).endswith(b"\n" + numbered(0, 100))
        pump.close()

    isolated(watchdog)


def test_a_file_that_may_not_grow(folder: Path, state: Path) -> None:
    """RLIMIT_FSIZE, a quota: the same, and the signal that comes with it ends nobody."""

    def watchdog() -> None:
        pump = Pump(folder, state, 0)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1010, hard))
        pump.put(numbered(0, 1000))
        assert content(folder) == numbered(0, 1000)[:1010]
        assert (pump.dropped, set(pump.errors)) == (20_000 - 1010, {errno.EFBIG})
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        pump.put(b"\nagain\n")
        assert content(folder).endswith(b"\nagain\n")
        assert pump.dropped == 20_000 - 1010
        pump.close()

    isolated(watchdog)


def test_no_descriptor_for_a_file(folder: Path, state: Path) -> None:
    """Nothing left to open: counted; with one again, kept."""

    def watchdog() -> None:
        pump = Pump(folder, state, 100)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        os.write(pump.job, numbered(0, 10))
        pump.run()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (pump.dropped, set(pump.errors)) == (200, {errno.EMFILE})
        pump.put(numbered(10, 13))
        assert content(folder) == numbered(10, 13)
        pump.close()

    isolated(watchdog)


@root_only
def test_no_room_for_larger_pipes(folder: Path, state: Path) -> None:
    """A user whose pipes are at the kernel's limit gets small ones; no line is lost through them."""

    def watchdog() -> list[int]:
        places = []
        for place in (folder, state):
            place.chmod(0o777)
            # Reached through its descriptor: the folders above it are not for that user.
            places.append(Path(f"/proc/self/fd/{os.open(place, os.O_RDONLY)}"))
        # A user of this test alone: the limit is one for all processes of a user.
        user = 2_000_000_000 + os.getpid()
        os.setgroups([])
        os.setresuid(user, user, user)
        size = int(Path("/proc/sys/fs/pipe-max-size").read_text())
        while size >= 65536:  # what a pipe has by default
            reading, _ = os.pipe()
            try:
                fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, size)
            except PermissionError:
                size //= 2
        pump = Pump(places[0], places[1], 1500)
        size = fcntl.fcntl(pump.job, fcntl.F_GETPIPE_SZ)
        pump.put(numbered(0, 2000))
        pump.close()
        return [size, pump.dropped]

    size, dropped = isolated(watchdog)
    assert size < PIPE_BYTES
    assert dropped == 0
    assert content(folder) == numbered(0, 2000)
    check_files(folder, 1500)
