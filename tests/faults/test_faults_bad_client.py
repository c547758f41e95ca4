"""A bad client: its connection is cut, its memory is bounded, and nobody else notices."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable

import pytest
from running import Client, Daemon, query, wait_for

STOP = query("stop", "bystander")
#: As many as a port scanner or a broken pool opens; the daemon lets in ``maxClients`` of them.
THOUSANDS = 2000


def garbage(daemon: Daemon) -> list[Client]:
    """Bytes that are no frame, many kinds of them."""
    chance = random.Random(7)
    clients = []
    for number in range(50):
        client = daemon.client(tcp=bool(number % 2))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.send(chance.randbytes(1 + number * 500) + b";;" + STOP)
        clients.append(client)
    return clients


def half_frames(daemon: Daemon) -> list[Client]:
    """Frames that are begun and never ended."""
    clients = [daemon.client(tcp=bool(number % 2)) for number in range(200)]
    for client in clients:
        client.send(STOP[:-1])
    return clients


def slow_reader(daemon: Daemon) -> list[Client]:
    """Clients that ask for more than they ever read."""
    clients = [daemon.client(tcp=bool(number % 2)) for number in range(4)]
    for client in clients:
        client.socket.settimeout(0.5)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
            for _ in range(20):
                client.send(query("status", "web") * 5000)
    return clients


def thousands(daemon: Daemon) -> list[Client]:
    """Far more connections than are let in."""
    return [daemon.client(tcp=True) for _ in range(THOUSANDS)]


def another_protocol(daemon: Daemon) -> list[Client]:
    """A web page in the administrator's browser, with a query in its body; TLS; others."""
    body = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(STOP)
    clients = []
    for start in (
        body,
        b"GET /" + STOP + b" HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"SSH-2.0-x\r\n",
    ):
        client = daemon.client(tcp=True)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.send(start + STOP)
        clients.append(client)
    return clients


@pytest.mark.parametrize("attack", [garbage, half_frames, slow_reader, thousands, another_protocol])
def test_nobody_else_notices(make_daemon, bystander, attack: Callable[[Daemon], list[Client]]):
    """During and after it the other job's process is the same and its status is answered in time."""
    daemon = make_daemon()
    daemon.job("web", ["sleep", "1000"])
    other = bystander(daemon)
    daemon.start()
    other.begins()
    daemon.wait_state("web", "RUNNING")
    before = len(os.listdir(f"/proc/{daemon.pid}/fd"))
    clients = attack(daemon)
    for _ in range(10):
        other.notices_nothing()
    for client in clients:
        client.close()
    wait_for(lambda: len(os.listdir(f"/proc/{daemon.pid}/fd")) <= before, "all of them are gone")
    other.notices_nothing()
    assert daemon.events("command.requested", command="stop") == []
