"""A watchdog keeps dying: relaunched ever later, its job says why, its process runs on."""

from __future__ import annotations

import os
import signal

from running import process_start, wait_for


def test_one_that_keeps_dying(make_daemon, bystander):
    """Relaunched ever later; the job shows UNKNOWN and why, and its process runs on."""
    daemon = make_daemon()
    daemon.job("web", ["sleep", "1000"])
    other = bystander(daemon)
    daemon.start()
    other.begins()
    web = daemon.wait_state("web", "RUNNING")
    pid = web["processes"][0]["pid"]
    killed: set[int] = set()

    def kill_the_next() -> bool:
        status = daemon.status("web")
        watchdog = status["watchdog"]["pid"]
        if watchdog is not None and watchdog not in killed:
            killed.add(watchdog)
            os.kill(watchdog, signal.SIGKILL)
        other.notices_nothing()
        return status["state"] == "UNKNOWN" and "a new one comes in" in status["reason"]

    wait_for(kill_the_next)
    assert len(killed) > 5
    assert process_start(pid) is not None
    other.notices_nothing()
    status = daemon.wait_state("web", "RUNNING")
    assert status["processes"][0]["pid"] == pid
    assert any(record["retryS"] > 0 for record in daemon.events("watchdog.lost", job="web"))
