"""Input that is wrong in every way: each gets its answer, and nothing else is touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from running import b64, query

NAMES = [
    "../x", "", ".", "..", "a/b", "-a", ".a", "_a", "a" * 65, "a b", "a\n", "a\0", "ä", "x.tm.json", "/etc/passwd",
    "x" * 3_000_000, "%n", "a;;b",
]  # fmt: skip
JOB_COMMANDS = ["start", "stop", "kill", "repair", "status", "pull", "push", "delete", "reload"]


@pytest.fixture
def daemon_with_other(make_daemon):
    """A daemon with one healthy job, ``other``."""
    daemon = make_daemon()
    daemon.job("other", ["sleep", "1000"])
    daemon.start()
    daemon.wait_state("other", "RUNNING")
    return daemon


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name[:12]))
def test_impossible_names(daemon_with_other, name):
    """A name that no job can have gets exactly ``Invalid job name.`` from every command that takes one."""
    (pid,) = daemon_with_other.pids("other")
    with daemon_with_other.client() as client:
        # An empty name is none, where there need not be one.
        for command in (*JOB_COMMANDS, *(["restart"] if name else [])):
            fields = {"data": '{"cmd": "x"}'} if command == "push" else {}
            reply = client.ask(command, name, **fields)
            assert reply == {"response": "fail", "error": "Invalid job name."}, command
        if not name:
            assert client.ask("restart", name) == {"response": "success"}
        assert client.status("other")["processes"][0]["pid"] == pid
    assert {one.name for one in daemon_with_other.jobs.iterdir()} == {"other.tm.json", ".history"}


def test_no_valid_query_keeps_the_connection(daemon_with_other):
    """A JSON object that is no valid query is ``invalid``, says why, and the connection stays."""
    ok = b64("other")
    cases = [
        ({}, "command"), ({"command": None}, "command"), ({"command": 5}, "command"),
        ({"command": ["list"]}, "command"),
        ({"command": "LIST"}, "LIST"), ({"command": "__class__"}, "__class__"), ({"command": ""}, "command"),
        ({"command": "x" * 100_000}, "command"),
        *[({"command": command}, "job") for command in JOB_COMMANDS],
        ({"command": "push", "job": ok}, "data"), ({"command": "push", "data": "e30="}, "job"),
        ({"command": "push", "job": ok, "data": "e30"}, "data"),
        ({"command": "push", "job": ok, "data": {}}, "data"),
        ({"command": "stop", "job": "other"}, "job"), ({"command": "stop", "job": "b3 RoZXI="}, "job"),
        ({"command": "stop", "job": "b3RoZXI"}, "job"), ({"command": "stop", "job": 7}, "job"),
        ({"command": "stop", "job": ["b3RoZXI="]}, "job"), ({"command": "stop", "job": "//79"}, "job"),
        ({"command": "stop", "job": "b3RoZXI=ü"}, "job"), ({"command": "stop", "job": "_-8="}, "job"),
        ({"command": "stop", "job": ok, "wait": "1"}, "wait"),
        ({"command": "stop", "job": ok, "wait": -1}, "wait"),
        ({"command": "stop", "job": ok, "wait": True}, "wait"),
        ({"command": "stop", "job": ok, "wait": 1e300}, "wait"),
    ]  # fmt: skip
    with daemon_with_other.client() as client:
        for case, word in cases:
            client.send(json.dumps(case, ensure_ascii=False).encode() + b";;")
            reply = client.reply()
            assert reply["response"] == "invalid", case
            assert word in reply["error"], (case, reply)
            assert len(reply["error"]) < 400
        assert client.status("other")["state"] == "RUNNING"


@pytest.mark.parametrize(
    "garbage",
    [
        b"hello;;", b"[];;", b'"stop";;', b"null;;", b";;", b"{;;", b'{"command":"list";;',
        b"{'command':'list'};;",
        b'{"command":"list"}};;', b'{"command":"list",};;', b'{"command":"l\xff"};;',
        b'\xef\xbb\xbf{"command":"list"};;',
        b'{"command":NaN};;', b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"};;", b"\0" * 100, b"\x80\x01\x02",
        b'{"command":"list"}\0;;',
    ],
    ids=lambda garbage: repr(garbage[:20]),
)  # fmt: skip
def test_no_json_ends_the_connection(daemon_with_other, garbage):
    """What is no JSON object gets ``invalid`` and the end; a valid frame behind it is not looked at."""
    with daemon_with_other.client(tcp=True) as client:
        client.send(query("status", "other") + garbage + query("stop", "other"))
        assert client.reply()["response"] == "status"
        reply = client.reply()
        assert reply["response"] == "invalid"
        assert reply["error"]
        assert client.frame() == b""
    assert daemon_with_other.status("other")["state"] == "RUNNING"
    assert daemon_with_other.events("command.requested", command="stop") == []


def test_five_megabytes_without_an_end(daemon_with_other):
    """A frame over maxFrameBytes gets ``invalid`` although 5 MB were sent in one go, and the end."""
    with daemon_with_other.client(tcp=True) as client:
        client.send(b'{"command":"list","x":"' + b"a" * 5_000_000)
        reply = client.reply()
        assert reply["response"] == "invalid"
        assert "4194304" in reply["error"]
        assert client.frame() == b""
    assert daemon_with_other.status("other")["state"] == "RUNNING"


#: For each key something that it does not take.
WRONG = {
    "cmd": [5, "", [], ["a", 5], [""], "unclosed ' quote", "a\0b", None, "   ", [["a"]]],
    "shell": [1, "true", None],
    "runas": [5, "a\nb", " ", "a:b:c", ":", None, "../x"],
    "procNr": [0, -1, 1001, 1.5, "2", True, None, 1e300],
    "autoStart": [0, "yes"],
    "restart": ["maybe", 3, -1, True, None, "Always"],
    "startTime": [-1, "1", None, 1e300],
    "normalExitCode": [256, -1, "0", [0, "1"], 1.5, True],
    "normalExitSig": ["NOPE", 99, -1, [0, 99], True],
    "restartTimes": [-2, 1.5, "3", 1e300],
    "stopSig": ["NOPE", 0, 65, -1, True, None, "", [15]],
    "stopTime": [-1, "10", 1e300],
    "stdout": [5, "", "../x", "a/../../b", "a/", ".", "..", "x\0", True, []],
    "stderr": [5, "", "../x", "/", "a/.."],
    "logMaxBytes": [-1, "1MB", 0.5, 1e300],
    "logBackups": [-1, 1e300, "x"],
    "env": [5, "A=B", {"A": 1}, {"": "x"}, {"A=B": "x"}, [{"name": "A"}], {"A": "x\0"}, {"A": "x" * 131072}, None],
    "inheritEnv": [1],
    "dir": ["", 5, None, "a\0"],
    "umask": ["0888", 18, "99999", "", "-1", None],
    "envFile": ["", 5, "a\0", []],
    "limits": [5, None, {"nofiles": 1}, {"rss": 1}, {"core": -1}, {"core": {"soft": 1}}],
    "nice": [20, -21, "5", 1.5],
    "ionice": ["fast", "realtime", "best-effort:8", "idle:0", 3, {"class": "idle", "level": 1}, {}],
    "oomScoreAdj": [1001, -1001, "0", True],
    "cpuAffinity": [[], "", "3-1", "x", [-1], 5, [99999]],
    "noNewPrivileges": [0, "yes"],
    "capabilities": [["CAP_NOTHING"], "ALL", {"effective": []}, [5], {"bounding": [], "ambient": ["CHOWN"]}],
    "groups": ["audio", [-1], ["a\nb"], [None]],
    "memoryMax": [0, "1K", "lots", -1, 1e300, True],
}  # fmt: skip


def test_each_key_wrong_in_turn(daemon_with_other):
    """A pushed file with a wrong key is ``fail`` with file, key, found, accepted; file and job stay."""
    path = daemon_with_other.jobs / "other.tm.json"
    before, (pid,) = path.read_bytes(), daemon_with_other.pids("other")
    with daemon_with_other.client() as client:
        for key, values in WRONG.items():
            for value in values:
                data = json.dumps({"cmd": "sleep 1000", key: value})
                for name in ("other", "fresh"):
                    reply = client.ask("push", name, data=data)
                    assert reply["response"] == "fail", (key, value)
                    assert reply["error"].startswith(f"{name}.tm.json: {key}: found "), reply
                    assert "; accepted: " in reply["error"]
        for data, word in (
            (b"", "end of the file"), (b"[]", "list"), (b"{", "end of the file"), (b"\xff{}", "UTF-8"),
            (b'{"cmd":"a","cmd":"b"}', "second time"), (b'{"cmd":"a","stoptime":1}', '"stopTime"'), (b"{}", "cmd"),
            (b'{"cmd":"a"} /* c */', "//"), (b'{"cmd":"\\ud800"}', "surrogate"),
            (b'{"cmd":"a","procNr":1e999}', "number"),
            (b"[" * 5000, "nesting"), (b'{"cmd":"' + b"a" * 1_100_000 + b'"}', "bytes"),
        ):  # fmt: skip
            reply = client.ask("push", "other", data=data)
            assert reply["response"] == "fail", data[:40]
            assert reply["error"].startswith("other.tm.json: ")
            assert word in reply["error"], reply
        assert client.status("other")["processes"][0]["pid"] == pid
        assert json.loads(client.ask("list")["data"]) == {"jobs": [{"name": "other"}]}
    assert path.read_bytes() == before
    assert {one.name for one in daemon_with_other.jobs.iterdir()} == {"other.tm.json", ".history"}


def test_what_cannot_be_started_is_named(daemon_with_other, tmp_path):
    """Start of what is not there names the step, the thing and the system's words; nothing else suffers."""
    daemon = daemon_with_other
    (pid,) = daemon.pids("other")
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    folder = str(tmp_path)
    cases = {
        "program": ({"cmd": ["/usr/bin/ngix"]}, "exec /usr/bin/ngix: No such file or directory"),
        "inpath": ({"cmd": ["no-such-program"]}, "exec no-such-program: No such file or directory"),
        "mode": ({"cmd": [str(plain)]}, f"exec {plain}: Permission denied"),
        "folder": ({"cmd": [folder]}, f"exec {folder}: Permission denied"),
        "interpreter": ({"cmd": [str(script)]}, f"exec {script}: its interpreter does not exist"),
        "user": ({"cmd": ["id"], "runas": "nosuchuser"}, "user nosuchuser: no such user"),
        "blank": ({"cmd": ["id"], "runas": "a b"}, "user a b: no such user"),
        "group": ({"cmd": ["id"], "runas": "root:nosuchgroup"}, "group nosuchgroup: no such group"),
        "dir": (
            {"cmd": ["id"], "dir": "/no/such"},
            "directory /no/such: No such file or directory",
        ),
        "output": (
            # Of its folders, the first that is missing is named.
            {"cmd": ["id"], "stdout": "/no/such/out"},
            "output /no: No such file or directory",
        ),
        "direct": (
            {"cmd": ["id"], "stdout": "/no/such/direct", "logMaxBytes": 0},
            "output /no: No such file or directory",
        ),
    }
    for name, (keys, _) in cases.items():
        data = json.dumps({"restartTimes": 1, "autoStart": False, **keys})
        assert daemon.ask("push", name, data=data)["response"] == "success"
    with daemon.client() as client:
        for name, (_, words) in cases.items():
            reply = client.ask("start", name)
            assert reply == {"response": "fail", "error": f"process 0: {words}"}, name
            status = daemon.wait_state(name, "FATAL")
            assert words in status["reason"]
            assert status["alive"] == 0
        assert client.status("other")["processes"][0]["pid"] == pid


def test_bad_files_in_the_directory(make_daemon):
    """Bad files at the start are reported, keep no other job from running, and never lose their name."""
    daemon = make_daemon()
    daemon.job("good", ["sleep", "1000"])
    (daemon.jobs / "bad.tm.json").write_text('{"cmd": "x", "stopTme": 1}')
    (daemon.jobs / "b d.tm.json").write_text("{}")
    (daemon.jobs / "link.tm.json").symlink_to("/etc/passwd")
    (daemon.jobs / "away.tm.json").symlink_to("/no/such/file")
    (daemon.jobs / "wide.tm.json").symlink_to("open.tm.json")
    (daemon.jobs / "folder.tm.json").mkdir()
    (daemon.jobs / "open.tm.json").write_text('{"cmd": "x"}')
    (daemon.jobs / "open.tm.json").chmod(0o666)
    (daemon.jobs / "notes.txt").write_text("not a job")
    daemon.start()
    daemon.wait_state("good", "RUNNING")
    with daemon.client() as client:
        names = [one["name"] for one in json.loads(client.ask("list")["data"])["jobs"]]
        assert names == ["away", "bad", "folder", "good", "link", "open", "wide"]
        status = client.status("bad")
        assert status["state"] == "FATAL"
        assert "bad.tm.json: stopTme: found an unknown key" in status["reason"]
        assert '"stopTime"' in status["reason"]
        for name in ("away", "bad", "folder", "link", "open", "wide"):
            reply = client.ask("start", name)
            assert reply["response"] == "fail"
            assert f"{name}.tm.json" in reply["error"]
            assert client.ask("stop", name)["response"] == "redundant"
        # A link is followed, and judged by what it leads to.
        assert client.ask("pull", "link")["data"] == Path("/etc/passwd").read_bytes()
        for name in ("away", "folder", "open", "wide"):
            assert client.ask("pull", name)["response"] == "fail"
        fixed = '{"cmd": ["sleep", "1000"], "startTime": 0}'
        assert client.ask("push", "bad", data=fixed, wait=60)["response"] == "success"
        assert client.status("bad")["state"] == "RUNNING"


def test_the_job_directory_goes_away(daemon_with_other):
    """With the job directory gone or open to others, commands that need it fail; jobs and status go on."""
    daemon = daemon_with_other
    (pid,) = daemon.pids("other")
    away = daemon.folder / "away"
    with daemon.client() as client:
        for breakage in ("gone", "open"):
            if breakage == "gone":
                daemon.jobs.rename(away)
            else:
                away.rename(daemon.jobs)
                daemon.jobs.chmod(0o777)
            for command in ("pull", "push", "reload", "delete"):
                if command == "delete":
                    continue  # it would stop the job first
                fields = {"data": '{"cmd": "x"}'} if command == "push" else {}
                reply = client.ask(command, "other", **fields)
                assert reply["response"] == "fail", (breakage, command)
                assert reply["error"]
            assert client.ask("reload", "another")["response"] == "fail"
            assert client.ask("push", "another", data='{"cmd": "x"}')["response"] == "fail"
            assert client.ask("restart")["response"] == "fail"
            assert json.loads(client.ask("list")["data"]) == {"jobs": [{"name": "other"}]}
            assert client.status("other")["processes"][0]["pid"] == pid
        daemon.jobs.chmod(0o700)
        assert client.ask("restart")["response"] == "success"
        assert client.status("other")["processes"][0]["pid"] == pid
