"""TLS: who is let in, under which name, and what of the others is noticed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from certificates import Authority, BioClient, TlsClient, needs_openssl, raw_hello
from running import ROOT, Client, Daemon, query, wait_for

from taskmaster.config.access import Role
from taskmaster.control import handshakes, rejections
from taskmaster.control.access import least
from taskmaster.wire.queries import NEEDS, Command, Needs

pytestmark = needs_openssl
BIG = '{"cmd": ["sleep", "1000"], "startTime": 0} //' + "x" * 1_000_000


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def server(authority):
    return authority.issue("server", alt="DNS:localhost,IP:127.0.0.1", use="serverAuth")


@pytest.fixture(scope="module")
def anna(authority):
    return authority.issue("anna", use="clientAuth")


@pytest.fixture
def secured(make_daemon, authority, server):
    """A daemon that speaks TLS on all addresses, with one healthy job, ``web``."""

    def make(**config):
        names = ["anna", "build.example.org", "Ärger & Söhne"]
        rule = {"role": "admin", "certificates": names, "runAs": ["root"]}
        keys = {
            "remoteConnections": True, "tls": authority.daemon_keys(server), "access": [rule],
            "idleTimeout": 0,
        }  # fmt: skip
        daemon = make_daemon(**keys | config)
        daemon.job("web", ["sleep", "1000"])
        daemon.start()
        daemon.wait_state("web", "RUNNING")
        return daemon

    return make


def test_every_command(secured, authority, anna):
    """Over TLS each command is answered as over the socket, and the audit log has the certificate's name."""
    daemon = secured()
    with TlsClient(("127.0.0.1", daemon.port), authority.context(anna)) as client:
        assert client.socket.version() == "TLSv1.3"
        for command, job, fields, response in (
            ("list", None, {}, "list"),
            ("status", "web", {}, "status"),
            ("pull", "web", {}, "file"),
            ("push", "db", {"data": '{"cmd": "sleep 1000", "startTime": 0}'}, "success"),
            ("start", "db", {"wait": 60}, "redundant"),
            ("restart", "db", {"wait": 60}, "success"),
            ("repair", "db", {}, "success"),
            ("stop", "db", {"wait": 60}, "success"),
            ("reload", "db", {}, "success"),
            ("kill", "web", {"wait": 60}, "success"),
            ("delete", "db", {}, "success"),
            ("restart", None, {}, "success"),
        ):
            assert client.ask(command, job, **fields)["response"] == response, command
            record = daemon.events("command.completed", command=command)[-1]
            assert record["peer"]["transport"] == "tls"
            assert record["peer"]["certificate"] == "anna"
    with daemon.client(tcp=True) as plain:
        assert plain.ask("list")["response"] == "list"
    assert "certificate" not in daemon.events("command.completed")[-1]["peer"]


@pytest.fixture(scope="module")
def elsewhere():
    """An address of this host that is not loopback: from it one is another host, as far as the daemon knows."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this host has no address but loopback")
        return probe.getsockname()[0]


@pytest.fixture(scope="module")
def strangers(authority, tmp_path_factory):
    """Certificates that are not let in: how the client is told, and why, as the audit log has it."""
    other = Authority(tmp_path_factory.mktemp("other"), "other")
    return {
        "none": (None, "certificate required", "the client has no certificate"),
        "other": (other.issue("anna"), "unknown ca", "unable to get local issuer certificate"),
        "itself": ((other.crt, other.key), "unknown ca", "self-signed certificate"),
        "old": (authority.issue("old", days=-1), "certificate expired", "certificate has expired"),
        "server": (authority.issue("srv", use="serverAuth"), "unsupported certificate", "purpose"),
        "nameless": (authority.issue("o", "/O=anna"), "", "no name"),
        "two": (authority.issue("two", "/CN=anna/CN=root"), "", "more than one common name"),
        "escape": (authority.issue("esc", "/CN=an\x1b[2Jna"), "", r"not usable: 'an\x1b[2Jna'"),
        "bidi": (authority.issue("bidi", "/CN=an\u202ena"), "", r"not usable: 'an\u202ena'"),
        "blank": (authority.issue("blank", "/CN=anna "), "", "not usable: 'anna '"),
    }


def test_strangers(secured, authority, strangers, anna):
    """A certificate that proves no name lets nobody in; client and audit log are told why."""
    daemon = secured()
    address = ("127.0.0.1", daemon.port)
    for name, (files, alert, reason) in strangers.items():
        if files is not None and not alert:
            with TlsClient(address, authority.context(files)) as client:
                reply = client.reply()
                assert reply["response"] == "fail", name
                assert reason in reply["error"], name
                assert client.frame() == b"", name
        else:
            words = f"(?i){alert.replace(' ', '.')}"
            with (
                pytest.raises(ssl.SSLError, match=words),
                TlsClient(address, authority.context(files)) as client,
            ):
                client.ask("stop", "web")
        (record,) = wait_for(
            lambda reason=reason: [
                one for one in daemon.events("client.rejected") if reason in one["reason"]
            ]
        )
        assert record["peer"]["transport"] == "tls"
        assert "certificate" not in record["peer"], name
    assert daemon.events("command.requested", command="stop") == []
    assert daemon.status("web")["state"] == "RUNNING"
    old = authority.context(anna)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
        TlsClient(address, old)
    wait_for(lambda: len(daemon.events("client.rejected")) == len(strangers) + 1)
    # A flood of the same is counted, not written down each time.
    for _ in range(rejections.BURST * 2):
        with contextlib.suppress(OSError), TlsClient(address, authority.context(None)) as client:
            client.frame()
    (more,) = wait_for(
        lambda: [one for one in daemon.events("client.rejected") if one["count"] > 1][:1]
    )
    assert "no certificate" in more["reason"]
    assert len(daemon.events("client.rejected")) < len(strangers) + 1 + rejections.BURST


def test_name_of_a_certificate_without_common_name(secured, authority):
    """Then it is the first DNS name, of whatever script."""
    daemon = secured()
    files = authority.issue("dns", "/O=x", alt="DNS:build.example.org,DNS:other")
    with TlsClient(("127.0.0.1", daemon.port), authority.context(files)) as client:
        client.ask("list")
    files = authority.issue("utf8", "/CN=Ärger & Söhne")
    with TlsClient(("127.0.0.1", daemon.port), authority.context(files)) as client:
        client.ask("list")
    peers = [record["peer"] for record in daemon.events("command.completed")]
    names = {peer.get("certificate") for peer in peers}
    assert names >= {"build.example.org", "Ärger & Söhne"}


def test_other_hosts_have_to_speak_tls(secured, authority, anna, elsewhere):
    """From an address that is not loopback a plain query gets ``invalid`` and executes nothing; TLS is served."""
    daemon = secured()
    address = (elsewhere, daemon.port)
    with Client(address) as client:
        client.send(query("stop", "web"))
        reply = client.reply()
        assert reply["response"] == "invalid"
        assert "TLS" in reply["error"]
        assert client.frame() == b""
    with TlsClient(address, authority.context(anna)) as client:
        assert client.status("web")["state"] == "RUNNING"
    (record,) = daemon.events("client.rejected")
    assert (record["peer"]["transport"], record["reason"]) == ("tcp", "this is no TLS")
    assert daemon.events("command.requested", command="stop") == []


def test_bytes_one_by_one(secured, authority, anna):
    """A handshake and queries byte by byte, and an end of TLS that comes before the replies, are served."""
    daemon = secured()
    client = BioClient(("127.0.0.1", daemon.port), authority.context(anna))
    with client.raw:
        client.until(client.tls.do_handshake, piece=1)
        client.tls.write(query("restart", "web", wait=60) + query("status", "web"))
        with contextlib.suppress(ssl.SSLWantReadError):
            client.tls.unwrap()
        client.send_waiting(piece=1)
        replies = client.read_all().split(b";;")
    assert [json.loads(one)["response"] for one in replies[:-1]] == ["success", "status"]


def test_garbage(secured, authority, anna):
    """Bytes that are no TLS, behind a hello, behind a handshake, in place of one: cut off, nobody else notices."""
    daemon = secured()
    address = ("127.0.0.1", daemon.port)
    keeper = TlsClient(address, authority.context(anna))
    hello = raw_hello(authority.context(anna))
    before = len(os.listdir(f"/proc/{daemon.pid}/fd"))
    with keeper:
        for data in (
            hello + b"x" * 100_000,
            hello[:50] + query("stop", "web") * 1000,
            b"\x16" * 20_000,
            b"\x16\x03\x01\xff\xff" + b"\0" * 70_000,
            hello * 10,
        ):
            with (
                socket.create_connection(address) as client,
                contextlib.suppress(ConnectionResetError, BrokenPipeError),
            ):
                client.sendall(data)
                while client.recv(65536):
                    pass
        behind = BioClient(address, authority.context(anna))
        with behind.raw:
            behind.until(behind.tls.do_handshake)
            with contextlib.suppress(ConnectionResetError):
                behind.raw.sendall(query("stop", "web") + b"\x17\x03\x03\x40\x00" + b"x" * 0x4000)
                while behind.raw.recv(65536):
                    pass
        assert keeper.status("web")["state"] == "RUNNING"
        wait_for(lambda: len(os.listdir(f"/proc/{daemon.pid}/fd")) <= before, "all are gone")
    assert daemon.events("command.requested", command="stop") == []


def test_back_pressure(secured, authority, anna):
    """More than any buffer holds, both ways, arrives; who does not read costs little memory, and nobody time."""
    daemon = secured()
    address = ("127.0.0.1", daemon.port)
    with TlsClient(address, authority.context(anna)) as client:
        client.send(b"".join(query("push", "big", data=BIG + str(n), id=n) for n in range(8)))
        for number in range(8):
            assert client.reply() == {"response": "success", "id": number}
        client.send(query("pull", "big") * 20)
        for _ in range(20):
            assert client.reply()["data"] == (BIG + "7").encode()
    deaf = TlsClient(address, authority.context(anna))
    with deaf, daemon.client() as other:
        deaf.send(query("pull", "big") * 1000)
        wait_for(lambda: len(daemon.events("command.completed", command="pull")) > 20)
        assert other.status("web")["state"] == "RUNNING"
        pulls = len(daemon.events("command.completed", command="pull"))
        # What is in the kernel's buffers, what may wait, and one more: of 1.3 MB each.
        assert pulls < 20 + 15
    assert _peak_bytes(daemon) < 150 * 1024 * 1024


def _peak_bytes(daemon: Daemon) -> int:
    text = Path(f"/proc/{daemon.pid}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) * 1024


def _is_answered(client: Client) -> None:
    """Each question before a handshake that holds up the loop would be over; ``scripts/bench`` has the figures."""
    for _ in range(300):
        began = time.monotonic()
        assert client.status("web")["state"] == "RUNNING"
        assert time.monotonic() - began < 2


def test_half_open_handshakes(secured, authority, anna, elsewhere):
    """500 handshakes that stop somewhere: others are answered in time, newcomers get in, and few are kept."""
    daemon = secured(maxClients=5)
    address = (elsewhere, daemon.port)
    hello = raw_hello(authority.context(anna))
    fds = len(os.listdir(f"/proc/{daemon.pid}/fd"))
    with daemon.client() as other, contextlib.ExitStack() as stack:
        halves = stack.enter_context(contextlib.ExitStack())

        for number in range(500):
            half = halves.enter_context(socket.create_connection(address))
            half.sendall((hello, hello[: 1 + number % len(hello)], hello[:1], b"")[number % 4])
        _is_answered(other)
        assert len(os.listdir(f"/proc/{daemon.pid}/fd")) - fds <= handshakes.MAX_WAITING + 5
        with TlsClient(address, authority.context(anna)) as client:
            assert client.status("web")["state"] == "RUNNING"
        # Over and over the whole hello, which is what makes the daemon compute: it has time for others.
        stack.enter_context(_storm(address, hello))
        _is_answered(other)
    dropped = [one for one in daemon.events("client.rejected") if "wait" in one["reason"]]
    assert dropped
    wait_for(lambda: len(os.listdir(f"/proc/{daemon.pid}/fd")) <= fds, "all are gone")


@contextlib.contextmanager
def _storm(address, hello):
    over = threading.Event()

    def run():
        while not over.is_set():
            with contextlib.suppress(OSError), socket.create_connection(address) as one:
                one.sendall(hello)
                one.recv(1)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(60)


def test_clients_over_the_limit(secured, authority, anna):
    """Those over maxClients are told so over TLS; plain clients and those of the socket have their own limit."""
    daemon = secured(maxClients=2)
    address = ("127.0.0.1", daemon.port)
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            client = stack.enter_context(TlsClient(address, authority.context(anna)))
            assert client.ask("list")["response"] == "list"
        with TlsClient(address, authority.context(anna)) as outside:
            reply = outside.reply()
            assert (reply["response"], outside.frame()) == ("fail", b"")
            assert "maxClients" in reply["error"]
        assert daemon.ask("list")["response"] == "list"
        with daemon.client(tcp=True) as plain:
            assert plain.ask("list")["response"] == "list"


def test_other_certificates(secured, authority, anna, tmp_path):
    """SIGHUP has new connections use the files that are there by then; broken ones are said and change nothing."""
    mine = Authority(tmp_path, "mine")
    keys = {key: tmp_path / name for key, name in (("certificate", "s.crt"), ("key", "s.key"))}
    both = mine.issue("server", alt="DNS:localhost")
    for path, source in zip(keys.values(), both, strict=True):
        path.write_bytes(source.read_bytes())
        path.chmod(0o600)
    tls = {key: str(path) for key, path in keys.items()} | {"clientCA": str(authority.crt)}
    daemon = secured(tls=tls)

    def serial():
        context = authority.context(anna)
        context.load_verify_locations(mine.crt)
        with TlsClient(("127.0.0.1", daemon.port), context) as client:
            client.ask("list")
            return client.socket.getpeercert()["serialNumber"]

    first = serial()
    keys["key"].write_text("nonsense")
    os.kill(daemon.pid, signal.SIGHUP)
    (record,) = wait_for(lambda: daemon.events("config.rejected"))
    assert "tls.key" in record["error"]
    assert str(keys["key"]) in record["error"]
    assert serial() == first
    for path, source in zip(keys.values(), mine.issue("newer", alt="DNS:localhost"), strict=True):
        path.write_bytes(source.read_bytes())
    os.kill(daemon.pid, signal.SIGHUP)
    wait_for(lambda: serial() != first, "the new certificate is used")


def test_upgrade(secured, authority, anna):
    """Clients over TLS get their replies and an orderly end, also who asked for it; plain ones stay."""
    daemon = secured()
    address = ("127.0.0.1", daemon.port)
    assert daemon.ask("push", "big", data=BIG)["response"] == "success"
    plain = daemon.client(tcp=True)
    assert plain.ask("list")["response"] == "list"
    silent = socket.create_connection(address)
    quiet, slow, asking = (BioClient(address, authority.context(anna)) for _ in range(3))
    for client in (quiet, slow, asking):
        client.until(client.tls.do_handshake)
    slow.tls.write(query("pull", "big"))
    slow.send_waiting()
    wait_for(lambda: daemon.events("command.completed", command="pull"))
    with silent, quiet.raw, slow.raw, asking.raw:
        asking.tls.write(query("upgrade", id="x"))
        asking.send_waiting()
        wait_for(lambda: daemon.events("daemon.upgraded"))
        assert asking.read_all() == b'{"response":"success","id":"x"};;'
        assert quiet.read_all() == b""
        # What was answered before comes whole, although it was never read until now.
        got = slow.read_all().split(b";;")
        assert len(got) - 1 == len(daemon.events("command.completed", command="pull"))
        assert all(json.loads(one)["response"] == "file" for one in got[:-1])
        assert plain.ask("status", "web")["response"] == "status"
        client = Client.__new__(Client)
        client.socket, client._buffer = silent, b""
        assert client.ask("list")["response"] == "list"
    with TlsClient(address, authority.context(anna)) as client:
        assert client.ask("status", "web")["response"] == "status"
    daemon.wait_state("web", "RUNNING")


def test_taskmasterctl_over_upgrades(secured, authority, anna):
    """taskmasterctl that asks over TLS without pause notices no upgrade."""
    daemon = secured()
    files = zip(("--tls-ca", "--tls-cert", "--tls-key"), (authority.crt, *anna), strict=True)
    address = [
        "-c",
        f"tls://localhost:{daemon.port}",
        *[str(word) for pair in files for word in pair],
    ]
    argv = [sys.executable, "-m", "taskmaster.cli", *address, "-s"]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT, text=True
    ) as ctl:  # fmt: skip
        assert ctl.stdin is not None
        for number in range(1, 4):
            ctl.stdin.write("status web\n" * 20 + "upgrade\n" * (number == 2))
            ctl.stdin.flush()
            if number != 2:
                assert daemon.ask("upgrade") == {"response": "success"}
            wait_for(lambda number=number: len(daemon.events("daemon.upgraded")) == number)
        said, _ = ctl.communicate(timeout=60)
    # 3: just after an upgrade a watchdog may not have been heard yet.
    assert ctl.returncode in (0, 3), said
    assert "taskmasterctl:" not in said
    assert said.count("\nweb ") == 60, said
    assert "same pid" in said


FIELDS = {
    "push": {"data": '{"cmd": ["sleep", "1000"], "runas": "nobody", "startTime": 0}'},
    "rollback": {"version": 2},
    "shutdown": {"leaveJobs": True},
}


@pytest.mark.skipif(os.geteuid() != 0, reason="jobs of nobody need root")
def test_every_command_and_role(secured, authority):
    """Certificates have the roles that their rules give them, as users have; without a rule they have none."""
    roles = {"victor": "viewer", "olga": "operator", "adam": "admin", "nemo": None}
    rules = [
        {"role": role, "certificates": [name]} | ({"runAs": ["nobody"]} if role == "admin" else {})
        for name, role in roles.items()
        if role
    ]
    daemon = secured(access=rules)
    assert daemon.ask("push", "web", **FIELDS["push"])["response"] == "success"
    ranks = {None: 0} | {role.word: role.value for role in Role}
    for name, role in roles.items():
        context = authority.context(authority.issue(name, use="clientAuth"))
        with TlsClient(("127.0.0.1", daemon.port), context) as client:
            for command in Command:
                if command.value in ("shutdown", "upgrade") and role == "admin":
                    continue  # asked for last
                job = None if NEEDS[command] is Needs.NOTHING else "web"
                reply = client.ask(command.value, job, codes=True, **FIELDS.get(command.value, {}))
                allowed = ranks[role] >= least(command, job)
                refused = reply.get("code") == "not-permitted"
                assert refused is not allowed, (name, command, reply)
                if refused:
                    assert f"certificate '{name}' has {role or 'none'}" in reply["error"]
                if command.value == "delete" and allowed:
                    again = client.ask("push", "web", **FIELDS["push"])
                    assert again["response"] == "success"
        mine = [
            record
            for record in daemon.events("command.requested")
            if record["peer"].get("certificate") == name
        ]
        assert {record["role"] for record in mine} == {role}
    with TlsClient(("127.0.0.1", daemon.port), context) as client:
        assert client.ask("shutdown", codes=True)["code"] == "not-permitted"
    (crt, key) = (authority.folder / f"adam.{end}" for end in ("crt", "key"))
    with TlsClient(("127.0.0.1", daemon.port), authority.context((crt, key))) as client:
        assert client.ask("shutdown", leaveJobs=True)["response"] == "success"
    daemon.host.wait(daemon.pid)
