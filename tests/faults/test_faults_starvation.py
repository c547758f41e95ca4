"""No descriptors, no process numbers, no room on the disk: the reason is shown, and nobody else notices."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from running import Client, b64, process_start, query, unb64, wait_for

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
needs_unshare = pytest.mark.skipif(not shutil.which("unshare"), reason="no unshare here")


def watchdog_of(daemon, job):
    return daemon.status(job)["watchdog"]["pid"]


def set_limit(pid: int, kind: int, soft: int) -> None:
    _, hard = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (soft, hard))


@pytest.fixture
def two_jobs(daemon):
    """Two running jobs; the other one must never notice anything."""
    for name in ("web", "other"):
        daemon.job(name, ["sleep", "1000"])
    daemon.ask("restart")
    for name in ("web", "other"):
        daemon.wait_state(name, "RUNNING")
    pids = {name: daemon.pids(name) for name in ("web", "other")}
    yield daemon
    assert daemon.pids("other") == pids["other"]
    assert daemon.status("other")["processes"][0]["restarts"] == 0


def wait_reason(daemon, job: str, state: str, words: str) -> str:
    def found():
        status = daemon.status(job)
        return status["reason"] if status["state"] == state and words in status["reason"] else ""

    return wait_for(found, f"{job} is {state} for {words!r}")


def test_watchdog_without_descriptors(two_jobs):
    """EMFILE in a watchdog: BACKOFF with the reason, never FATAL; it goes on when there are some again."""
    daemon = two_jobs
    watchdog = watchdog_of(daemon, "web")
    set_limit(watchdog, resource.RLIMIT_NOFILE, 4)  # no new one may have a number over 3
    os.kill(daemon.pids("web")[0], signal.SIGKILL)
    wait_reason(daemon, "web", "BACKOFF", "Too many open files")
    set_limit(watchdog, resource.RLIMIT_NOFILE, 1024)
    daemon.wait_state("web", "RUNNING")
    assert watchdog_of(daemon, "web") == watchdog


def test_daemon_without_descriptors(two_jobs):
    """EMFILE in the daemon: those that knock are dropped, those that are there are served, and nothing spins."""
    daemon = two_jobs
    with Client(daemon.socket) as client:
        numbers = [int(number) for number in os.listdir(f"/proc/{daemon.pid}/fd")]
        set_limit(daemon.pid, resource.RLIMIT_NOFILE, max(numbers) + 3)
        before = cpu_ticks(daemon.pid)
        others = [daemon.client() for _ in range(max(numbers) + 20)]
        dropped = [other for other in others if was_dropped(other)]
        assert len(dropped) >= 10
        assert client.status("web")["state"] == "RUNNING"
        assert cpu_ticks(daemon.pid) - before < 200
        for other in others:
            other.close()
        set_limit(daemon.pid, resource.RLIMIT_NOFILE, 4096)
    assert daemon.status("web")["state"] == "RUNNING"


def was_dropped(client: Client) -> bool:
    """Whether the daemon has closed a connection instead of serving it."""
    try:
        client.send(query("list"))
        return client.frame() == b""
    except (BrokenPipeError, ConnectionResetError):
        return True


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@needs_root
def test_no_process_numbers(make_daemon):
    """EAGAIN on fork: BACKOFF with the reason; the watchdog and its other process go on."""
    # Another user, for whom process numbers can be limited, yet able to read this Python wherever it lies.
    prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    prefix += ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    daemon = make_daemon(prefix=prefix)
    daemon.job("web", ["sleep", "1000"], procNr=2)
    os.chown(daemon.folder, 65534, 65534)
    for path in daemon.folder.rglob("*"):
        os.chown(path, 65534, 65534)
    daemon.start()
    status = daemon.wait_state("web", "RUNNING")
    first, second = (one["pid"] for one in status["processes"])
    watchdog = status["watchdog"]["pid"]
    limit = [*prefix, "prlimit", "--pid", str(watchdog)]  # by its own user: root may lack the right
    subprocess.run([*limit, "--nproc=0:"], check=True)
    os.kill(first, signal.SIGKILL)
    wait_reason(daemon, "web", "BACKOFF", "fork: Resource temporarily unavailable")
    assert process_start(second) is not None
    subprocess.run([*limit, "--nproc=4096:"], check=True)
    status = daemon.wait_state("web", "RUNNING")
    assert status["processes"][1]["pid"] == second
    assert status["watchdog"]["pid"] == watchdog


class SmallDisk:
    """A tmpfs in a mount namespace of the daemon's own, reached from here through its init."""

    def __init__(self, daemon, folder: Path) -> None:
        self.inside = Path(f"/proc/{daemon.host.pid}/root{folder}")

    def fill(self) -> None:
        with open(self.inside / "filler", "ab", buffering=0) as file:
            for size in (65536, 4096, 512, 1):
                try:
                    while file.write(b"x" * size):
                        pass
                except OSError:
                    continue

    def empty(self) -> None:
        (self.inside / "filler").unlink()


@pytest.fixture
def on_small_disk(make_daemon, tmp_path):
    """Make a daemon whose folder ``log``, ``state`` or ``jobs`` is a disk of a megabyte."""

    def make(which: str):
        folder = tmp_path / "host" / which
        script = 'mkdir -p "$0" && mount -t tmpfs -o size=1m,mode=700 tmpfs "$0" && exec "$@"'
        prefix = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(folder)]
        daemon = make_daemon(prefix=prefix)
        wait_for(lambda: os.path.ismount(f"/proc/{daemon.host.pid}/root{folder}"))
        disk = SmallDisk(daemon, folder)
        if which == "log":
            daemon.audit_file = disk.inside / "audit.jsonl"
        if which == "state":
            daemon.socket = daemon.folder / "control.sock"
            daemon.configure(socket="control.sock")
        if which == "jobs":
            daemon.jobs = disk.inside
        return daemon, disk

    return make


@needs_root
@needs_unshare
def test_audit_log_on_a_full_disk(on_small_disk):
    """What changes something is refused and says so; stop, kill and status work; it recovers by itself."""
    daemon, disk = on_small_disk("log")
    for name in ("web", "db", "other"):
        daemon.job(name, ["sleep", "1000"], stdout=None, stderr=None)
    daemon.start()
    for name in ("web", "db", "other"):
        daemon.wait_state(name, "RUNNING")
    other = daemon.pids("other")
    disk.fill()
    with Client(daemon.socket) as client:
        wait_for(lambda: client.ask("start", "web")["response"] == "fail")
        refusals = {
            "start": client.ask("start", "web"),
            "reload": client.ask("reload", "web"),
            "restart": client.ask("restart"),
            "push": client.ask("push", "new", data='{"cmd":"true"}'),
            "delete": client.ask("delete", "web"),
        }
        for command, reply in refusals.items():
            assert reply["response"] == "fail", (command, reply)
            assert "audit log cannot be written" in reply["error"]
            assert "No space left on device" in reply["error"]
        assert client.ask("list")["response"] == "list"
        assert client.status("web")["state"] == "RUNNING"
        assert client.ask("pull", "web")["response"] == "file"
        assert client.ask("stop", "web", wait=30)["response"] == "success"
        assert client.ask("kill", "db", wait=30)["response"] == "success"
        assert client.status("web")["state"] == "STOPPED"
        disk.empty()
        wait_for(lambda: client.ask("start", "web")["response"] in ("success", "redundant"))
    assert daemon.pids("other") == other
    records = daemon.audit()
    assert [record["seq"] for record in records] == list(range(1, len(records) + 1))
    assert [one for one in records if one.get("command") == "stop" and "outcome" in one]


@needs_root
@needs_unshare
def test_output_on_a_full_disk(on_small_disk):
    """Output that cannot be kept is dropped, counted and shown; the job is not held up by it."""
    daemon, disk = on_small_disk("log")
    daemon.configure(auditFile=str(daemon.folder / "audit.jsonl"))
    daemon.audit_file = daemon.folder / "audit.jsonl"
    gate, counter = daemon.folder / "gate", daemon.folder / "counter"
    os.mkfifo(gate)
    script = f"read x < {gate}; head -c 3000000 /dev/zero; echo done > {counter}; exec sleep 1000"
    daemon.job("loud", ["/bin/sh", "-c", script])
    daemon.start()
    daemon.wait_state("loud", "RUNNING")
    disk.fill()
    gate.write_text("go\n")
    wait_for(counter.exists, "the job has written everything")
    wait_for(lambda: daemon.status("loud")["droppedBytes"] > 1_000_000)
    (record,) = wait_for(lambda: daemon.events("output.dropped", job="loud"))
    assert "No space left on device" in record["reason"]
    assert daemon.status("loud")["state"] == "RUNNING"


@needs_root
@needs_unshare
def test_state_record_on_a_full_disk(on_small_disk):
    """A watchdog that cannot record does not spawn; what runs runs on; it goes on when there is room."""
    daemon, disk = on_small_disk("state")
    for name in ("web", "other"):
        daemon.job(name, ["sleep", "1000"])
    daemon.start()
    for name in ("web", "other"):
        daemon.wait_state(name, "RUNNING")
    other = daemon.pids("other")
    (pid,) = daemon.pids("web")
    disk.fill()
    os.kill(pid, signal.SIGKILL)
    wait_reason(daemon, "web", "BACKOFF", "No space left on device")
    assert daemon.status("web")["alive"] == 0
    disk.empty()
    daemon.wait_state("web", "RUNNING")
    assert daemon.pids("other") == other
    assert daemon.status("other")["processes"][0]["restarts"] == 0


@needs_root
@needs_unshare
def test_push_on_a_full_disk(on_small_disk):
    """The push fails and says so; the file and the job stay as they were."""
    daemon, disk = on_small_disk("jobs")
    daemon.job("web", ["sleep", "1000"])
    daemon.start()
    daemon.wait_state("web", "RUNNING")
    pids = daemon.pids("web")
    before = unb64(b64(daemon.ask("pull", "web")["data"]))
    disk.fill()
    reply = daemon.ask("push", "web", data='{"cmd":"sleep 2000"}' + " " * 8192)
    assert reply["response"] == "fail"
    assert "No space left on device" in reply["error"]
    assert "the old state stays in force" in reply["error"]
    assert daemon.ask("push", "new", data='{"cmd":"sleep 1"}' + " " * 8192)["response"] == "fail"
    assert daemon.ask("pull", "web")["data"] == before
    assert daemon.ask("list")["data"] == b'{"jobs":[{"name":"web"}]}'
    assert daemon.pids("web") == pids
    disk.empty()
    assert daemon.ask("push", "web", data='{"cmd":"sleep 2000"}')["response"] == "success"
