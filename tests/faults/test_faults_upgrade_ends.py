"""An upgrade and an order to end, at the same time; and clients that hold an upgrade up, which they cannot."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable

import pytest
from faults_programs import Program
from running import Client, Daemon, process_start, query, wait_for

#: One that ends only by SIGKILL; it says when it has begun.
DEAF = ["/bin/sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.05; done"]


def begin(daemon: Daemon, program: Program | None = None) -> int:
    """Start a daemon whose job ``web`` runs; its pid."""
    daemon.job("web", ["sleep", "1000"])
    if program is None:
        daemon.start()
    else:
        program.start(daemon)
    (pid,) = [one["pid"] for one in daemon.wait_state("web", "RUNNING")["processes"]]
    return int(pid)


def on_trial(daemon: Daemon) -> int | None:
    """Pid of the new program on trial, while it is."""
    for child in os.listdir("/proc"):
        try:
            with open(f"/proc/{child}/stat", encoding="utf-8", errors="replace") as file:
                ppid = int(file.read().rpartition(")")[2].split()[1])
            with open(f"/proc/{child}/cmdline", "rb") as file:
                if ppid == daemon.pid and b"--check" in file.read().split(b"\0"):
                    return int(child)
        except (OSError, ValueError):
            pass
    return None


def end_by(daemon: Daemon, how: str) -> None:
    if how == "SIGTERM":
        os.kill(daemon.pid, signal.SIGTERM)
    elif how == "SIGINT":
        os.kill(daemon.pid, signal.SIGINT)
    else:
        reply = daemon.ask("shutdown", leaveJobs=how == "leave")
        assert reply == {"response": "success"}


WAYS = ("SIGTERM", "SIGINT", "shutdown", "leave")


@pytest.mark.parametrize("how", WAYS)
def test_the_end_during_a_trial(make_daemon: Callable[..., Daemon], how: str) -> None:
    """The trial is ended, who asked for the upgrade is told, and the daemon ends."""
    daemon = make_daemon()
    pid = begin(daemon)
    with Client(daemon.socket) as client:
        client.send(query("upgrade"))
        trial = wait_for(lambda: on_trial(daemon))
        os.kill(trial, signal.SIGSTOP)
        end_by(daemon, how)
        reply = client.reply()
        assert reply["response"] == "fail"
        assert "cancelled" in reply["error"]
    assert daemon.host.wait(daemon.pid) == 0
    assert (process_start(pid) is not None) == (how == "leave")
    wait_for(lambda: process_start(trial) is None)
    assert daemon.events("daemon.upgraded") == []
    assert len(daemon.events("process.started", job="web")) == 1


@pytest.mark.parametrize("how", WAYS)
def test_the_end_while_replies_are_waited_for(make_daemon: Callable[..., Daemon], how: str) -> None:
    """As above, when the trial is over and a client still waits for something."""
    daemon = make_daemon()
    daemon.job("slow", ["sleep", "1000"], startTime=1000)
    pid = begin(daemon)
    with Client(daemon.socket) as waiting, Client(daemon.socket) as client:
        waiting.send(query("status", "slow", wait=60))
        client.send(query("upgrade"))
        wait_for(lambda: on_trial(daemon))
        wait_for(lambda: on_trial(daemon) is None)
        end_by(daemon, how)
        assert "cancelled" in client.reply()["error"]
    assert daemon.host.wait(daemon.pid) == 0
    assert (process_start(pid) is not None) == (how == "leave")
    assert daemon.events("daemon.upgraded") == []


def test_the_end_after_the_exec(make_daemon: Callable[..., Daemon], tmp_path) -> None:
    """A signal that comes while one program has become the other is served by the other, which then ends."""
    daemon, program = make_daemon(), Program(tmp_path / "program")
    pid = begin(daemon, program)
    # The new program asks for its own end before it has met a watchdog, as if somebody had been that quick.
    program.change(
        "control/daemon.py",
        "        if self._arrival is not None:\n",
        "        os.kill(os.getpid(), 15)\n        if self._arrival is not None:\n",
    )
    with Client(daemon.socket) as client:
        assert client.ask("upgrade") == {"response": "success"}
    assert daemon.host.wait(daemon.pid) == 0
    assert process_start(pid) is None
    assert daemon.events("daemon.upgraded")
    assert daemon.events("daemon.stopped")
    assert len(daemon.events("process.started", job="web")) == 1


def test_two_upgrades_at_once(make_daemon: Callable[..., Daemon]) -> None:
    """The second is refused at once, the first is done; whatever was asked behind either is answered."""
    daemon = make_daemon()
    begin(daemon)
    with Client(daemon.socket) as first, Client(daemon.socket) as second:
        first.send(query("upgrade") + query("status", "web"))
        second.send(query("upgrade") + query("status", "web"))
        assert "under way" in second.reply()["error"]
        assert second.reply()["response"] == "status"
        assert first.reply() == {"response": "success"}
        assert first.reply()["response"] == "status"
    assert len(daemon.events("daemon.upgraded")) == 1


def test_a_client_that_does_not_read(make_daemon: Callable[..., Daemon]) -> None:
    """It is waited for as long as stated; others are served meanwhile; then it gets what it has, and an end."""
    daemon = make_daemon()
    daemon.job("many", ["sleep", "1000"], procNr=50)
    begin(daemon)
    daemon.wait_state("many", "RUNNING")
    with socket.socket(socket.AF_UNIX) as deaf, Client(daemon.socket) as other:
        deaf.connect(str(daemon.socket))
        deaf.setblocking(False)
        asked = query("status", "many") * 2000
        while asked:
            try:
                asked = asked[deaf.send(asked) :]
            except BlockingIOError:
                break  # neither side takes any more
        with Client(daemon.socket) as client:
            client.send(query("upgrade"))
            wait_for(lambda: on_trial(daemon))
            wait_for(lambda: on_trial(daemon) is None)
            assert other.status("web")["state"] == "RUNNING"
            assert not daemon.events("daemon.upgraded")
            # What changes something waits, and is done by the new program.
            other.send(query("start", "web") + query("status", "web"))
            assert client.reply() == {"response": "success"}
            assert other.reply() == {"response": "redundant"}
            assert other.reply()["response"] == "status"
        deaf.settimeout(60)
        replies = b""
        while chunk := deaf.recv(1 << 20):
            replies += chunk
        assert replies.endswith(b";;")
    assert daemon.events("daemon.upgraded")
    # All that was on record as asked is on record as answered, one way or the other.
    asked_ids = {one["id"] for one in daemon.events("command.requested")}
    assert asked_ids == {one["id"] for one in daemon.events("command.completed")}


def test_what_was_not_begun_is_said_to_be_so(make_daemon: Callable[..., Daemon]) -> None:
    """Commands that wait behind another are not begun once an upgrade waits no longer; the reply says so."""
    daemon = make_daemon()
    daemon.job("late", DEAF, stopTime=12)
    begin(daemon)
    daemon.wait_state("late", "RUNNING")
    with Client(daemon.socket) as first, Client(daemon.socket) as behind:
        first.send(query("delete", "late"))
        wait_for(lambda: daemon.status("late")["state"] == "STOPPING")
        behind.send(query("reload", "late"))
        wait_for(lambda: daemon.events("command.requested", command="reload"))
        assert daemon.ask("upgrade") == {"response": "success"}
        assert "not begun" in behind.reply()["error"]
        assert "goes on" in first.reply()["error"]


def test_clients_that_have_sent_all(make_daemon: Callable[..., Daemon]) -> None:
    """Half-closed connections get what they wait for, also the one that asked for the upgrade (``nc -N``)."""
    daemon = make_daemon()
    begin(daemon)
    with Client(daemon.socket) as client:
        client.send(query("upgrade"))
        client.socket.shutdown(socket.SHUT_WR)
        assert client.reply() == {"response": "success"}
        assert client.frame() == b""
