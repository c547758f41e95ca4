"""A state record that is torn, foreign or hostile crashes nobody and makes nobody signal a stranger."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest
from running import process_start, wait_for


def relaunched(daemon, job, before):
    """The job's status once another watchdog has it."""

    def attached():
        status = daemon.status(job)
        watchdog = status["watchdog"]
        there = watchdog["state"] == "ATTACHED" and watchdog["pid"] != before
        return status if there else None

    return wait_for(attached)


def rewritten(record: dict, **changes) -> bytes:
    place = record["places"][0] | changes
    return json.dumps(record | {"places": [place]}).encode()


DAMAGES = {
    "torn": lambda record, stranger: json.dumps(record).encode()[:-20],
    "empty": lambda record, stranger: b"",
    "no JSON": lambda record, stranger: b"\xff\x00{" * 100,
    "deep": lambda record, stranger: b"[" * 100_000,
    "of another job": lambda record, stranger: json.dumps(record | {"job": "db"}).encode(),
    "no pid": lambda record, stranger: rewritten(record, pid=None),
    "pid 1": lambda record, stranger: rewritten(record, pid=1),
    "huge": lambda record, stranger: json.dumps(record).encode() + b" " * (17 << 20),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_unusable(make_daemon, damage):
    """It is set aside and told of; what runs is found by its pipes and adopted: same pid, not started twice."""
    daemon = make_daemon()
    daemon.job("web", ["sleep", "1000"])
    daemon.start()
    status = daemon.wait_state("web", "RUNNING")
    (pid,) = daemon.pids("web")
    file = daemon.state / "jobs" / "web" / "state.json"
    wait_for(lambda: not json.loads(file.read_bytes()).get("notices"))
    os.kill(daemon.pid, signal.SIGSTOP)
    os.kill(status["watchdog"]["pid"], signal.SIGKILL)
    file.write_bytes(DAMAGES[damage](json.loads(file.read_bytes()), 0))
    os.kill(daemon.pid, signal.SIGCONT)
    status = relaunched(daemon, "web", status["watchdog"]["pid"])
    assert status["state"] == "RUNNING"
    assert daemon.pids("web") == [pid]
    wait_for(lambda: daemon.events("state.rejected", job="web"))
    assert (daemon.state / "jobs" / "web" / "state.json.rejected").exists()
    assert len(daemon.events("process.started", job="web")) == 1
    assert daemon.ask("stop", "web", wait=30)["response"] == "success"
    assert process_start(pid) is None


@pytest.mark.parametrize("start", ["its own", "nearly its own", "another's"])
def test_a_stranger_is_never_signalled(make_daemon, start):
    """A record that names somebody else's process, be it with the right start time, makes nobody signal it."""
    daemon = make_daemon()
    daemon.job("web", ["sleep", "1000"], restart="never")
    daemon.start()
    status = daemon.wait_state("web", "RUNNING")
    (pid,) = daemon.pids("web")
    file = daemon.state / "jobs" / "web" / "state.json"
    stranger = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    try:
        os.kill(daemon.pid, signal.SIGSTOP)
        os.kill(status["watchdog"]["pid"], signal.SIGKILL)
        record = json.loads(file.read_bytes())
        wrong = process_start(stranger.pid) - (start == "nearly its own")
        if start == "another's":
            wrong = record["places"][0]["start"] + 10**6
        record["inherited"] = [[stranger.pid, wrong]]
        file.write_bytes(rewritten(record, pid=stranger.pid, session=stranger.pid, start=wrong))
        os.kill(pid, signal.SIGKILL)
        os.kill(daemon.pid, signal.SIGCONT)
        status = relaunched(daemon, "web", status["watchdog"]["pid"])
        wait_for(lambda: daemon.status("web")["state"] in ("EXITED", "FATAL", "STOPPED"))
        daemon.ask("kill", "web")
        daemon.ask("start", "web")
        daemon.ask("kill", "web", wait=30)
        assert stranger.poll() is None
        assert process_start(stranger.pid) is not None
    finally:
        stranger.kill()
        stranger.wait()
