"""A TCP port that another program has: the Unix socket is served, and the port in the end."""

from __future__ import annotations

import json
import os
import socket

import pytest
from running import Client, wait_for


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as holder:
        yield holder


def test_a_port_that_is_taken(make_daemon, taken):
    """It starts, tells everybody, survives an upgrade, and listens as soon as it can."""
    port = taken.getsockname()[1]
    daemon = make_daemon(port=port)
    daemon.start()
    (failed,) = daemon.events("listener.failed")
    assert failed["address"] == f"127.0.0.1:{port}"
    assert daemon.events("daemon.started")[-1]["listening"] == [str(daemon.socket)]
    assert f"127.0.0.1:{port}: Address already in use" in daemon.messages.read_text()
    troubles = daemon.state / "troubles.json"
    assert f"port {port} is taken" in json.loads(troubles.read_text())["port"]
    taken.close()
    (opened,) = wait_for(lambda: daemon.events("listener.opened"))
    assert opened["address"] == f"127.0.0.1:{port}"
    with Client(("127.0.0.1", port)) as client:
        assert client.ask("list")["response"] == "list"
    assert not troubles.exists()
    assert daemon.stop() == 0


def test_an_upgrade_without_the_port(make_daemon, taken):
    """The new program tries on where the old one did not get it."""
    port = taken.getsockname()[1]
    daemon = make_daemon(port=port)
    daemon.start()
    reply = daemon.ask("upgrade")
    assert reply["response"] == "success", reply
    wait_for(lambda: len(daemon.events("listener.failed")) == 2)
    taken.close()
    wait_for(lambda: daemon.events("listener.opened"))
    with Client(("127.0.0.1", port)) as client:
        assert client.ask("list")["response"] == "list"


def test_a_taken_port_and_nothing_else(make_daemon, taken):
    """Nobody could reach such a daemon: it ends, in one line, and leaves no socket."""
    daemon = make_daemon(port=taken.getsockname()[1], socket=None)
    daemon.start(wait=False)
    assert os.waitstatus_to_exitcode(daemon.host.wait(daemon.pid)) == 1
    assert len(daemon.messages.read_text().splitlines()) == 1
    assert not daemon.socket.exists()
