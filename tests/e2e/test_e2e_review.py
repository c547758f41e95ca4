"""The review of the audit log, on what real commands left: who, when, from where, allowed, what came of it."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running import Client, query, wait_for

STUBBORN = ["/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"]


def audit(daemon, *arguments, files=(), status=0, server=True, **environment):
    """What ``taskmasterctl audit`` prints, by line."""
    where = ["-c", str(daemon.socket)] if server else []
    done = subprocess.run(
        [sys.executable, "-m", "taskmaster.cli", *where, "audit", *arguments, *map(str, files)],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"TZ": "UTC"} | environment,
    )
    assert done.returncode == status, (arguments, done)
    assert "Traceback" not in done.stderr
    return done.stdout.splitlines() if status == 0 else done.stderr


def documents(daemon, *arguments, **keys):
    return [json.loads(line) for line in audit(daemon, "--json", *arguments, **keys)]


def commands(daemon, *arguments, **keys):
    """Command, job and outcome of each command that is shown."""
    found = documents(daemon, *arguments, **keys)
    assert all(one["kind"] == "command" for one in found)
    return [(one["command"], one["job"], one["outcome"]) for one in found]


def pages(daemon, cursor=""):
    """What follows the cursor, as the protocol tells it, and the cursor behind it."""
    data = b""
    with Client(daemon.socket) as client:
        while True:
            reply = client.ask("audit", **({"cursor": cursor} if cursor else {}))
            assert reply["response"] == "audit", reply
            data, cursor = data + reply["data"], reply["cursor"]
            if not reply["more"]:
                return data, cursor


def whole_log(daemon):
    """The bytes of all files of the log, oldest first."""
    rotated = sorted(daemon.logs.glob("audit.jsonl.*"), key=lambda f: -int(f.suffix[1:]))
    return b"".join(file.read_bytes() for file in [*rotated, daemon.audit_file])


@pytest.fixture
def lived(daemon):
    """A daemon that was asked for this and that by one client over the Unix socket, and one over TCP."""
    daemon.job("web", STUBBORN, stopTime=0.2)
    daemon.job("db", "sleep 1000")
    client = daemon.client()
    for command, job, fields in (
        ("restart", None, {}),
        ("start", "web", {"wait": 60}),
        ("stop", "web", {"wait": 60, "reason": "it leaks"}),
        ("status", "db", {}),
        ("kill", "nobody", {}),
        ("push", "db", {"data": "{"}),
        ("dance", "db", {}),
    ):
        client.ask(command, job, **fields)
    daemon.client(tcp=True).ask("repair", "db")
    return daemon


def test_who_did_what(lived):
    """A row has when, who, from where, the command, the job, the outcome, the states, and why."""
    header, *rows = audit(lived)
    assert header.split() == [
        *("WHEN", "WHO", "FROM", "WHAT", "JOB", "OUTCOME", "STATE", "TOOK", "ID", "DETAIL")
    ]
    cells = [row.split(None, 9) for row in rows]
    user = subprocess.run(["id", "-un"], capture_output=True, text=True).stdout.strip()
    assert [tuple(one[3:6]) for one in cells] == [
        ("restart", "-", "success"),
        ("start", "web", "redundant" if cells[1][5] == "redundant" else "success"),
        ("stop", "web", "success"),
        ("kill", "nobody", "fail"),
        ("push", "db", "fail"),
        ("dance", "-", "invalid"),
        ("repair", "db", "success"),
    ]
    assert {(one[1], one[2]) for one in cells[:6]} == {(user, f"unix,pid={os.getpid()}")}
    assert cells[6][2].startswith("127.0.0.1:")
    (stop,) = (one for one in cells if one[3] == "stop")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}", stop[0])
    assert (stop[6], stop[9]) == ("RUNNING->STOPPED", "reason: it leaks")
    assert 'Job "nobody" does not exist.' in rows[3]
    assert re.fullmatch(r"[\d.]+(ms|s)", stop[7])


def test_each_filter(lived):
    """By command, job, outcome, user, id, event and time; and what only reads if it is asked for."""
    everything = documents(lived, "--all")
    assert ("status", "db", "status") in [
        (o["command"], o["job"], o["outcome"]) for o in everything
    ]
    assert commands(lived, "--command", "status", "--command", "kill") == [
        ("status", "db", "status"),
        ("kill", "nobody", "fail"),
    ]
    assert [one[0] for one in commands(lived, "--outcome", "fail")] == ["kill", "push"]
    assert commands(lived, "--outcome", "invalid") == [("dance", None, "invalid")]
    assert commands(lived, "--user", "nobody-at-all") == []
    assert commands(lived, "--user", f"{os.geteuid()}", "-n", "1", "--command", "stop") == [
        ("stop", "web", "success")
    ]
    (one,) = documents(lived, "--command", "stop")
    assert documents(lived, "--id", one["id"]) == [one]
    assert (one["reason"], one["peer"]["pid"], one["before"], one["after"]) == (
        "it leaks", os.getpid(), "RUNNING", "STOPPED",
    )  # fmt: skip

    story = [one.get("event") or one["command"] for one in documents(lived, "--job", "web")]
    assert story[story.index("stop") :] == [
        "stop",
        "process.stopping",
        "process.killed",
        "process.exited",
    ]
    assert {one["job"] for one in documents(lived, "--job", "w*")} == {"web"}
    killed = documents(lived, "--event", "process.k*")
    assert [(k["event"], k["cause"]) for k in killed] == [("process.killed", one["id"])]
    assert any(o.get("event") == "daemon.started" for o in documents(lived, "--events"))

    assert documents(lived, "--since", one["timestamp"], "--until", "now")[0]["id"] == one["id"]
    assert one["id"] not in [o["id"] for o in documents(lived, "--until", one["timestamp"])]
    assert documents(lived, "--since", "1h")[0]["command"] == "restart"
    assert documents(lived, "--until", "1h") == documents(lived, "--since", "2099-01-01") == []
    assert len(documents(lived, "-n", "2")) == 2
    for arguments, words in (
        (("--since", "soon"), "'soon' is no time; accepted: 2h (ago"),
        (("--outcome", "good"), "'good' is no outcome; there are: success"),
        (("-n", "-1"), "-1"),
        (("--job",), "--job"),
    ):
        assert words in audit(lived, *arguments, status=2)
    assert "No such file" in audit(lived, files=["/nowhere"], status=78)
    assert "no command has the id 0-0" in audit(lived, "show", "0-0", status=1)


def test_show_a_stop_that_needed_sigkill(lived):
    """It lists the stop signal, the SIGKILL and the end, each as its doing, and nothing of the start before."""
    (stop,) = documents(lived, "--command", "stop")
    shown = audit(lived, "show", stop["id"])
    assert {"reason:   it leaks", "outcome:  success", "state:    RUNNING->STOPPED"} <= set(shown)
    rows = [line.split(None, 4) for line in shown[shown.index("") + 2 :]]
    assert [(row[1], row[3]) for row in rows] == [
        ("process.stopping", "it"),
        ("process.killed", "it"),
        ("process.exited", "it"),
    ]
    assert 'reason="stopTime was over"' in rows[1][4]
    assert "signal=9" in rows[2][4]
    (document,) = documents(lived, "show", stop["id"])
    assert [one["event"] for one in document["caused"]] == [row[1] for row in rows]
    (start,) = documents(lived, "--command", "start")
    caused = documents(lived, "show", start["id"])[0]["caused"]
    assert "process.exited" not in [one["event"] for one in caused]


def test_a_cause_outlives_the_watchdog(daemon):
    """A stop whose watchdog is killed over it: its replacement adopts, kills, and says for whom."""
    daemon.job("web", STUBBORN, stopTime=1.5)
    assert daemon.ask("restart")["response"] == "success"
    daemon.wait_state("web", "RUNNING")
    assert daemon.ask("stop", "web")["response"] == "success"
    (stop,) = daemon.events("command.requested", command="stop")
    wait_for(lambda: daemon.events("process.stopping", cause=stop["id"]))
    os.kill(daemon.status("web")["watchdog"]["pid"], 9)
    daemon.wait_state("web", "STOPPED")
    caused = documents(daemon, "show", stop["id"])[0]
    assert [one["event"] for one in caused["caused"]] == [
        *("process.stopping", "process.adopted", "process.killed", "process.exited")
    ]
    assert "watchdog.lost" in [one["event"] for one in caused["meanwhile"]]
    # What comes later is nobody's doing any more.
    daemon.ask("start", "web", wait=60)
    os.kill(daemon.pids("web")[0], 9)
    wait_for(lambda: len(daemon.events("process.exited", job="web")) == 2)
    assert "cause" not in daemon.events("process.exited", job="web")[1]


def test_the_protocol_tells_what_the_files_hold(make_daemon):
    """Piece by piece, over rotated files, byte for byte; a cursor goes on over rotations and past a lost file."""
    daemon = make_daemon(auditMaxBytes=20_000, auditBackups=4)
    daemon.start()
    daemon.job("web", "sleep 1000")
    client = daemon.client()

    def rotate(number):
        while not (daemon.logs / f"audit.jsonl.{number}").exists():
            client.ask("status", "web")

    rotate(1)
    data, cursor = pages(daemon)
    assert len(data) > 20_000
    assert whole_log(daemon).startswith(data)
    rotate(3)
    more, cursor = pages(daemon, cursor)
    assert len(more) > 35_000
    assert whole_log(daemon).startswith(data + more)
    assert pages(daemon, "1-5-00000000")[0].startswith(data)
    for number in (3, 2):
        (daemon.logs / f"audit.jsonl.{number}").unlink()
    kept = pages(daemon)[0]
    assert whole_log(daemon).startswith(kept)
    assert len(kept) < len(data + more)
    for bad in ("x", "1-2", "1-2-3", "-1-2-00000000", "9" * 40 + "-1-00000000"):
        assert daemon.ask("audit", cursor=bad)["response"] == "fail", bad
    assert base64.b64decode(daemon.ask("audit", cursor="end")["file"]) == os.fsencode(
        daemon.audit_file
    )
    # To read its own log has not cost the daemon the lock on it.
    other = make_daemon("other", auditFile=str(daemon.audit_file))
    other.start(wait=False)
    assert os.waitstatus_to_exitcode(other.host.wait(other.pid)) == 75


def test_through_the_protocol_as_from_the_files(lived, tmp_path):
    """A user who may not read the file sees the same rows, by asking the daemon."""
    direct = documents(lived, "--job", "web", "--job", "db")
    hidden = lived.logs / "moved"
    # The daemon says where its log is; where that is not to be had here, it is asked for the lines.
    script = (
        "import sys; from taskmaster.cli.audit import remote; remote._is_here = lambda path, cursor: False;"
        "from taskmaster.cli import app; sys.exit(app.run(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "-c", str(lived.socket), "audit", "--json", "--job", "web", "--job", "db"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert [json.loads(line) for line in done.stdout.splitlines()] == direct, done.stderr
    assert not hidden.exists()
    copy = tmp_path / "audit.jsonl"
    copy.write_bytes(lived.audit_file.read_bytes())
    assert documents(lived, "--job", "web", "--job", "db", files=[copy]) == direct
    # The daemon is gone, and a file needs none.
    lived.stop()
    assert documents(lived, "--command", "stop", files=[copy])[0]["reason"] == "it leaks"
    assert "Is taskmasterd running?" in audit(lived, status=69)


@pytest.mark.parametrize("told", [False, True], ids=["files", "protocol"])
def test_follow_over_a_rotation(make_daemon, told):
    """Each command is shown once, as it is done, although the file is renamed while it is read."""
    daemon = make_daemon(auditMaxBytes=6_000, auditBackups=30)
    daemon.start()
    daemon.ask("restart")
    patch = "remote._is_here = lambda path, cursor: False;" if told else ""
    script = (
        f"import sys; from taskmaster.cli.audit import lines, remote; {patch} lines.LOOK_AGAIN_S = 0.02;"
        "from taskmaster.cli import app; sys.exit(app.run(sys.argv[1:]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, "-c", str(daemon.socket), "audit", "-f", "--json", "--command", "reload"],
        stdout=subprocess.PIPE, text=True,
    ) as reader:  # fmt: skip
        assert reader.stdout is not None
        try:
            client = daemon.client()
            shown = []
            for number in range(40):
                client.ask("reload", f"job-{number}")
                if number % 8 == 7:  # in step, and sometimes several at once
                    shown += [json.loads(reader.stdout.readline()) for _ in range(8)]
        finally:
            reader.kill()
    assert [(one["job"], one["outcome"]) for one in shown] == [
        (f"job-{n}", "fail") for n in range(40)
    ]
    assert len(list(daemon.logs.glob("audit.jsonl.*"))) >= 2


def test_one_who_waits_is_told_at_once_and_of_nothing_but_news(daemon):
    """With ``wait``, audit is answered when something was recorded; readings of the log are no news."""
    cursor = daemon.ask("audit", cursor="end")["cursor"]
    with Client(daemon.socket) as waiting, Client(daemon.socket) as other:
        waiting.send(query("audit", cursor=cursor, wait=600))
        for _ in range(3):
            assert other.ask("audit", cursor="end")["response"] == "audit"
        waiting.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            waiting.frame()
        waiting.socket.settimeout(60)
        other.ask("reload", "nobody")
        lines = waiting.reply()["data"].splitlines()
        assert {b'"command":"audit"', b'"command":"reload"'} <= {
            mark for line in lines for mark in re.findall(rb'"command":"\w+"', line)
        }
        begun = time.monotonic()
        waiting.send(query("audit", cursor="end", wait=0.2))
        assert waiting.reply()["response"] == "audit"
        assert time.monotonic() - begun < 30
        # Who waits for news does not keep the daemon from becoming another program.
        waiting.send(query("audit", cursor="end", wait=600))
        pid = daemon.pid
        assert other.ask("upgrade")["response"] == "success"
        assert waiting.reply()["response"] == "audit"
    assert daemon.pid == pid
    wait_for(daemon.serves)


def test_hostile_lines(lived, tmp_path):
    """Escape sequences, huge values, torn and foreign lines: shown escaped and cut, counted, never a traceback."""
    good = lived.audit_file.read_bytes()
    evil = tmp_path / "audit.jsonl"
    peer = {"transport": "unix", "address": "x", "user": "a\x1b]0;owned\x07b", "uid": 0, "pid": 1}
    records = [
        {"command": "kill\x1b[2J", "job": "\u202eweb" + "x" * 100_000, "id": "e-1", "peer": peer},
        {"command": ["kill"], "id": "e-2"},
        {"command": "kill", "id": "e-3", "peer": "root"},
        {"command": "kill", "id": 5},
        {"command": "kill", "id": "e-4", "timestamp": "\x1b[31mnever"},
    ]
    common = {"timestamp": "2026-11-24T09:00:00.000000Z", "event": "command.requested"}
    # With a hash, as all of the daemon's have: what has none is not shown at all.
    hashed = common | {"hash": "0" * 64}
    lines = [json.dumps({"seq": number} | hashed | one) for number, one in enumerate(records, 1)]
    lines.append(json.dumps({"seq": 9} | common | {"command": "kill", "id": "e-unchained"}))
    foreign = [
        b"\xff\xfe\x00",
        b"",
        b"[" * 100_000,
        b"null",
        b'{"a":1}',
        b"\x1b[2J",
        b"9" * 300_000,
    ]
    evil.write_bytes(
        good
        + b"\n".join([*map(str.encode, lines), *foreign])
        + b"\n"
        + good[:-40]
        + b'\n{"seq":9,"ti'
    )
    for arguments in ((), ("--all",), ("--json",), ("--events",), ("--job", "web"), ("--job", "*"), ("-n", "3"),
                      ("show", "e-1"), ("show", "e-4"), ("--user", "a*")):  # fmt: skip
        text = "\n".join(audit(lived, *arguments, files=[evil]))
        assert all(character.isprintable() or character == "\n" for character in text), arguments
    rows = audit(lived, files=[evil])
    (first,) = (row for row in rows if " e-1 " in row)
    assert r"kill\x1b[2J" in first
    assert r"a\x1b]0;owned\x07b" in first
    assert r"\u202eweb" in first
    assert len(first) < 1500
    assert any(r"\x1b[31mnever" in row for row in rows)
    assert not any("e-unchained" in row for row in rows)
    done = subprocess.run(
        [sys.executable, "-m", "taskmaster.cli", "audit", str(evil)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert re.search(r"taskmasterctl: \d+ lines of .* are no records", done.stderr)
    for kind in (tmp_path, Path("/dev/null")):
        assert "not a regular file" in audit(lived, files=[kind], status=78) or kind is tmp_path


def test_the_log_of_a_daemon_that_was_killed(daemon):
    """A command without an answer says so, and so does one that was asked before the log begins."""
    daemon.job("web", "sleep 1000")
    daemon.ask("restart")
    (restart,) = daemon.events("command.requested", command="restart")
    asked = restart | {"id": "lost-1", "command": "stop", "job": "web"}
    daemon.stop()
    with daemon.audit_file.open("ab") as file:
        asked["seq"] = daemon.audit()[-1]["seq"] + 1
        file.write(json.dumps(asked, separators=(",", ":")).encode() + b"\n")
    daemon.start()
    (row,) = audit(daemon, "--id", "lost-1")[1:]
    assert row.split()[5] == "none"
    assert row.endswith("no answer on record: taskmasterd ended meanwhile")
    (done,) = daemon.events("command.completed", command="restart")
    alone = daemon.folder / "later.jsonl"
    alone.write_text(json.dumps(done, separators=(",", ":")) + "\n")
    (row,) = audit(daemon, files=[alone])[1:]
    assert row.endswith("asked before the first record here")
