"""A watchdog hangs: commands to its job fail at a deadline, other jobs notice nothing, then it is replaced."""

from __future__ import annotations

import os
import signal
import time

from running import process_start, wait_for


def test_stopped_watchdog(make_daemon, bystander):
    """SIGSTOP: its commands fail with the reason, others are answered at once; past the limit it is replaced."""
    daemon = make_daemon(commandDeadline=0.5, watchdogTimeout=2)
    daemon.job("hung", ["sleep", "1000"])
    other = bystander(daemon)
    daemon.start()
    other.begins()
    hung = daemon.wait_state("hung", "RUNNING")
    pid, start = hung["processes"][0]["pid"], process_start(hung["processes"][0]["pid"])
    watchdog = hung["watchdog"]["pid"]
    os.kill(watchdog, signal.SIGSTOP)
    client = daemon.client()
    began = time.monotonic()
    client.send(b'{"command":"start","job":"aHVuZw==","id":1};;')
    with daemon.client().socket:
        assert daemon.ask("start", other.name)["response"] == "redundant"
        other.notices_nothing()
    reply = client.reply()
    assert reply["response"] == "fail"
    assert f"pid {watchdog}" in reply["error"]
    assert "did not answer within 0.5 s" in reply["error"]
    assert time.monotonic() - began < 30
    status = daemon.status("hung")
    assert (status["state"], status["watchdog"]["state"]) == ("UNKNOWN", "UNRESPONSIVE")
    assert "does not answer" in status["reason"]
    other.notices_nothing()
    status = daemon.wait_state("hung", "RUNNING")
    assert status["watchdog"]["pid"] != watchdog
    assert status["processes"][0]["pid"] == pid
    assert process_start(pid) == start
    assert len(daemon.events("watchdog.unresponsive", job="hung", pid=watchdog)) == 1
    assert len(daemon.events("watchdog.killed", job="hung", pid=watchdog)) == 1
    assert daemon.ask("start", "hung")["response"] == "redundant"


def test_a_delete_that_fails_is_not_done_later(make_daemon):
    """The job stays as it is: a watchdog that was asked, and may go on at any time, is replaced at once."""
    daemon = make_daemon(commandDeadline=0.3, watchdogTimeout=3000)
    daemon.job("hung", ["sleep", "1000"])
    daemon.start()
    hung = daemon.wait_state("hung", "RUNNING")
    pid, watchdog = hung["processes"][0]["pid"], hung["watchdog"]["pid"]
    os.kill(watchdog, signal.SIGSTOP)
    reply = daemon.ask("delete", "hung")
    assert reply["response"] == "fail"
    assert reply["error"].endswith("nothing was stopped or removed.")
    wait_for(lambda: daemon.status("hung")["watchdog"]["pid"] not in (None, watchdog))
    status = daemon.wait_state("hung", "RUNNING")
    assert (status["processes"][0]["pid"], status["desired"]) == (pid, "UP")
    assert (daemon.jobs / "hung.tm.json").exists()
    assert not (daemon.jobs / ".removing" / "hung").exists()
    assert daemon.events("process.stopping", job="hung") == []
    assert daemon.ask("delete", "hung")["response"] == "success"


def test_one_that_comes_back(make_daemon):
    """SIGCONT in time: what was asked is done late, nobody is replaced, and the log says it recovered."""
    daemon = make_daemon(commandDeadline=0.3, watchdogTimeout=3000)
    daemon.job("hung", ["sleep", "1000"])
    daemon.start()
    watchdog = daemon.wait_state("hung", "RUNNING")["watchdog"]["pid"]
    os.kill(watchdog, signal.SIGSTOP)
    assert daemon.ask("stop", "hung")["response"] == "fail"
    os.kill(watchdog, signal.SIGCONT)
    status = daemon.wait_state("hung", "STOPPED")
    assert status["watchdog"] == {"pid": watchdog, "state": "ATTACHED", "relaunches": 0}
    wait_for(lambda: daemon.events("watchdog.recovered", job="hung", pid=watchdog))
