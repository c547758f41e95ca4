"""Rows about bad clients: what others notice of them."""

from __future__ import annotations

import statistics
import sys
import time
from typing import Final

from bench_host import ROOT, Client, Host, frame, wait_for
from bench_table import Options, Row

_ATTACKERS: Final = 500
#: Between two questions: a monitor that asks without pause would measure itself.
_PAUSE_S: Final = 0.002


def latencies(client: Client, query: bytes, count: int) -> list[float]:
    """How long each of ``count`` round trips took, seconds."""
    found = []
    for _ in range(count):
        before = time.perf_counter()
        client.round_trip(query)
        found.append(time.perf_counter() - before)
        time.sleep(_PAUSE_S)
    return found


def p99_row(what: str, client: Client, query: bytes, options: Options) -> Row:
    """The slowest hundredth of the replies to a client that asks while others misbehave."""
    found = latencies(client, query, options.pick(quick=1000, full=5000))
    p99 = statistics.quantiles(found, n=100)[98]
    middle = statistics.median(found)
    return Row(what, f"median {middle * 1e6:.0f} us", "", p99 * 1e3, " ms", limit=10.0)


def slow_senders(host: Host, options: Options) -> list[Row]:
    """The status of a job, for one client, while 500 others send a query byte by byte."""
    daemon = host.daemon_of(1)
    client = daemon.start()
    said = host.folder / "dribble.messages"
    host.spawn(
        [sys.executable, ROOT / "scripts" / "bench_dribble.py", daemon.socket, str(_ATTACKERS)],
        said,
    )
    wait_for(lambda: said.exists() and "connected" in said.read_text(), "the slow senders connect")
    query = frame("status", daemon.names[0])
    return [p99_row(f"status, p99, beside {_ATTACKERS} slow senders", client, query, options)]
