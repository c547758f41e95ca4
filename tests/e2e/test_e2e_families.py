"""Jobs whose programs try to escape: stop leaves nothing of them."""

from __future__ import annotations

import os
import signal

import pytest
from e2e_programs import ESCAPEE, python, with_mark
from running import alive, process_start, wait_for


@pytest.mark.parametrize("watchdog", ["lives", "killed before", "killed between"])
@pytest.mark.parametrize("command", ["stop", "delete", "SIGTERM"])
def test_nothing_escapes(make_daemon, tmp_path, watchdog, command):
    """Three processes that ignore SIGTERM and hide a grandchild each in an own session: all are ended.

    The grandchild has neither the job's session nor its environment, also after its watchdog has been
    killed and replaced.
    """
    daemon = make_daemon()
    mark = f"mark-{tmp_path.name}-{os.getpid()}"
    argv = python(tmp_path / "escapee.py", ESCAPEE, "main", mark)
    daemon.job("wild", argv, procNr=3, stopTime=0.2)
    daemon.job("other", ["sleep", "1000"])
    daemon.start()
    daemon.wait_state("wild", "RUNNING")
    (other,) = daemon.wait_state("other", "RUNNING") and daemon.pids("other")
    grand = wait_for(
        lambda: _three([pid for pid, line in with_mark(mark).items() if "grandchild" in line])
    )
    started = {pid: process_start(pid) for pid in grand}
    if watchdog != "lives":
        _replace_watchdog(daemon)
        assert {pid: process_start(pid) for pid in grand} == started
    if command == "SIGTERM":
        assert daemon.stop() == 0
    else:
        if watchdog == "killed between":
            _kill_watchdog(daemon)
        reply = daemon.ask(command, "wild", wait=60)
        assert reply["response"] == "success", reply
        assert daemon.pids("other") == [other]
    # The init of the host inherits what nobody else has, so a survivor stays to be seen.
    left = with_mark(mark)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == {}
    assert alive(other) is (command != "SIGTERM")


def _three(found: list[int]) -> list[int]:
    return found if len(found) == 3 else []


def _kill_watchdog(daemon) -> int:
    pid = daemon.status("wild")["watchdog"]["pid"]
    os.kill(pid, signal.SIGKILL)
    return int(pid)


def _replace_watchdog(daemon) -> None:
    old = _kill_watchdog(daemon)

    def replaced():
        watchdog = daemon.status("wild")["watchdog"]
        return watchdog["state"] == "ATTACHED" and watchdog["pid"] != old

    wait_for(replaced)


def test_a_restart_leaves_no_grandchild_of_before(make_daemon, tmp_path):
    """When the program itself is killed, its successor starts only after all that it left is gone."""
    daemon = make_daemon()
    mark = f"mark-{tmp_path.name}-{os.getpid()}"
    daemon.job("wild", python(tmp_path / "escapee.py", ESCAPEE, "main", mark), stopTime=0.2)
    daemon.start()
    daemon.wait_state("wild", "RUNNING")
    first = wait_for(lambda: dict(found) if len(found := with_mark(mark)) == 2 else None)
    (pid,) = daemon.pids("wild")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: daemon.pids("wild") not in ([], [pid]))
    second = wait_for(lambda: dict(found) if len(found := with_mark(mark)) == 2 else None)
    assert not set(first) & set(second)


def test_a_stopped_process_is_stopped(make_daemon):
    """A job under SIGSTOP ends by its stop signal without waiting for stopTime."""
    daemon = make_daemon()
    daemon.job("frozen", ["sleep", "1000"], stopTime=3600)
    daemon.start()
    daemon.wait_state("frozen", "RUNNING")
    (pid,) = daemon.pids("frozen")
    os.kill(pid, signal.SIGSTOP)
    assert daemon.ask("stop", "frozen", wait=60)["response"] == "success"
    assert not alive(pid)
