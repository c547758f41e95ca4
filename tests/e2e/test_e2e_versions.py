"""Versions of job files: history, diff, rollback, over the protocol and the command line; ``ifHash``."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter

import pytest
from running import Client, b64, query

A, B, C = (f'{{"cmd": "sleep 1000", "startTime": 0, "stopTime": {n}}}\n' for n in (1, 2, 3))


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


def ctl(daemon, *arguments, status=0):
    """What taskmasterctl prints on standard output, and on standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "taskmaster.cli", "-c", str(daemon.socket), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"TZ": "UTC"},
    )
    assert done.returncode == status, (arguments, done)
    return done.stdout, done.stderr


def versions(daemon, job, **fields):
    """The history document's versions, oldest first."""
    reply = daemon.ask("history", job, **fields)
    assert reply["response"] == "history", reply
    document = json.loads(reply["data"])
    numbers = [one["version"] for one in document["versions"]]
    assert numbers == sorted(numbers, reverse=True)
    return document["versions"][::-1]


def test_a_file_through_all_its_versions(daemon):
    """Pushed, edited, deleted, brought back: each is a version with who, why and sha256, and can be had."""
    assert daemon.ask("push", "web", data=A, reason="first")["response"] == "success"
    (daemon.jobs / "web.tm.json").write_text(B)
    assert daemon.ask("reload", "web")["response"] == "success"
    assert daemon.ask("push", "web", data=C, reason="third; really")["response"] == "success"
    assert ctl(daemon, "rollback", "web", "--reason", "no")[0] == "web: rolled back to version 2\n"
    assert daemon.ask("pull", "web")["data"] == B.encode()
    assert daemon.ask("delete", "web", reason="gone")["response"] == "success"

    found = versions(daemon, "web")
    assert [(one["version"], one["action"], one["sha256"], one["reason"]) for one in found] == [
        (1, "pushed", sha(A), "first"),
        (2, "edited", sha(B), ""),
        (3, "pushed", sha(C), "third; really"),
        (4, "rolled-back", sha(B), "no"),
        (5, "deleted", sha(B), "gone"),
    ]
    me = f"pid {os.getpid()}, unix)"
    assert [me in one["by"] for one in found] == [True, True, True, False, True]
    assert all(one["size"] == len(A) for one in found)
    assert [one["version"] for one in versions(daemon, "web", version=3)] == [1, 2]
    for one, text in zip(found, (A, B, C, B, B), strict=True):
        for which in (one["version"], one["sha256"][:8]):
            reply = daemon.ask("pull", "web", version=which)
            assert (reply["response"], reply["data"]) == ("file", text.encode())
    assert daemon.ask("status", "web")["error"] == 'Job "web" does not exist.'

    # A deleted job has the file that it had, a named version, or none that there never was.
    assert daemon.ask("rollback", "web", wait=60)["response"] == "success"
    assert daemon.status("web")["definition"]["sha256"] == sha(B)
    assert daemon.ask("rollback", "web", version=3)["response"] == "success"
    assert daemon.ask("rollback", "web", version=sha(C)[:12])["response"] == "redundant"
    assert daemon.ask("pull", "web")["data"] == C.encode()
    for fields, error in (
        ({"version": 99}, "no such version"),
        ({"version": "0" * 8}, "no such version"),
    ):
        reply = daemon.ask("rollback", "web", **fields)
        assert (reply["response"], error in reply["error"]) == ("fail", True)
    for command in ("rollback", "history"):
        assert daemon.ask(command, "nobody")["error"] == 'Job "nobody" does not exist.'
        assert daemon.ask(command, "../web")["error"] == "Invalid job name."
    (asked,) = (
        one
        for one in daemon.events("command.completed", command="rollback")
        if one["after"] == "RUNNING" and one["before"] is None
    )
    assert (asked["sha256"], asked["size"]) == (sha(B), len(B))


def test_a_version_that_cannot_be_used_now_changes_nothing(daemon):
    """A rollback is checked as a push is: the file and the running job stay as they are."""
    daemon.job("web", "sleep 1000")
    bad = daemon.jobs / ".history/web"
    assert daemon.ask("restart")["response"] == "success"
    pid = daemon.wait_state("web", "RUNNING")["processes"][0]["pid"]
    content = b'{"cmd": "sleep 1", "procNr": "many"}'
    name = f"000007-{hashlib.sha256(content).hexdigest()}"
    (bad / f"{name}.tm.json").write_bytes(content)
    about = {
        "number": 7,
        "sha256": name[7:],
        "size": len(content),
        "action": "put",
        "who": "x",
        "when": "",
    }
    (bad / f"{name}.meta.json").write_text(json.dumps(about))
    for file in bad.iterdir():
        file.chmod(0o600)
    before = (daemon.jobs / "web.tm.json").read_bytes()
    reply = daemon.ask("rollback", "web", codes=True)
    assert (reply["response"], reply["code"]) == ("fail", "bad-file")
    assert "procNr" in reply["error"]
    assert (daemon.jobs / "web.tm.json").read_bytes() == before
    assert daemon.pids("web") == [pid]


def test_the_start_of_a_daemon_keeps_what_it_finds(make_daemon):
    """A directory that is kept by hand has a history too: rollback after the first bad edit works."""
    daemon = make_daemon()
    (daemon.jobs / "web.tm.json").write_text(A)
    daemon.start()
    (daemon.jobs / "web.tm.json").write_text(B)
    assert daemon.ask("restart")["response"] == "success"
    assert daemon.ask("rollback", "web")["response"] == "success"
    assert (daemon.jobs / "web.tm.json").read_text() == A
    daemon.stop()
    daemon.start()
    assert [(one["action"], one["sha256"]) for one in versions(daemon, "web")] == [
        ("edited", sha(A)),
        ("edited", sha(B)),
        ("rolled-back", sha(A)),
    ]


def test_of_many_who_edited_the_same_version_one_wins(daemon):
    """Pushes with ``ifHash`` sent at once: exactly one is taken, the others are told what is there and by whom."""
    assert daemon.ask("push", "web", data=A)["response"] == "success"
    for round_number in range(3):
        was = hashlib.sha256((daemon.jobs / "web.tm.json").read_bytes()).hexdigest()
        clients = [Client(daemon.socket) for _ in range(8)]
        files = [
            json.dumps({"cmd": "sleep 1000", "restartTimes": n, "stopTime": round_number + 1})
            for n in range(8)
        ]
        for client, file in zip(clients, files, strict=True):
            client.send(query("push", "web", data=file, ifHash=was, codes=True))
        replies = [client.reply() for client in clients]
        assert Counter(one["response"] for one in replies) == {"success": 1, "fail": 7}
        winner = next(n for n, one in enumerate(replies) if one["response"] == "success")
        assert (daemon.jobs / "web.tm.json").read_text() == files[winner]
        for one in replies:
            if one["response"] == "fail":
                assert one["code"] == "conflict"
                assert sha(files[winner]) in one["error"]
                assert f"pid {os.getpid()}, unix" in one["error"]
        for client in clients:
            client.close()
    now = sha(files[winner])
    for fields, wanted in (
        ({"ifHash": ""}, "fail"),
        ({"ifHash": was}, "fail"),
        ({"ifHash": now}, "success"),
    ):
        assert daemon.ask("push", "web", data=B, **fields)["response"] == wanted, fields
    assert daemon.ask("push", "new", data=A, ifHash=now)["response"] == "fail"
    assert not (daemon.jobs / "new.tm.json").exists()
    assert daemon.ask("push", "new", data=A, ifHash="")["response"] == "success"
    # Not pushed over what nobody has reloaded yet, either.
    (daemon.jobs / "new.tm.json").write_text(C)
    reply = daemon.ask("push", "new", data=B, ifHash=sha(A))
    assert (reply["response"], "by other means" in reply["error"]) == ("fail", True)
    assert daemon.ask("rollback", "new", ifHash=sha(A))["response"] == "fail"
    assert (daemon.jobs / "new.tm.json").read_text() == C


def test_on_the_command_line(daemon, tmp_path):
    """history, diff, rollback and push --if-hash as they are typed, with their errors and exit statuses."""
    file = tmp_path / "web.tm.json"
    for text in (A, B):
        file.write_text(text)
        ctl(daemon, "push", "--reason", "a;; b", str(file))
    table = ctl(daemon, "history", "web")[0].splitlines()
    assert table[0].split() == [
        "VERSION",
        "NOW",
        "WHEN",
        "WHO",
        "ACTION",
        "SHA256",
        "SIZE",
        "REASON",
    ]
    rows = [line.split(None, 7) for line in table[1:]]
    assert [(row[0], row[1], row[4], row[5], row[7]) for row in rows] == [
        ("2", "*", "pushed", sha(B)[:12], "a;; b"),
        ("1", "-", "pushed", sha(A)[:12], "a;; b"),
    ]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}", rows[0][2])
    assert len(ctl(daemon, "history", "web", "-n", "1")[0].splitlines()) == 2
    document = json.loads(ctl(daemon, "--json", "history", "web")[0])
    assert (document["current"], len(document["versions"])) == (sha(B), 2)

    changed = f"--- web.tm.json\t(version 1)\n+++ web.tm.json\t(now)\n@@ -1 +1 @@\n-{A}+{B}"
    for arguments in ((), ("1",), (sha(A)[:9],)):
        found = ctl(daemon, "diff", "web", *arguments)[0]
        assert found.split("\n", 1)[1] == changed.split("\n", 1)[1], arguments
    assert ctl(daemon, "diff", "web", "2")[0] == ""
    assert f"-{B}+{A}" in ctl(daemon, "diff", "web", "2", "1")[0]
    assert f"-{B}+{A}" in ctl(daemon, "rollback", "--dry-run", "web")[0]
    assert daemon.ask("pull", "web")["data"] == B.encode()
    ctl(daemon, "delete", "web")
    assert f"-{A}+{B}" in ctl(daemon, "diff", "web")[0]
    assert ctl(daemon, "rollback", "web")[0] == "web: rolled back to version 3\n"

    file.write_text(C)
    complaint = ctl(daemon, "push", "--if-hash", sha(A), str(file), status=1)[1]
    assert f"its sha256 is {sha(B)}" in complaint
    ctl(daemon, "push", "--if-hash", sha(B), str(file))
    for arguments, status, words in (
        (("history", "nobody"), 4, 'Job "nobody" does not exist.'),
        (("diff", "nobody"), 4, 'Job "nobody" does not exist.'),
        (("rollback", "nobody"), 4, 'Job "nobody" does not exist.'),
        (("rollback", "web", "77"), 78, "no such version; accepted: 1 to"),
        (("diff", "web", "v1"), 2, "'v1' is no version; accepted: a number"),
        (("rollback", "web", "0"), 2, "'0' is no version"),
        (("push", "--if-hash", "xyz", str(file)), 2, "64 digits"),
        (("push", "--if-hash", sha(C), str(file), str(tmp_path / "b.tm.json")), 2, "one by one"),
        (("kill", "--reason", "a\x1b[2J", "web"), 2, "printable"),
    ):  # fmt: skip
        assert words in ctl(daemon, *arguments, status=status)[1], arguments


@pytest.mark.parametrize("content", [b"\xff\xfe{", b'{"cmd": "x"} \x1b[2J'])
def test_a_diff_is_exact_in_a_pipe(daemon, content):
    """What stood in a file that was edited and never read is kept when it is replaced, byte for byte."""
    assert daemon.ask("push", "web", data=A)["response"] == "success"
    (daemon.jobs / "web.tm.json").write_bytes(content)
    assert daemon.ask("push", "web", data=B)["response"] == "success"
    assert [one["action"] for one in versions(daemon, "web")] == ["pushed", "edited", "pushed"]
    with Client(daemon.socket) as client:
        client.send(query("pull", "web", version=2))
        assert b64(content) in client.frame().decode()
    done = subprocess.run(
        [sys.executable, "-m", "taskmaster.cli", "-c", str(daemon.socket), "diff", "web", "2", "3"],
        capture_output=True,
        timeout=60,
    )
    assert b"\n-" + content + b"\n\\ No newline at end of file\n+" + B.encode() in done.stdout
