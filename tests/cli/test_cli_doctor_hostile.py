"""doctor and what may lie in a state directory, whoever put it there; what it knows of formats and kernels."""

from __future__ import annotations

import json
import os
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskmaster import procfs, syscalls
from taskmaster.cli import pidfd
from taskmaster.cli.doctor import jobs, kernel, looking, record, where, writers
from taskmaster.cli.doctor.examination import examine, show
from taskmaster.cli.doctor.looking import OK, PROBLEM, WARNING, Unusable
from taskmaster.watchdog import entry, marks, rendezvous
from taskmaster.watchdog import record as written

HOST = ("kernel", "open files", "/proc")


def doctor(state, again_after_s: float = 0.0):
    """What is found in this state directory, the host left out."""
    found = where.find(None, str(state), {}, os.geteuid())
    assert found is not None
    return [one for one in examine(found, again_after_s) if one.about not in HOST]


@pytest.fixture
def state(tmp_path):
    """A state directory with the folder of one job."""
    (tmp_path / "state/jobs/web").mkdir(parents=True)
    for folder in ("state", "state/jobs", "state/jobs/web"):
        (tmp_path / folder).chmod(0o700)
    return tmp_path / "state"


def job(state):
    """The findings about the one job of a state directory without a daemon."""
    daemon_gone = "none runs with this state directory"
    findings = [one for one in doctor(state) if daemon_gone not in one.text and one.level != OK]
    assert {one.about for one in findings} == {"job web"}, [one.text for one in findings]
    return findings


# formats -------------------------------------------------------------------------------------------


def test_same_formats_as_the_daemon():
    """What the doctor knows of the daemon's files, without importing it, is what the daemon has."""
    assert (record.FILE, record.FORMAT, record.MAX_BYTES) == (
        written.FILE,
        written.FORMAT,
        written.MAX_BYTES,
    )
    assert jobs.CRASH_FILE == entry.CRASH_FILE
    assert jobs.LINK == rendezvous.NAME
    assert writers.MARK == marks.INSTANCE_VARIABLE
    assert (pidfd._GET_INFO, pidfd._INFO_EXIT) == (
        syscalls._PIDFD_GET_INFO,
        syscalls._PIDFD_INFO_EXIT,
    )
    own = looking.process(os.getpid())
    same = procfs.stat(os.getpid())
    assert own is not None
    assert same is not None
    assert (own.ppid, own.session, own.start) == (same.ppid, same.session, same.start)
    assert looking.boot_id() == procfs.boot_id()


# records -------------------------------------------------------------------------------------------

GOOD = {
    "format": record.FORMAT,
    "job": "web",
    "boot_id": "b",
    "instance": "i",
    "places": [{"number": 0, "pid": 2, "start": 1, "session": None}, {"number": 999}],
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*GOOD, "number", "pid", "start"]), inner, max_size=5)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*GOOD, "spec"]), JSON, max_size=3), st.binary(max_size=20))
def test_any_record(changed, data):
    """Whatever the bytes are: a record in which everything is possible, or Unusable; nothing else."""
    for text in (json.dumps(GOOD | changed).encode(), data):
        try:
            found = record.parse(text, "web")
        except Unusable:
            continue
        assert len({one.number for one in found.places}) == len(found.places) <= 1000
        for one in found.places:
            assert 0 <= one.number < 1000
            assert (one.pid is None) == (one.start is None)
            assert one.pid is None or 1 < one.pid < 1 << 22
            one.alive()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 200000, "nested too deeply"),
        (b"[" + b"1" * 10000 + b"]", "not JSON"),
        (b"[]", "not a JSON object"),
        (json.dumps(GOOD | {"format": "\x1b" * 99}).encode(), "format '\\x1b"),
        (json.dumps(GOOD | {"job": "db"}).encode(), "of another job"),
        (json.dumps(GOOD | {"boot_id": 1}).encode(), "no boot_id"),
        (json.dumps(GOOD | {"places": {}}).encode(), "no list of processes"),
        (json.dumps(GOOD | {"places": [{}] * 1001}).encode(), "no list of processes"),
        (
            json.dumps(GOOD | {"places": [{"number": True}]}).encode(),
            "an impossible process number",
        ),
        (
            json.dumps(GOOD | {"places": [{"number": 0, "pid": 1, "start": 1}]}).encode(),
            "impossible",
        ),
        (json.dumps(GOOD | {"places": [{"number": 0, "pid": 2}]}).encode(), "impossible"),
        (
            json.dumps(GOOD | {"places": [{"number": 0}] * 2}).encode(),
            "two processes with one number",
        ),
    ],
)
def test_unusable_records(state, data, said):
    """Each is a finding that says why, never a traceback, and costs no time."""
    (state / "jobs/web/state.json").write_bytes(data)
    (found,) = job(state)
    assert found.level == PROBLEM
    assert said in found.text
    assert "the next watchdog sets it aside" in found.text


def test_recorded_process(state):
    """The recorded process is that of this boot with the same start time, and no other of its number."""
    own = looking.process(os.getpid())
    assert own is not None
    for boot_id, start in (("another", own.start), (looking.boot_id(), own.start + 1)):
        places = [{"number": 0, "pid": own.pid, "start": start}]
        text = json.dumps(GOOD | {"boot_id": boot_id, "places": places})
        (state / "jobs/web/state.json").write_text(text)
        (found,) = job(state)
        assert found.level == WARNING
        assert found.text.endswith("nothing of it runs")
    places = [{"number": 0, "pid": own.pid, "start": own.start}]
    text = json.dumps(GOOD | {"boot_id": looking.boot_id(), "places": places})
    (state / "jobs/web/state.json").write_text(text)
    (found,) = job(state)
    assert found.level == PROBLEM
    assert found.text.startswith(f"its processes (pid {own.pid}) run without a watchdog")


STATUS = st.dictionaries(
    st.sampled_from(["state", "reason", "watchdog", "definition"]),
    JSON
    | st.dictionaries(st.sampled_from(["pid", "state", "sha256"]), JSON)
    | st.sampled_from(["FATAL", "\x1b[2J"]),
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(STATUS)
def test_any_status(state, status):
    """Whatever a daemon says of a job, with a folder or without: findings, and nothing else."""
    around = jobs.Surroundings(
        str(state), owner=os.geteuid(), daemon=True, logs=[], start="start", ctl="ctl"
    )
    around.statuses = {"web": status, "\x1b": status}
    folder = looking.open_folder(str(state / "jobs"))
    try:
        for one in jobs.examine(folder, around):
            assert one.level in (OK, WARNING, PROBLEM)
            assert bool(one.mend) is (one.level != OK)
    finally:
        os.close(folder)


# files ---------------------------------------------------------------------------------------------


def _socket(path):
    with socket.socket(socket.AF_UNIX) as listener:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            listener.bind(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)


def _huge(path):
    path.touch()
    os.truncate(path, record.MAX_BYTES + 1)


def _linked(path):
    path.write_text(json.dumps(GOOD))
    os.link(path, path.with_name("other"))


def _open_to_all(path):
    path.write_text(json.dumps(GOOD))
    path.chmod(0o666)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.symlink_to("/etc/passwd"), "a symbolic link"),
        (lambda path: path.symlink_to(path), "a symbolic link"),
        (lambda path: path.mkdir(), "not a regular file"),
        (os.mkfifo, "not a regular file"),
        (_socket, "No such device or address"),
        (_huge, "16777217 bytes, over 16777216"),
        (_linked, "linked to by somebody else"),
        (_open_to_all, "writable or linked to by somebody else"),
    ],
)
def test_no_regular_record(state, make, said):
    """A state record that is something else is not followed, not waited for and not read."""
    make(state / "jobs/web/state.json")
    found = job(state)[0]
    assert found.level == PROBLEM
    assert said in found.text


def test_no_regular_lock(state):
    """Neither a job's lock nor the daemon's is followed or waited for."""
    os.mkfifo(state / "lock")
    (state / "jobs/web/lock").symlink_to("/etc/passwd")
    text = {one.about: one.text for one in doctor(state) if "its lock" in one.text}
    assert text == {
        "taskmasterd": "its lock cannot be looked at: not a regular file",
        "job web": "its lock cannot be looked at: a symbolic link",
    }


def test_no_folders(state, tmp_path):
    """A job's folder, all jobs' folder and the state directory itself as files and links; names that are none."""
    (state / "jobs/link").symlink_to(tmp_path)
    (state / "jobs/file").touch()
    (state / "jobs/-rf .tm.json").mkdir()
    about = {one.about: one for one in doctor(state) if one.level == PROBLEM}
    assert set(about) == {"taskmasterd", "job link", "job file"}
    assert "its folder cannot be looked into" in about["job link"].text
    os.rename(state / "jobs", state / "other")
    (state / "jobs").symlink_to("other")
    assert any("jobs cannot be looked into" in one.text for one in doctor(state))
    link = tmp_path / "link"
    link.symlink_to(state)
    for path, said in (
        (link, "a symbolic link to one"),
        (tmp_path / "none", "does not exist: no taskmasterd runs with it"),
        (tmp_path / "\x1b[2J\n", "does not exist"),
    ):
        (found,) = doctor(path)
        assert (found.level, found.about) == (PROBLEM, "state directory")
        assert said in found.text


def test_not_permitted(state, capsys):
    """What this user may not look into is a finding with the command that may; the exit status is 1."""
    before = os.geteuid()
    if before == 0:  # root may look into everything
        os.seteuid(65534)
    else:
        state.chmod(0)
    try:
        found = where.find(None, str(state), {}, os.geteuid())
        assert found is not None
        assert show(examine(found), found, as_json=False) == 1
    finally:
        os.seteuid(before)
        state.chmod(0o700)
    out = capsys.readouterr().out
    assert (
        f"problem  state directory: {state} is not for this user to look into; mend: sudo " in out
    )
    assert f"taskmasterctl doctor --state {state}\n" in out


def test_nothing_unescaped(tmp_path, capsys):
    """Names from the disk are shown, not sent to the terminal."""
    path = tmp_path / "\x1b[2J\n\u202e"
    found = where.find(None, str(path), {}, os.geteuid())
    assert found is not None
    show(examine(found), found, as_json=False)
    out = capsys.readouterr().out
    assert "\\x1b[2J\\n\\u202e does not exist" in out
    assert out.replace("\n", "").isprintable()


# where, and the host -------------------------------------------------------------------------------


def test_where(tmp_path):
    """Which state directory, which server, and how taskmasterctl and taskmasterd are to be called."""

    def of(server=None, state=None, **environ):
        found = where.find(server, state, {"HOME": str(tmp_path)} | environ, 1000)
        return found and (found.state, str(found.server), found.ctl, found.start)

    given = "taskmasterd (with the -c CONFIG it always has)"
    default = f"{tmp_path}/.local/state/taskmaster/run"
    assert of() == (default, f"{default}/control.sock", "taskmasterctl", "taskmasterd")
    runtime = str(tmp_path)
    assert of(XDG_RUNTIME_DIR=runtime) == (
        f"{runtime}/taskmaster",
        f"{runtime}/taskmaster/control.sock",
        "taskmasterctl",
        "taskmasterd",
    )
    os.makedirs(default)
    assert of(XDG_RUNTIME_DIR=runtime) == of()
    assert of("/a b/x.sock") == ("/a b", "/a b/x.sock", "taskmasterctl -c '/a b/x.sock'", given)
    assert of(TASKMASTER_SERVER="/a/x.sock") == ("/a", "/a/x.sock", "taskmasterctl", given)
    assert of(state="/s") == ("/s", "/s/control.sock", "taskmasterctl -c /s/control.sock", given)
    assert of("host:1", "/s") == ("/s", "host:1", "taskmasterctl -c host:1", given)
    assert of("host:1") is None
    assert of(TASKMASTER_SERVER="host:1") is None


@pytest.mark.parametrize(
    ("release", "missing", "found"),
    [
        ("6.18.2-arch1", [], [(OK, "6.18.2-arch1 has everything")]),
        ("6.14.0", [], [(WARNING, "6.14.0: no exit codes from PIDFD_GET_INFO")]),
        ("6.18.0", ["has_info"], [(WARNING, "no exit codes from PIDFD_GET_INFO")]),
        ("6.18.0", ["has_children"], [(WARNING, "no /proc/PID/task/TID/children")]),
        ("6.18.0", ["has_pidfd"], [(PROBLEM, "no pidfd_open")]),
        (
            "5.4.0-generic",
            ["has_info"],
            [(WARNING, "no close_range"), (WARNING, "no exit codes")],
        ),
        (
            "3.2",
            ["has_info", "has_pidfd"],
            [
                (PROBLEM, "no pidfd_open"),
                (PROBLEM, "no PR_SET_CHILD_SUBREAPER"),
                (WARNING, "no close_range"),
                (WARNING, "no exit codes"),
            ],
        ),
    ],
)
def test_kernels(release, missing, found):
    """What each kernel lacks, and how bad that is; every one that is not well has a remedy."""
    names = ("has_pidfd", "has_info", "has_children")
    findings = kernel.features(release, **{name: name not in missing for name in names})
    assert len(findings) == len(found)
    for one, (level, text) in zip(findings, found, strict=True):
        assert one.level == level
        assert text in one.text
        assert bool(one.mend) is (level != OK)


@pytest.mark.parametrize(
    ("options", "hides"),
    [
        ("rw,relatime", False),
        ("rw,hidepid=0", False),
        ("rw,hidepid=off,gid=5", False),
        ("rw,hidepid=2", True),
        ("hidepid=invisible,rw", True),
        ("rw,gid=5,hidepid=1", True),
    ],
)
def test_hidden_processes(options, hides):
    """A /proc that hides processes is a warning, but not to root; the last mount counts."""
    mounts = f"proc /proc proc rw 0 0\nx /mnt proc hidepid=2 0 0\nproc /proc proc {options} 0 0\n"
    assert [one.level for one in kernel.hidden(mounts, 1000)] == [WARNING] * hides
    assert [one.level for one in kernel.hidden(mounts, 0)] == [OK] * hides
