"""No descriptors, no process numbers: BACKOFF with the reason, no busy loop, and nobody else notices."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from pathlib import Path

import pytest
from faults_reasons import wait_reason
from running import Client, process_start, query

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="another user with a limit needs root")


def watchdog_of(daemon, job):
    return daemon.status(job)["watchdog"]["pid"]


def set_limit(pid: int, kind: int, soft: int) -> None:
    _, hard = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (soft, hard))


@pytest.fixture
def web(make_daemon, bystander):
    """A daemon with the job ``web``, and its bystander."""
    daemon = make_daemon()
    daemon.job("web", ["sleep", "1000"])
    other = bystander(daemon)
    daemon.start()
    other.begins()
    daemon.wait_state("web", "RUNNING")
    return daemon, other


def test_watchdog_without_descriptors(web):
    """EMFILE in a watchdog: BACKOFF with the reason, never FATAL; it goes on when there are some again."""
    daemon, other = web
    watchdog = watchdog_of(daemon, "web")
    set_limit(watchdog, resource.RLIMIT_NOFILE, 4)  # no new one may have a number over 3
    os.kill(daemon.pids("web")[0], signal.SIGKILL)
    wait_reason(daemon, "web", "BACKOFF", "Too many open files")
    other.notices_nothing()
    set_limit(watchdog, resource.RLIMIT_NOFILE, 1024)
    daemon.wait_state("web", "RUNNING")
    assert watchdog_of(daemon, "web") == watchdog


def test_daemon_without_descriptors(web):
    """EMFILE in the daemon: those that knock are dropped, those that are there are served, and nothing spins."""
    daemon, other = web
    with Client(daemon.socket) as client:
        numbers = [int(number) for number in os.listdir(f"/proc/{daemon.pid}/fd")]
        set_limit(daemon.pid, resource.RLIMIT_NOFILE, max(numbers) + 3)
        before = cpu_ticks(daemon.pid)
        others = [daemon.client() for _ in range(max(numbers) + 20)]
        dropped = [one for one in others if was_dropped(one)]
        assert len(dropped) >= 10
        assert client.status("web")["state"] == "RUNNING"
        other.runs_on()
        assert cpu_ticks(daemon.pid) - before < 200
        for one in others:
            one.close()
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
def test_no_process_numbers(make_daemon, bystander):
    """EAGAIN on fork: BACKOFF with the reason; the watchdog and its other process go on."""
    # Another user, for whom process numbers can be limited, yet able to read this Python wherever it lies.
    prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    prefix += ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    daemon = make_daemon(prefix=prefix)
    daemon.job("web", ["sleep", "1000"], procNr=2)
    other = bystander(daemon)
    os.chown(daemon.folder, 65534, 65534)
    for path in daemon.folder.rglob("*"):
        os.chown(path, 65534, 65534)
    daemon.start()
    other.begins()
    status = daemon.wait_state("web", "RUNNING")
    first, second = (one["pid"] for one in status["processes"])
    watchdog = status["watchdog"]["pid"]
    limit = [*prefix, "prlimit", "--pid", str(watchdog)]  # by its own user: root may lack the right
    subprocess.run([*limit, "--nproc=0:"], check=True)
    os.kill(first, signal.SIGKILL)
    wait_reason(daemon, "web", "BACKOFF", "fork: Resource temporarily unavailable")
    other.notices_nothing()
    assert process_start(second) is not None
    subprocess.run([*limit, "--nproc=4096:"], check=True)
    status = daemon.wait_state("web", "RUNNING")
    assert status["processes"][1]["pid"] == second
    assert status["watchdog"]["pid"] == watchdog
