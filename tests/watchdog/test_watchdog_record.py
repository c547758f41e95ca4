"""The state record: what was written is read, and nothing else ever is, whatever stands in the file."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from watchdog_children import isolated, mounting, root_only, small_disk

from taskmaster.core.lifecycle import ALIVE, Phase, Process
from taskmaster.core.spec import JobSpec, RestartPolicy
from taskmaster.core.states import Desired
from taskmaster.watchdog import record
from taskmaster.watchdog.record import NoticeRecord, PlaceRecord, StateRecord, UnusableRecord

BOOT = "11111111-2222-3333-4444-555555555555"

SPEC = JobSpec(
    "web",
    ("/usr/bin/nginx", "-g", "daemon off;"),
    proc_nr=2,
    restart=RestartPolicy.ALWAYS,
    env=(("KEY", "v\u00e4lue %n"),),
)
PLACES = (
    PlaceRecord(
        0,
        Process(Phase.RUNNING, Desired.UP),
        pid=4711,
        start=123456,
        session=4711,
        since_s=1795608000.25,
        up_at=17.5,
    ),
    PlaceRecord(
        1,
        Process(Phase.BACKOFF, Desired.UP, failures=2),
        due_at=99.25,
        restarts=3,
        exit_code=1,
        ended=True,
        error="exec /usr/bin/nginx: No such file or directory",
    ),
)
NOTICES = (NoticeRecord(7, "process.exited", 1795608000.5, {"number": 1, "exitCode": 1}),)
RECORD = StateRecord(
    format=record.FORMAT,
    job="web",
    boot_id=BOOT,
    instance="i-1",
    ledger="l-1",
    spec=SPEC,
    sha256="00ff",
    gaps=1,
    inherited=((4712, 123457),),
    next_notice=8,
    places=PLACES,
    notices=NOTICES,
)


def changed(**fields: Any) -> StateRecord:
    """The record with other values, also ones that no watchdog would write."""
    return msgspec.structs.replace(RECORD, **fields)


def place(**fields: Any) -> tuple[PlaceRecord, ...]:
    """Places of which the first has other values."""
    return (msgspec.structs.replace(PLACES[0], **fields), PLACES[1])


def put(state: Path, data: bytes) -> None:
    """Put bytes where the record is."""
    path = state / record.FILE
    path.write_bytes(data)
    path.chmod(0o600)


# what was written is read --------------------------------------------------------------------------

Text = st.text(st.characters(codec="utf-8"), max_size=20)
Moment = st.floats(0, 1e10)
MaybeMoment = st.none() | Moment
Json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | Moment | Text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(Text, inner, max_size=3),
    max_leaves=5,
)
Identity = st.none() | st.tuples(st.integers(2, (1 << 22) - 1), st.integers(0, 2**63))


@st.composite
def placed(draw: st.DrawFn, number: int, identity: tuple[int, int] | None) -> PlaceRecord:
    """A place, with a process or without, in a phase in which that may be."""
    running = {Phase.STARTING, Phase.RUNNING}
    phases = sorted(ALIVE - {Phase.CLEARING} if identity else set(Phase) - running)
    times = st.integers(0, 2**31)
    process = st.builds(
        Process, st.sampled_from(phases), st.sampled_from(Desired), times, times, st.booleans()
    )
    return PlaceRecord(
        number,
        draw(process),
        pid=identity[0] if identity else None,
        start=identity[1] if identity else None,
        since_s=draw(Moment),
        up_at=draw(MaybeMoment),
        due_at=draw(MaybeMoment),
        restarts=draw(times),
        exit_code=draw(st.none() | st.integers(0, 255)),
        exit_signal=draw(st.none() | st.integers(1, 64)),
        exit_unknown=draw(st.booleans()),
        ended=draw(st.booleans()),
        left=draw(times),
        left_pids=tuple(draw(st.lists(st.integers(2, (1 << 22) - 1), max_size=3))),
        killing=draw(st.booleans()),
        stop_signal=draw(st.integers(0, 64)),
        asked=tuple(draw(st.lists(st.tuples(times, times), max_size=3))),
        error=draw(Text),
    )


@st.composite
def records(draw: st.DrawFn) -> StateRecord:
    """Any record that a watchdog may write."""
    times = st.integers(0, 2**63)
    identities = draw(
        st.lists(Identity, max_size=4, unique_by=lambda one: one[0] if one else object())
    )
    numbers = draw(
        st.lists(
            st.integers(0, 999), min_size=len(identities), max_size=len(identities), unique=True
        )
    )
    places = tuple(
        draw(placed(number, one)) for number, one in zip(numbers, identities, strict=True)
    )
    spec = JobSpec(
        "web",
        tuple(draw(st.lists(Text, min_size=1, max_size=3))),
        env=tuple(draw(st.lists(st.tuples(Text, Text), max_size=3))),
        stdout=draw(st.none() | Text),
        restart=draw(st.sampled_from(RestartPolicy)),
        stop_time_s=draw(Moment),
        umask=draw(st.integers(0, 0o777)),
    )
    notices = draw(
        st.lists(
            st.builds(
                NoticeRecord,
                st.integers(0, 2**40),
                Text,
                Moment,
                st.dictionaries(Text, Json, max_size=3),
            ),
            max_size=3,
        )
    )
    inherited = tuple(draw(st.lists(st.tuples(st.integers(2, 4194303), times), max_size=3)))
    return changed(
        instance=draw(Text),
        ledger=draw(Text),
        inherited=inherited,
        spec=spec,
        places=places,
        notices=tuple(notices),
    )


@settings(deadline=None, max_examples=50)
@given(st.lists(records(), min_size=1, max_size=3))
def test_what_was_written_is_read(written: list[StateRecord]) -> None:
    """Any record, after any others: the last one, equal in every value and type."""
    with tempfile.TemporaryDirectory() as place:
        directory = os.open(place, os.O_RDONLY)
        try:
            for one in written:
                record.write(directory, one)
                assert record.read(directory, "web", BOOT) == one
            assert os.listdir(place) == [record.FILE]
        finally:
            os.close(directory)


def test_nobody_else_may_read_it(directory: int, state: Path) -> None:
    """Mode 0600 whatever the umask: it holds the values of ``env``."""
    umask = os.umask(0)
    try:
        record.write(directory, RECORD)
    finally:
        os.umask(umask)
    assert (state / record.FILE).stat().st_mode & 0o777 == 0o600


def test_none_and_removed(directory: int, state: Path) -> None:
    """No record is an ordinary state, and removing what is not there is no error."""
    assert record.read(directory, "web", BOOT) is None
    record.remove(directory)
    record.write(directory, RECORD)
    (state / f"{record.FILE}.new").write_text("torn")
    record.remove(directory)
    assert list(state.iterdir()) == []
    assert record.read(directory, "web", BOOT) is None


def test_of_another_boot(directory: int) -> None:
    """None of its processes exists any more: it is as if there were none, even of another format."""
    record.write(directory, changed(boot_id=BOOT.replace("1", "2")))
    assert record.read(directory, "web", BOOT) is None
    record.write(directory, changed(boot_id="", format=99))
    assert record.read(directory, "web", BOOT) is None


# what stands there otherwise -----------------------------------------------------------------------


def test_torn_anywhere(directory: int, state: Path) -> None:
    """Every proper prefix is refused in words; only the whole is read."""
    whole = msgspec.json.encode(RECORD)
    for length in range(len(whole)):
        put(state, whole[:length])
        with pytest.raises(UnusableRecord, match=r"^state\.json: "):
            record.read(directory, "web", BOOT)
    put(state, whole)
    assert record.read(directory, "web", BOOT) == RECORD


def test_damaged_anywhere(directory: int, state: Path) -> None:
    """Bytes changed, lost or doubled at random: refused, or a record that keeps every rule."""
    dice = random.Random(9)
    whole = msgspec.json.encode(RECORD)
    refused = 0
    for _ in range(1500):
        data = bytearray(whole)
        for _ in range(dice.choice([1, 1, 1, 3])):
            at = dice.randrange(len(data))
            what = dice.randrange(3)
            if what == 0:
                data[at] = dice.choice([dice.randrange(256), *b'0"{}[],:-e'])
            elif what == 1:
                del data[at : at + dice.randrange(20)]
            else:
                data[at:at] = data[at : at + dice.randrange(20)]
        put(state, bytes(data))
        try:
            found = record.read(directory, "web", BOOT)
        except UnusableRecord:
            refused += 1
            continue
        if found is not None:
            assert (found.format, found.job, found.spec.job) == (record.FORMAT, "web", "web")
            assert all((one.pid is None) == (one.start is None) for one in found.places)
            assert all(one.pid is None or one.pid > 1 for one in found.places)
    assert refused > 700


FIELDS = json.loads(msgspec.json.encode(RECORD))
HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"\x7fELF\0\0\0",
    "not UTF-8": msgspec.json.encode(RECORD).replace(b"nginx", b"ngi\xff", 1),
    "half a surrogate": msgspec.json.encode(RECORD).replace(b"nginx", b"\\ud800", 1),
    "a list": b"[]",
    "null": b"null",
    "two records": msgspec.json.encode(RECORD) * 2,
    "deep": b'{"notices":' + b"[" * 100_000,
    "deep fields": msgspec.json.encode(RECORD).replace(
        b'"fields":{', b'"fields":{"x":' + b'{"x":' * 100_000, 1
    ),
    "unknown key": json.dumps(FIELDS | {"more": 1}).encode(),
    "missing key": json.dumps({key: FIELDS[key] for key in FIELDS if key != "sha256"}).encode(),
    "wrong type": json.dumps(FIELDS | {"places": {}}).encode(),
    "a number that is none": msgspec.json.encode(RECORD).replace(b"4711", b"1e999", 1),
    "a number too large": msgspec.json.encode(RECORD).replace(b"4711", b"9" * 50, 1),
    "a truth as pid": msgspec.json.encode(RECORD).replace(b"4711", b"true", 1),
    "a text as pid": msgspec.json.encode(RECORD).replace(b"4711", b'"4711"', 1),
    "unknown phase": msgspec.json.encode(RECORD).replace(b'"RUNNING"', b'"FLYING"', 1),
    "format": msgspec.json.encode(changed(format=record.FORMAT + 1)),
    "another job": msgspec.json.encode(changed(job="db")),
    "spec of another job": msgspec.json.encode(
        changed(spec=msgspec.structs.replace(SPEC, job="db"))
    ),
    "pid 0": msgspec.json.encode(changed(places=place(pid=0))),
    "pid 1": msgspec.json.encode(changed(places=place(pid=1))),
    "pid -1": msgspec.json.encode(changed(places=place(pid=-1))),
    "pid over all": msgspec.json.encode(changed(places=place(pid=1 << 22))),
    "pid without start": msgspec.json.encode(changed(places=place(start=None))),
    "start without pid": msgspec.json.encode(changed(places=place(pid=None))),
    "a pid twice": msgspec.json.encode(
        changed(places=(PLACES[0], msgspec.structs.replace(PLACES[0], number=1)))
    ),
    "a number twice": msgspec.json.encode(changed(places=(PLACES[1], PLACES[1]))),
    "RUNNING without a process": msgspec.json.encode(changed(places=place(pid=None, start=None))),
    "FATAL with a process": msgspec.json.encode(
        changed(places=place(process=Process(Phase.FATAL)))
    ),
    "number -1": msgspec.json.encode(changed(places=place(number=-1))),
    "number 1000": msgspec.json.encode(changed(places=place(number=1000))),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_content(directory: int, state: Path, what: str) -> None:
    """Refused in words of one line, whatever it is meant to do."""
    put(state, HOSTILE[what])
    with pytest.raises(UnusableRecord) as refused:
        record.read(directory, "web", BOOT)
    said = str(refused.value)
    assert said.startswith("state.json: ")
    assert len(said) < 300
    assert said.isprintable()


def test_too_large(directory: int, state: Path) -> None:
    """A file over the cap is not read into memory, and one that claims to be small is read to the cap."""
    put(state, b"")
    os.truncate(state / record.FILE, record.MAX_BYTES + 1)
    with pytest.raises(UnusableRecord, match="over 16777216"):
        record.read(directory, "web", BOOT)


OBSTACLES: dict[str, Callable[[Path], Any]] = {
    "folder": lambda path: path.mkdir(),
    "pipe": lambda path: os.mkfifo(path, 0o600),
    "socket": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
    "link": lambda path: (path.with_name("x").write_bytes(b"{}"), path.symlink_to("x")),
    "dangling link": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("what", OBSTACLES)
def test_something_else_of_that_name(directory: int, state: Path, what: str) -> None:
    """Refused at once, never followed, never waited on."""
    OBSTACLES[what](state / record.FILE)
    with pytest.raises(UnusableRecord, match=r"^state\.json: "):
        record.read(directory, "web", BOOT)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.chmod(0o620),
        lambda path: path.chmod(0o602),
        lambda path: os.link(path, path.with_name("second")),
        pytest.param(lambda path: os.chown(path, 65534, 0), marks=root_only),
    ],
    ids=["group may write", "others may write", "two names", "another owner"],
)
def test_somebody_elses(directory: int, state: Path, spoil: Callable[[Path], None]) -> None:
    """A right record that somebody else could have written is not believed."""
    record.write(directory, RECORD)
    spoil(state / record.FILE)
    with pytest.raises(UnusableRecord, match=r"somebody else|one name"):
        record.read(directory, "web", BOOT)


def test_no_descriptor_to_read_it() -> None:
    """Short of descriptors, the record is not unusable: who took it for that would start a second copy."""

    def watchdog() -> str:
        with tempfile.TemporaryDirectory() as place:
            directory = os.open(place, os.O_RDONLY)
            record.write(directory, RECORD)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            try:
                record.read(directory, "web", BOOT)
            except OSError as error:
                return errno.errorcode[error.errno or 0]
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return "read"

    assert isolated(watchdog) == "EMFILE"


# writing that fails --------------------------------------------------------------------------------


def test_a_file_that_may_not_grow(directory: int) -> None:
    """Cut off at any length: an error, and the old record is the record; with room again the new one."""
    new = changed(next_notice=9)
    length = len(msgspec.json.encode(new))

    def watchdog() -> int:
        record.write(directory, RECORD)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        failed = 0
        for limit in range(0, length + 1, 7):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            try:
                record.write(directory, new)
            except OSError as error:
                assert error.errno in (errno.EFBIG, errno.ENOSPC)  # noqa: PT017
                failed += 1
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            assert record.read(directory, "web", BOOT) == (RECORD if limit < length else new)
        record.write(directory, new)
        assert record.read(directory, "web", BOOT) == new
        return failed

    assert isolated(watchdog) == len(range(0, length, 7))


@mounting
def test_a_full_disk(tmp_path: Path) -> None:
    """ENOSPC is raised, also where there is room for a part; the old record stays; stop can go on."""
    large = changed(instance="x" * 100_000)

    def watchdog() -> None:
        small_disk(tmp_path, "64k")
        directory = os.open(tmp_path, os.O_RDONLY)
        record.write(directory, RECORD)
        with pytest.raises(OSError, match="No space left"):
            record.write(directory, large)
        assert record.read(directory, "web", BOOT) == RECORD
        record.write(directory, changed(next_notice=9))
        with open(tmp_path / "ballast", "wb", buffering=0) as ballast:
            try:
                while ballast.write(bytes(4096)):
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017
        with pytest.raises(OSError, match="No space left"):
            record.write(directory, changed(next_notice=10))
        assert record.read(directory, "web", BOOT) == changed(next_notice=9)
        record.remove(directory)
        assert record.read(directory, "web", BOOT) is None
        os.close(directory)

    isolated(watchdog)


def test_something_in_the_way_of_the_new_one(directory: int, state: Path, tmp_path: Path) -> None:
    """A torn one of a watchdog that was killed is written over; a link is not followed."""
    new = state / f"{record.FILE}.new"
    new.write_bytes(b"x" * 100_000)
    record.write(directory, RECORD)
    assert record.read(directory, "web", BOOT) == RECORD
    victim = tmp_path / "victim"
    victim.write_text("precious")
    new.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"):
        record.write(directory, changed(next_notice=9))
    assert victim.read_text() == "precious"
    assert record.read(directory, "web", BOOT) == RECORD


def test_killed_at_any_moment(directory: int) -> None:
    """A writer killed over and over: there is always a whole record, never older than one that was done."""
    moments = random.Random(4)
    done = 0
    record.write(directory, changed(next_notice=0))
    for _ in range(20):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            number = done
            try:
                while True:
                    number += 1
                    record.write(directory, changed(next_notice=number))
                    os.write(writing, b"%d\n" % number)
            finally:
                os._exit(1)
        os.close(writing)
        told = b""
        for _ in range(moments.randint(1, 5)):
            told += os.read(reading, moments.randint(1, 500))
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        while block := os.read(reading, 65536):
            told += block
        os.close(reading)
        done = max(done, *map(int, told.split()))
        found = record.read(directory, "web", BOOT)
        assert found is not None
        assert found.next_notice - done in (0, 1)
        done = found.next_notice
