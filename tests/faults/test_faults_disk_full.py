"""The disk is full: what changes something is refused, jobs run on, lost output is counted and shown."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from faults_reasons import wait_reason
from running import Client, b64, unb64, wait_for
from strangers import NOBODY, as_user

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
needs_unshare = pytest.mark.skipif(not shutil.which("unshare"), reason="no unshare here")


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
def test_audit_log_on_a_full_disk(on_small_disk, bystander):
    """What changes something is refused and says so; stop, kill and status work; it recovers by itself."""
    daemon, disk = on_small_disk("log")
    daemon.configure(auditReserveBytes=0)
    for name in ("web", "db"):
        daemon.job(name, ["sleep", "1000"], stdout=None, stderr=None)
    other = bystander(daemon)
    daemon.start()
    other.begins()
    for name in ("web", "db"):
        daemon.wait_state(name, "RUNNING")
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
        other.notices_nothing()
        assert client.ask("pull", "web")["response"] == "file"
        assert client.ask("stop", "web", wait=30)["response"] == "success"
        assert client.ask("kill", "db", wait=30)["response"] == "success"
        assert client.status("web")["state"] == "STOPPED"
        disk.empty()
        wait_for(lambda: client.ask("start", "web")["response"] in ("success", "redundant"))
    other.notices_nothing()
    records = daemon.audit()
    assert [record["seq"] for record in records] == list(range(1, len(records) + 1))
    assert [one for one in records if one.get("command") == "stop" and "outcome" in one]


@needs_root
@needs_unshare
def test_root_acts_on_a_full_disk(open_folder, on_small_disk, bystander):
    """The log has room of its own: root changes what is to be changed, others may stop, and it is said."""
    daemon, disk = on_small_disk("log")
    address = open_folder / "control.sock"
    daemon.configure(
        socket=str(address),
        socketMode="0666",
        access=[{"role": "operator", "users": ["nobody"]}],
    )
    daemon.socket = address
    daemon.job("web", ["sleep", "1000"], stdout=None, stderr=None)
    script = "trap : PIPE; while :; do head -c 100000 /dev/zero; sleep 0.05; done"
    daemon.job("loud", ["/bin/sh", "-c", script], logMaxBytes=1 << 40)
    other = bystander(daemon)
    daemon.start()
    other.begins()
    daemon.wait_state("web", "RUNNING")
    disk.fill()
    with Client(address) as client:
        # Records take what is left of the last block, and then the reserve.
        wait_for(
            lambda: client.ask("restart", "web", wait=30) and daemon.events("audit.reserve_used")
        )
        for _ in range(3):
            assert client.ask("restart", "web", wait=30)["response"] == "success"
        assert (
            client.ask("push", "web", data='{"cmd":"sleep 99"}', wait=30)["response"] == "success"
        )
        before = len(daemon.audit())
        assert client.status("web")["state"] == "RUNNING"
        assert len(daemon.audit()) == before, "reads are counted"

        def operate():
            with Client(address) as operator:
                return [
                    operator.ask(command, "web", codes=True).get("code", "")
                    for command in ("start", "restart", "stop")
                ]

        assert as_user(NOBODY, operate).result == ["audit-unwritable", "audit-unwritable", ""]
        assert client.ask("start", "web", wait=30)["response"] == "success"
        assert client.ask("delete", "loud", wait=30)["response"] == "success"
        disk.empty()
        wait_for(lambda: client.ask("reload", "web") and daemon.events("audit.reserve_restored"))
    assert "it lives on its reserve" in daemon.messages.read_text()
    other.notices_nothing()
    records = daemon.audit()
    assert [record["seq"] for record in records] == list(range(1, len(records) + 1))


@needs_root
@needs_unshare
def test_output_on_a_full_disk(on_small_disk, bystander):
    """Output that cannot be kept is dropped, counted and shown; the job is not held up by it."""
    daemon, disk = on_small_disk("log")
    daemon.configure(auditFile=str(daemon.folder / "audit.jsonl"))
    daemon.audit_file = daemon.folder / "audit.jsonl"
    gate, counter = daemon.folder / "gate", daemon.folder / "counter"
    os.mkfifo(gate)
    script = f"read x < {gate}; head -c 3000000 /dev/zero; echo done > {counter}; exec sleep 1000"
    daemon.job("loud", ["/bin/sh", "-c", script])
    other = bystander(daemon)
    daemon.start()
    other.begins()
    daemon.wait_state("loud", "RUNNING")
    disk.fill()
    gate.write_text("go\n")
    wait_for(counter.exists, "the job has written everything")
    wait_for(lambda: daemon.status("loud")["droppedBytes"] > 1_000_000)
    (record,) = wait_for(lambda: daemon.events("output.dropped", job="loud"))
    assert "No space left on device" in record["reason"]
    assert daemon.status("loud")["state"] == "RUNNING"
    other.notices_nothing()


@needs_root
@needs_unshare
def test_state_record_on_a_full_disk(on_small_disk, bystander):
    """A watchdog that cannot record does not spawn; what runs runs on; it goes on when there is room."""
    daemon, disk = on_small_disk("state")
    daemon.job("web", ["sleep", "1000"])
    other = bystander(daemon)
    daemon.start()
    other.begins()
    daemon.wait_state("web", "RUNNING")
    (pid,) = daemon.pids("web")
    disk.fill()
    os.kill(pid, signal.SIGKILL)
    wait_reason(daemon, "web", "BACKOFF", "No space left on device")
    assert daemon.status("web")["alive"] == 0
    other.notices_nothing()
    disk.empty()
    daemon.wait_state("web", "RUNNING")


@needs_root
@needs_unshare
def test_push_on_a_full_disk(on_small_disk, bystander):
    """The push fails and says so; the file and the job stay as they were."""
    daemon, disk = on_small_disk("jobs")
    daemon.job("web", ["sleep", "1000"])
    other = bystander(daemon)
    daemon.start()
    other.begins()
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
    assert daemon.ask("list")["data"] == b'{"jobs":[{"name":"bystander"},{"name":"web"}]}'
    other.notices_nothing()
    assert daemon.pids("web") == pids
    disk.empty()
    assert daemon.ask("push", "web", data='{"cmd":"sleep 2000"}')["response"] == "success"
