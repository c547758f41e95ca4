"""Listeners that an upgrade is to change: new ones are opened, old ones closed, nobody who has knocked is lost."""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from faults_programs import is_held
from running import Client, Daemon, query, wait_for


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def other_address() -> str:
    """An address of this host that is not loopback's; skips where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this host has no address but loopback")
        return str(probe.getsockname()[0])


def listens(address: tuple[str, int] | Path) -> bool:
    try:
        with Client(address) as client:
            return client.ask("list")["response"] == "list"
    except (ConnectionRefusedError, FileNotFoundError, ConnectionResetError):
        return False


@pytest.fixture
def begin(make_daemon: Callable[..., Daemon]) -> Callable[..., Daemon]:
    """A daemon with a job that runs; its socket is ``a.sock``."""

    def started(**config: object) -> Daemon:
        daemon = make_daemon(**{"socket": "a.sock", **config})
        daemon.socket = daemon.folder / "a.sock"
        daemon.job("web", ["sleep", "1000"])
        daemon.start()
        daemon.wait_state("web", "RUNNING")
        return daemon

    return started


def upgrade(daemon: Daemon, **config: object) -> None:
    """To this configuration, asked over a connection that has to survive it; the job notices nothing."""
    with Client(daemon.socket) as client:
        (before,) = [one["pid"] for one in client.status("web")["processes"]]
        daemon.configure(**config)
        assert client.ask("upgrade") == {"response": "success"}
        if "socket" in config and config["socket"] is not None:
            daemon.socket = daemon.folder / str(config["socket"])
        (after,) = [one["pid"] for one in client.status("web")["processes"]]
        assert after == before


def test_another_port_and_none(begin: Callable[..., Daemon]) -> None:
    """The old port is free, the new one is served; then neither, then one again."""
    first, second = free_port(), free_port()
    daemon = begin(port=first)
    assert listens(("127.0.0.1", first))
    upgrade(daemon, socket="a.sock", port=second)
    assert not listens(("127.0.0.1", first))
    assert listens(("127.0.0.1", second))
    upgrade(daemon, socket="a.sock", port=None)
    assert not listens(("127.0.0.1", second))
    upgrade(daemon, socket="a.sock", port=first)
    assert listens(("127.0.0.1", first))


def test_any_free_port_stays(begin: Callable[..., Daemon]) -> None:
    """Port 0 is whichever is there already."""
    daemon = begin(port=0)
    port = daemon.port
    upgrade(daemon, socket="a.sock", port=0)
    assert listens(("127.0.0.1", port))


def test_remote_connections(begin: Callable[..., Daemon]) -> None:
    """The same port on all addresses, and on loopback alone again."""
    outside, port = other_address(), free_port()
    daemon = begin(port=port)
    assert not listens((outside, port))
    open_to_all = {"remoteConnections": True, "allowInsecureRemote": True}
    upgrade(daemon, socket="a.sock", port=port, **open_to_all)
    assert listens(("127.0.0.1", port))
    with socket.create_connection((outside, port), timeout=30):
        pass
    upgrade(daemon, socket="a.sock", port=port)
    assert listens(("127.0.0.1", port))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((outside, port), timeout=30)


def test_another_socket_and_none(begin: Callable[..., Daemon]) -> None:
    """The old socket's file is gone, the new one is served."""
    port = free_port()
    daemon = begin(port=port)
    upgrade(daemon, socket="b.sock", port=port)
    assert listens(daemon.folder / "b.sock")
    assert not (daemon.folder / "a.sock").exists()
    upgrade(daemon, socket=None, port=port)
    assert not (daemon.folder / "b.sock").exists()
    assert listens(("127.0.0.1", port))


def test_mode_of_the_socket(begin: Callable[..., Daemon]) -> None:
    """Also of the one that stays."""
    daemon = begin()
    upgrade(daemon, socket="a.sock", socketMode="0666")
    assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o666
    upgrade(daemon, socket="a.sock")
    assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o600


def test_a_socket_that_was_removed_is_made_anew(begin: Callable[..., Daemon]) -> None:
    """A listener whose file is gone, or another's, can be reached by nobody: it does not go on."""
    daemon = begin()
    with Client(daemon.socket) as client:
        daemon.socket.unlink()
        assert client.ask("upgrade") == {"response": "success"}
        wait_for(lambda: listens(daemon.socket))


def test_who_has_knocked_is_let_in(begin: Callable[..., Daemon]) -> None:
    """Connections that an old listener has not accepted yet are served, whatever becomes of it."""
    first, second = free_port(), free_port()
    daemon = begin(port=first)
    daemon.configure(socket="b.sock", port=second)
    with Client(daemon.socket) as client:
        os.kill(daemon.pid, signal.SIGSTOP)
        knocking = [Client(("127.0.0.1", first)) for _ in range(40)]
        knocking += [Client(daemon.socket) for _ in range(40)]
        for one in knocking:
            one.send(query("status", "web"))
        client.send(query("upgrade"))
        os.kill(daemon.pid, signal.SIGCONT)
        assert client.reply() == {"response": "success"}
        for one in knocking:
            assert one.reply()["response"] == "status"
            one.close()
    daemon.socket = daemon.folder / "b.sock"
    assert listens(("127.0.0.1", second))


def test_a_port_that_is_taken_after_the_trial(begin: Callable[..., Daemon]) -> None:
    """The other clients are served, and the port is tried again."""
    port = free_port()
    daemon = begin()
    daemon.job("slow", ["sleep", "1000"], startTime=1000)
    assert daemon.ask("restart")["response"] == "success"
    daemon.wait_state("slow", "STARTING")
    daemon.configure(socket="a.sock", port=port)
    with Client(daemon.socket) as waiting, Client(daemon.socket) as client:
        waiting.send(query("status", "slow", wait=600))
        client.send(query("upgrade"))
        wait_for(lambda: is_held(daemon))
        with socket.create_server(("127.0.0.1", port)):
            assert client.reply() == {"response": "success"}
            assert client.status("web")["state"] == "RUNNING"
    wait_for(lambda: listens(("127.0.0.1", port)))
