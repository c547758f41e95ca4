"""taskmasterctl says nothing to a server before the kernel has told whose that is."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys

import pytest
from strangers import NOBODY, needs_root

from taskmaster.cli import listener
from taskmaster.cli.listener import ANYBODY, VARIABLE

#: Listens at a port or a path as another user, accepts or not, and prints what it was sent.
IMPOSTOR = """
import os, socket, sys
kind, how = sys.argv[2], sys.argv[3]
os.setgroups([]); os.setresgid(*[int(sys.argv[1])] * 3); os.setresuid(*[int(sys.argv[1])] * 3)
listener = socket.socket(socket.AF_UNIX if "/" in kind else socket.AF_INET)
listener.bind(kind if "/" in kind else ("127.0.0.1", 0))
if "/" in kind:
    os.chmod(kind, 0o777)
listener.listen()
print(listener.getsockname() if "/" in kind else listener.getsockname()[1], flush=True)
if how == "accepts":
    connection, _ = listener.accept()
    print(repr(connection.recv(65536)), flush=True)
else:
    sys.stdin.read()
"""


@contextlib.contextmanager
def impostor(kind, how):
    program = subprocess.Popen(
        ["/usr/bin/python3", "-c", IMPOSTOR, str(NOBODY), kind, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdin is not None
    assert program.stdout is not None
    try:
        yield program.stdout.readline().strip(), program
    finally:
        program.kill()
        program.wait()
        program.stdin.close()
        program.stdout.close()


@needs_root
@pytest.mark.parametrize("how", ["accepts", "only listens"])
@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_nothing_is_said_to_a_stranger(ctl, open_folder, tmp_path, family, how):
    """Neither the secret nor the name of a job: 77, naming the user, before a byte was sent."""
    open_folder.chmod(0o777)
    kind = str(open_folder / "control.sock") if family == "unix" else "port"
    job = tmp_path / "web.tm.json"
    job.write_text('{"cmd": "true", "env": {"PASSWORD": "hunter2"}}')
    with impostor(kind, how) as (address, program):
        server = address if family == "unix" else f"127.0.0.1:{address}"
        result = ctl("-c", server, "push", str(job))
        assert result.status == 77
        assert "nobody" in result.err
        assert "Nothing was sent" in result.err
        if how == "accepts":
            assert program.stdout.readline().strip() == "b''"


@needs_root
@pytest.mark.parametrize("meant", ["nobody", str(NOBODY), ANYBODY])
def test_another_users_daemon_can_be_meant(ctl, meant):
    """Named by name or number, or whoever: then it is talked to."""
    with impostor("port", "accepts") as (port, program):
        result = ctl("-c", f"127.0.0.1:{port}", "list", **{VARIABLE: meant})
        assert "closed the connection" in result.err or "broke" in result.err
        assert '"list"' in program.stdout.readline()


@pytest.mark.parametrize("meant", ["0", "", "nosuchuser", "-1", "٣"])
def test_only_who_is_named_is_meant(meant):
    """Words that name nobody, or somebody else, do not open anything."""

    class Foreign(socket.socket):
        """A Unix socket whose other end is of user 61234."""

        def getsockopt(self, *_):
            return listener._CREDENTIALS.pack(1, 61234, 61234)

    with Foreign(socket.AF_UNIX) as connection, pytest.raises(listener.NotPermitted):
        listener.check(connection, "there", {VARIABLE: meant}, 0)


def test_a_server_that_has_gone_already_is_no_stranger(ctl):
    """It closed the connection as soon as it had it: that is what is said, not that it is somebody else's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = subprocess.Popen(
            [
                sys.executable,
                *("-m", "taskmaster.cli", "-c", f"127.0.0.1:{server.getsockname()[1]}", "list"),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        select.select([server], [], [])
        server.accept()[0].close()
        _, said = program.communicate(timeout=60)
    assert program.returncode == 69
    assert "closed" in said or "broke" in said


@needs_root
def test_root_is_told_of_the_port(ctl, tmp_path):
    """Where there is no socket the port is asked, and root is told so; who named the server is not."""
    if os.path.exists("/run/taskmaster/control.sock"):
        pytest.skip("a taskmasterd of the host's own is there")
    result = ctl("list")
    assert result.err.startswith(
        "taskmasterctl: asking 127.0.0.1:7777, the default, as there is no"
    )
    assert "asking" not in ctl("-c", "127.0.0.1:1", "list").err
