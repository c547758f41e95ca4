"""Rows about being asked: round trips, pipelined frames, the command line."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bench_host import ROOT, Client, Daemon, Host, frame, interleaved, wait_for
from bench_table import Options, Row

#: Round trips timed together: a few at a time, since other programs run too.
_BATCH: Final = 25


def _echo(host: Host, daemon: Daemon, client: Client) -> Client:
    """A connection to the baseline server (bench_echo), which has taskmasterd's own documents."""
    documents = dict(zip(daemon.names, client.statuses(daemon.names), strict=True))
    file, path = host.folder / "documents.json", host.folder / "echo.sock"
    file.write_text(json.dumps(documents))
    argv = [sys.executable, ROOT / "scripts" / "bench_echo.py", path, file]
    server = host.spawn(argv, host.folder / "echo.messages")

    def connected() -> Client | None:
        try:
            return Client(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return None

    echo: Client = wait_for(connected, "the echo server listens")
    host.on_end(echo.socket.close)
    host.share_a_cpu(daemon.pid, server)
    return echo


def _round_trips(client: Client, queries: list[bytes]) -> Callable[[], float]:
    turn = itertools.cycle(queries)

    def batch() -> float:
        ask, mine = client.round_trip, [next(turn) for _ in range(_BATCH)]
        before = time.perf_counter()
        for query in mine:
            ask(query)
        return (time.perf_counter() - before) / _BATCH

    return batch


def _pipelined(client: Client, queries: list[bytes]) -> Callable[[], float]:
    def batch() -> float:
        before = time.perf_counter()
        client.many(queries)
        return (time.perf_counter() - before) / len(queries)

    return batch


def _status(host: Host, options: Options, jobs: int) -> list[Row]:
    daemon = host.daemon_of(jobs)
    client = daemon.start()
    echo = _echo(host, daemon, client)
    queries = [frame("status", name) for name in daemon.names]
    ours, theirs = _round_trips(client, queries), _round_trips(echo, queries)
    for _ in range(2 * len(queries) // _BATCH + 1):
        ours(), theirs()
    mine, other, ratio = interleaved(options.pick(quick=100, full=600), ours, theirs)
    what = f"status round trip, {jobs} job{'s' if jobs > 1 else ''}"
    return [
        Row(what, f"{mine * 1e6:.0f} us", f"echo server {other * 1e6:.0f} us", ratio, limit=1.5)
    ]


def status_of_one(host: Host, options: Options) -> list[Row]:
    """The status of the only job, over and over on one connection, against a bare echo server."""
    return _status(host, options, 1)


def status_of_many(host: Host, options: Options) -> list[Row]:
    """The same with 200 jobs, each in turn."""
    return _status(host, options, 200)


def pipelined(host: Host, options: Options) -> list[Row]:
    """Frames sent a hundred at a time."""
    daemon = host.daemon_of(20)
    client = daemon.start()
    echo = _echo(host, daemon, client)
    queries = [frame("status", name) for name in daemon.names] * 5
    ours, theirs = _pipelined(client, queries), _pipelined(echo, queries)
    for _ in range(3):
        ours(), theirs()
    mine, other, ratio = interleaved(options.pick(quick=100, full=600), ours, theirs)
    return [
        Row(
            "pipelined status frames, time of each",
            f"{1 / mine:.0f}/s",
            f"echo server {1 / other:.0f}/s",
            ratio,
            limit=1.5,
        )
    ]


def changing(host: Host, options: Options) -> list[Row]:
    """A command that changes something, on record and on disk before its reply, against one fdatasync."""
    daemon = host.daemon_of(1)
    client = daemon.start()
    query = frame("reload", daemon.names[0])
    record = b"x" * 512  # as long as the two records of the command together
    log = os.open(
        host.folder / "log-of-the-baseline", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
    )
    host.on_end(lambda: os.close(log))

    def ours() -> float:
        before = time.perf_counter()
        client.round_trip(query)
        return time.perf_counter() - before

    def theirs() -> float:
        before = time.perf_counter()
        os.write(log, record)
        os.fdatasync(log)
        return time.perf_counter() - before

    for _ in range(5):
        ours(), theirs()
    mine, other, ratio = interleaved(options.pick(quick=100, full=600), ours, theirs)
    return [
        Row(
            "reload of an unchanged job",
            f"{mine * 1e6:.0f} us",
            f"write and fdatasync {other * 1e6:.0f} us",
            ratio,
            limit=2.0,
        )
    ]


def command_line(host: Host, options: Options) -> list[Row]:
    """``taskmasterctl status`` of ten jobs against a Python that only imports click."""
    daemon = host.daemon_of(10)
    daemon.start()
    program = Path(sys.executable).with_name("taskmasterctl")

    def run(*argv: str) -> Callable[[], float]:
        def once() -> float:
            before = time.perf_counter()
            subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
            return time.perf_counter() - before

        return once

    ours = run(str(program), "-c", str(daemon.socket), "status")
    theirs = run(sys.executable, "-c", "import click")
    ours(), theirs()
    mine, other, ratio = interleaved(options.pick(quick=10, full=40), ours, theirs)
    return [
        Row(
            "taskmasterctl status",
            f"{mine * 1e3:.0f} ms",
            f"import click {other * 1e3:.0f} ms",
            ratio,
            limit=1.3,
        )
    ]
