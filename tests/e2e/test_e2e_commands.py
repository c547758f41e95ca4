"""The eleven commands of the wire, byte for byte, in every way that bytes can arrive."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from running import Client, b64, query, unb64, wait_for

LIST = b64('{"jobs":[{"name":"one"},{"name":"two"}]}').encode()
OLD_LIST = {
    "jobs": [{"name": "one"}, {"name": "two"}],
    "processes": [{"name": "one"}, {"name": "two"}],
}
FILE = b'{"cmd": ["sleep", "1000"], "startTime": 0} // ;; stays\n'
ONE = b64("one").encode()
NEW = b64("new").encode()
SUCCESS = b'{"response":"success"}'
REDUNDANT = b'{"response":"redundant"}'
NO_NEW = b'{"response":"fail","error":"' + b64('Job "new" does not exist.').encode() + b'"}'
INVALID_NAME = b'{"response":"fail","error":"SW52YWxpZCBqb2IgbmFtZS4="}'

#: Every command and the exact reply; in this order, on two jobs that run.
STORY = [
    (b'{"command":"list"}', b'{"response":"list","list":"' + LIST + b'","data":"' + LIST + b'"}'),
    (b'{"command":"start","job":"' + ONE + b'"}', REDUNDANT),
    (b'{"command":"stop","job":"' + ONE + b'"}', SUCCESS),
    (b'{"command":"start","job":"' + ONE + b'"}', SUCCESS),
    (b'{"command":"kill","job":"' + ONE + b'"}', SUCCESS),
    (b'{"command":"start","job":"' + ONE + b'"}', SUCCESS),
    (b'{"command":"repair","job":"' + ONE + b'"}', SUCCESS),
    (b'{"command":"reload","job":"' + ONE + b'"}', SUCCESS),
    (b'{"command":"restart"}', SUCCESS),
    (b'{"command":"start","job":"bmdpbng="}', b'{"response":"fail","error":"'
     + b64('Job "nginx" does not exist.').encode() + b'"}'),
    (b'{"command":"kill","job":"' + b64("../x").encode() + b'"}', INVALID_NAME),
    (b'{"command":"push","job":"' + NEW + b'","data":"' + b64(FILE).encode() + b'"}', SUCCESS),
    (b'{"command":"pull","job":"' + NEW + b'"}',
     b'{"response":"file","job":"' + NEW + b'","data":"' + b64(FILE).encode() + b'"}'),
    (b'{"command":"delete","job":"' + NEW + b'"}', SUCCESS),
    (b'{"command":"delete","job":"' + NEW + b'"}', NO_NEW),
    (b'{"command":"pull","job":"' + NEW + b'"}', NO_NEW),
]  # fmt: skip


@pytest.fixture
def two_jobs(make_daemon):
    """A daemon with the jobs one and two, both running."""
    daemon = make_daemon()
    for name in ("one", "two"):
        daemon.job(name, ["sleep", "1000"])
    daemon.start()
    for name in ("one", "two"):
        daemon.wait_state(name, "RUNNING")
    return daemon


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
@pytest.mark.parametrize("pieces", ["pipelined", "bytewise", "in turn"])
def test_every_command_byte_for_byte(two_jobs, tcp, pieces):
    """The eleven commands give the documented replies to the byte, however their bytes arrive."""
    with two_jobs.client(tcp=tcp) as client:
        if pieces == "pipelined":
            client.send(b"".join(frame + b";;" for frame, _ in STORY))
        elif pieces == "bytewise":
            for byte in b"".join(frame + b";;" for frame, _ in STORY):
                client.send(bytes([byte]))
        got = []
        for frame, _ in STORY:
            if pieces == "in turn":
                client.send(frame + b";;")
            got.append(client.frame())
        assert got == [reply for _, reply in STORY]
        client.send(b'{"command":"status","job":"' + ONE + b'"};;')
        reply = json.loads(client.frame())
        client.send(b'{"command":"kill","job":"' + ONE + b'","wait":60};;')
        assert client.frame() == SUCCESS
        for command in (b"kill", b"stop"):
            client.send(b'{"command":"' + command + b'","job":"' + ONE + b'"};;')
            assert client.frame() == REDUNDANT
    assert list(reply) == ["response", "job", "data"]
    assert (reply["response"], reply["job"]) == ("status", ONE.decode())
    status = json.loads(unb64(reply["data"]))
    assert set(status) >= {"job", "state", "desired", "reason", "since", "ready", "alive", "of"}
    assert set(status) >= {"processes", "watchdog", "definition"}
    assert (status["job"], status["state"], status["desired"]) == ("one", "RUNNING", "UP")
    assert (status["ready"], status["alive"], status["of"]) == (True, 1, 1)
    assert set(status["processes"][0]) >= {
        "number", "pid", "state", "desired", "ready", "since", "uptime", "restarts",
        "exitCode", "signal", "reason", "nextRetry",
    }  # fmt: skip
    assert set(status["watchdog"]) >= {"pid", "state", "relaunches"}
    assert set(status["definition"]) == {"sha256", "stale"}
    assert status["since"].startswith("20")
    assert status["since"].endswith("Z")


SLOW_TO_STOP = "trap 'sleep 0.3; exit 0' TERM; echo up; while :; do sleep 0.05; done"
STUBBORN = "trap '' TERM; echo up; while :; do sleep 0.05; done"


@pytest.mark.parametrize(
    ("script", "outcomes"),
    [
        (SLOW_TO_STOP, ["success", "success", "success"]),
        (STUBBORN, ["success", "fail", "success"]),
    ],
)
def test_a_start_between_stop_and_kill(make_daemon, script, outcomes):
    """In order: the kill is of what was started, unless the end that the start waits for takes its time."""
    daemon = make_daemon()
    daemon.job("one", ["/bin/sh", "-c", script], stopTime=600)
    daemon.start()
    daemon.wait_state("one", "RUNNING")
    wait_for(lambda: "up" in (daemon.logs / "jobs/one/0_stdout.log").read_text())
    with daemon.client() as client:
        client.send(query("stop", "one") + query("start", "one") + query("kill", "one"))
        replies = [client.reply() for _ in range(3)]
    assert [reply["response"] for reply in replies] == outcomes
    if "fail" in outcomes:
        assert "stopped before it was started" in replies[1]["error"]
    daemon.wait_state("one", "STOPPED")
    starts = 1 + outcomes[1:2].count("success")
    wait_for(lambda: len(daemon.events("process.started", job="one")) == starts)


def test_a_hundred_in_one_write(two_jobs):
    """A hundred queries in one write are answered one for one and in order, the refused ones too."""
    with two_jobs.client() as client:
        sent = []
        for number in range(100):
            command = ("status", "start", "list", "pull", "nonsense")[number % 5]
            sent.append(query(command, "two", id=number))
        client.send(b"".join(sent))
        replies = [client.reply() for _ in sent]
    assert [reply["id"] for reply in replies] == list(range(100))
    assert [reply["response"] for reply in replies] == [
        "status",
        "redundant",
        "list",
        "file",
        "invalid",
    ] * 20


def test_from_200_connections_at_once(two_jobs):
    """200 connections that are open at the same time all get their answers, over TCP and Unix socket."""
    address = ("127.0.0.1", two_jobs.port)
    clients = [Client(address if number % 2 else two_jobs.socket) for number in range(200)]
    try:
        with ThreadPoolExecutor(16) as pool:
            asked = list(
                pool.map(
                    lambda pair: pair[1].ask(("list", "status", "start")[pair[0] % 3], "one"),
                    enumerate(clients),
                )
            )
    finally:
        for client in clients:
            client.close()
    wanted = [("list", "status", "redundant")[number % 3] for number in range(200)]
    assert [reply["response"] for reply in asked] == wanted


def test_old_dialect(two_jobs):
    """The key ``cmd`` asks for the same commands, and its list has the key ``processes`` beside ``jobs``."""
    with two_jobs.client() as client:
        client.send(b'{"cmd":"list"};;{"cmd":"start","job":"' + ONE + b'"};;')
        reply = client.reply()
        assert json.loads(reply["data"]) == OLD_LIST
        assert json.loads(base64.b64decode(reply["list"])) == OLD_LIST
        assert client.reply() == {"response": "redundant"}
        client.send(b'{"command":"list","cmd":"stop"};;')
        assert "processes" not in json.loads(client.reply()["data"])


@pytest.mark.parametrize(
    "given",
    [
        b'"a"', b"0", b"-1.5e3", b'"\\u00e9 \\" \\\\"', '"größe"'.encode(), b'""',
        b"12345678901234567890",
    ],
)  # fmt: skip
def test_id_is_echoed(two_jobs, given):
    """An ``id`` comes back as it was given, from replies of every kind."""
    with two_jobs.client() as client:
        client.send(b'{"id":' + given + b',"command":"list"};;')
        client.send(b'{"command":"nonsense","id":' + given + b"};;")
        client.send(b'{"command":"stop","job":"Lg==","id":' + given + b"};;")
        for _ in range(3):
            frame = client.frame()
            assert frame.endswith(b',"id":' + given + b"}")
            assert json.loads(frame)["id"] == json.loads(given)


@pytest.mark.parametrize(
    "given",
    [b'"a\x01b"', b'"\\q"', b"01", b"1.", b"-", b"1e", b"+1", b"[1]", b"{}", b"true", b"nul", b'"\\ud800"'],
)  # fmt: skip
def test_bad_ids_never_make_a_reply_that_is_no_json(two_jobs, given):
    """What is no JSON string or number is refused as ``id``, and every reply stays valid JSON."""
    with two_jobs.client() as client:
        client.send(b'{"id":' + given + b',"command":"list"};;')
        frame = client.frame()
        reply = json.loads(frame.decode("utf-8"))
        if given == b'"\\ud800"':  # a JSON string by the grammar
            assert reply["response"] in ("list", "invalid")
        else:
            assert reply["response"] == "invalid"


def test_white_space_and_unknown_keys(two_jobs):
    """White space is accepted everywhere JSON has it and between frames; unknown keys are ignored."""
    with two_jobs.client() as client:
        client.send(b' \r\n\t{\r\n\t"command" : "kill",\n "job" : "bmdpbng="\n}\n;;\n')
        client.send(b'{ "command":"list" , "later":[{"x":null}], "jobs":1 } ;; \n\n')
        assert client.reply()["error"] == 'Job "nginx" does not exist.'
        assert client.reply()["response"] == "list"


def test_a_slow_job_delays_no_other(make_daemon):
    """While one job takes its stopTime, commands of the same client on others go on; replies keep their order."""
    daemon = make_daemon()
    stubborn = ["/bin/sh", "-c", "trap '' TERM; echo up; while :; do sleep 1000; done"]
    daemon.job("slow", stubborn, stopTime=3600)
    daemon.job("quick", ["sleep", "1000"])
    daemon.start()
    daemon.wait_state("slow", "RUNNING")
    (pid,) = daemon.wait_state("quick", "RUNNING") and daemon.pids("quick")
    with daemon.client() as client:
        client.send(query("stop", "slow", wait=3600, id=1) + query("restart", "quick", id=2))
        other = daemon.client()
        other.send(query("start", "quick", wait=60))
        assert other.reply()["response"] in ("success", "redundant")
        assert daemon.status("slow")["state"] == "STOPPING"
        assert daemon.wait_state("quick", "RUNNING")
        assert daemon.pids("quick") != [pid]
        assert daemon.ask("kill", "slow")["response"] == "success"
        assert [client.reply()["id"] for _ in range(2)] == [1, 2]
