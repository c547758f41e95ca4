"""The audit log as an administrator reads it: who asked for what, and what came of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
from running import query, wait_for

SECRET = "hunter2-correct-horse"
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def paired(daemon):
    """Pairs of requested and completed records of every command, by id; checks order and gaplessness."""
    records = daemon.audit()
    assert [one["seq"] for one in records] == list(
        range(records[0]["seq"], records[0]["seq"] + len(records))
    )
    assert all(STAMP.fullmatch(one["timestamp"]) for one in records)
    requested, pairs = {}, []
    for one in records:
        if one["event"] == "command.requested":
            assert one["id"] not in requested
            requested[one["id"]] = one
        elif one["event"] == "command.completed":
            pairs.append((requested.pop(one["id"]), one))
    assert requested == {}
    return pairs


def test_every_command_leaves_two_records(daemon):
    """Each command, refused ones too, leaves requested before and completed after, with peer and outcome."""
    file = json.dumps({"cmd": ["sleep", "1000"], "env": {"PASSWORD": SECRET}, "startTime": 0})
    commands = [
        ("list", None, {}, "list"), ("push", "a", {"data": file}, "success"), ("start", "a", {}, None),
        ("status", "a", {}, "status"), ("pull", "a", {}, "file"), ("stop", "a", {"wait": 60}, "success"),
        ("stop", "a", {}, "redundant"), ("kill", "nobody", {}, "fail"), ("repair", "../x", {}, "fail"),
        ("push", "a", {"data": '{"cmd": "x", "env": {"A": 5, "PASSWORD": "' + SECRET + '"}}'}, "fail"),
        ("push", "a", {"data": '{"env": {"PASSWORD": "' + SECRET + '"}, "cmd": ' + SECRET}, "fail"),
        ("nonsense", "a", {}, "invalid"), ("push", "a", {}, "invalid"), ("reload", "a", {}, "success"),
        ("restart", None, {}, "success"), ("delete", "a", {}, "success"),
    ]  # fmt: skip
    clients = [daemon.client(), daemon.client(tcp=True)]
    start = len(paired(daemon))
    for client in clients:
        for command, job, fields, wanted in commands:
            reply = client.ask(command, job, **fields)
            assert wanted in (None, reply["response"]), (command, reply)
    pairs = paired(daemon)[start:]
    assert [one["command"] for one, _ in pairs] == [one[0] for one in commands] * 2
    for number, (asked, done) in enumerate(pairs):
        command, job, fields, wanted = commands[number % len(commands)]
        assert asked["seq"] < done["seq"]
        assert wanted in (None, done["outcome"])
        assert done["durationMs"] >= 0
        if wanted != "invalid":
            assert (asked["job"], done["job"]) == (job, job)
        if "data" in fields:
            data = fields["data"].encode()
            assert (asked["sha256"], asked["size"]) == (hashlib.sha256(data).hexdigest(), len(data))
        if wanted in ("fail", "invalid"):
            assert done["error"]
        peer = asked["peer"]
        assert peer["uid"] == os.geteuid()
        if number < len(commands):
            assert peer["transport"] == "unix"
            assert peer["pid"] == os.getpid()
        else:
            assert peer["transport"] == "tcp"
            assert peer.get("pid", os.getpid()) == os.getpid(), (
                "it may not be found, but no other is"
            )
            assert peer["address"].startswith("127.0.0.1:")
    assert SECRET.encode() not in daemon.audit_file.read_bytes()
    assert SECRET not in daemon.messages.read_text()
    assert b"sleep" not in daemon.audit_file.read_bytes()


@pytest.mark.parametrize("command", ["requested", "completed"])
def test_each_record_stands_alone(daemon, command):
    """Command, job and peer are in both records of a command, so that one line tells who did what."""
    daemon.job("a", ["sleep", "1000"])
    daemon.ask("reload", "a")
    client = daemon.client()
    client.ask("stop", "a")
    client.ask("nonsense", "a")
    for asked in ("stop", "nonsense"):
        (record,) = daemon.events(f"command.{command}", command=asked)
        assert record["peer"]["pid"] == os.getpid()
    (record,) = daemon.events(f"command.{command}", command="stop")
    assert record["job"] == "a"


def test_the_order_of_request_and_effect(daemon):
    """The request is on record before the process is started, the outcome before the reply is sent."""
    daemon.job("a", ["sleep", "1000"], autoStart=False)
    daemon.ask("reload", "a")
    assert daemon.ask("start", "a")["response"] == "success"
    (asked,) = daemon.events("command.requested", command="start")
    (done,) = daemon.events("command.completed", command="start")  # there before the reply was
    (started,) = wait_for(lambda: daemon.events("process.started", job="a"))
    assert asked["seq"] < started["seq"]
    assert asked["seq"] < done["seq"]


def test_what_the_daemon_does_of_itself(make_daemon):
    """Start and end of the daemon, of processes and watchdogs are on record; numbering goes on over restarts."""
    daemon = make_daemon()
    daemon.job("a", ["sleep", "1000"])
    daemon.job("bad", ["false"], restartTimes=1, startTime=3600)
    daemon.start()
    daemon.wait_state("a", "RUNNING")
    daemon.wait_state("bad", "FATAL")
    (pid,) = daemon.pids("a")
    os.kill(pid, 9)
    wait_for(lambda: daemon.pids("a") not in ([], [pid]))
    daemon.wait_state("a", "RUNNING")
    os.kill(daemon.status("a")["watchdog"]["pid"], 9)
    wait_for(lambda: daemon.events("process.adopted", job="a"))
    daemon.kill()
    daemon.start()
    daemon.wait_state("a", "RUNNING")
    assert daemon.stop() == 0
    paired(daemon)
    count = Counter(one["event"] for one in daemon.audit())
    assert (count["daemon.started"], count["daemon.stopped"], count["watchdog.lost"]) == (2, 1, 1)
    assert count["watchdog.attached"] >= 1
    (fatal,) = daemon.events("process.fatal")
    assert fatal["job"] == "bad"
    exits = daemon.events("process.exited", job="a")
    assert (exits[0]["signal"], exits[0]["expected"]) == (9, False)


def test_all_are_completed_at_the_orderly_end(daemon):
    """Commands under way or waiting behind others when taskmasterd is told to end are answered and completed."""
    stubborn = ["/bin/sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.02; done"]
    daemon.job("slow", stubborn, stopTime=0.7)
    daemon.job("starting", ["sleep", "1000"], startTime=3600)
    assert daemon.ask("restart")["response"] == "success"
    log = daemon.logs / "jobs/slow/0_stdout.log"
    wait_for(lambda: log.exists() and b"up" in log.read_bytes())
    client = daemon.client()
    sent = [
        query("delete", "slow"), query("push", "slow", data='{"cmd": ["sleep", "7"]}'), query("reload", "slow"),
        query("start", "starting", wait=3600), query("restart"),
    ]  # fmt: skip
    client.send(b"".join(sent))
    wait_for(lambda: len(daemon.events("command.requested", command="restart")) == 2)
    assert daemon.stop() == 0
    for number in range(len(sent)):
        assert client.reply()["response"] in ("success", "redundant", "fail"), number
    paired(daemon)


@pytest.mark.skipif(os.geteuid() != 0, reason="a disk to fill needs root")
@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare on this host")
def test_not_writable(make_daemon):
    """With the audit log's disk full what changes something is refused; stop, kill, status work; it recovers."""
    daemon = make_daemon()
    for name in ("a", "b", "c"):
        daemon.job(name, ["sleep", "1000"], stdout=None, stderr=None)
    daemon.job("d", ["sleep", "1000"], stdout=None, stderr=None, autoStart=False)
    daemon.logs.mkdir()
    # In a mount namespace of the daemon's own: nothing is mounted for anybody else, or afterwards.
    script = 'mount -t tmpfs -o size=128k none "$1" || exit 99; shift; exec "$@"'
    argv = ["/usr/bin/env", "unshare", "--mount", "/bin/sh", "-c", script, "sh", str(daemon.logs)]
    argv += [sys.executable, "-m", "taskmaster.control", "-c", str(daemon.config)]
    daemon.pid = daemon.host.start(argv, daemon.messages)
    wait_for(daemon.serves)
    inside = Path(f"/proc/{daemon.pid}/root{daemon.logs}")
    for name in ("a", "b", "c"):
        daemon.wait_state(name, "RUNNING")
    (pid,) = daemon.pids("c")
    filler = inside / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 512):
            pass  # until there is no space left
    client = daemon.client()
    before = (daemon.jobs / "c.tm.json").read_bytes()

    def refused():
        return client.ask("start", "d")["response"] == "fail"

    wait_for(refused, "the page that was begun is full")
    for command, job, fields in (
        ("start", "d", {}), ("push", "c", {"data": '{"cmd": "x"}'}), ("delete", "c", {}), ("reload", "c", {}),
        ("restart", None, {}), ("repair", "c", {}), ("restart", "c", {}),
    ):  # fmt: skip
        reply = client.ask(command, job, **fields)
        assert reply["response"] == "fail", command
        assert "audit" in reply["error"]
        assert "No space left on device" in reply["error"]
    assert client.status("c")["processes"][0]["pid"] == pid
    assert client.ask("list")["response"] == "list"
    assert client.ask("pull", "c")["data"] == before
    assert client.ask("stop", "a", wait=60)["response"] == "success"
    assert client.ask("kill", "b", wait=60)["response"] == "success"
    assert client.status("a")["state"] == client.status("b")["state"] == "STOPPED"
    filler.unlink()
    wait_for(lambda: client.ask("start", "d")["response"] in ("success", "redundant"))
    daemon.wait_state("d", "RUNNING")
    records = [json.loads(line) for line in (inside / "audit.jsonl").read_bytes().splitlines()]
    numbers = [one["seq"] for one in records]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert daemon.pids("c") == [pid]
