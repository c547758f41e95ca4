"""Clients that are hostile, slow or of another protocol: their connection ends, nobody else notices."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from pathlib import Path

import pytest
from running import Client, Daemon, query, wait_for


def memory(daemon: Daemon) -> int:
    """Peak resident set of the control plane, bytes."""
    for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


def descriptors(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.pid}/fd"))


@pytest.fixture
def busy(make_daemon):
    """A daemon with one healthy job, ``web``."""

    def make(**config):
        daemon = make_daemon(**config)
        daemon.job("web", ["sleep", "1000"])
        daemon.start()
        daemon.wait_state("web", "RUNNING")
        return daemon

    return make


STOP = query("stop", "web")
FOREIGN = {
    "get": b"GET /" + STOP + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "get-line": b"GET / HTTP/1.1\r\nX: a\r\n" + STOP + b"\r\n\r\n",
    "post": b"POST / HTTP/1.1\r\nHost: localhost:7777\r\nContent-Type: text/plain\r\nContent-Length: "
    + str(len(STOP)).encode() + b"\r\n\r\n" + STOP,
    "post-blank": b"\r\n\r\nPOST / HTTP/1.0\r\n\r\n" + STOP,
    "options": b"OPTIONS * HTTP/1.1\r\n\r\n" + STOP,
    "pri": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + STOP,
    "header": b"Host: x\r\n\r\n" + STOP,
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"r" * 32 + STOP,
    "ssh": b"SSH-2.0-OpenSSH_9.2\r\n" + STOP,
    "resp": b"*1\r\n$4\r\nPING\r\n" + STOP,
}  # fmt: skip


@pytest.mark.parametrize("pieces", ["whole", "bytewise"])
def test_other_protocols_execute_nothing(busy, pieces):
    """HTTP, TLS and others, a valid frame anywhere in them, get ``invalid``, are closed, and execute nothing."""
    daemon = busy()
    (pid,) = daemon.pids("web")
    for name, data in FOREIGN.items():
        with daemon.client(tcp=True) as client:
            if pieces == "whole":
                client.send(data)
            else:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    for byte in data:
                        client.send(bytes([byte]))
            reply = client.reply()
            assert reply["response"] == "invalid", name
            assert reply["error"]
            assert client.frame() == b"", name
    assert daemon.pids("web") == [pid]
    assert daemon.events("command.requested", command="stop") == []
    assert len(daemon.events("client.rejected")) == len(FOREIGN)


def test_a_client_that_does_not_read_is_cut_off(busy):
    """A client that never reads is cut off, at a bounded cost in memory; others are answered meanwhile."""
    daemon = busy()
    big = '{"cmd": ["sleep", "1000"], "startTime": 0} //' + "x" * 1_000_000
    assert daemon.ask("push", "big", data=big)["response"] == "success"
    before = memory(daemon)
    deaf = daemon.client(tcp=True)
    deaf.socket.settimeout(1)
    with daemon.client() as other:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError, TimeoutError):
            for _ in range(20):
                deaf.send(query("pull", "big") * 1000)
                began = time.monotonic()
                assert other.status("web")["state"] == "RUNNING"
                assert time.monotonic() - began < 5
        wait_for(lambda: not _connected(deaf), "it is cut off")
        assert other.status("web")["state"] == "RUNNING"
    # One turn's answers may be there beside the capped queue, not a gigabyte.
    assert memory(daemon) - before < 200 * 1024 * 1024


def _connected(client: Client) -> bool:
    """Whether the server still has the other end, without reading what waits."""
    port = client.socket.getsockname()[1]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[2].split(":")[1], 16) == port and fields[3] == "01":
            return True
    return False


@pytest.mark.parametrize("tcp", [False, True])
def test_a_client_that_reads_gets_all_it_asked_for(busy, tcp):
    """Who pipelines more replies than any buffer holds, and reads them, gets all, whatever the kernel buffers."""
    daemon = busy()
    big = '{"cmd": ["sleep", "1000"], "startTime": 0} //' + "x" * 1_000_000
    assert daemon.ask("push", "big", data=big)["response"] == "success"
    with daemon.client(tcp=tcp) as client:
        client.send(query("pull", "big") * 20)
        for _ in range(20):
            assert client.reply()["data"] == big.encode()


def test_half_frames_cost_nothing(busy):
    """100 connections that stop in the middle of a frame delay nobody, and are gone when they are closed."""
    daemon = busy()
    before = descriptors(daemon)
    halves = [daemon.client(tcp=bool(number % 2)) for number in range(100)]
    for number, client in enumerate(halves):
        client.send(
            (STOP * 2)[: len(STOP) + number % len(STOP)] if number == 0 else STOP[:-1][: number + 1]
        )
    with daemon.client() as client:
        ticks = _cpu(daemon)
        for _ in range(20):
            assert client.status("web")["job"] == "web"
        assert _cpu(daemon) - ticks < 100
    for client in halves:
        client.close()
    wait_for(lambda: descriptors(daemon) <= before, "all are gone")


def _cpu(daemon: Daemon) -> int:
    fields = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_slow_sender_is_served(busy):
    """A frame that takes its time, byte by byte with others' commands between, is answered like any other."""
    daemon = busy()
    slow, quick = daemon.client(tcp=True), daemon.client()
    for byte in query("status", "web", id="slow"):
        slow.send(bytes([byte]))
        assert quick.ask("list")["response"] == "list"
    assert slow.reply()["id"] == "slow"


def test_max_clients(busy):
    """Clients over maxClients are told so and gone; those that are in stay, and one that leaves makes room."""
    daemon = busy(maxClients=5)
    inside = [daemon.client(tcp=True) for _ in range(5)]
    for client in inside:
        assert client.ask("list")["response"] == "list"
    with daemon.client(tcp=True) as outside:
        reply = outside.reply()
        assert reply["response"] == "fail"
        assert "5" in reply["error"]
        assert outside.frame() == b""
    assert all(client.ask("list")["response"] == "list" for client in inside)
    inside[0].close()

    def let_in():
        with Client(("127.0.0.1", daemon.port)) as client, contextlib.suppress(OSError):
            return client.ask("list")["response"] == "list"

    wait_for(let_in, "there is room again")


def test_tcp_clients_do_not_lock_the_owner_out(busy):
    """However many TCP connections strangers hold, the daemon's own user still gets in by the Unix socket."""
    daemon = busy(maxClients=5)
    strangers = [daemon.client(tcp=True) for _ in range(10)]
    strangers[0].ask("list")
    with Client(daemon.socket) as client:
        assert client.ask("stop", "web") == {"response": "success"}


def test_a_client_that_leaves_in_the_middle(busy):
    """What a client that was let in asked for before it hung up or reset is done all the same, and on record."""
    daemon = busy()
    for reset in (False, True):
        client = Client(("127.0.0.1", daemon.port))
        assert client.ask("list")["response"] == "list"
        client.send(
            query("start", "web", wait=60)
            + query("restart", "web", wait=60)
            + query("status", "web")
        )
        if reset:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
    wait_for(
        lambda: len(daemon.events("command.completed")) == len(daemon.events("command.requested"))
    )
    assert daemon.wait_state("web", "RUNNING")["alive"] == 1


def test_half_close_still_gets_the_replies(busy):
    """A client that has sent all it wants and shuts its sending side (``printf … | nc -N``) gets its replies."""
    daemon = busy()
    with daemon.client(tcp=True) as client:
        client.send(query("list") + query("restart", "web", wait=60))
        client.socket.shutdown(socket.SHUT_WR)
        assert client.reply()["response"] == "list"
        assert client.reply()["response"] == "success"
        assert client.frame() == b""


def test_waits_of_clients_that_are_gone_cost_nothing(busy):
    """A thousand waits for something that never comes, by clients that hang up, leave nothing behind."""
    daemon = busy()
    daemon.job("never", ["false"], restartTimes=-1, startTime=3600)
    assert daemon.ask("reload", "never")["response"] == "success"
    daemon.wait_state("never", "BACKOFF")
    before = descriptors(daemon)
    for _ in range(20):
        with Client(daemon.socket) as client:
            client.send(query("repair", "never", wait=604800) * 50)
    wait_for(lambda: descriptors(daemon) <= before)
    assert daemon.ask("stop", "never", wait=60)["response"] == "success"
    assert daemon.status("web")["state"] == "RUNNING"
    wait_for(
        lambda: len(daemon.events("command.completed")) == len(daemon.events("command.requested"))
    )


@pytest.mark.parametrize("command", ["status", "pull", "audit", "repair", "push"])
def test_waits_of_clients_that_are_gone_are_over(busy, command):
    """Whatever a client waits for, nobody does once it is gone: it is complete for the log, nothing is kept."""
    daemon = busy()
    daemon.job("never", ["false"], restartTimes=-1, startTime=3600)
    assert daemon.ask("reload", "never")["response"] == "success"
    daemon.wait_state("never", "BACKOFF")
    more = {"data": (daemon.jobs / "never.tm.json").read_text()} if command == "push" else {}
    more |= {"cursor": "end"} if command == "audit" else {}
    frame = query(command, None if command == "audit" else "never", wait=604800, **more)
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            client = stack.enter_context(Client(daemon.socket))
            client.send(frame * 8)
        requested = wait_for(
            lambda: [
                found
                for found in [daemon.events("command.requested", wait=604800)]
                if len(found) == 64
            ]
        )[0]
        asked = {record["id"] for record in requested}
        done = {record["id"] for record in daemon.events("command.completed")}
        assert command == "audit" or not asked & done
    wait_for(
        lambda: asked <= {record["id"] for record in daemon.events("command.completed")},
        "they are over",
        deadline_s=10,
    )
    assert daemon.status("never")["state"] == "BACKOFF"


def test_out_of_descriptors(make_daemon):
    """With no descriptor left for more clients the daemon drops them, goes on, and takes no CPU for it."""
    daemon = make_daemon(maxClients=4096)
    daemon.job("web", ["sleep", "1000"])
    argv = ["/bin/sh", "-c", 'ulimit -n 60; exec "$@"', "sh"]
    argv += [sys.executable, "-m", "taskmaster.control", "-c", str(daemon.config)]
    daemon.pid = daemon.host.start(argv, daemon.messages)
    wait_for(daemon.serves)
    daemon.wait_state("web", "RUNNING")
    (pid,) = daemon.pids("web")
    keeper = daemon.client()
    assert keeper.ask("list")["response"] == "list"
    many = [daemon.client() for _ in range(100)]
    for command, fields in (
        ("pull", {}), ("push", {"data": '{"cmd":"x"}'}), ("reload", {}), ("status", {}), ("list", {}),
        ("restart", {}), ("stop", {}),
    ):  # fmt: skip
        reply = keeper.ask(command, None if command in ("list", "restart") else "web", **fields)
        assert reply["response"] in ("success", "fail", "status", "list", "file"), reply
    for client in many:
        client.close()
    assert daemon.running, daemon.messages.read_text()[-2000:]
    wait_for(daemon.serves)
    assert json.loads(daemon.ask("list")["data"])["jobs"] == [{"name": "web"}]
    assert pid
