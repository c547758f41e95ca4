"""What is so already: no file is written for it, whoever asks, however often."""

from __future__ import annotations

import json
import os

import pytest
from running import wait_for

JOB = json.dumps({"cmd": ["sleep", "1000"], "startTime": 0, "stopTime": 5})
ASKED = {
    "stop": "stopped",
    "kill": "stopped",
    "start": "running",
    "repair": "running",
    "reload": "running",
    "push": "running",
    "rollback": "running",
    "restart": None,
}


def files(daemon):
    """What tells whether a file was written, made or replaced: all of them but the audit log itself."""
    found = {}
    for top in (daemon.jobs, daemon.state):
        for folder, _, names in os.walk(top):
            for name in (".", *names):
                path = os.path.join(folder, name)
                about = os.stat(path, follow_symlinks=False)
                found[path] = (about.st_ino, about.st_mtime_ns, about.st_ctime_ns, about.st_size)
    return found


@pytest.mark.parametrize("command", ASKED)
def test_what_is_so_already_writes_nothing(make_daemon, command):
    """A stop of what is stopped, a push of what is there, and all the others leave every file as it was."""
    daemon = make_daemon()
    for name in ("stopped", "running"):
        daemon.job(name, ["sleep", "1000"])
    daemon.start()
    for name in ("stopped", "running"):
        assert daemon.ask("push", name, data=JOB, wait=30)["response"] == "success"
    assert daemon.ask("stop", "stopped", wait=30)["response"] == "success"
    daemon.wait_state("running", "RUNNING")
    job = ASKED[command]
    fields = {"push": {"data": JOB}, "rollback": {"version": 1}}.get(command, {})
    pids = daemon.pids("running")

    def written():
        before = files(daemon)
        for _ in range(3):
            reply = daemon.ask(command, job, **fields)
            redundant = command in ("stop", "kill", "start", "rollback")
            assert reply["response"] == ("redundant" if redundant else "success"), reply
        after = files(daemon)
        return {path for path in before | after if before.get(path) != after.get(path)}

    # A watchdog may still write what it was told before: that it is in the audit log.
    wait_for(lambda: not written(), "nothing is written")
    assert daemon.pids("running") == pids
    assert daemon.status("stopped")["stopped"] is not None


def test_a_stop_of_a_running_job_is_remembered_again(make_daemon):
    """Where the memory of a stop is gone from the disk, the next stop writes it, as it does after a start."""
    daemon = make_daemon()
    daemon.job("web", ["sleep", "1000"])
    daemon.start()
    daemon.wait_state("web", "RUNNING")
    remembered = daemon.jobs / ".stopped" / "web"
    for _ in range(2):
        assert daemon.ask("stop", "web", wait=30)["response"] == "success"
        assert remembered.exists()
        assert daemon.ask("start", "web", wait=30)["response"] == "success"
        assert not remembered.exists()
    daemon.ask("stop", "web", wait=30)
    remembered.unlink()
    assert daemon.ask("stop", "web")["response"] == "redundant"
    assert remembered.exists()
