"""Restart policies, giving up, repair, kill, and what ``wait`` waits for."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest
from running import alive, query, wait_for

FOREVER = ["sleep", "1000"]


def put(daemon, name, cmd, **keys):
    """Write a job and bring it in force."""
    daemon.job(name, cmd, **keys)
    reply = daemon.ask("reload", name)
    assert reply["response"] == "success", reply


def on_signal(code, start="echo up"):
    """A program that ends with ``code`` when it gets SIGUSR1."""
    return ["/bin/sh", "-c", f"trap 'exit {code}' USR1; {start}; while :; do sleep 0.02; done"]


@pytest.mark.parametrize(
    ("policy", "end", "restarted"),
    [
        ("never", 0, False), ("never", 1, False), (0, "KILL", False),
        ("unexpected", 0, False), ("unexpected", 1, True), (1, "KILL", True), ("unexpected", 7, False),
        ("unexpected", "HUP", False), ("always", 0, True), (2, 1, True), ("always", "HUP", True),
    ],
)  # fmt: skip
def test_restart_policy(daemon, policy, end, restarted):
    """What happens at the end of a running process is the policy's: 0 and 7, and SIGHUP, are expected here."""
    code = end if isinstance(end, int) else 0
    put(daemon, "job", on_signal(code), restart=policy, normalExitCode=[0, 7], normalExitSig="HUP")
    log = daemon.logs / "jobs/job/0_stdout.log"
    wait_for(lambda: log.exists() and b"up" in log.read_bytes(), "its trap is set")
    daemon.wait_state("job", "RUNNING")
    (pid,) = daemon.pids("job")
    os.kill(pid, signal.SIGUSR1 if isinstance(end, int) else getattr(signal, f"SIG{end}"))
    if restarted:
        wait_for(lambda: daemon.pids("job") not in ([], [pid]), "it is started again")
        assert daemon.wait_state("job", "RUNNING")["processes"][0]["restarts"] == 1
    else:
        status = daemon.wait_state("job", "EXITED")
        one = status["processes"][0]
        assert (one["exitCode"], one["signal"]) == (
            (end, None) if isinstance(end, int) else (None, getattr(signal, f"SIG{end}").value)
        )
        assert (one["pid"], one["restarts"], status["alive"]) == (None, 0, 0)
        assert ("signal" if isinstance(end, str) else f"exit code {end}") in status["reason"]


def test_backoff_then_fatal_then_start(daemon):
    """Failed starts are retried, say when and why, end in FATAL after restartTimes, and start begins anew."""
    put(daemon, "bad", ["/bin/sh", "-c", "exit 9"], startTime=3600, restartTimes=3)
    status = daemon.wait_state("bad", "BACKOFF")
    assert re.fullmatch(r"retry [12] of 3 in \d+\.\d s, last exit code 9", status["reason"])
    assert status["processes"][0]["nextRetry"] >= 0
    status = daemon.wait_state("bad", "FATAL")
    assert status["reason"] == "gave up after 3 failed starts, last exit code 9"
    assert len(daemon.events("process.started", job="bad")) == 3
    assert status["processes"][0]["restarts"] == 2
    assert daemon.ask("start", "bad") == {"response": "success"}
    daemon.wait_state("bad", "FATAL")
    assert len(daemon.events("process.started", job="bad")) == 6
    assert daemon.ask("stop", "bad") == {"response": "success"}
    assert daemon.status("bad")["state"] == "STOPPED"
    assert daemon.ask("stop", "bad") == {"response": "redundant"}


def test_start_in_backoff_does_not_wait(daemon, tmp_path):
    """Start of a job in BACKOFF starts it now; never giving up is restartTimes -1."""
    flag = tmp_path / "flag"
    put(
        daemon,
        "late",
        ["/bin/sh", "-c", f"test -e {flag} && exec sleep 1000"],
        startTime=0.05,
        restartTimes=-1,
    )
    wait_for(lambda: (daemon.status("late")["processes"][0]["nextRetry"] or 0) > 1.5)
    assert re.match(r"retry \d+ in \d", daemon.status("late")["reason"])
    flag.touch()
    began = time.monotonic()
    assert daemon.ask("start", "late", wait=60) == {"response": "success"}
    assert time.monotonic() - began < 1.5
    assert daemon.status("late")["state"] == "RUNNING"


def test_repair(daemon, tmp_path):
    """Repair starts what is missing, forgets counters, touches nothing healthy, leaves a stopped job stopped."""
    flag = tmp_path / "flag"
    script = f'test "$TASKMASTER_PROCESS" = 0 || test -e {flag} || exit 1; exec sleep 1000'
    put(daemon, "half", ["/bin/sh", "-c", script], procNr=3, startTime=0.2, restartTimes=1)
    status = daemon.wait_state("half", "FATAL")
    wait_for(lambda: daemon.status("half")["processes"][0]["state"] == "RUNNING")
    (healthy,) = daemon.pids("half")
    flag.touch()
    assert daemon.ask("repair", "half", wait=60) == {"response": "success"}
    status = daemon.status("half")
    assert (status["state"], status["alive"]) == ("RUNNING", 3)
    assert status["processes"][0]["pid"] == healthy
    assert [one["restarts"] for one in status["processes"]] == [0, 0, 0]
    assert daemon.ask("stop", "half", wait=60) == {"response": "success"}
    assert daemon.ask("repair", "half", wait=60) == {"response": "success"}
    assert daemon.status("half")["state"] == "STOPPED"


def test_kill_is_at_once_and_stays(daemon):
    """Kill ends at once what ignores every polite signal and would be restarted always; it stays stopped."""
    script = "trap '' TERM INT HUP QUIT; echo up; while :; do sleep 0.02; done"
    put(daemon, "hard", ["/bin/sh", "-c", script], stopTime=3600, restart="always", procNr=2)
    for number in (0, 1):
        log = daemon.logs / f"jobs/hard/{number}_stdout.log"
        wait_for(lambda log=log: log.exists() and b"up" in log.read_bytes())
    daemon.wait_state("hard", "RUNNING")
    pids = daemon.pids("hard")
    assert daemon.ask("stop", "hard") == {"response": "success"}
    status = daemon.status("hard")
    assert (status["state"], status["desired"]) == ("STOPPING", "DOWN")
    assert re.fullmatch(r"SIGKILL in \d+\.\d s", status["reason"])
    assert all(alive(pid) for pid in pids)
    assert daemon.ask("kill", "hard", wait=60) == {"response": "success"}
    assert not any(alive(pid) for pid in pids)
    status = daemon.status("hard")
    assert (status["state"], status["desired"]) == ("STOPPED", "DOWN")
    assert [one["signal"] for one in status["processes"]] == [9, 9]
    assert daemon.ask("kill", "hard") == {"response": "redundant"}


def test_stop_time_is_kept(daemon):
    """What ignores the stop signal gets SIGKILL after stopTime, not before."""
    put(
        daemon,
        "slow",
        ["/bin/sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.02; done"],
        stopTime=0.7,
    )
    log = daemon.logs / "jobs/slow/0_stdout.log"
    wait_for(lambda: log.exists() and b"up" in log.read_bytes())
    began = time.monotonic()
    assert daemon.ask("stop", "slow", wait=60) == {"response": "success"}
    assert time.monotonic() - began >= 0.7
    assert daemon.status("slow")["processes"][0]["signal"] == 9


def test_wait(daemon):
    """The reply comes when the job has settled, or at the time limit with the state; nothing is undone."""
    put(daemon, "slow", FOREVER, startTime=0.5, autoStart=False)
    began = time.monotonic()
    assert daemon.ask("start", "slow", wait=60) == {"response": "success"}
    assert time.monotonic() - began >= 0.5
    assert daemon.status("slow")["state"] == "RUNNING"
    assert daemon.ask("start", "slow", wait=60) == {"response": "redundant"}
    put(daemon, "never", FOREVER, startTime=3600, autoStart=False)
    reply = daemon.ask("start", "never", wait=0.1)
    assert reply["response"] == "fail"
    assert 'Job "never" is STARTING' in reply["error"]
    assert daemon.status("never")["alive"] == 1
    put(daemon, "fatal", ["false"], startTime=1, restartTimes=2, autoStart=False)
    reply = daemon.ask("start", "fatal", wait=60)
    assert reply["response"] == "fail"
    assert reply["error"].startswith('Job "fatal" is FATAL: gave up after 2 failed starts')
    put(daemon, "once", ["true"], restart="never", autoStart=False)
    assert daemon.ask("start", "once", wait=60) == {"response": "success"}
    assert daemon.wait_state("once", "EXITED")["processes"][0]["exitCode"] == 0
    assert daemon.ask("stop", "slow", wait=60) == {"response": "success"}
    assert daemon.status("slow")["state"] == "STOPPED"
    assert daemon.ask("stop", "never", wait=0)["response"] in ("success", "fail")


@pytest.mark.parametrize("command", ["status", "pull"])
def test_wait_of_what_only_reads(daemon, command):
    """Every command may carry ``wait``: status then shows the settled job."""
    put(daemon, "slow", FOREVER, startTime=0.7)
    began = time.monotonic()
    reply = daemon.ask(command, "slow", wait=60)
    assert reply["response"] in ("status", "file")
    assert time.monotonic() - began >= 0.5
    assert daemon.status("slow")["state"] == "RUNNING"


def test_a_start_that_a_stop_overtakes_is_no_success(daemon):
    """A start that never came to anything, because a stop came before its exec, does not claim to be done."""
    put(
        daemon,
        "slow",
        ["/bin/sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.02; done"],
        stopTime=2,  # longer than a stop waits for a start before it
    )
    log = daemon.logs / "jobs/slow/0_stdout.log"
    wait_for(lambda: log.exists() and b"up" in log.read_bytes())
    with daemon.client() as client:
        client.send(query("stop", "slow") + query("start", "slow") + query("stop", "slow"))
        replies = [client.reply()["response"] for _ in range(3)]
    assert replies == ["success", "fail", "success"]
    assert daemon.wait_state("slow", "STOPPED")["desired"] == "DOWN"
    assert len(daemon.events("process.started", job="slow")) == 1


def test_since_of_a_job_that_never_ran(daemon):
    """``since`` of a job that was never started is the time it became known, no time before the clock began."""
    put(daemon, "quiet", FOREVER, autoStart=False)
    status = daemon.status("quiet")
    assert status["state"] == "STOPPED"
    assert status["since"] >= "2020"
    assert status["processes"][0]["since"] >= "2020"


def test_wait_ends_although_the_watchdog_is_silent(daemon):
    """``wait`` is over when its time is, also while the watchdog has not answered at all."""
    put(daemon, "mute", FOREVER, autoStart=False)
    watchdog = daemon.status("mute")["watchdog"]["pid"]
    os.kill(watchdog, signal.SIGSTOP)
    try:
        began = time.monotonic()
        reply = daemon.ask("start", "mute", wait=0.2)
        assert reply["response"] == "fail"
        assert time.monotonic() - began < 3
    finally:
        os.kill(watchdog, signal.SIGCONT)


@pytest.mark.parametrize("how", ["push", "reload"])
def test_a_corrected_file_is_tried(daemon, how):
    """A job that was given up because of its file is started by a corrected one, whatever the key at fault."""
    for number, (bad, good) in enumerate(
        [
            ({"cmd": ["nope"]}, {}),
            ({"dir": "/no"}, {}),
            ({"stdout": "/no/x"}, {"stdout": "x"}),
            ({"stdout": "/no/x"}, {}),
        ]
    ):
        name = f"j{number}"
        keys = {"cmd": FOREVER, "restartTimes": 1, **bad}
        put(daemon, name, keys.pop("cmd"), **keys)
        daemon.wait_state(name, "FATAL")
        daemon.job(name, FOREVER, restartTimes=1, **good)
        content = (daemon.jobs / f"{name}.tm.json").read_bytes()
        reply = daemon.ask(how, name, wait=60, **({"data": content} if how == "push" else {}))
        assert reply == {"response": "success"}, (bad, reply)
        assert daemon.status(name)["state"] == "RUNNING"
