"""The control plane dies: watchdogs and processes run on, the next taskmasterd finds them all."""

from __future__ import annotations

import os
import signal

from running import Daemon, alive, process_start, wait_for


def test_same_pids_after_sigkill(make_daemon, bystander):
    """100 jobs, the daemon killed and started again: the same 100 processes, nothing started twice."""
    daemon = make_daemon()
    names = [f"j{number:03}" for number in range(100)]
    for name in names:
        daemon.job(name, ["sleep", "1000"])
    other = bystander(daemon)
    daemon.start()
    other.begins()
    for name in names:
        daemon.wait_state(name, "RUNNING")
    before = {name: daemon.pids(name) for name in names}
    starts = {pid: process_start(pid) for pids in before.values() for pid in pids}
    daemon.kill()
    assert {pid: process_start(pid) for pid in starts} == starts
    other.runs_on()
    daemon.start()
    other.is_found_again()
    for name in names:
        daemon.wait_state(name, "RUNNING")
    assert {name: daemon.pids(name) for name in names} == before
    assert {pid: process_start(pid) for pid in starts} == starts
    assert len(daemon.events("process.started")) == len(names) + 1
    assert len(daemon.events("watchdog.attached")) == len(names) + 1


def test_crashes_are_mended_meanwhile(make_daemon, bystander):
    """With no control plane a watchdog restarts what crashes, and tells the next one of it."""
    daemon = make_daemon()
    daemon.job("crashing", ["sleep", "1000"])
    other = bystander(daemon)
    daemon.start()
    other.begins()
    daemon.wait_state("crashing", "RUNNING")
    (first,) = daemon.pids("crashing")
    daemon.kill()
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: not alive(first))
    daemon.start()
    second = wait_for(lambda: [pid for pid in daemon.pids("crashing") if pid != first])
    other.notices_nothing()
    wait_for(lambda: daemon.events("process.exited", job="crashing", pid=first, signal=9))
    wait_for(lambda: daemon.events("process.started", job="crashing", pid=second[0]))


def test_files_that_changed_meanwhile(make_daemon):
    """What changed, vanished and came while no daemon ran is applied by the rules of reload."""
    daemon = make_daemon()
    for name in ("same", "changed", "vanished"):
        daemon.job(name, ["sleep", "1000"])
    daemon.start()
    for name in ("same", "changed", "vanished"):
        daemon.wait_state(name, "RUNNING")
    (same,), (changed,), (vanished,) = (
        daemon.pids(name) for name in ("same", "changed", "vanished")
    )
    daemon.kill()
    daemon.job("changed", ["sleep", "2000"])
    (daemon.jobs / "vanished.tm.json").unlink()
    daemon.job("new", ["sleep", "1000"])
    daemon.start()
    daemon.wait_state("new", "RUNNING")
    wait_for(lambda: not alive(vanished))
    assert wait_for(lambda: [pid for pid in daemon.pids("changed") if pid != changed])
    assert daemon.pids("same") == [same]
    assert not alive(changed)
    wait_for(lambda: daemon.events("job.removed", job="vanished"))


def record_of(daemon: Daemon, job: str):
    return daemon.state / "jobs" / job / "state.json"


def test_a_stopped_job_stays_stopped(make_daemon):
    """Over a restart of the daemon, orderly or not, with who and when in its status; start undoes it."""
    daemon = make_daemon()
    daemon.job("web", ["sleep", "1000"])
    daemon.job("other", ["sleep", "1000"])
    daemon.start()
    daemon.wait_state("web", "RUNNING")
    assert daemon.ask("stop", "web", wait=30)["response"] == "success"
    for end in (daemon.kill, daemon.stop):
        end()
        daemon.start()
        status = daemon.wait_state("web", "STOPPED")
        assert status["desired"] == "DOWN"
        assert "stopped by" in status["reason"]
        assert str(os.getpid()) in status["stopped"]["by"]
        daemon.wait_state("other", "RUNNING")
    assert daemon.ask("start", "web")["response"] == "success"
    assert daemon.status("web")["stopped"] is None
    daemon.stop()
    daemon.start()
    daemon.wait_state("web", "RUNNING")


def test_exit_status_of_a_stranger_in_the_gap(make_daemon, tmp_path):
    """A watchdog older than its daemon dies, then its process exits with 7 before a replacement is there."""
    daemon = make_daemon()
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    daemon.job("seven", ["/bin/sh", "-c", f"read x < {gate}; exit 7"], restart="never")
    daemon.start()
    daemon.wait_state("seven", "RUNNING")
    daemon.kill()
    daemon.start()
    status = daemon.wait_state("seven", "RUNNING")
    (pid,) = daemon.pids("seven")
    os.kill(daemon.pid, signal.SIGSTOP)
    os.kill(status["watchdog"]["pid"], signal.SIGKILL)
    gate.write_text("go\n")
    wait_for(lambda: process_start(pid) is None)
    os.kill(daemon.pid, signal.SIGCONT)
    status = daemon.wait_state("seven", "EXITED")
    if not kernel_tells_exits():
        assert daemon.events("process.unknown_exit", job="seven")
        return
    assert status["processes"][0]["exitCode"] == 7
    wait_for(lambda: daemon.events("process.exited", job="seven", exitCode=7))


def kernel_tells_exits() -> bool:
    """Whether a pidfd tells how a process ended that somebody else has reaped (Linux 6.15)."""
    major, minor = (int(part) for part in os.uname().release.split(".")[:2])
    return (major, minor) >= (6, 15)


def test_a_file_that_became_unusable_meanwhile(make_daemon):
    """What runs is found and stays under the definition it was started with; stop stops it."""
    daemon = make_daemon()
    for name in ("web", "db"):
        daemon.job(name, ["sleep", "1000"])
    daemon.start()
    for name in ("web", "db"):
        daemon.wait_state(name, "RUNNING")
    before = {name: daemon.pids(name) for name in ("web", "db")}
    watchdog = daemon.status("db")["watchdog"]["pid"]
    daemon.kill()
    os.kill(watchdog, signal.SIGKILL)
    for name in ("web", "db"):
        (daemon.jobs / f"{name}.tm.json").write_text('{"cmdd": "sleep 1"}')
    (daemon.jobs / "never.tm.json").write_text('{"cmdd": "sleep 1"}')
    daemon.start()
    for name in ("web", "db"):
        status = daemon.wait_state(name, "RUNNING")
        assert daemon.pids(name) == before[name]
        assert "cmdd" in status["reason"]
        assert status["definition"]["stale"] is True
    assert daemon.status("never")["state"] == "FATAL"
    os.kill(before["web"][0], signal.SIGKILL)
    wait_for(lambda: daemon.pids("web") not in ([], before["web"]))
    assert daemon.ask("stop", "db", wait=30)["response"] == "success"
    assert not alive(before["db"][0])
    daemon.job("db", ["sleep", "2000"])
    assert daemon.ask("reload", "db")["response"] == "success"
    assert daemon.ask("start", "db", wait=30)["response"] == "success"
