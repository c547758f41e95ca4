"""taskmasterctl through ssh: a program of that name that runs the command here, and a real sshd if any."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys

import pytest
from cli_servers import DEADLINE_S, Jobs, command_line, environment, interrupt_when_asleep
from running import ROOT, Daemon, wait_for

from taskmaster.cli.address import BadAddress, parse
from taskmaster.cli.client import Client
from taskmaster.cli.ssh import command
from taskmaster.errors import TimedOut

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
#: What ssh does with its last argument: a shell of the other host gets it. What it was told stays to be read.
FAKE = """#!/bin/sh
printf '%s\\n' "$@" > "$SAID"
while [ "$1" != -- ]; do shift; done
shift 2
exec sh -c "$1"
"""


@pytest.fixture
def fake(tmp_path):
    """A folder to put before PATH, with ``ssh`` and ``taskmasterctl``; environment for the command line."""
    folder = tmp_path / "bin"
    folder.mkdir()
    programs = {
        "ssh": FAKE,
        "taskmasterctl": f'#!/bin/sh\nexec {sys.executable} -m taskmaster.cli "$@"\n',
    }
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin", "SAID": str(tmp_path / "said")}


def test_everything_through_it(daemon: Daemon, ctl, fake, tmp_path):
    """All is as if it were asked over there, of any size; the daemon sees a client of its own host."""
    server = f"ssh://somebody@host.example:2222{daemon.socket}"
    big = '{"cmd": ["sleep", "1000"], "startTime": 0} //' + "x" * 1_000_000
    (tmp_path / "big.tm.json").write_text(big)
    assert ctl("-c", server, "push", str(tmp_path / "big.tm.json"), **fake).status == 0
    result = ctl("-c", server, "pull", "big", **fake)
    assert (result.status, result.out, result.err) == (0, big, "")
    peer = daemon.events("command.completed", command="pull")[-1]["peer"]
    assert (peer["transport"], peer["uid"]) == ("unix", os.geteuid())
    lines = "status\nrestart big\nstop big\nstatus big\n" * 3
    result = ctl("-c", server, "-s", stdin=lines, **fake)
    assert (result.status, result.out.count("big: stopped"), result.err) == (3, 3, "")
    said = (tmp_path / "said").read_text().splitlines()
    assert said[said.index("-l") + 1] == "somebody"
    assert said[said.index("-p") + 1] == "2222"
    assert said[-3:] == ["--", "host.example", f"taskmasterctl -c {daemon.socket} proxy"]
    assert ctl("-c", server, "shutdown", "--yes", **fake).status == 0
    assert daemon.host.wait(daemon.pid) == 0


def test_where_it_fails(ctl, fake, tmp_path):
    """Each failure says whose it is, after what ssh and the other side had to say themselves."""
    none = tmp_path / "none.sock"
    result = ctl("-c", f"ssh://host{none}", "list", **fake)
    assert result.status == 69
    first, second = result.err.splitlines()
    assert f"cannot reach taskmasterd at {none}" in first
    assert "taskmasterctl on host ended with exit status 69" in second
    (tmp_path / "bin/taskmasterctl").unlink()
    result = ctl("-c", "ssh://host", "list", **fake)
    assert result.status == 69
    assert "no taskmasterctl on host" in result.err.splitlines()[-1]
    for text, status, words in (
        ("echo 'ssh: connect to host: refused' >&2; exit 255", 69, "ssh failed"),
        ("exit 77", 77, "may not connect"),
        ("echo Welcome", 69, "what answers there is not taskmasterd (it sent 'Welcome"),
        ("exit 0", 69, "closed the connection without answering"),
        ("kill -9 $$", 1, "signal 9"),
    ):
        (tmp_path / "bin/ssh").write_text(f"#!/bin/sh\n{text}\n")
        result = ctl("-c", "ssh://host", "list", **fake)
        assert result.status == status, (text, result)
        assert words in result.err.splitlines()[-1]
    assert "ssh: connect to host: refused" in ctl_err(ctl, fake, tmp_path)
    (tmp_path / "bin/ssh").unlink()
    result = ctl("-c", "ssh://host", "list", **fake | {"PATH": str(tmp_path / "bin")})
    assert result.status == 69
    assert "cannot run ssh" in result.err


def ctl_err(ctl, fake, tmp_path):
    (tmp_path / "bin/ssh").write_text(
        "#!/bin/sh\necho 'ssh: connect to host: refused' >&2\nexit 255\n"
    )
    return ctl("-c", "ssh://host", "list", **fake).err


def test_time_runs_out(fake, tmp_path, monkeypatch, leaves_nothing):
    """An ssh that never comes back is given up at the deadline, and ended; so it is by Ctrl-C."""
    (tmp_path / "bin/ssh").write_text("#!/bin/sh\necho $$ > $SAID\nexec sleep 1000\n")
    process = subprocess.Popen(
        command_line("-c", "ssh://host", "list"), env=environment(**fake), stderr=subprocess.PIPE
    )
    said = tmp_path / "said"
    pid = int(wait_for(lambda: said.exists() and said.read_text()))
    interrupt_when_asleep(process)
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), "ssh is gone")
    for name, value in fake.items():
        monkeypatch.setenv(name, value)
    client = Client(parse("ssh://host"), 0.05)
    with pytest.raises(TimedOut, match="ssh://host: none within"):
        list(client.ask([{"command": "list"}]))


@pytest.mark.parametrize(
    "text",
    [
        "ssh://", "ssh:///run/x.sock", "ssh://-oProxyCommand=id", "ssh://-l@host", "ssh://host -v",
        "ssh://host;id", "ssh://$(id)", "ssh://a@b@c", "ssh://@host", "ssh://host:0", "ssh://host:x",
        "ssh://us er@host", "ssh://host\n-v", "ssh://[-x::1]", "ssh://[::1", "ssh://host:22:22", "SSH://host",
    ],
)  # fmt: skip
def test_addresses_that_are_none(text):
    """Whatever ssh or a shell could take for something else than a host, a user or a port is refused."""
    with pytest.raises(BadAddress):
        parse(text)


def test_words():
    """A path is one quoted word for the shell over there; user, port and path are left out where not given."""
    assert command(parse("ssh://web1"), 10)[-3:] == ["--", "web1", "taskmasterctl proxy"]
    hostile = "/run/a b'; rm -rf $HOME; '.sock"
    words = command(parse(f"ssh://root@[fe80::1%eth0]:22{hostile}"), 10)
    assert words[-2] == "fe80::1%eth0"
    done = subprocess.run(
        ["sh", "-c", words[-1].replace("taskmasterctl", "printf '%s\\n'", 1)],
        capture_output=True, text=True, timeout=DEADLINE_S, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["-c", hostile, "proxy"]
    assert str(parse("ssh://anna@web1:22/run/x.sock")) == "ssh://anna@web1:22/run/x.sock"


def test_proxy_copies_anything(make_server, tmp_path):
    """``proxy`` brings more than any buffer holds both ways at once, and the end of one side to the other."""
    received = bytearray()
    data = bytes(range(256)) * 20_000

    def echo(connection: socket.socket) -> None:
        connection.sendall(data)
        while chunk := connection.recv(65536):
            received.extend(chunk)
        connection.sendall(b"the end")

    server = make_server(raw=echo, path=str(tmp_path / "s"))
    with open(tmp_path / "in", "wb") as file:
        file.write(data)
    with open(tmp_path / "in", "rb") as given:
        done = subprocess.run(
            command_line("-c", server.address, "proxy"), stdin=given, capture_output=True,
            env=environment(), timeout=DEADLINE_S, check=True,
        )  # fmt: skip
    assert done.stdout == data + b"the end"
    assert bytes(received) == data


@pytest.mark.skipif(SSHD is None, reason="no sshd")
@pytest.mark.skipif(os.geteuid() != 0, reason="sshd that lets anybody in needs root")
def test_real_ssh(make_server, ctl, fake, tmp_path):
    """The system's ssh and sshd, on loopback, with keys and configuration of their own."""
    os.makedirs("/run/sshd", exist_ok=True)  # sshd's own, empty; without it none starts
    for name in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)],
            check=True, timeout=DEADLINE_S,
        )  # fmt: skip
    shutil.copy(tmp_path / "user.pub", tmp_path / "authorized")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
    (tmp_path / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path / 'host'}\nPidFile none\n"
        f"AuthorizedKeysFile {tmp_path / 'authorized'}\nStrictModes no\nUsePAM no\n"
        f"PasswordAuthentication no\nSetEnv PATH={path} PYTHONPATH={ROOT}\n"
    )
    # The client's own configuration is chosen by an ssh that adds it: taskmasterctl knows no such option.
    real = shutil.which("ssh")
    (tmp_path / "bin/ssh").write_text(f'#!/bin/sh\nexec {real} -F {tmp_path / "ssh_config"} "$@"\n')
    host_key = (tmp_path / "host.pub").read_text()
    (tmp_path / "known").write_text(f"[127.0.0.1]:{port} {host_key}")
    (tmp_path / "ssh_config").write_text(
        f"IdentityFile {tmp_path / 'user'}\nUserKnownHostsFile {tmp_path / 'known'}\n"
        "BatchMode yes\nStrictHostKeyChecking yes\n"
    )
    server = make_server(Jobs(web="RUNNING"), path=str(tmp_path / "s"))
    sshd = subprocess.Popen(
        [str(SSHD), "-D", "-e", "-f", str(tmp_path / "sshd_config")], stderr=subprocess.PIPE
    )
    try:
        wait_for(lambda: answers(port), "sshd listens")
        user = pwd.getpwuid(os.geteuid()).pw_name
        place = f"ssh://{user}@127.0.0.1:{port}{server.address}"
        result = ctl("-c", place, "status", **fake)
        assert (result.status, result.err) == (0, "")
        assert "web" in result.out
        result = ctl("-c", place, "-s", stdin="list\nstart web\n", **fake)
        assert (result.status, result.out) == (0, "web\nweb: started\n")
        (tmp_path / "known").write_text("")
        result = ctl("-c", place, "status", **fake)
        assert result.status == 69
        assert "Host key verification failed" in result.err
        assert "ssh failed" in result.err.splitlines()[-1]
    finally:
        sshd.terminate()
        sshd.communicate(timeout=DEADLINE_S)


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
