"""Who may do what, asked by real processes of other users, over every way in; and that the log names them."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from running import ROOT, Client, query, wait_for
from strangers import NOBODY, as_user, needs_root

from taskmaster.cli import app
from taskmaster.config.access import Role
from taskmaster.control.access import least
from taskmaster.wire.queries import NEEDS, Command, Needs

pytestmark = needs_root
ROLES = ("viewer", "operator", "admin")
#: What a command needs beside its job.
FIELDS = {
    "push": {"data": '{"cmd": ["sleep", "1000"], "runas": "nobody", "startTime": 0}'},
    "rollback": {"version": 1},
    "shutdown": {"leaveJobs": True},
}
HARMFUL = ("shutdown", "upgrade")


@pytest.fixture
def shared(open_folder, make_daemon):
    """Daemons whose socket everybody can reach."""

    def make(name="host", **config):
        path = open_folder / "control.sock"
        daemon = make_daemon(name, socket=str(path), socketMode="0666", **config)
        daemon.socket = path
        for job in ("web-1", "db"):
            daemon.job(job, ["sleep", "1000"], runas="nobody")
        daemon.start()
        for job in ("web-1", "db"):
            daemon.wait_state(job, "RUNNING")
        return daemon

    return make


def ways(daemon):
    """Every way in, by transport."""
    return {"unix": daemon.socket, "tcp": ("127.0.0.1", daemon.port)}


def ask_all(address, frames):
    """The replies to these frames on one connection."""

    def work():
        with Client(address) as client:
            replies = []
            for frame in frames:
                client.send(frame)
                replies.append(client.reply())
            return replies

    return work


def job_of(command):
    return None if NEEDS[command] is Needs.NOTHING else "web-1"


def frame_of(command, job):
    return query(command.value, job, codes=True, **FIELDS.get(command.value, {}))


def test_nobody_may_nothing(shared):
    """A process of ``nobody`` is refused every command over every way in; the log names its uid, pid and role."""
    daemon = shared()
    before = daemon.pids("web-1") + daemon.pids("db")
    frames = [frame_of(command, job_of(command)) for command in Command]
    for transport, address in ways(daemon).items():
        done = as_user(NOBODY, ask_all(address, frames))
        for command, reply in zip(Command, done.result, strict=True):
            assert (reply["response"], reply["code"]) == ("fail", "not-permitted"), command
            assert reply["error"].startswith(f"Permission denied: {command.value}")
            assert "user nobody" in reply["error"]
        records = [
            record for record in daemon.audit()
            if record.get("peer", {}).get("uid") == NOBODY and record["peer"]["transport"] == transport
        ]  # fmt: skip
        assert len(records) == 2 * len(frames)
        for record in records:
            assert record["peer"]["pid"] == done.pid
            assert record["peer"]["user"] == "nobody"
            assert record["role"] is None
        asked, answered = (
            [one for one in records if one["event"] == f"command.{word}"]
            for word in ("requested", "completed")
        )
        assert [one["command"] for one in asked] == [command.value for command in Command]
        assert {one["outcome"] for one in answered} == {"fail"}
    assert daemon.pids("web-1") + daemon.pids("db") == before


def test_every_command_role_and_transport(shared):
    """Each role may do what the table says, over each way in; what it may not do is refused and nothing else."""
    users = dict(zip(ROLES, (NOBODY, 1, 2), strict=True))  # nobody, daemon, bin
    rules = [{"role": role, "users": [uid], "runAs": ["nobody"]} for role, uid in users.items()]
    for rule in rules[:2]:
        del rule["runAs"]
    daemon = shared(access=rules)
    for role, uid in users.items():
        for transport, address in ways(daemon).items():
            # Of what would end the daemon or delete the job, only refusals are asked for here.
            asked = [
                command for command in Command
                if role != "admin" or command.value not in (*HARMFUL, "delete")
            ]  # fmt: skip
            if role == "admin":
                asked.append(Command.DELETE)
            done = as_user(uid, ask_all(address, [frame_of(one, job_of(one)) for one in asked]))
            for command, reply in zip(asked, done.result, strict=True):
                allowed = ROLES.index(role) + 1 >= least(command, job_of(command))
                refused = reply.get("code") == "not-permitted"
                assert refused is not allowed, (role, transport, command, reply)
            events = daemon.events("command.requested")
            # Not by pid: which process holds a TCP socket is only looked for as far as that is cheap.
            mine = [one for one in events if one["peer"].get("uid") == uid]
            assert {one["role"] for one in mine} == {role}
            if role == "admin":
                # It was deleted; back for the next round.
                assert daemon.ask("push", "web-1", **FIELDS["push"])["response"] == "success"
    (restarted,) = as_user(1, ask_all(daemon.socket, [query("restart", codes=True)])).result
    assert restarted["code"] == "not-permitted"
    (ended,) = as_user(2, ask_all(daemon.socket, [query("shutdown", leaveJobs=True)])).result
    assert ended["response"] == "success"
    daemon.host.wait(daemon.pid)


def test_jobs_of_a_rule(shared):
    """A viewer of some jobs sees those, pipelined and repeated too; others are as if there were none."""
    daemon = shared(access=[{"role": "viewer", "users": ["nobody"], "jobs": ["web-*"]}])
    frames = [
        *[query("list")] * 3, *[query("status", "web-1")] * 3,
        *[query("status", "db", codes=True)] * 3, query("status", "nosuch", codes=True),
        query("status", "web-none", codes=True), query("stop", "web-1", codes=True),
    ]  # fmt: skip
    # Known to the daemon by its owner's questions already.
    daemon.ask("status", "db")
    daemon.ask("list")
    for address in ways(daemon).values():
        replies = as_user(NOBODY, ask_all(address, frames)).result
        assert {json.loads(one["data"])["jobs"][0]["name"] for one in replies[:3]} == {"web-1"}
        assert {len(json.loads(one["data"])["jobs"]) for one in replies[:3]} == {1}
        assert [one["response"] for one in replies[3:6]] == ["status"] * 3
        assert [one["code"] for one in replies[6:]] == (
            ["not-permitted"] * 4 + ["no-such-job", "not-permitted"]
        )
        assert replies[6]["error"].replace("db", "X") == replies[9]["error"].replace("nosuch", "X")


def test_ceiling_of_who_pushes(shared):
    """Who may push for ``nobody`` cannot store a job that runs as root, nor one whose output goes anywhere."""
    daemon = shared(access=[{"role": "admin", "users": ["bin"], "runAs": ["nobody"]}])
    jobs = {
        "root": {"cmd": "id"},
        "named": {"cmd": "id", "runas": "root"},
        "group": {"cmd": "id", "runas": "nobody:root"},
        "other": {"cmd": "id", "runas": "daemon"},
        "output": {"cmd": "id", "runas": "nobody", "stdout": str(daemon.folder / "x")},
        "inherits": {"cmd": "id", "runas": "nobody", "inheritEnv": True},
        "fine": {"cmd": ["sleep", "1000"], "runas": "nobody", "startTime": 0},
    }
    frames = [
        query("push", name, data=json.dumps(job), codes=True) for name, job in jobs.items()
    ] + [query("push", "db", data='{"cmd": "id"}', codes=True)]
    *refused, fine, over = as_user(2, ask_all(daemon.socket, frames)).result
    assert {(one["response"], one["code"]) for one in [*refused, over]} == {
        ("fail", "not-permitted")
    }
    assert "would run as root" in refused[0]["error"]
    assert fine == {"response": "success"}
    assert sorted(file.name for file in daemon.jobs.glob("*.tm.json")) == [
        "db.tm.json", "fine.tm.json", "web-1.tm.json",
    ]  # fmt: skip
    assert "runas" in (daemon.jobs / "db.tm.json").read_text()
    assert not (daemon.folder / "x").exists()
    # Root is under no ceiling; what he stored is not within the reach of a rollback by others.
    assert daemon.ask("push", "db", data='{"cmd": ["sleep", "1000"]}')["response"] == "success"
    harmless = query("push", "db", data=json.dumps(jobs["fine"]), codes=True)
    back = [query("rollback", "db", codes=True, version=version) for version in (1, 2)]
    replies = as_user(2, ask_all(daemon.socket, [harmless, *back, query("rollback", "db")])).result
    assert [one["response"] for one in replies] == ["success", "success", "fail", "success"]
    assert replies[2]["code"] == "not-permitted"
    assert "runas" in (daemon.jobs / "db.tm.json").read_text()


def test_a_refused_push_is_not_looked_at(shared):
    """What a refused push brings is hashed for the log and not parsed: its mistakes are not told."""
    daemon = shared(access=[{"role": "operator", "users": ["nobody"]}])
    (reply,) = as_user(NOBODY, ask_all(daemon.socket, [query("push", "web-1", data="{{{")])).result
    assert reply["error"].startswith("Permission denied: push of web-1 needs the role admin")
    (record,) = daemon.events("command.requested", command="push")
    assert record["size"] == 3


def test_push_switched_off(shared):
    """pushEnabled false takes push and delete from root as well, and says so."""
    daemon = shared(pushEnabled=False)
    for command, fields in (("push", FIELDS["push"]), ("delete", {}), ("rollback", {})):
        reply = daemon.ask(command, "web-1", codes=True, **fields)
        assert reply["code"] == "not-permitted"
        assert "switched off for everybody (pushEnabled)" in reply["error"]
    assert daemon.ask("reload", "web-1")["response"] == "success"
    assert daemon.status("web-1")["state"] == "RUNNING"


def test_secrets_need_an_admin(shared):
    """A viewer pulls a file without secrets; one with a secret in it only an admin, at second sight too."""
    daemon = shared(
        access=[{"role": "operator", "users": ["nobody"]}, {"role": "admin", "users": ["bin"]}],
        secretPattern="(?i)pass|credential",
    )
    job = {"cmd": ["sleep", "1000"], "startTime": 0, "env": {"DB_CREDENTIALS": "hunter2"}}
    for name, env in (("secret", job["env"]), ("plain", {"API_TOKEN": "x"})):
        data = json.dumps(job | {"env": env})
        assert daemon.ask("push", name, data=data)["response"] == "success"
    frames = [query("pull", name, codes=True) for name in ("plain", "secret", "secret", "web-1")]
    frames.append(query("pull", "secret", codes=True, wait=5))
    for address in ways(daemon).values():
        plain, *secret, web, waited = as_user(NOBODY, ask_all(address, frames)).result
        assert (plain["response"], web["response"]) == ("file", "file")
        for one in (*secret, waited):
            assert one["code"] == "not-permitted"
            assert "hunter2" not in one["error"]
        assert {one["response"] for one in as_user(2, ask_all(address, frames)).result} == {"file"}
    # Nor a version that was: taking the secret out of the file does not take it out of the history.
    assert daemon.ask("push", "secret", data='{"cmd": "id"}')["response"] == "success"
    frames = [query("pull", "secret", codes=True, **fields) for fields in ({}, {"version": 1})]
    now, then = as_user(NOBODY, ask_all(daemon.socket, frames)).result
    assert now["response"] == "file"
    assert then["code"] == "not-permitted"
    assert as_user(2, ask_all(daemon.socket, frames)).result[1]["response"] == "file"
    assert b"hunter2" not in daemon.audit_file.read_bytes()


def test_reasons(shared):
    """A command that needs a reason is refused without, whoever asks; with one it is done, and on record."""
    daemon = shared(requireReason=["kill", "restart"])
    for fields in ({}, {"reason": ""}, {"reason": "   "}):
        reply = daemon.ask("kill", "web-1", codes=True, **fields)
        assert (reply["response"], reply["code"]) == ("fail", "reason-required")
        assert reply["error"].startswith("A reason is required for kill (requireReason)")
    assert daemon.ask("restart", codes=True)["code"] == "reason-required"
    assert daemon.status("web-1")["state"] == "RUNNING"
    assert daemon.ask("kill", "web-1", reason="it hangs")["response"] == "success"
    assert daemon.events("command.requested", command="kill")[-1]["reason"] == "it hangs"


def test_an_upgrade_puts_new_rules_in_force(shared):
    """Rules are read again by an upgrade, for connections that stay as well; who a client is stays."""
    daemon = shared(access=[{"role": "operator", "users": ["nobody"]}])
    ready, go = os.pipe(), os.pipe()

    def work():
        with Client(daemon.socket) as client:
            first = client.ask("stop", "web-1")
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            return [first, client.ask("start", "web-1", codes=True), client.ask("list")]

    def upgraded():
        os.read(ready[0], 1)
        daemon.configure(
            socket=str(daemon.socket),
            socketMode="0666",
            access=[{"role": "viewer", "users": ["nobody"]}],
        )
        assert daemon.ask("upgrade", wait=60)["response"] == "success"
        os.write(go[1], b"x")
        os._exit(0)

    pid = os.fork()
    if not pid:
        try:
            upgraded()
        finally:
            os._exit(1)
    stopped, started, listed = as_user(NOBODY, work).result
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    for fd in (*ready, *go):
        os.close(fd)
    assert stopped["response"] == "success"
    assert started["code"] == "not-permitted"
    assert listed["response"] == "list"
    # The end of the test is not to come between a watchdog and its successor.
    wait_for(lambda: len(daemon.events("watchdog.ended")) == 2)
    for job in ("web-1", "db"):
        wait_for(lambda: daemon.status(job)["watchdog"]["state"] == "ATTACHED")


def test_the_command_line_exits_with_77(shared):
    """``taskmasterctl`` of another user says what he may not do, and exits with 77."""
    daemon = shared(access=[{"role": "viewer", "users": ["nobody"], "jobs": ["web-*"]}])
    addresses = str(daemon.socket), f"127.0.0.1:{daemon.port}"
    # Loaded beforehand, on success and on failure: the other user may be kept from where this Python lies.
    for address in addresses:
        assert command_line("-c", address, "list")[0] == 0
        assert command_line("-c", address, "stop", "nobody")[0] == 4
        for words, status in ((["stop", "web-1"], 77), (["status", "db"], 77), (["list"], 0)):
            run = functools.partial(command_line, "-c", address, *words)
            found, said = as_user(NOBODY, run).result
            assert found == status, said
            assert ("Permission denied" in said) is (status == 77)


def command_line(*words: str) -> tuple[int, str]:
    """Exit status and messages of ``taskmasterctl``, run in this process."""
    said = io.StringIO()
    with (
        contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())),
        contextlib.redirect_stderr(said),
    ):
        status = app.run(words)
    return status, said.getvalue()


def test_other_hosts(shared, tmp_path):
    """Open to other hosts without TLS, the daemon does not start; where it may, they look at most, root too."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 9))
            host = probe.getsockname()[0]
        except OSError:
            host = "127.0.0.1"
    if host.startswith("127."):
        pytest.skip("this host has no address but loopback")
    daemon = shared(remoteConnections=True, allowInsecureRemote=True)
    with Client((host, daemon.port)) as client:
        assert json.loads(client.ask("list")["data"])["jobs"] == [{"name": "db"}, {"name": "web-1"}]
        for command in Command:
            if least(command, job_of(command)) > Role.VIEWER:
                client.send(frame_of(command, job_of(command)))
                reply = client.reply()
                assert reply["code"] == "not-permitted", command
                assert f"{host} (no certificate) has viewer" in reply["error"]
    # From the host itself, and by every form of its address, root is root.
    for local in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
        try:
            client = Client((local, daemon.port))
        except OSError:
            continue  # a host without IPv6
        with client:
            assert client.ask("stop", "web-1")["response"] in ("success", "redundant")
    stops = daemon.events("command.requested", command="stop", role="admin")
    assert {record["peer"]["uid"] for record in stops} == {os.geteuid()}
    refused = tmp_path / "open.json"
    refused.write_text('{"remoteConnections": true}')
    argv = [sys.executable, "-m", "taskmaster.control", "-c", str(refused), "--check"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 78
    assert f"{refused}: remoteConnections: found true" in done.stderr
    assert done.stderr.count("\n") == 1


def test_gone_before_it_was_looked_at(shared):
    """Who sends a command and is gone before the daemon has a look is nobody: refused, never taken for root."""
    daemon = shared()
    os.kill(daemon.pid, signal.SIGSTOP)
    port = daemon.port

    def hit_and_run():
        for number in range(20):
            connection = socket.create_connection(("127.0.0.1", port))
            connection.sendall(query("stop", "web-1") + query("shutdown"))
            if number % 2:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.close()

    try:
        for uid in (NOBODY, 0):
            as_user(uid, hit_and_run)
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    # Those that were reset are gone before they are accepted, or found to be.
    wait_for(lambda: len(daemon.events("client.rejected")) >= 20)
    for record in daemon.events("client.rejected"):
        assert "it cannot be told whose connection" in record["reason"]
        assert "uid" not in record["peer"]
    assert daemon.events("command.requested", command="stop") == []
    assert daemon.status("web-1")["state"] == "RUNNING"


def test_the_owners_browser_executes_nothing(shared):
    """A web page in the browser of root himself: whatever it makes the browser send, nothing is executed."""
    daemon = shared()
    stop = query("stop", "web-1")
    pages = [
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
        % len(stop) + stop,
        b"OPTIONS / HTTP/1.1\r\nOrigin: http://x\r\nAccess-Control-Request-Method: PUT\r\n\r\n" + stop,
        b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x1c" + stop,
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1c\r\n" + stop + b"\r\n0\r\n\r\n",
        b'{"command" /HTTP/1.1\r\n\r\n' + stop,
    ]  # fmt: skip
    for page in pages:
        with daemon.client(tcp=True) as client:
            client.send(page)
            assert client.reply()["response"] == "invalid"
            assert client.frame() == b""
    assert daemon.events("command.requested", command="stop") == []
    rejected = daemon.events("client.rejected")
    assert len(rejected) == len(pages)
    assert {record["peer"]["uid"] for record in rejected} == {os.geteuid()}
    assert daemon.status("web-1")["state"] == "RUNNING"
