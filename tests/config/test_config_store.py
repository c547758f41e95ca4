"""The job directory: what it reads, what it refuses, and what it remembers."""

import hashlib
import os
import socket
from datetime import datetime, timedelta, timezone

import pytest
from config_disk import STRANGER, UID, folder, needs_root, written

from taskmaster.config import history
from taskmaster.config.history import Version
from taskmaster.config.keys import MAX_BYTES
from taskmaster.config.store import JobStore
from taskmaster.errors import Conflict, FileError, InvalidJobName

A, B, C = b'{"cmd": "a"}', b'{"cmd": "b"}', b'{"cmd": "c"}'


def sha(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def jobs(tmp_path):
    """An empty job directory."""
    return folder(tmp_path / "jobs")


@pytest.fixture
def store(jobs):
    """A store whose clock advances by a second at each look."""
    seconds = iter(range(1000))
    start = datetime(2026, 11, 24, 9, 0, tzinfo=timezone.utc)
    return JobStore(jobs, UID, clock=lambda: start + timedelta(seconds=next(seconds)))


def refusal(call, *arguments, **named):
    with pytest.raises(FileError) as caught:
        call(*arguments, **named)
    return caught.value


def test_names(store, jobs):
    """Job files by name, sorted; bad names reported and shown safely; everything else ignored."""
    for name in ("web-1", "a", "web", "B.c"):
        written(jobs / f"{name}.tm.json", A)
    for entry in (
        "-x.tm.json",
        "a b.tm.json",
        "\x1b[2J.tm.json",
        "x.tm.json.tm.json",
        "x" * 65 + ".tm.json",
    ):
        written(jobs / entry, A)
    written(jobs / os.fsdecode(b"\xff.tm.json"), A)
    for entry in ("README", "a.json", ".hidden.tm.json", ".tm.json", "a.tm.json~", "a.tm.json.swp"):
        written(jobs / entry, A)
    folder(jobs / "deeper")
    written(jobs / "deeper/no.tm.json", A)
    found, bad = store.names()
    assert found == ["B.c", "a", "web", "web-1"]
    assert len(bad) == 6
    assert all(error.file.isprintable() and error.found and error.accepted for error in bad)


def test_directory_that_cannot_be_read_is_not_empty(store, jobs):
    """A directory that vanished is an error, so that nobody takes it for one without jobs."""
    jobs.rename(jobs.with_name("elsewhere"))
    assert "No such file" in refusal(store.names).found
    assert "No such file" in refusal(store.read, "web").found
    jobs.with_name("elsewhere").rename(jobs)
    assert store.names() == ([], [])


def test_read(store, jobs):
    """The exact bytes come back; a bad name and a missing file are told apart."""
    data = b'\xef\xbb\xbf{ "cmd": "a" ;; }\r\n\0'
    written(jobs / "web.tm.json", data, 0o644)
    assert store.read("web") == data
    assert "No such file" in refusal(store.read, "db").found
    for name in ("../web", "", "a/b", ".x", "web.tm.json"):
        with pytest.raises(InvalidJobName):
            store.read(name)


def test_refuses_what_is_not_trusted(store, jobs, tmp_path):
    """FIFOs, sockets, folders, files open to others, too large ones, links to such: each says what it is."""
    real = written(tmp_path / "real", A, 0o620)
    (jobs / "link.tm.json").symlink_to(real)
    os.mkfifo(jobs / "fifo.tm.json", 0o600)
    folder(jobs / "folder.tm.json")
    written(jobs / "group.tm.json", A, 0o620)
    written(jobs / "others.tm.json", A, 0o602)
    written(jobs / "large.tm.json", b" " * (MAX_BYTES + 1))
    written(jobs / "full.tm.json", b" " * MAX_BYTES)
    listener = socket.socket(socket.AF_UNIX)
    with listener:
        listener.bind(str(jobs / "sock.tm.json"))
    found = {
        name: refusal(store.read, name).found
        for name in ("link", "fifo", "folder", "group", "others", "large", "sock")
    }
    assert found == {
        "link": "mode 0620",
        "fifo": "a FIFO",
        "folder": "a folder",
        "group": "mode 0620",
        "others": "mode 0602",
        "large": f"over {MAX_BYTES} bytes",
        "sock": "No such device or address",
    }
    assert len(store.read("full")) == MAX_BYTES
    assert refusal(store.put, "link", B, who="t").found == "mode 0620"
    assert real.read_bytes() == A
    assert len(store.names()[0]) == 8


@needs_root
def test_refuses_files_of_strangers(store, jobs):
    """A file owned by neither root nor the daemon's user is refused; root's is fine for anybody."""
    os.chown(written(jobs / "web.tm.json", A), STRANGER, -1)
    assert refusal(store.read, "web").found == f"owner uid {STRANGER}"
    assert JobStore(jobs, STRANGER).read("web") == A


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o1777])
def test_refuses_a_directory_open_to_others(jobs, mode):
    """A job directory that others may write to is refused, sticky or not, also when that comes later."""
    store = JobStore(jobs, UID)
    jobs.chmod(mode)
    assert refusal(JobStore, jobs, UID).found == f"mode {mode:04o}"
    assert refusal(store.names).found == f"mode {mode:04o}"


@needs_root
def test_refuses_a_directory_of_strangers(jobs):
    """So is one that a stranger owns."""
    os.chown(jobs, STRANGER, -1)
    assert refusal(JobStore, jobs, UID).found == f"owner uid {STRANGER}"


def test_directory_is_made(tmp_path):
    """A missing directory is made for its owner alone; a file in its place, or a link to one, is refused."""
    JobStore(tmp_path / "etc/jobs", UID)
    assert (tmp_path / "etc/jobs").stat().st_mode & 0o7777 == 0o700
    (tmp_path / "link").symlink_to("file")
    refusal(JobStore, tmp_path / "link", UID)
    refusal(JobStore, written(tmp_path / "file", b""), UID)


def test_stamp(store, jobs):
    """A stamp stays while the file does, differs after any change, and is None without a file."""
    assert store.stamp("web") is None
    store.put("web", A, who="t")
    first = store.stamp("web")
    assert store.stamp("web") == first
    os.utime(jobs / "web.tm.json", ns=(1, 1))
    second = store.stamp("web")
    store.put("web", B, who="t")
    assert len({first, second, store.stamp("web")}) == 3


def test_put_read_history(store, jobs):
    """What is put is read back, in mode 0600, and each version stays with who, when and why."""
    assert store.put("web", A, who="uid 0", reason="first") == sha(A)
    assert store.put("web", B, who="uid 5") == sha(B)
    assert store.read("web") == B
    assert (jobs / "web.tm.json").stat().st_mode & 0o7777 == 0o600
    assert store.history("web") == [
        Version(1, sha(A), len(A), "put", "uid 0", "2026-11-24T09:00:00.000000Z", "first"),
        Version(2, sha(B), len(B), "put", "uid 5", "2026-11-24T09:00:01.000000Z", ""),
    ]
    assert store.version("web", 1) == A
    assert store.version("web", sha(B)) == B
    assert store.version("web", sha(A)[:8].upper()) == A
    assert (jobs / ".history").stat().st_mode & 0o7777 == 0o700
    assert (jobs / ".history/web").stat().st_mode & 0o7777 == 0o700
    assert store.names() == (["web"], [])
    names = sorted(os.listdir(jobs / ".history/web"))
    assert names[:2] == [f"000001-{sha(A)}.meta.json", f"000001-{sha(A)}.tm.json"]
    assert (jobs / f".history/web/000002-{sha(B)}.tm.json").read_bytes() == B


def test_edited_by_hand(store, jobs):
    """A version that an editor wrote is kept when it is replaced or deleted."""
    written(jobs / "web.tm.json", A)
    store.put("web", B, who="x")
    written(jobs / "web.tm.json", C)
    store.remove("web", who="y", reason="gone")
    assert store.stamp("web") is None
    actions = [(v.action, v.sha256, v.who) for v in store.history("web")]
    assert actions == [("replaced", sha(A), "x"), ("put", sha(B), "x"), ("deleted", sha(C), "y")]
    assert [store.version("web", n) for n in (1, 2, 3)] == [A, B, C]


def test_what_is_in_force_is_noted_once(store, jobs):
    """What an editor wrote is a version from the reload on; as often as it is read again, it is one."""
    written(jobs / "web.tm.json", A)
    for _ in range(2):
        store.note("web", A, who="at the start")
    store.put("web", B, who="x")
    store.note("web", B, who="y")
    store.remove("web", who="z")
    store.note("web", B, who="again")  # the same bytes, by hand, where there was no file
    actions = [(v.action, v.sha256, v.who) for v in JobStore(jobs, UID).history("web")]
    assert actions == [
        ("edited", sha(A), "at the start"),
        ("put", sha(B), "x"),
        ("deleted", sha(B), "z"),
        ("edited", sha(B), "again"),
    ]
    # It is not flushed to the disk: after a loss of power it may be short, and is then noted anew.
    (jobs / f".history/web/000004-{sha(B)}.tm.json").write_bytes(b"")
    store.note("web", B, who="after")
    assert store.version("web", sha(B)) == B
    assert [v.who for v in store.history("web")] == ["at the start", "x", "z", "after"]
    assert [v.number for v in store.history("web", 4, 2)] == [2, 3]


def test_only_over_the_file_that_is_meant(store, jobs):
    """With the hash of another file nothing is changed, and the error says what is there and whose it is."""

    def conflict(*arguments, **keys):
        before = store.stamp("web"), store.history("web")
        with pytest.raises(Conflict) as caught:
            store.put("web", *arguments, **keys)
        assert (store.stamp("web"), store.history("web")) == before
        return str(caught.value)

    assert "there is none" in conflict(A, who="x", if_hash=sha(A))
    store.put("web", A, who="alice", if_hash="")
    for wanted in ("", sha(B)):
        said = conflict(B, who="x", if_hash=wanted)
        assert sha(A) in said
        assert "by alice, version 1" in said
    assert store.put("web", B, who="bob", if_hash=sha(A)) == sha(B)
    written(jobs / "web.tm.json", C)
    assert "by other means" in conflict(A, who="x", if_hash=sha(B))
    store.remove("web", who="carol")
    assert "deleted by carol" in conflict(A, who="x", if_hash=sha(C))
    assert store.version_before("web").sha256 == sha(C)
    store.put("web", C, who="x", if_hash="", action="rolled-back")
    assert store.version_before("web").sha256 == sha(B)
    assert store.sha256("web") == sha(C)
    assert store.history("web")[-1].action == "rolled-back"


def test_nothing_to_do(store, jobs):
    """The same bytes again, and removing what is not there, change nothing."""
    store.put("web", A, who="t")
    before = store.stamp("web"), store.history("web")
    assert store.put("web", A, who="t") == sha(A)
    assert (store.stamp("web"), store.history("web")) == before
    store.remove("db", who="t")
    assert not (jobs / ".history/db").exists()
    assert store.history("db") == []


def test_no_such_version(store):
    """A version that is not there is an error which says what there is."""
    store.put("web", A, who="t")
    store.put("web", B, who="t")
    for which in (0, 3, -1, "f" * 64, sha(A)[:7], ""):
        assert refusal(store.version, "web", which).accepted == "1 to 2"
    assert refusal(store.version, "db", 1).accepted.startswith("none")


def test_damaged_history(store, jobs):
    """Damaged notes do not hide the bytes; damaged bytes are an error, never given out."""
    store.put("web", A, who="t")
    store.put("web", B, who="t")
    past = jobs / ".history/web"
    for garbage in (b"", b"{", b'{"number":1,"sha256":"\xff"}', b"[" * 60000, b"x" * 70000):
        written(past / f"000001-{sha(A)}.meta.json", garbage)
        assert [v.action for v in store.history("web")] == ["unknown", "put"]
        assert store.version("web", 1) == A
    written(past / f"000002-{sha(B)}.tm.json", A)
    assert sha(A) in refusal(store.version, "web", 2).found
    written(past / "notes.txt", b"mine")
    store.put("web", C, who="t")
    assert store.version("web", 3) == C
    assert (past / "notes.txt").exists()


def test_history_that_is_not_trusted(store, jobs, tmp_path):
    """A history that leads elsewhere, or that others may write to, is refused before anything is written."""
    (jobs / ".history").symlink_to(folder(tmp_path / "elsewhere"))
    refusal(store.put, "web", A, who="t")
    refusal(JobStore, jobs, UID)
    assert os.listdir(tmp_path / "elsewhere") == []
    assert store.stamp("web") is None
    (jobs / ".history").unlink()
    folder(jobs / ".history", 0o777)
    assert refusal(store.put, "web", A, who="t").found == "mode 0777"


def test_history_is_capped(store, jobs, monkeypatch):
    """Only the newest versions are kept, and their numbers go on counting."""
    monkeypatch.setattr(history, "KEPT", 5)
    for number in range(12):
        store.put("web", b'{"cmd":"%d"}' % number, who="t")
    numbers = [v.number for v in JobStore(jobs, UID).history("web")]
    assert numbers == [8, 9, 10, 11, 12]
    assert store.version("web", 12) == b'{"cmd":"11"}'
    assert len(os.listdir(jobs / ".history/web")) == 10


def test_limits(store):
    """Too much data is refused; long or unencodable notes are made to fit."""
    assert (
        refusal(store.put, "web", b" " * (MAX_BYTES + 1), who="t").found == f"{MAX_BYTES + 1} bytes"
    )
    store.put("web", b" " * MAX_BYTES, who="\udcff" + "w" * 5000, reason="\n\0")
    (version,) = store.history("web")
    assert version.who.startswith("?www")
    assert len(version.who) == 1024
    assert version.reason == "\n\0"


def test_leftovers_of_a_crash_go(store, jobs):
    """Temporary files of an earlier run are removed at the next start; other files are not touched."""
    written(jobs / ".put-0123456789abcdef.tmp", b"half")
    written(jobs / ".other.tmp", b"mine")
    JobStore(jobs, UID)
    assert sorted(os.listdir(jobs)) == [".other.tmp"]


def test_leaks_no_descriptors(store, jobs):
    """Every operation, also one that fails, closes what it opened."""

    def everything():
        store.put("web", A, who="t")
        store.put("web", B, who="t")
        store.history("web")
        store.version("web", 1)
        store.names()
        store.remove("web", who="t")
        refusal(store.read, "web")
        refusal(store.version, "web", 99)

    everything()
    before = len(os.listdir("/proc/self/fd"))
    everything()
    assert len(os.listdir("/proc/self/fd")) == before


def mounted(jobs, name="web"):
    """A job file as cluster managers mount it: a link to ..data/NAME, and that a link to a dated folder."""
    dated = folder(jobs / "..2026_11_28")
    written(dated / f"{name}.tm.json", A)
    (jobs / "..data").symlink_to(dated.name)
    (jobs / f"{name}.tm.json").symlink_to(f"..data/{name}.tm.json")
    return dated


def test_links_as_cluster_managers_mount_them(store, jobs):
    """They are read; the exchange of the dated folder is another state of the file; ``..data`` is no job."""
    mounted(jobs)
    assert store.read("web") == A
    assert store.names() == (["web"], [])
    before = store.stamp("web")
    other = folder(jobs / "..2026_11_29")
    written(other / "web.tm.json", B)
    (jobs / "..new").symlink_to(other.name)
    (jobs / "..new").rename(jobs / "..data")
    assert store.read("web") == B
    assert store.stamp("web") != before


def test_a_push_takes_the_place_of_a_link(store, jobs):
    """What the link led to stays as it was."""
    dated = mounted(jobs)
    store.put("web", B, who="t")
    assert store.read("web") == B
    assert not (jobs / "web.tm.json").is_symlink()
    assert (dated / "web.tm.json").read_bytes() == A
    store.remove("web", who="t")
    assert store.stamp("web") is None


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_every_folder_on_the_way_is_judged(store, jobs, mode, tmp_path):
    """One that others may write to refuses the file, wherever on the way it is."""
    dated = mounted(jobs)
    dated.chmod(mode)
    assert f"mode {mode:04o}" in refusal(store.read, "web").found
    dated.chmod(0o700)
    above = folder(tmp_path / "above")
    real = folder(above / "sites")
    written(real / "site.tm.json", A)
    (jobs / "site.tm.json").symlink_to(real / "site.tm.json")
    assert store.read("site") == A
    above.chmod(mode)
    assert f"{above}" in refusal(store.read, "site").found


@needs_root
def test_links_of_strangers(store, jobs, tmp_path):
    """In a folder that is open to all and sticky, a link is as good as its owner; so is a folder."""
    shared = folder(tmp_path / "shared", 0o1777)
    shared.chmod(0o1777)
    real = folder(tmp_path / "real")
    written(real / "web.tm.json", A)
    (shared / "way").symlink_to(real)
    (jobs / "web.tm.json").symlink_to(shared / "way/web.tm.json")
    assert store.read("web") == A
    os.chown(shared / "way", STRANGER, -1, follow_symlinks=False)
    assert f"owner uid {STRANGER}" in refusal(store.read, "web").found
    (shared / "way").unlink()
    os.chown(folder(shared / "way"), STRANGER, -1)
    assert f"owner uid {STRANGER}" in refusal(store.read, "web").found


def test_links_that_lead_nowhere(store, jobs):
    """To nothing, and in a circle: said in words, and the start of a daemon does not fail over it."""
    (jobs / "gone.tm.json").symlink_to("..data/gone.tm.json")
    (jobs / "ring.tm.json").symlink_to("ring.tm.json")
    assert refusal(store.read, "gone").found == "a link that leads to nothing"
    assert "circle" in refusal(store.read, "ring").found
    assert store.stamp("ring") is not None
    assert store.names()[0] == ["gone", "ring"]


def test_a_linked_directory(jobs, tmp_path):
    """It is used, and judged by what it leads to and by every folder on the way."""
    above = folder(tmp_path / "above")
    real = folder(above / "jobs")
    written(real / "web.tm.json", A)
    (tmp_path / "link").symlink_to(real)
    store = JobStore(tmp_path / "link", UID)
    assert store.read("web") == A
    store.put("web", B, who="t")
    assert (real / "web.tm.json").read_bytes() == B
    above.chmod(0o777)
    assert "mode 0777" in refusal(store.read, "web").found
