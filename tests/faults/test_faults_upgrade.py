"""Upgrade in place: same pid, no client refused, no reply lost, no process touched."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from running import Client, process_start, query, wait_for


def test_under_fifty_clients(make_daemon, bystander):
    """50 clients send status without pause over three upgrades: no refused connection, no lost reply."""
    daemon = make_daemon()
    names = [f"j{number}" for number in range(10)]
    for name in names:
        daemon.job(name, ["sleep", "1000"])
    other = bystander(daemon)
    daemon.start()
    other.begins()
    for name in names:
        daemon.wait_state(name, "RUNNING")
    before = {name: daemon.pids(name) for name in names}
    starts = {pid: process_start(pid) for pids in before.values() for pid in pids}
    pid, port = daemon.pid, daemon.port
    over = threading.Event()
    failures: list[str] = []
    asked = [0] * 50

    def keep_asking(number: int) -> None:
        try:
            while not over.is_set():
                # Half of them stay connected, half come anew each time; half by TCP, half by the socket.
                address = ("127.0.0.1", port) if number % 4 < 2 else daemon.socket
                with Client(address) as client:
                    for _ in range(1 if number % 2 else 200):
                        client.send(query("status", names[number % 10]) * 2)
                        for _ in range(2):
                            if client.reply()["response"] != "status":
                                raise AssertionError("no status")
                        asked[number] += 2
        except (OSError, AssertionError, ValueError) as error:
            failures.append(f"client {number}: {error!r}")

    threads = [threading.Thread(target=keep_asking, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    try:
        for round_number in range(1, 4):
            assert daemon.ask("upgrade") == {"response": "success"}
            wait_for(lambda: len(daemon.events("daemon.upgraded")) == round_number)
            wait_for(
                lambda: (
                    len(daemon.events("watchdog.launched")) == (len(names) + 1) * (round_number + 1)
                )
            )
            other.runs_on()
    finally:
        over.set()
        for thread in threads:
            thread.join(60)
    assert failures == []
    assert all(asked)
    assert daemon.pid == pid
    assert daemon.running
    for name in names:
        daemon.wait_state(name, "RUNNING")
    assert {name: daemon.pids(name) for name in names} == before
    assert {pid: process_start(pid) for pid in starts} == starts
    assert len(daemon.events("process.started")) == len(names) + 1


def test_new_code_that_cannot_start(make_daemon, bystander):
    """The old daemon goes on and says why; nobody was disconnected."""
    daemon = make_daemon()
    daemon.job("web", ["sleep", "1000"])
    other = bystander(daemon)
    daemon.start()
    other.begins()
    pids = daemon.wait_state("web", "RUNNING")["processes"][0]["pid"]
    with Client(daemon.socket) as client:
        daemon.configure(prot=7777)
        reply = client.ask("upgrade")
        assert reply["response"] == "fail"
        assert "prot" in reply["error"]
        assert "goes on" in reply["error"]
        other.notices_nothing()
        assert client.status("web")["processes"][0]["pid"] == pids
        assert daemon.events("daemon.upgrade_failed")
        daemon.configure()
        assert client.ask("upgrade")["response"] == "success"
        assert client.status("web")["processes"][0]["pid"] == pids
    wait_for(lambda: len(daemon.events("watchdog.launched", job="web")) == 2)


def test_shutdown_leaves_jobs(make_daemon):
    """``shutdown`` with leaveJobs ends the daemon alone; without it everything ends."""
    daemon = make_daemon()
    daemon.job("web", ["sleep", "1000"])
    daemon.start()
    (pid,) = [one["pid"] for one in daemon.wait_state("web", "RUNNING")["processes"]]
    assert daemon.ask("shutdown", leaveJobs=True)["response"] == "success"
    assert daemon.host.wait(daemon.pid) == 0
    assert process_start(pid) is not None
    daemon.start()
    assert daemon.wait_state("web", "RUNNING")["processes"][0]["pid"] == pid
    assert daemon.ask("shutdown")["response"] == "success"
    assert daemon.host.wait(daemon.pid) == 0
    assert process_start(pid) is None


@pytest.mark.parametrize("after_s", [0.0, 0.005, 0.01, 0.02])
def test_the_end_comes_between_a_watchdog_and_its_successor(make_daemon, after_s):
    """SIGTERM while watchdogs are being replaced ends everything in order, whichever of two is told so."""
    daemon = make_daemon()
    for name in ("a", "b", "c"):
        daemon.job(name, ["sleep", "1000"])
    daemon.start()
    for name in ("a", "b", "c"):
        daemon.wait_state(name, "RUNNING")
    assert daemon.ask("stop", "a")["response"] == "success"
    assert daemon.ask("upgrade")["response"] == "success"
    time.sleep(after_s)
    assert daemon.stop() == 0, daemon.messages.read_text()
    assert daemon.events("daemon.stopped")


def test_one_upgrade_after_the_other(make_daemon, bystander):
    """The next one comes while watchdogs are still being replaced: each job ends up with one, and ran through."""
    daemon = make_daemon()
    names = [f"j{number}" for number in range(20)]
    for name in names:
        daemon.job(name, ["sleep", "1000"])
    other = bystander(daemon)
    daemon.start()
    other.begins()
    for name in names:
        daemon.wait_state(name, "RUNNING")
    before = {name: daemon.pids(name) for name in names}
    for _ in range(4):
        assert daemon.ask("upgrade") == {"response": "success"}
    for name in names:
        daemon.wait_state(name, "RUNNING")
    assert {name: daemon.pids(name) for name in names} == before
    assert len(daemon.events("process.started")) == len(names) + 1
    (pid,) = before["j19"]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: daemon.pids("j19") not in ([], [pid]), "it is still watched")
    wait_for(
        lambda: len(watchdogs(daemon)) == len(names) + 1 and watchdogs(daemon),
        "each job has one watchdog",
    )


def watchdogs(daemon):
    """Pids of all watchdogs that there are."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            name = Path(f"/proc/{entry}/comm").read_text()
            ppid = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1]
        except (OSError, ValueError):
            continue
        if name.startswith("watchdog ") and int(ppid) == daemon.pid:
            found.append(int(entry))
    return found
