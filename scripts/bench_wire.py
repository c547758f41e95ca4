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
from typing import Final, NamedTuple

from bench_client import Client, frame, interleaved
from bench_host import ROOT, Daemon, Host, wait_for
from bench_table import Options, Row

#: Round trips timed together: a few at a time, since other programs run too.
_BATCH: Final = 25
_ECHO_LIMIT: Final = 1.5
#: Of our time to that of another checkout: two runs of the same program differ by less.
AGAINST_LIMIT: Final = 1.05


class _Baseline(NamedTuple):
    """What is measured beside the daemon: its name, a connection to it, the limit of the ratio."""

    name: str
    client: Client
    limit: float


def _count(options: Options) -> int:
    """How many measurements; fewer do not tell two daemons apart that are a twentieth apart."""
    return 600 if options.against is not None else options.pick(quick=100, full=600)


def _baseline(host: Host, options: Options, daemon: Daemon, client: Client) -> _Baseline:
    """The echo server, or the daemon of another checkout."""
    if options.against is None:
        return _Baseline("echo server", _echo(host, daemon, client), _ECHO_LIMIT)
    other = host.daemon_of(len(daemon.names), checkout=options.against)
    found = other.start()
    host.share_a_cpu(daemon.pid, other.pid)
    return _Baseline("against", found, AGAINST_LIMIT)


def _echo(host: Host, daemon: Daemon, client: Client) -> Client:
    """A connection to the baseline server (bench_echo), which has taskmasterd's own documents."""
    documents = dict(zip(daemon.names, client.statuses(daemon.names), strict=True))
    file, path = host.folder / "documents.json", host.folder / "echo.sock"
    file.write_text(json.dumps(documents))
    argv: list[str | Path] = [sys.executable, ROOT / "scripts" / "bench_echo.py", path, file]
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
    base = _baseline(host, options, daemon, client)
    queries = [frame("status", name) for name in daemon.names]
    ours, theirs = _round_trips(client, queries), _round_trips(base.client, queries)
    for _ in range(2 * len(queries) // _BATCH + 1):
        ours(), theirs()
    mine, other, ratio = interleaved(_count(options), ours, theirs)
    what = f"status round trip, {jobs} job{'s' if jobs > 1 else ''}"
    compared = f"{base.name} {other * 1e6:.0f} us"
    return [Row(what, f"{mine * 1e6:.0f} us", compared, ratio, limit=base.limit)]


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
    base = _baseline(host, options, daemon, client)
    queries = [frame("status", name) for name in daemon.names] * 5
    ours, theirs = _pipelined(client, queries), _pipelined(base.client, queries)
    for _ in range(3):
        ours(), theirs()
    mine, other, ratio = interleaved(_count(options), ours, theirs)
    return [
        Row(
            "pipelined status frames, time of each",
            f"{1 / mine:.0f}/s",
            f"{base.name} {1 / other:.0f}/s",
            ratio,
            limit=base.limit,
        )
    ]


def changing(host: Host, options: Options) -> list[Row]:
    """A command that changes something, on record and on disk before its reply, against one fdatasync."""
    daemon = host.daemon_of(1)
    client = daemon.start()
    query = frame("reload", daemon.names[0])
    if options.against is None:
        name, limit, theirs = "write and fdatasync", 2.0, _written(host)
    else:
        base = _baseline(host, options, daemon, client)
        name, limit, theirs = base.name, base.limit, _asked(base.client, query)
    ours = _asked(client, query)
    for _ in range(5):
        ours(), theirs()
    mine, other, ratio = interleaved(_count(options), ours, theirs)
    compared = f"{name} {other * 1e6:.0f} us"
    return [Row("reload of an unchanged job", f"{mine * 1e6:.0f} us", compared, ratio, limit=limit)]


def _asked(client: Client, query: bytes) -> Callable[[], float]:
    def once() -> float:
        before = time.perf_counter()
        client.round_trip(query)
        return time.perf_counter() - before

    return once


def _written(host: Host) -> Callable[[], float]:
    record = b"x" * 512  # as long as the two records of the command together
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    log = os.open(host.folder / "log-of-the-baseline", flags, 0o600)
    host.on_end(lambda: os.close(log))

    def once() -> float:
        before = time.perf_counter()
        os.write(log, record)
        os.fdatasync(log)
        return time.perf_counter() - before

    return once


#: Rows that have the other checkout's daemon beside ours by themselves: in turns of a few milliseconds.
SIDE_BY_SIDE: Final = (status_of_one, status_of_many, pipelined, changing)


def command_line(host: Host, options: Options) -> list[Row]:
    """``taskmasterctl status`` of ten jobs against a Python that only imports click."""
    daemon = host.daemon_of(10)
    daemon.start()
    program = Path(sys.executable).with_name("taskmasterctl")
    environment = {**os.environ, "PYTHONPATH": str(host.checkout)}

    def run(*argv: str) -> Callable[[], float]:
        def once() -> float:
            before = time.perf_counter()
            subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, env=environment)
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
