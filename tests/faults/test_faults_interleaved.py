"""Deaths and requests interleaved in ways that a storm found; each is one way in which a promise broke."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from running import Client, Daemon, alive, query, wait_for

from taskmaster import procfs

#: Takes its time to end when told to, so that whoever told it can die meanwhile.
SLOW = ["/bin/sh", "-c", "trap 'sleep 1; exit 0' TERM; while :; do sleep 0.05; done"]
IMPATIENT = {"commandDeadline": 0.5, "watchdogTimeout": 1}


def last_watchdog(daemon: Daemon, job: str) -> dict[str, Any]:
    """The audit log's last word on which watchdog a job has; it needs no answer from anybody."""
    told = ("watchdog.launched", "watchdog.attached")
    return [one for one in daemon.audit() if one["event"] in told and one["job"] == job][-1]


def watchdog_pid(daemon: Daemon, job: str) -> int:
    """Pid of the watchdog that a job had last."""
    return int(last_watchdog(daemon, job)["pid"])


def has_one_of_this_program(daemon: Daemon, job: str) -> bool:
    """Whether the job's watchdog is there and was launched by the program that runs: no upgrade replaces it."""
    watchdog, last = daemon.status(job)["watchdog"], last_watchdog(daemon, job)
    return watchdog["state"] == "ATTACHED" and last["event"] == "watchdog.launched"


def running(daemon: Daemon, job: str) -> int:
    """Pid of the job's only process, once that runs."""
    daemon.wait_state(job, "RUNNING")
    (pid,) = daemon.pids(job)
    return pid


def waiting_process(daemon: Daemon, gate: Path) -> None:
    """A job ``seven``, not running yet, whose process exits with 7 when something is written to ``gate``."""
    os.mkfifo(gate)
    daemon.job("seven", ["/bin/sh", "-c", f"read x < {gate}; exit 7"], restart="never")


def on_record(daemon: Daemon, job: str, event: str) -> bool:
    """Whether the job's state record holds a notice of this event that no daemon has acknowledged."""
    return f'"{event}"' in (daemon.state / "jobs" / job / "state.json").read_text()


def assert_exited_with_7(daemon: Daemon) -> None:
    """The job ``seven`` has ended, and its true exit code is known."""
    status = daemon.wait_state("seven", "EXITED")
    assert status["processes"][0]["exitCode"] == 7, status


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process hangs meanwhile, and goes on afterwards if it is still there."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if alive(pid):
            os.kill(pid, signal.SIGCONT)


def begin_delete(daemon: Daemon, job: str) -> None:
    """Have the deletion of a job begun, without an answer yet."""
    daemon.client().send(query("delete", job))
    wait_for(lambda: daemon.events("process.stopping", job=job))


def trial_of(daemon: Daemon) -> int | None:
    """The program that an upgrade has on trial at the moment."""
    for pid in procfs.children(daemon.pid):
        try:
            if b"--check" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        except (FileNotFoundError, ProcessLookupError):
            continue
    return None


def test_delete_loses_no_notices(make_daemon):
    """The end of a process whose job is deleted is on record, though the daemon dies meanwhile."""
    daemon = make_daemon()
    daemon.job("web", SLOW)
    daemon.start()
    pid = running(daemon, "web")
    watchdog = watchdog_pid(daemon, "web")
    begin_delete(daemon, "web")
    daemon.kill()
    wait_for(lambda: not alive(watchdog) or on_record(daemon, "web", "process.exited"))
    daemon.start()
    wait_for(lambda: daemon.events("process.exited", pid=pid))


def test_request_numbers_of_two_daemons(make_daemon):
    """The answer to the last daemon's request is not taken for one to this daemon's."""
    daemon = make_daemon()
    daemon.job("web", SLOW)
    daemon.start()
    pid = running(daemon, "web")
    assert daemon.ask("start", "web")["response"] == "redundant"
    daemon.client().send(query("restart", "web"))
    wait_for(lambda: daemon.events("process.stopping", pid=pid))
    daemon.kill()
    daemon.start()
    wait_for(lambda: daemon.status("web")["watchdog"]["state"] == "ATTACHED")
    client = daemon.client()
    client.send(query("delete", "web"))
    # The restart wants it up again, the removal that the watchdog has heard of does not.
    wait_for(lambda: daemon.status("web")["desired"] == "DOWN")
    assert alive(pid), "too slow to be tested: it has ended before the watchdog could be killed"
    os.kill(watchdog_pid(daemon, "web"), signal.SIGKILL)
    reply = client.reply()
    assert reply["response"] == "success", reply
    assert not alive(pid), "deleted, and its process lives"


def test_exit_of_a_process_adopted_from_the_record(make_daemon, tmp_path):
    """It is nobody's child; its watchdog dies, it exits, the daemon lived all the while: its status is known."""
    daemon = make_daemon()
    waiting_process(daemon, tmp_path / "gate")
    daemon.start()
    pid = running(daemon, "seven")
    first = watchdog_pid(daemon, "seven")
    daemon.kill()
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: not alive(first))
    daemon.start()
    assert running(daemon, "seven") == pid
    second = watchdog_pid(daemon, "seven")
    with stopped(daemon.pid):
        os.kill(second, signal.SIGKILL)
        (tmp_path / "gate").write_text("go\n")
        wait_for(lambda: not alive(pid))
    assert_exited_with_7(daemon)


def test_exit_while_the_daemon_that_is_its_parent_hangs(make_daemon, tmp_path):
    """Its watchdog sees it end, the daemon must reap it and does not: the status outlives both of them."""
    daemon = make_daemon()
    waiting_process(daemon, tmp_path / "gate")
    daemon.start()
    pid = running(daemon, "seven")
    os.kill(watchdog_pid(daemon, "seven"), signal.SIGKILL)
    wait_for(lambda: daemon.events("process.adopted", pid=pid))
    watchdog = watchdog_pid(daemon, "seven")
    with stopped(daemon.pid):
        (tmp_path / "gate").write_text("go\n")
        wait_for(lambda: on_record(daemon, "seven", "process.exited"))
        os.kill(watchdog, signal.SIGKILL)
        daemon.kill()
    daemon.start()
    assert_exited_with_7(daemon)


def test_exit_while_a_watchdog_hangs_that_the_daemon_never_heard(make_daemon, tmp_path):
    """A watchdog hangs, its process ends, a new daemon finds it, it is killed: the exit status is known."""
    daemon = make_daemon()
    waiting_process(daemon, tmp_path / "gate")
    daemon.start()
    pid = running(daemon, "seven")
    watchdog = watchdog_pid(daemon, "seven")
    daemon.kill()
    daemon.start()  # of which the watchdog is no child
    assert running(daemon, "seven") == pid
    with stopped(watchdog):
        (tmp_path / "gate").write_text("go\n")
        wait_for(lambda: not alive(pid))
        daemon.kill()
        daemon.start()
        wait_for(lambda: len(daemon.events("watchdog.attached", pid=watchdog)) == 2)
        os.kill(watchdog, signal.SIGKILL)
    assert_exited_with_7(daemon)


def test_full_backlog_of_a_stopped_watchdog(make_daemon):
    """A watchdog that hangs through many daemons is killed and replaced like any other."""
    assert_replaced(make_daemon(**IMPATIENT), daemons=7)


def test_found_stopped(make_daemon):
    """A watchdog that hangs when the daemon finds it is killed and replaced past the limit."""
    assert_replaced(make_daemon(**IMPATIENT), daemons=1)


def test_stopped_before_it_listens(make_daemon):
    """A watchdog that was stopped with the lock in its hands and no socket yet: waited for, then replaced."""
    daemon = make_daemon(**IMPATIENT)
    daemon.job("web", ["sleep", "1000"])
    daemon.start()
    pid = running(daemon, "web")
    watchdog = watchdog_pid(daemon, "web")
    daemon.kill()
    os.kill(watchdog, signal.SIGKILL)
    wait_for(lambda: not alive(watchdog))
    lock = daemon.state / "jobs" / "web" / "lock"
    (daemon.state / "jobs" / "web" / "link.sock").unlink()
    hold = (
        "import fcntl, sys, time; lock = open(sys.argv[1], 'r+'); fcntl.lockf(lock, fcntl.LOCK_EX);"
    )
    argv = [sys.executable, "-c", f"{hold} print(flush=True); time.sleep(60)", str(lock)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        daemon.start()
        assert running(daemon, "web") == pid
        assert holder.wait() == -signal.SIGKILL
    assert daemon.events("watchdog.unresponsive", job="web", pid=holder.pid)
    assert daemon.events("watchdog.killed", job="web", pid=holder.pid)
    assert [one["pid"] for one in daemon.events("watchdog.lost", job="web")] == [holder.pid]


def assert_replaced(daemon: Daemon, daemons: int) -> None:
    """A watchdog that is stopped while so many daemons come and go is replaced, and its job can be stopped."""
    daemon.job("web", ["sleep", "1000"])
    daemon.start()
    running(daemon, "web")
    watchdog = watchdog_pid(daemon, "web")
    with stopped(watchdog):
        for _ in range(daemons):
            daemon.kill()
            daemon.start()
        assert daemon.ask("stop", "web")["response"] == "fail"
        wait_for(lambda: not alive(watchdog))
        daemon.wait_state("web", "STOPPED")


def test_upgrade_trial_is_nobodys_orphan(make_daemon):
    """A watchdog that dies while an upgrade is tried; the trial is not taken for what the job left behind."""
    daemon = make_daemon()
    daemon.job("web", ["/bin/sh", "-c", "sleep 0.3; exit 3"], restart="always", normalExitCode=3)
    daemon.start()
    running(daemon, "web")
    for _ in range(6):
        with Client(daemon.socket) as client:
            client.send(query("upgrade"))
            wait_for(lambda: trial_of(daemon))
            os.kill(watchdog_pid(daemon, "web"), signal.SIGKILL)
            reply = client.reply()
        assert reply["response"] == "success", reply
        wait_for(lambda: has_one_of_this_program(daemon, "web"))


def test_after_an_upgrade_processes_belong_to_their_jobs(make_daemon):
    """A process inherited by the daemon before an upgrade is not another job's afterwards."""
    daemon = make_daemon()
    daemon.job("aa", ["sleep", "1000"])
    daemon.job("yy", ["sleep", "1000"])
    daemon.start()
    running(daemon, "aa")
    pid = running(daemon, "yy")
    os.kill(watchdog_pid(daemon, "yy"), signal.SIGKILL)
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
