"""A watchdog dies: its processes run on, a replacement adopts them, other jobs notice nothing."""

from __future__ import annotations

import os
import signal

from running import Client, Daemon, alive, process_start, wait_for


def watchdog_pid(daemon: Daemon, job: str) -> int:
    return int(daemon.status(job)["watchdog"]["pid"])


def attached(daemon: Daemon, job: str, but: int = 0) -> bool:
    watchdog = daemon.status(job)["watchdog"]
    return watchdog["state"] == "ATTACHED" and watchdog["pid"] != but


def test_same_pids_over_ten_rounds(make_daemon, bystander):
    """Every watchdog of 50 jobs killed, ten times: the same processes throughout, and status all the while."""
    daemon = make_daemon()
    names = [f"j{number:02}" for number in range(50)]
    for name in names:
        daemon.job(name, ["sleep", "1000"])
    other = bystander(daemon)
    daemon.start()
    other.begins()
    for name in names:
        daemon.wait_state(name, "RUNNING")
    before = {name: daemon.pids(name) for name in names}
    starts = {pid: process_start(pid) for pids in before.values() for pid in pids}
    for _ in range(10):
        watchdogs = {name: watchdog_pid(daemon, name) for name in names}
        for pid in watchdogs.values():
            os.kill(pid, signal.SIGKILL)
        with Client(daemon.socket) as client:
            for name in names:
                assert client.status(name)["job"] == name
        other.notices_nothing()
        wait_for(lambda: all(attached(daemon, name, watchdogs[name]) for name in names))
    assert {name: daemon.pids(name) for name in names} == before
    assert {pid: process_start(pid) for pid in starts} == starts
    assert len(daemon.events("process.started")) == len(names) + 1


def test_exit_status_in_the_gap(make_daemon, bystander, tmp_path):
    """A process that exits with 7 while its watchdog is dead is reported with 7."""
    daemon = make_daemon()
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    other = bystander(daemon)
    daemon.job("seven", ["/bin/sh", "-c", f"read x < {gate}; exit 7"], restart="never")
    daemon.start()
    daemon.wait_state("seven", "RUNNING")
    other.begins()
    (pid,) = daemon.pids("seven")
    os.kill(daemon.pid, signal.SIGSTOP)  # no replacement can come before the process has ended
    watchdog = int(next(iter(daemon.events("watchdog.launched", job="seven")))["pid"])
    os.kill(watchdog, signal.SIGKILL)
    gate.write_text("go\n")
    wait_for(lambda: not alive(pid))
    os.kill(daemon.pid, signal.SIGCONT)
    status = daemon.wait_state("seven", "EXITED")
    assert status["processes"][0]["exitCode"] == 7
    wait_for(lambda: daemon.events("process.exited", job="seven", exitCode=7))
    other.notices_nothing()
