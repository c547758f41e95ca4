"""Debian's nginx and redis under taskmasterd: they serve, are killed, serve again, and stop leaves nothing."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import urllib.error
import urllib.request

import pytest
from e2e_programs import free_port, with_mark
from running import alive, wait_for

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin")
REDIS = shutil.which("redis-server", path="/usr/bin:/usr/local/bin")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="no nginx on this host")
needs_redis = pytest.mark.skipif(REDIS is None, reason="no redis-server on this host")


def nginx_command(folder, port, *, foreground):
    """A whole nginx of its own in ``folder``: two workers, its own pid file, logs and temporary folders."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "\n".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    config = folder / "nginx.conf"
    config.write_text(
        f"""
        pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes 2;
        {"daemon off;" if foreground else ""}
        {"user root;" if os.geteuid() == 0 else ""}
        events {{ worker_connections 64; }}
        http {{ access_log off; {temporary}
          server {{ listen 127.0.0.1:{port}; location / {{ return 200 "taskmaster\\n"; }} }} }}
        """
    )
    return [NGINX, "-c", str(config), "-e", f"{folder}/error.log"]


def get(port):
    """Body of the page at this port; None while nothing serves there."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as page:
            return page.read()
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


def ping(port):
    """What redis answers to PING; None while nothing serves there."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64) or None
    except (ConnectionError, TimeoutError):
        return None


def refused(port):
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "server"
    made.mkdir()
    return made


@needs_nginx
def test_nginx(daemon, folder):
    """Nginx serves, its master is killed, its workers do not keep the port from the next, stop leaves nothing."""
    port = free_port()
    daemon.job("nginx", nginx_command(folder, port, foreground=True), stopSig="QUIT", startTime=0.1)
    assert daemon.ask("reload", "nginx", wait=60)["response"] == "success"
    for _ in range(3):
        assert wait_for(lambda: get(port)) == b"taskmaster\n"
        (master,) = daemon.pids("nginx")
        os.kill(master, signal.SIGKILL)
        wait_for(lambda old=master: daemon.pids("nginx") not in ([], [old]))
        daemon.wait_state("nginx", "RUNNING")
    assert wait_for(lambda: get(port)) == b"taskmaster\n"
    assert daemon.ask("stop", "nginx", wait=60)["response"] == "success"
    assert refused(port)
    status = daemon.status("nginx")
    assert (status["state"], status["alive"]) == ("STOPPED", 0)
    assert with_mark(str(folder)) == {}


@needs_nginx
@pytest.mark.parametrize("command", ["stop", "kill", "delete", "restart"])
def test_nginx_that_detaches_itself(daemon, folder, command):
    """An nginx that daemonizes is EXITED, still its job's, and all gone after stop, kill, delete, restart."""
    port = free_port()
    daemon.job("nginx", nginx_command(folder, port, foreground=False), restart="never")
    assert daemon.ask("reload", "nginx", wait=60)["response"] == "success"
    assert wait_for(lambda: get(port)) == b"taskmaster\n"
    status = daemon.wait_state("nginx", "EXITED")
    assert "still run" in status["reason"]
    before = wait_for(lambda: _pid_of(folder))
    reply = daemon.ask(command, "nginx", wait=60)
    assert reply["response"] == "success", reply
    wait_for(lambda: not alive(before), "the master of before is gone")
    if command == "restart":
        assert wait_for(lambda: get(port)) == b"taskmaster\n"
        assert _pid_of(folder) != before
        assert daemon.ask("stop", "nginx", wait=60)["response"] == "success"
    assert refused(port)
    # nginx sets its workers' titles, but their executable is nginx and their parent was ours.
    assert with_mark(str(folder)) == {}


@needs_nginx
@pytest.mark.parametrize("command", ["stop", "start"])
def test_nginx_that_replaces_itself(daemon, folder, command):
    """USR2 and QUIT: the new master has the clients and is left alone; it is asked to go before another comes.

    (An nginx that does not detach itself ignores USR2 as long as its parent lives.)
    """
    port = free_port()
    argv = nginx_command(folder, port, foreground=False)
    daemon.job("nginx", argv, stopSig="QUIT", stopTime=60, restart="never")
    assert daemon.ask("reload", "nginx", wait=60)["response"] == "success"
    assert wait_for(lambda: get(port)) == b"taskmaster\n"
    daemon.wait_state("nginx", "EXITED")
    old = wait_for(lambda: _pid_of(folder))
    os.kill(old, signal.SIGUSR2)
    new = wait_for(lambda: pid if (pid := _pid_of(folder)) not in (None, old) else None)
    os.kill(old, signal.SIGQUIT)
    wait_for(lambda: not alive(old))
    wait_for(lambda: str(new) in (why := daemon.status("nginx")["reason"]) and str(old) not in why)
    assert get(port) == b"taskmaster\n"
    assert daemon.ask(command, "nginx", wait=60)["response"] == "success"
    assert not alive(new)
    if command == "start":
        assert wait_for(lambda: get(port)) == b"taskmaster\n"
        assert daemon.ask("stop", "nginx", wait=60)["response"] == "success"
    assert daemon.events("process.killed") == []
    assert refused(port)
    assert with_mark(str(folder)) == {}


def _pid_of(folder):
    try:
        return int((folder / "nginx.pid").read_text())
    except (FileNotFoundError, ValueError):
        return None


@needs_redis
def test_redis(daemon, folder):
    """Redis answers PING, is killed, answers again; another job's process is not touched."""
    port = free_port()
    argv = [REDIS, "--port", str(port), "--dir", str(folder), "--save", ""]
    daemon.job("redis", argv)
    daemon.job("other", ["sleep", "1000"])
    assert daemon.ask("restart") == {"response": "success"}
    (other,) = daemon.wait_state("other", "RUNNING") and daemon.pids("other")
    for _ in range(3):
        assert wait_for(lambda: ping(port)) == b"+PONG\r\n"
        (pid,) = daemon.pids("redis")
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda old=pid: daemon.pids("redis") not in ([], [old]))
    assert wait_for(lambda: ping(port)) == b"+PONG\r\n"
    exits = daemon.events("process.exited", job="redis")
    assert [one["signal"] for one in exits] == [9, 9, 9]
    assert daemon.ask("stop", "redis", wait=60)["response"] == "success"
    assert refused(port)
    assert "Ready to accept connections" in (daemon.logs / "jobs/redis/0_stdout.log").read_text()
    assert daemon.events("process.exited", job="redis")[-1]["exitCode"] == 0
    assert daemon.pids("other") == [other]
