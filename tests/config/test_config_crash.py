"""Killed, or refused by the disk, at any system call: the old file or the new one, and a history that reads."""

import errno
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from config_disk import ROOT, UID, folder, written

from taskmaster.config.store import JobStore
from taskmaster.errors import FileError

OLD, NEW, THIRD = b'{"cmd": "old"}', b'{"cmd": "new"}' * 3, b'{"cmd": "third"}'
#: Everything that changes a file or makes a change durable. Between two of these the disk is the same.
CALLS = (
    *("mkdir", "mkdirat", "write", "fsync"),
    *("rename", "renameat", "renameat2", "unlink", "unlinkat"),
)

CHILD = """
import os, sys
from pathlib import Path
from taskmaster.config.store import JobStore
store = JobStore(Path(sys.argv[1]), os.getuid())
try:
    if sys.argv[2] == "put":
        store.put("web", bytes.fromhex(sys.argv[3]), who="child")
    else:
        store.remove("web", who="child")
except OSError as error:
    os.dup2(os.open(sys.argv[4], os.O_RDWR | os.O_CREAT), 2)
    sys.exit(repr(error.errno) + " " + str(error))
"""


def sha(data):
    return hashlib.sha256(data).hexdigest()


def child(jobs, what, *tracing):
    """Run one change in a process of its own under strace; returns it and what its OSError said."""
    said = jobs.parent / "said"
    said.unlink(missing_ok=True)
    command = ["strace", "-f", "-qq", "-o", str(jobs.parent / "trace"), *tracing]
    command += [sys.executable, "-B", "-S", "-c", CHILD, str(jobs), what, NEW.hex(), str(said)]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    ran = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    return ran, said.read_text() if said.exists() else ""


def prepared(tmp_path):
    """A job directory whose job was put, and then edited by hand: every part of a put is used."""
    jobs = tmp_path / "jobs"
    shutil.rmtree(jobs, ignore_errors=True)
    folder(jobs)
    store = JobStore(jobs, UID)
    store.put("web", THIRD, who="parent")
    written(jobs / "web.tm.json", OLD)
    return jobs


def content(store):
    return store.read("web") if store.stamp("web") else None


def holds(jobs, what):
    """Check everything that must hold after a crash; returns whether the change came to pass."""
    after = NEW if what == "put" else None
    store = JobStore(jobs, UID)
    present = content(store)
    assert present in (OLD, after)
    assert not [name for name in os.listdir(jobs) if name.startswith(".put-")]
    assert not [name for name in os.listdir(jobs / ".history/web") if "pending" in name]
    versions = store.history("web")
    for version in versions:
        data = store.version("web", version.number)
        assert (sha(data), len(data)) == (version.sha256, version.size)
    kept = [(v.action, v.sha256) for v in versions]
    if present == OLD:
        assert kept == [("put", sha(THIRD))]
    elif what == "put":
        assert kept == [("put", sha(THIRD)), ("replaced", sha(OLD)), ("put", sha(NEW))]
    else:
        assert kept == [("put", sha(THIRD)), ("deleted", sha(OLD))]
    store.put("web", THIRD, who="parent")
    assert JobStore(jobs, UID).read("web") == THIRD
    return present == after


@pytest.fixture(scope="module")
def strace():
    """Skip where there is no strace, or where it may not trace."""
    command = ["strace", "-qq", "-e", "inject=getppid:signal=KILL", "-o", os.devnull]
    try:
        ran = subprocess.run(
            [*command, sys.executable, "-c", "import os; os.getppid()"], check=False
        )
    except FileNotFoundError:
        pytest.skip("no strace here")
    if ran.returncode not in (-signal.SIGKILL, 128 + signal.SIGKILL):
        pytest.skip("strace may not trace here")


def boundaries(tmp_path, what):
    """(system call, n-th use) for each in one undisturbed run."""
    jobs = prepared(tmp_path)
    ran, said = child(jobs, what, "-e", "trace=" + ",".join(f"?{call}" for call in CALLS))
    assert (ran.returncode, said) == (0, "")
    assert holds(jobs, what)
    traced = (tmp_path / "trace").read_text()
    counts = {call: len(re.findall(rf"\b{call}\(", traced)) for call in CALLS}
    return [(call, n) for call in CALLS for n in range(1, counts[call] + 1)]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("what", ["put", "remove"])
def test_killed_at_every_system_call(tmp_path, strace, what):
    """SIGKILL before each system call leaves the old state or the new one, and both do occur."""
    outcomes = set()
    for call, n in boundaries(tmp_path, what):
        jobs = prepared(tmp_path)
        ran, _ = child(jobs, what, "-e", f"inject={call}:signal=KILL:when={n}")
        assert ran.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), (call, n, ran)
        outcomes.add(holds(jobs, what))
    assert outcomes == {True, False}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("what", ["put", "remove"])
def test_disk_full_at_every_system_call(tmp_path, strace, what):
    """ENOSPC from each system call: what fails says what was tried, and the old file is in force."""
    failures = 0
    for call, n in boundaries(tmp_path, what):
        jobs = prepared(tmp_path)
        ran, said = child(jobs, what, "-e", f"inject={call}:error=ENOSPC:when={n}")
        left = [name for name in os.listdir(jobs / ".history/web") if "pending" in name]
        came_to_pass = content(JobStore(jobs, UID)) != OLD
        # A full disk gets back at once what was written for nothing.
        assert came_to_pass or not left, (call, n)
        if ran.returncode == 0:
            assert came_to_pass
        else:
            failures += 1
            assert said.startswith(f"{errno.ENOSPC} [Errno {errno.ENOSPC}] No space left"), ran
            assert "web.tm.json" in said
            assert ("old state stays" in said) != came_to_pass, said
        assert holds(jobs, what) == came_to_pass
    assert failures > 3


@pytest.mark.parametrize("what", ["put", "remove"])
def test_durable_in_order(tmp_path, strace, what):
    """History and new file are on disk before the job file changes, its folder right after that."""
    jobs = prepared(tmp_path)
    ran, _ = child(jobs, what, "-y", "-e", "trace=" + ",".join(f"?{call}" for call in CALLS))
    assert ran.returncode == 0
    steps = (tmp_path / "trace").read_text().splitlines()
    change = next(
        n
        for n, step in enumerate(steps)
        if "web.tm.json" in step and re.search("rename|unlink", step)
    )
    unsynced = set()
    for step in steps[:change]:
        path = re.search(r"(write|fsync)\(\d+<(.*?)>", step)
        if path and path.group(1) == "write":
            unsynced |= {path.group(2), os.path.dirname(path.group(2))}
        elif path:
            unsynced.discard(path.group(2))
    assert unsynced <= {str(jobs)}
    assert re.search(rf"fsync\(\d+<{re.escape(str(jobs))}>\) += 0", steps[change + 1])


def test_killed_at_random(tmp_path):
    """SIGKILL at any moment of a run of changes leaves a whole file and a history that reads."""
    jobs = folder(tmp_path / "jobs")
    contents = [b'{"cmd": "%d"}' % n * (n + 1) for n in range(6)]
    for delay in range(40):
        pid = os.fork()
        if pid == 0:
            _change_for_ever(jobs, contents)
        try:
            deadline = time.monotonic() + 20
            before = _inode(jobs)
            while _inode(jobs) == before:  # until the child is in the midst of it
                assert time.monotonic() < deadline
            until = time.monotonic() + delay * 0.0001
            while time.monotonic() < until:
                pass
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        store = JobStore(jobs, UID)
        assert content(store) in (None, *contents)
        versions = store.history("web")
        assert all(sha(store.version("web", v.number)) == v.sha256 for v in versions)
        assert [v.number for v in versions] == sorted({v.number for v in versions})
        last = versions[-1]
        present = content(store)
        assert last.action == ("deleted" if present is None else "put")
        assert present is None or sha(present) == last.sha256


def _change_for_ever(jobs, contents):
    try:
        store = JobStore(jobs, UID)
        while True:
            for data in contents:
                store.put("web", data, who="child")
            store.remove("web", who="child")
    except (OSError, FileError):
        os._exit(1)
    finally:
        os._exit(2)


def _inode(jobs):
    try:
        return os.stat(jobs / "web.tm.json").st_ino
    except FileNotFoundError:
        return None
