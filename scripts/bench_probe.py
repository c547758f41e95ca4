"""One honest client that asks for the status of a job, with pauses, and keeps how long each answer took.

    bench_probe.py UID PORT JOB [anew]

``anew``: over a connection of its own for each question. Prints a line when the first answer is there, asks
until SIGTERM, then prints the times, in milliseconds, as a JSON list. A question that is not answered at all
counts with the time that it was waited for, and so does one that has to be asked again.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
import time
from typing import Final

from attacks import become, frame

#: Between two questions: who asks without a pause measures themselves.
_PAUSE_S: Final = 0.002
_PATIENCE_S: Final = 10.0
_RETRY_S: Final = 0.02


class Over(Exception):
    """SIGTERM came."""


class Probe:
    """Asks one server. ``took_ms``: of each answer."""

    def __init__(self, port: int, job: str, anew: bool) -> None:
        self._address = ("127.0.0.1", port)
        self._query = frame("status", job)
        self._anew = anew
        self._socket: socket.socket | None = None
        self._asked_at = 0.0
        self.took_ms: list[float] = []

    def ask(self) -> None:
        """One question until it is answered."""
        self._asked_at = time.perf_counter()
        while not self._answered():
            self._drop()
            time.sleep(_RETRY_S)
        self.took_ms.append((time.perf_counter() - self._asked_at) * 1e3)
        self._asked_at = 0.0
        if self._anew:
            self._drop()

    def over(self) -> None:
        """What is still waited for counts, too."""
        if self._asked_at and (waited := (time.perf_counter() - self._asked_at) * 1e3) > 1:
            self.took_ms.append(waited)

    def _answered(self) -> bool:
        try:
            if self._socket is None:
                # Not by create_connection: it would load a codec, which this user may not be able to read.
                self._socket = socket.socket()
                self._socket.settimeout(_PATIENCE_S)
                self._socket.connect(self._address)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.sendall(self._query)
            reply = b""
            while not reply.endswith(b";;"):
                chunk = self._socket.recv(65536)
                if not chunk:
                    return False
                reply += chunk
        except (ConnectionError, TimeoutError):
            return False
        return b'"response":"status"' in reply

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def main(uid: str, port: str, job: str, *anew: str) -> None:
    def ended(number: int, _frame: object) -> None:
        raise Over

    become(int(uid))
    probe = Probe(int(port), job, bool(anew))
    signal.signal(signal.SIGTERM, ended)
    try:
        probe.ask()
        print("answered", flush=True)
        while True:
            probe.ask()
            time.sleep(_PAUSE_S)
    except Over:
        probe.over()
    print(json.dumps(probe.took_ms), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
