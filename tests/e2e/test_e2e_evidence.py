"""What a daemon leaves proves what it did: sealed, anchored, and verified over every kind of end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running import Daemon, wait_for

HEAD = re.compile(rb"<85>1 .* taskmasterd \d+ audit-head - audit head ([0-9]+:[0-9a-f]{64}) (\S+)")
MakeDaemon = Callable[..., Daemon]


def ctl(*arguments: object) -> subprocess.CompletedProcess[str]:
    """``taskmasterctl audit`` as a process of its own."""
    argv = [sys.executable, "-m", "taskmaster.cli", "audit", *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)


def verified(daemon: Daemon, *options: str) -> dict[str, Any]:
    done = ctl("verify", "--json", *options, daemon.audit_file)
    assert done.returncode == 0, done.stdout + done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["first"]["seq"] == 1
    return document


def sealed_up_to(daemon: Daemon) -> int:
    return max((one["sealedSeq"] for one in daemon.events("audit.sealed")), default=0)


@pytest.fixture
def syslog(tmp_path: Path) -> Iterator[socket.socket]:
    """What stands in for /dev/log."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reader:
        reader.bind(str(tmp_path / "dev-log"))
        reader.settimeout(30)
        yield reader


def test_over_kills_upgrades_and_ends(
    make_daemon: MakeDaemon, tmp_path: Path, syslog: socket.socket
) -> None:
    """One chain, sealed in time, over SIGKILL, an upgrade in place and an orderly end; heads of it in syslog."""
    daemon = make_daemon(
        auditSealSeconds=1,
        auditAnchorSeconds=1,
        auditSinkSocket=str(tmp_path / "dev-log"),
        auditMaxBytes=5000,
        auditBackups=100,
    )
    daemon.logs.mkdir()
    made = ctl("keygen", "--json", "--file", daemon.logs / "audit.seal")
    assert made.returncode == 0, made.stderr
    key = json.loads(made.stdout)["key"]
    daemon.job("web", ["sleep", "1000"])
    daemon.start()
    daemon.wait_state("web", "RUNNING")
    wait_for(lambda: sealed_up_to(daemon) > 5)
    daemon.kill()
    daemon.start()
    with daemon.client() as client:
        assert client.ask("upgrade")["response"] == "success"
    for _ in range(30):
        daemon.status("web")
    head = verified(daemon)["last"]["seq"]
    wait_for(lambda: sealed_up_to(daemon) >= head)
    assert daemon.stop() == 0
    document = verified(daemon, "--key", key)
    assert document["sealed"]["seq"] == document["last"]["seq"] - 1
    assert document["sealsChecked"] >= 3
    assert len(document["files"]) > 2
    heads = []
    syslog.setblocking(False)
    while True:
        try:
            datagram = syslog.recv(65536)
        except BlockingIOError:
            break
        match = HEAD.fullmatch(datagram)
        assert match, datagram
        assert match[2].decode() == str(daemon.audit_file)
        heads.append(match[1].decode())
    assert len(heads) >= 3
    assert heads[-1] == document["head"]
    verified(daemon, *(word for head in heads for word in ("--head", head)))


def test_a_second_place_for_every_record(
    make_daemon: MakeDaemon, tmp_path: Path, syslog: socket.socket
) -> None:
    """A burst that the kernel's queue cannot hold reaches syslog whole, while the clients are not kept waiting."""
    daemon = make_daemon(
        auditSink="syslog", auditSinkSocket=str(tmp_path / "dev-log"), auditAnchorSeconds=0
    )
    daemon.start()
    with daemon.client() as client:
        client.send(b'{"command":"list"};;' * 500)
        for _ in range(500):
            assert client.reply()["response"] == "list"
    written = daemon.audit_file.read_bytes().splitlines()
    assert len(written) > 1000
    read: list[bytes] = []
    while len(read) < len(written):
        read.append(syslog.recv(65536).partition(b" audit - ")[2])
    assert read == written
    # Nobody reads now: commands are answered all the same, and the loss is told of at the end.
    syslog.close()
    assert daemon.ask("list")["response"] == "list"
    assert daemon.stop() == 0
    assert sum(one["count"] for one in daemon.events("audit.sink_lost")) >= 2
    assert "audit records do not reach syslog" in daemon.messages.read_text()
    verified(daemon)


def test_a_key_made_while_it_runs(make_daemon: MakeDaemon) -> None:
    """After SIGHUP the daemon seals with a key that was made meanwhile; one that others may read is told of."""
    daemon = make_daemon(auditSealSeconds=1)
    daemon.start()
    made = ctl("keygen", "--json", "--file", daemon.logs / "audit.seal")
    assert made.returncode == 0, made.stderr
    os.kill(daemon.pid, signal.SIGHUP)
    wait_for(lambda: sealed_up_to(daemon) > 0)
    (daemon.logs / "audit.seal").chmod(0o644)
    daemon.ask("list")
    (failed,) = wait_for(lambda: daemon.events("audit.seal_failed"))
    assert "mode 0644" in failed["error"]
    assert "the audit log cannot be sealed" in daemon.messages.read_text()
    daemon.kill()
    daemon.start(wait=False)
    assert os.waitstatus_to_exitcode(daemon.host.wait(daemon.pid)) == 78
    assert "found mode 0644" in daemon.messages.read_text()
    (daemon.logs / "audit.seal").chmod(0o600)
    daemon.start()
    assert daemon.stop() == 0
    document = verified(daemon, "--key", json.loads(made.stdout)["key"])
    assert document["sealed"]["seq"] == document["last"]["seq"] - 1
