"""Many clients that ask for everything at once, also while watchdogs and processes are killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time

import pytest
from running import Client, query, wait_for

JOBS = ["a", "b", "c"]
COMMANDS = [
    "start",
    "stop",
    "kill",
    "repair",
    "status",
    "pull",
    "push",
    "push",
    "delete",
    "list",
    "reload",
    "restart",
]
PROGRAMS = [
    ["sleep", "1000"], ["/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"],
    ["false"], ["true"], ["nope"],
    ["/bin/sh", "-c", "(sleep 500 &); sleep 500 & wait"],
]  # fmt: skip
STORM_S = 2.5
#: Words of failures that such a storm may well bring; any other is a bug.
EXPECTED = (
    "does not exist",
    "what was begun goes on",
    "exec nope",
    "FATAL",
    "being removed",
    "is no more",
    "stopped before it was started",
)


def definition(dice):
    return json.dumps(
        {
            "cmd": dice.choice(PROGRAMS),
            "procNr": dice.randint(1, 4),
            "startTime": dice.choice([0, 0.05, 0.3]),
            "stopTime": dice.choice([0, 0.1, 0.4]),
            "restart": dice.choice(["never", "unexpected", "always"]),
            "restartTimes": dice.choice([-1, 1, 3]),
            "autoStart": dice.choice([True, False]),
            "logMaxBytes": dice.choice([0, 1000]),
            "stdout": dice.choice(["%n.log", "x.log", None]),
        }
    )


def ask_for_everything(daemon, seed, until, wrong):
    """One client: bursts of random commands, each answered, none with a failure that says of a bug."""
    dice = random.Random(seed)
    with Client(daemon.socket) as client:
        while time.monotonic() < until:
            command = dice.choice(COMMANDS)
            job = None if command == "list" or dice.random() < 0.05 else dice.choice(JOBS)
            command = "restart" if job is None and command != "list" else command
            fields = {"data": definition(dice)} if command == "push" else {}
            if command != "list" and dice.random() < 0.3:
                fields["wait"] = dice.choice([0, 0.1, 1])
            burst = dice.randint(1, 4)
            client.send(query(command, job, **fields) * burst)
            for _ in range(burst):
                reply = client.reply()
                if reply["response"] == "invalid" or (
                    reply["response"] == "fail"
                    and not any(word in reply["error"] for word in EXPECTED)
                ):
                    wrong.append((command, job, reply))


def kill_something(daemon, until):
    dice = random.Random(9)
    while time.monotonic() < until:
        reply = daemon.ask("status", dice.choice(JOBS))
        if reply["response"] != "status":
            continue
        status = json.loads(reply["data"])
        pids = [status["watchdog"]["pid"], *(one["pid"] for one in status["processes"])]
        pid = dice.choice([pid for pid in pids if pid is not None] or [0])
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(dice.random() * 0.1)


@pytest.mark.parametrize("kills", [False, True], ids=["quiet", "kills"])
def test_storm(daemon, kills):
    """Every query is answered, every command completed, no watchdog ends unasked, stop leaves nothing."""
    until, wrong = time.monotonic() + STORM_S, []
    threads = [
        threading.Thread(target=ask_for_everything, args=(daemon, seed, until, wrong))
        for seed in range(6)
    ]
    if kills:
        threads.append(threading.Thread(target=kill_something, args=(daemon, until)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if kills:
        wrong = [one for one in wrong if "its watchdog died over it" not in one[2].get("error", "")]
    assert wrong == []
    assert daemon.running
    good = json.dumps({"cmd": ["sleep", "1000"], "procNr": 2, "startTime": 0, "stopTime": 1})
    with daemon.client() as client:
        for name in JOBS:
            assert client.ask("push", name, data=good, wait=60)["response"] == "success"
            assert client.ask("stop", name, wait=60)["response"] in ("success", "redundant")
            assert client.ask("start", name, wait=60) == {"response": "success"}
            status = client.status(name)
            assert (status["state"], status["alive"]) == ("RUNNING", 2)
    assert daemon.stop() == 0
    wait_for(
        lambda: len(daemon.events("command.completed")) == len(daemon.events("command.requested"))
    )
    if not kills:
        assert daemon.events("watchdog.lost") == []
    started = {(one["job"], one["pid"]) for one in daemon.events("process.started")}
    ended = {
        (one["job"], one["pid"])
        for event in ("process.exited", "process.unknown_exit")
        for one in daemon.events(event)
    }
    if not kills:
        assert started - ended == set()
    numbers = [one["seq"] for one in daemon.audit()]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
