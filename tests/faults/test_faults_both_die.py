"""Control plane and watchdogs die together: the next taskmasterd adopts from the state records."""

from __future__ import annotations

import os
import signal

from running import alive, process_start, wait_for


def test_both_die(make_daemon, bystander):
    """Control plane and every watchdog killed: the next daemon adopts from the records."""
    daemon = make_daemon()
    names = [f"j{number}" for number in range(10)]
    for name in names:
        daemon.job(name, ["sleep", "1000"], procNr=2)
    other = bystander(daemon)
    daemon.start()
    other.begins()
    for name in names:
        daemon.wait_state(name, "RUNNING")
    before = {name: daemon.pids(name) for name in names}
    starts = {pid: process_start(pid) for pids in before.values() for pid in pids}
    watchdogs = [daemon.status(name)["watchdog"]["pid"] for name in names]
    daemon.kill()
    for pid in watchdogs:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not any(alive(pid) for pid in watchdogs))
    other.runs_on()
    daemon.start()
    other.is_found_again()
    for name in names:
        daemon.wait_state(name, "RUNNING")
    assert {name: daemon.pids(name) for name in names} == before
    assert {pid: process_start(pid) for pid in starts} == starts
    assert len(daemon.events("process.started")) == 2 * len(names) + 1
    # And they are still watched: the end of one that is nobody's child is noticed, with its status.
    (one, _) = before["j0"]
    os.kill(one, signal.SIGTERM)
    wait_for(lambda: daemon.events("process.exited", job="j0", pid=one, signal=15))
