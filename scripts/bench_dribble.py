"""Slow senders: connections that send a query byte by byte and never end it, until this process is ended.

    bench_dribble.py SOCKET COUNT

Prints a line once all are connected. Each connection sends ten bytes a second.
"""

from __future__ import annotations

import socket
import sys
import time

_QUERY = b'{"command":"status","job":"' + b"d2Vi" * 100_000
_ROUND_S = 0.1


def main(path: str, count: int) -> None:
    connections = []
    for _ in range(count):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(path)
        connections.append(connection)
    print("connected", flush=True)
    due = time.monotonic()
    for number in range(len(_QUERY)):
        for connection in connections:
            connection.send(_QUERY[number : number + 1])
        due += _ROUND_S
        time.sleep(max(0.0, due - time.monotonic()))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
