"""shutdown and upgrade: what is sent and said, and what has become of a real taskmasterd when they return."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading

import pytest
from cli_servers import (
    DEADLINE_S,
    Jobs,
    Result,
    command_line,
    environment,
    fail,
    frames,
    interrupt_when_asleep,
)
from cli_terminal import Terminal
from running import alive, process_start, wait_for

from taskmaster import syscalls
from taskmaster.cli import pidfd

ENDED = "taskmasterd has ended; all jobs are stopped\n"
LEFT = "taskmasterd has ended; its jobs run on and are found again by the next taskmasterd\n"
UPGRADED = "taskmasterd runs the new program (same pid); no process was touched\n"


@pytest.fixture
def server(make_server):
    """Answers as a taskmasterd with two jobs, and ends the connection after ``shutdown``."""
    jobs = Jobs(web="RUNNING", db="RUNNING")
    queries = []

    def conversation(connection):
        for query in frames(connection):
            queries.append(query)
            reply = json.dumps(jobs(query) | {"id": query["id"]}).encode() + b";;"
            connection.sendall(reply)
            if query["command"] == "shutdown":
                return

    server = make_server(raw=conversation)
    server.queries = queries
    return server


@pytest.mark.parametrize(
    ("line", "sent", "said"),
    [
        (["shutdown"], {"command": "shutdown", "wait": 60}, ENDED),
        (["shutdown", "-y", "--timeout", "9"], {"command": "shutdown", "wait": 9}, ENDED),
        (["shutdown", "--leave-jobs"], {"command": "shutdown", "leaveJobs": True}, LEFT),
        (
            ["shutdown", "--no-wait"],
            {"command": "shutdown"},
            "taskmasterd stops all jobs and then ends; not waited for\n",
        ),
        (
            ["--no-wait", "shutdown", "--leave-jobs"],
            {"command": "shutdown", "leaveJobs": True},
            "taskmasterd ends and leaves its jobs running; not waited for\n",
        ),
        (["upgrade"], {"command": "upgrade"}, UPGRADED),
    ],
)
def test_queries(server, ctl, line, sent, said):
    """In a script nothing is asked; the query is exactly this, and the answer says what has become of it."""
    assert ctl("-c", server.address, *line) == (0, said, "")
    (query,) = server.queries
    assert {key: query[key] for key in query if key not in ("id", "codes")} == sent
    document = {"job": None, "response": "success"}
    assert json.loads(ctl("-c", server.address, "--json", *line).out) == document


@pytest.mark.parametrize("command", ["shutdown", "upgrade"])
def test_refused(make_server, ctl, command):
    """What the daemon says is shown, with the exit status of its code."""
    server = make_server(lambda query: fail("it would not", "not-permitted"))
    result = ctl("-c", server.address, command)
    assert result == (77, "", f"taskmasterctl: {command}: it would not\n")
    document = json.loads(ctl("-c", server.address, "--json", command).out)
    assert document["error"] == "it would not"


def test_does_not_end(make_server, ctl):
    """A daemon that agrees and stays costs --timeout, and is not said to have ended."""
    server = make_server(lambda query: {"response": "success"})
    result = ctl("-c", server.address, "--timeout", "0.1", "shutdown")
    assert (result.status, result.out) == (75, "")
    assert "has not stopped all jobs and ended within 0.1 s; what was begun goes on" in result.err
    result = ctl("-c", server.address, "--timeout", "0.1", "shutdown", "--leave-jobs")
    assert "taskmasterd has not ended within 0.1 s" in result.err
    assert ctl("-c", server.address, "shutdown", "--no-wait").status == 0


@pytest.mark.parametrize(("answer", "ends"), [("y\n", True), ("\n", False), ("\x04", False)])
def test_asks_on_a_terminal(server, answer, ends):
    """Which daemon, and how many jobs; anything but yes stops nothing."""
    with Terminal("-c", server.address, "shutdown") as terminal:
        terminal.wait_for(f"Stop all jobs (2) and end taskmasterd at {server.address}? [y/N] ")
        terminal.type(answer)
        assert terminal.end() == (0 if ends else 1)
    assert [query["command"] for query in server.queries] == ["list", *["shutdown"] * ends]
    assert ("nothing was stopped" in terminal.seen) is not ends


@pytest.mark.parametrize("option", ["--yes", "--leave-jobs"])
def test_does_not_ask(server, option):
    """Neither with --yes nor where no job is stopped."""
    with Terminal("-c", server.address, "shutdown", option) as terminal:
        assert terminal.end() == 0
    assert [query["command"] for query in server.queries] == ["shutdown"]


def test_interrupted(make_server):
    """Ctrl-C ends the wait for the end, and says that the end comes all the same."""
    answered = threading.Event()

    def answer(query):
        answered.set()
        return {"response": "success"}

    server = make_server(answer)
    with Terminal("-c", server.address, "shutdown", "--yes") as terminal:
        assert answered.wait(DEADLINE_S)
        interrupt_when_asleep(terminal.process)
        assert terminal.end() == 130
    assert "interrupted; taskmasterd goes on with what was begun" in terminal.seen


# the real one --------------------------------------------------------------------------------------


def run(daemon, *arguments: str) -> Result:
    """taskmasterctl for this daemon, whose end its host notices meanwhile."""
    done = subprocess.run(
        command_line("-c", str(daemon.socket), *arguments),
        capture_output=True,
        text=True,
        env=environment(),
        timeout=DEADLINE_S,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def test_shutdown(make_daemon):
    """When it returns nothing runs, neither daemon nor job, and the next daemon can start at once."""
    daemon = make_daemon()
    # Deaf to TERM for a while: it has to be waited for.
    stubborn = ["/bin/sh", "-c", "trap 'sleep 0.3; exit 0' TERM; while :; do sleep 0.05; done"]
    daemon.job("web", stubborn)
    daemon.job("db", ["sleep", "1000"], procNr=2)
    daemon.start()
    for job in ("web", "db"):
        daemon.wait_state(job, "RUNNING")
    watchdogs = [daemon.status(job)["watchdog"]["pid"] for job in ("web", "db")]
    pids = [daemon.pid, *watchdogs, *daemon.pids("web"), *daemon.pids("db")]
    assert run(daemon, "shutdown") == (0, ENDED, "")
    assert [pid for pid in pids if alive(pid)] == []
    assert daemon.host.wait(daemon.pid) == 0
    daemon.start()
    assert run(daemon, "shutdown").status == 0


def test_shutdown_leaves_jobs(make_daemon):
    """When it returns the daemon alone has ended; the next one has the same process."""
    daemon = make_daemon()
    daemon.job("web", ["sleep", "1000"])
    daemon.start()
    (pid,) = [one["pid"] for one in daemon.wait_state("web", "RUNNING")["processes"]]
    start = process_start(pid)
    assert run(daemon, "shutdown", "--leave-jobs") == (0, LEFT, "")
    assert not alive(daemon.pid)
    assert process_start(pid) == start
    daemon.start()
    daemon.wait_state("web", "RUNNING")
    assert daemon.pids("web") == [pid]
    assert process_start(pid) == start


def test_upgrade(make_daemon):
    """The same pid and the same process; a new program that cannot start is refused in its own words."""
    daemon = make_daemon()
    daemon.job("web", ["sleep", "1000"])
    daemon.start()
    (pid,) = [one["pid"] for one in daemon.wait_state("web", "RUNNING")["processes"]]
    assert run(daemon, "upgrade") == (0, UPGRADED, "")
    daemon.configure(prot=7777)
    result = run(daemon, "upgrade")
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith("taskmasterctl: upgrade: The new program cannot start: ")
    assert "prot" in result.err
    assert result.err.endswith("The one that runs goes on.\n")
    daemon.configure()
    assert daemon.running
    assert daemon.wait_state("web", "RUNNING")["processes"][0]["pid"] == pid


def kernel_tells() -> bool:
    """Whether it can be known how a process ended that is nobody's child here (Linux 6.15)."""
    child = subprocess.Popen(["true"])
    held = os.pidfd_open(child.pid)
    try:
        child.wait()
        return syscalls.pidfd_exit_status(held) is not None
    finally:
        os.close(held)


def test_killed_on_the_way(make_daemon):
    """A daemon that is killed while it stops its jobs has not stopped them, and nothing says that it has."""
    if not kernel_tells():
        pytest.skip("this kernel does not tell how others' processes ended")
    daemon = make_daemon()
    daemon.job("deaf", ["/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"], stopTime=60)
    daemon.start()
    daemon.wait_state("deaf", "RUNNING")
    (pid,) = daemon.pids("deaf")
    asking = subprocess.Popen(
        command_line("-c", str(daemon.socket), "shutdown"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: daemon.events("daemon.stopping"))
    daemon.kill()
    out, err = asking.communicate(timeout=DEADLINE_S)
    assert (asking.returncode, out) == (1, "")
    assert "taskmasterd has ended, but not in order (by signal 9): not everything is stopped" in err
    assert alive(pid)
    daemon.start()
    assert daemon.ask("kill", "deaf")["response"] == "success"
    daemon.wait_state("deaf", "STOPPED")


def test_how_a_process_ended():
    """Held by its pidfd: not before its end, and then how, where the kernel tells it of others' children."""
    for program, status in (("exit 7", 7 << 8), ("kill -KILL $$", signal.SIGKILL)):
        child = subprocess.Popen(["sh", "-c", f"read x; {program}"], stdin=subprocess.PIPE)
        held = pidfd.hold(child.pid)
        try:
            assert not pidfd.ended(held, 0.0)
            assert pidfd.info(held) is None if kernel_tells() else True
            child.communicate(b"\n", timeout=DEADLINE_S)
            assert pidfd.ended(held, DEADLINE_S)
            assert pidfd.wait_status(held) == syscalls.pidfd_exit_status(held)
            assert pidfd.wait_status(held) == (status if kernel_tells() else None)
        finally:
            os.close(held)
    assert pidfd.hold(1) == pidfd.hold(0) == pidfd.hold(child.pid) == -1
