"""taskmasterctl over TLS: how it is asked for, and every way in which it fails, in words."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
import sys

import pytest
from certificates import Authority, needs_openssl
from cli_servers import DEADLINE_S, Jobs, environment, frames

pytestmark = needs_openssl


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def anna(authority):
    return authority.issue("anna", use="clientAuth")


@pytest.fixture(scope="module")
def server(authority):
    return authority.issue("server", alt="DNS:localhost,IP:127.0.0.1", use="serverAuth")


def options(authority, files):
    return ("--tls-ca", str(authority.crt), "--tls-cert", str(files[0]), "--tls-key", str(files[1]))


def test_ways_to_ask_for_it(make_daemon, ctl, authority, anna, server, tmp_path):
    """tls:// or HOST with options, files by options or variables, key and certificate in one file, all at once."""
    rules = [{"role": "viewer", "certificates": ["anna"]}]
    daemon = make_daemon(tls=authority.daemon_keys(server), access=rules)
    daemon.job("web", ["sleep", "1000"])
    daemon.start()
    daemon.wait_state("web", "RUNNING")
    place = f"localhost:{daemon.port}"
    both = tmp_path / "both.pem"
    both.write_bytes(anna[0].read_bytes() + anna[1].read_bytes())
    both.chmod(0o600)
    variables = {"TASKMASTER_TLS_CA": str(authority.crt), "TASKMASTER_TLS_CERT": str(both)}
    for arguments, more in (
        (("-c", f"tls://{place}", *options(authority, anna), "status"), {}),
        (("-c", place, "status", *options(authority, anna)), {}),
        (("-c", f"tls://127.0.0.1:{daemon.port}", *options(authority, anna), "status", "web"), {}),
        ((*options(authority, anna), "status"), {"TASKMASTER_SERVER": f"tls://{place}"}),
        (("-c", f"tls://{place}", "status"), variables),
        (("-c", f"tls://{place}", "status", "--tls-cert", str(both)), {**variables, "TASKMASTER_TLS_CERT": "x"}),
    ):  # fmt: skip
        result = ctl(*arguments, **more)
        assert (result.status, result.err) == (0, ""), arguments
        assert "RUNNING" in result.out
        assert daemon.events("command.completed")[-1]["peer"]["certificate"] == "anna"
    result = ctl("-c", place, *options(authority, anna), "-s", stdin="status\nstatus web\nlist\n")
    assert (result.status, result.out.count("web")) == (0, 3)
    # What the role does not allow is as over any other connection.
    result = ctl("-c", f"tls://{place}", *options(authority, anna), "stop", "web")
    assert result.status == 77
    assert "Permission denied" in result.err
    # The variables alone change nothing for a plain connection.
    assert ctl("-c", place, "list", **variables).status == 0
    assert daemon.events("command.completed")[-1]["peer"]["transport"] == "tcp"


def test_who_does_not_need_it_does_not_load_it(make_server):
    """OpenSSL and what is for ssh, which cost time at each command, are loaded for tls:// and ssh:// alone."""
    server = make_server(Jobs(web="RUNNING"))
    code = f"from taskmaster.cli import app; app.run(['-c', {server.address!r}, 'status'])"
    look = "import sys; print({'ssl', 'taskmaster.cli.ssh', 'taskmaster.cli.proxy'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; {look}"],
        capture_output=True, text=True, env=environment(), timeout=DEADLINE_S, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "set()"


def tls_server(context):
    """A conversation of a taskmasterd that has one job, over TLS."""

    def serve(connection: socket.socket) -> None:
        with (
            contextlib.suppress(ssl.SSLError),
            context.wrap_socket(connection, server_side=True) as c,
        ):
            for query in frames(c):
                reply = Jobs(web="RUNNING")(query) | {"id": query["id"]}
                c.sendall(json.dumps(reply, separators=(",", ":")).encode() + b";;")

    return serve


def server_context(files, authority=None, version=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    if authority is not None:
        context.load_verify_locations(authority.crt)
        context.verify_mode = ssl.CERT_REQUIRED
    if version is not None:
        context.maximum_version = version
    return context


def test_servers_that_are_not_it(make_server, ctl, authority, anna, server, tmp_path):
    """Each way in which a server's TLS is none that can be used has its sentence, and exit status 69."""
    other = Authority(tmp_path, "other").issue("x", alt="DNS:localhost")
    expired = authority.issue("old", alt="DNS:localhost", days=-1)
    wanted = {
        "good": (tls_server(server_context(server)), ""),
        "strange": (tls_server(server_context(other)), f"signed by no CA in {authority.crt}"),
        "expired": (tls_server(server_context(expired)), "has expired"),
        "name": (tls_server(server_context(authority.issue("y", alt="DNS:elsewhere"))), "not for 'localhost'"),
        "old": (tls_server(server_context(server, version=ssl.TLSVersion.TLSv1_2)), "does not speak TLS 1.3"),
        "plain": (lambda c: c.sendall(b'{"response":"invalid","error":""};;'), "does not speak TLS"),
        "http": (lambda c: c.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "does not speak TLS"),
        "end": (lambda c: c.recv(10), "closed the connection in the middle of the TLS handshake"),
    }  # fmt: skip
    for name, (raw, words) in wanted.items():
        address = make_server(raw=raw).address.replace("127.0.0.1", "localhost")
        result = ctl("-c", f"tls://{address}", *options(authority, anna), "list")
        assert result.status == (69 if words else 0), (name, result)
        assert words in result.err, name
        assert f"tls://{address}" in result.err or not words
        assert result.err.count("\n") == (1 if words else 0)


def test_our_certificate_is_refused(make_server, ctl, authority, anna, server, tmp_path):
    """A server that does not like our certificate says so after the handshake; that is exit status 77, and why."""
    other = Authority(tmp_path, "other")
    context = server_context(server, authority)
    for files, words in (
        (anna, ""),
        (other.issue("anna"), "signed by nobody in its clientCA"),
        (authority.issue("late", days=-1), "has expired"),
        (authority.issue("srv", use="serverAuth"), "not for clients"),
    ):
        address = make_server(raw=tls_server(context)).address
        result = ctl("-c", f"tls://{address}", *options(authority, files), "list")
        assert result.status == (77 if words else 0), result
        assert words in result.err
        assert f"refused our certificate {files[0]}" in result.err or not words


@pytest.mark.parametrize(
    ("changed", "status", "words"),
    [
        ({"--tls-ca": "/nonexistent"}, 78, "/nonexistent: found No such file or directory"),
        ({"--tls-ca": "KEY"}, 78, "no certificate; accepted: CA certificates in PEM"),
        ({"--tls-cert": "/nonexistent"}, 78, "/nonexistent: found No such file or directory"),
        ({"--tls-cert": "CA"}, 78, "a key that is not that of"),
        ({"--tls-cert": "KEY"}, 78, "accepted: a certificate (--tls-cert) and its private key"),
        ({"--tls-key": "CA"}, 78, "accepted: a certificate (--tls-cert) and its private key"),
        ({"--tls-cert": None}, 2, "name yours with --tls-cert FILE"),
        ({"-c": "./control.sock"}, 2, "TLS is spoken with a host"),
        ({"-c": "ssh://localhost"}, 2, "TLS is spoken with a host"),
        ({"-c": "tls://"}, 2, "names no host"),
        ({"-c": "tls://localhost:7777/x"}, 2, "names no host"),
        ({"-c": "tls://localhost/x"}, 2, "names no host"),
    ],
)  # fmt: skip
def test_mistakes(ctl, authority, anna, make_server, changed, status, words):
    """Files and addresses that cannot be meant are named before anything is sent."""
    server = make_server(raw=lambda connection: None)
    chosen = {"-c": f"tls://{server.address}"} | dict(
        zip(("--tls-ca", "--tls-cert", "--tls-key"), map(str, (authority.crt, *anna)), strict=True)
    )
    real = {"KEY": str(anna[1]), "CA": str(authority.crt)}
    given = {key: real.get(value or "", value) for key, value in (chosen | changed).items()}
    arguments = [word for key, value in given.items() if value is not None for word in (key, value)]
    result = ctl(*arguments, "list")
    assert result.status == status, result
    assert words in result.err
    assert "PRIVATE" not in result.err


def test_sent_away(make_server, ctl, authority, anna, server):
    """An orderly end says that nothing unanswered was begun: it is asked again, once; no other end does."""
    context = server_context(server, authority)
    asked: list[str] = []

    def serve(connection: socket.socket, ends: list[str]) -> None:
        with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as c:
            for query in frames(c):
                asked.append(query["command"])
                if ends:
                    if ends.pop() == "orderly":
                        c.unwrap()
                    return
                c.sendall(json.dumps({"response": "success", "id": query["id"]}).encode() + b";;")

    for ends, status, count in (
        ([], 0, 1),
        (["orderly"], 0, 2),
        (["cut"], 69, 1),
        (["orderly"] * 2, 69, 2),
    ):
        asked.clear()
        address = make_server(raw=lambda c, ends=ends: serve(c, ends)).address
        result = ctl("-c", f"tls://{address}", *options(authority, anna), "kill", "web")
        assert (result.status, len(asked)) == (status, count), (ends, result)
