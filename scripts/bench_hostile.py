"""Rows about bad clients: what others notice of them."""

from __future__ import annotations

import shutil
import socket
import statistics
import subprocess
import sys
import time
from typing import Final

from bench_client import Client, Missed, frame
from bench_host import ROOT, Host, free_port, wait_for
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


def half_open(host: Host, options: Options) -> list[Row]:
    """The same while 500 others have begun a TLS handshake and say no more."""
    if shutil.which("openssl") is None:
        raise Missed("there is no openssl to make a certificate with")
    key, certificate = host.folder / "tls.key", host.folder / "tls.crt"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *(
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=localhost",
                "-keyout",
                key,
                "-out",
                certificate,
            ),
        ],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    key.chmod(0o600)
    daemon = host.daemon_of(1)
    tls = {"certificate": str(certificate), "key": str(key), "clientCA": str(certificate)}
    port = free_port()
    daemon.configure(port=port, tls=tls)
    client = daemon.start()
    for number in range(_ATTACKERS):
        connection = socket.create_connection(("127.0.0.1", port))
        host.on_end(connection.close)
        # The beginning of a hello: with its length, with a part of it, or with nothing.
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[: 1 + number % 11])
    query = frame("status", daemon.names[0])
    return [p99_row(f"status, p99, beside {_ATTACKERS} half-open TLS", client, query, options)]
