"""Deaths and requests interleaved in ways that a storm found; each is one way in which a promise broke."""

import os, signal, time, socket
import pytest
from running import Client, alive, query, wait_for

SLOW = ["/bin/sh", "-c", "trap 'sleep 2; exit 0' TERM; while :; do sleep 0.05; done"]


def test_delete_loses_notices(make_daemon):
    """The end of a process whose job is deleted is on record, though the daemon dies meanwhile."""
    daemon = make_daemon()
    daemon.job("web", SLOW, stopTime=10)
    daemon.start()
    daemon.wait_state("web", "RUNNING")
    (pid,) = daemon.pids("web")
    client = daemon.client()
    client.send(query("delete", "web"))
    wait_for(lambda: daemon.events("process.stopping", pid=pid))
    daemon.kill()
    wait_for(lambda: not alive(pid))
    time.sleep(0.5)
    daemon.start()
    wait_for(lambda: daemon.events("process.exited", pid=pid), deadline_s=10)


def test_interrupted_delete_leaves_it_down(make_daemon):
    """A delete that a daemon's death interrupted is not done: the job is there, nobody stopped it, it is up."""
    daemon = make_daemon()
    daemon.job("web", SLOW, stopTime=10)
    daemon.start()
    daemon.wait_state("web", "RUNNING")
    (pid,) = daemon.pids("web")
    client = daemon.client()
    client.send(query("delete", "web"))
    wait_for(lambda: daemon.events("process.stopping", pid=pid))
    daemon.kill()
    daemon.start()
    wait_for(lambda: not alive(pid))
    wait_for(
        lambda: daemon.status("web")["state"] == "RUNNING", str(daemon.status("web")), deadline_s=10
    )


def test_request_numbers_of_two_daemons(make_daemon):
    """The answer to the last daemon's request is not taken for one to this daemon's."""
    daemon = make_daemon()
    daemon.job("web", SLOW, stopTime=10)
    daemon.start()
    daemon.wait_state("web", "RUNNING")
    (pid,) = daemon.pids("web")
    assert daemon.ask("start", "web")["response"] == "redundant"
    client = daemon.client()
    client.send(query("restart", "web"))
    wait_for(lambda: daemon.events("process.stopping", pid=pid))
    daemon.kill()
    daemon.start()
    wait_for(lambda: daemon.status("web")["watchdog"]["state"] == "ATTACHED")
    client = daemon.client()
    client.send(query("delete", "web"))
    wait_for(lambda: daemon.events("command.requested", command="delete"))
    time.sleep(0.2)
    os.kill(daemon.events("watchdog.attached", job="web")[-1]["pid"], signal.SIGKILL)
    reply = client.reply()
    assert reply["response"] == "success", reply
    assert not alive(pid), "deleted, and its process lives"


def test_exit_of_a_process_adopted_from_the_record(make_daemon, tmp_path):
    """It is nobody's child; its watchdog dies, it exits, the daemon lived all the while: its status is known."""
    daemon = make_daemon()
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    daemon.job("seven", ["/bin/sh", "-c", f"read x < {gate}; exit 7"], restart="never")
    daemon.start()
    daemon.wait_state("seven", "RUNNING")
    (pid,) = daemon.pids("seven")
    first = daemon.status("seven")["watchdog"]["pid"]
    daemon.kill()
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: not alive(first))
    daemon.start()
    daemon.wait_state("seven", "RUNNING")
    second = daemon.status("seven")["watchdog"]["pid"]
    os.kill(daemon.pid, signal.SIGSTOP)
    os.kill(second, signal.SIGKILL)
    gate.write_text("go\n")
    wait_for(lambda: not alive(pid))
    os.kill(daemon.pid, signal.SIGCONT)
    status = daemon.wait_state("seven", "EXITED")
    assert status["processes"][0]["exitCode"] == 7, status


def test_full_backlog_of_a_stopped_watchdog(make_daemon):
    """A watchdog that hangs through many daemons is killed and replaced like any other."""
    daemon = make_daemon(commandDeadline=0.5, watchdogTimeout=1)
    daemon.job("web", ["sleep", "1000"])
    daemon.start()
    daemon.wait_state("web", "RUNNING")
    (pid,) = daemon.pids("web")
    watchdog = daemon.status("web")["watchdog"]["pid"]
    os.kill(watchdog, signal.SIGSTOP)
    try:
        for _ in range(7):
            daemon.kill()
            daemon.start()
        assert daemon.ask("stop", "web")["response"] == "fail"
        wait_for(lambda: not alive(watchdog), deadline_s=10)
        daemon.wait_state("web", "STOPPED")
    finally:
        if alive(watchdog):
            os.kill(watchdog, signal.SIGKILL)


def test_found_stopped(make_daemon):
    """A watchdog that hangs when the daemon finds it is killed and replaced past the limit."""
    daemon = make_daemon(commandDeadline=0.5, watchdogTimeout=1)
    daemon.job("web", ["sleep", "1000"])
    daemon.start()
    daemon.wait_state("web", "RUNNING")
    watchdog = daemon.status("web")["watchdog"]["pid"]
    os.kill(watchdog, signal.SIGSTOP)
    try:
        daemon.kill()
        daemon.start()
        assert daemon.ask("stop", "web")["response"] == "fail"
        wait_for(lambda: not alive(watchdog), deadline_s=10)
        daemon.wait_state("web", "STOPPED")
    finally:
        if alive(watchdog):
            os.kill(watchdog, signal.SIGKILL)


def test_upgrade_trial_is_nobodys_orphan(make_daemon):
    """A watchdog that dies while an upgrade is tried; the trial is not taken for what the job left behind."""
    daemon = make_daemon()
    daemon.job("web", ["/bin/sh", "-c", "sleep 0.3; exit 3"], restart="always", normalExitCode=3)
    daemon.job("other", ["sleep", "1000"])
    daemon.start()
    daemon.wait_state("other", "RUNNING")
    fails = []
    for _ in range(6):
        with Client(daemon.socket) as client:
            client.send(query("upgrade"))
            wait_for(
                lambda: [
                    p
                    for p in open(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read().split()
                    if b"--check" in open(f"/proc/{p}/cmdline", "rb").read()
                ]
            )
            os.kill(daemon.events("watchdog.launched", job="web")[-1]["pid"], signal.SIGKILL)
            fails.append(client.reply())
        wait_for(lambda: daemon.status("web")["watchdog"]["state"] == "ATTACHED")
    assert [one["response"] for one in fails] == ["success"] * 6, fails


def test_after_an_upgrade_processes_belong_to_their_jobs(make_daemon):
    """A process inherited by the daemon before an upgrade is not another job's afterwards."""
    daemon = make_daemon()
    daemon.job("aa", ["sleep", "1000"])
    daemon.job("yy", ["sleep", "1000"])
    daemon.start()
    daemon.wait_state("aa", "RUNNING")
    daemon.wait_state("yy", "RUNNING")
    (pid,) = daemon.pids("yy")
    os.kill(daemon.status("yy")["watchdog"]["pid"], signal.SIGKILL)
    wait_for(lambda: daemon.events("process.adopted", job="yy"))
    assert daemon.ask("upgrade")["response"] == "success"
    wait_for(
        lambda: (
            len(daemon.events("process.adopted", job="aa")) == 1
            and len(daemon.events("process.adopted", job="yy")) == 2
        )
    )
    assert daemon.ask("stop", "aa", wait=10)["response"] == "success"
    assert alive(pid), "aa was stopped, and yy's process was killed"
    assert daemon.pids("yy") == [pid]
