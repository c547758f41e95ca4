"""A scripted server over real sockets, its answers, and how taskmasterctl is started."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import taskmaster

ROOT = Path(taskmaster.__file__).parents[1]
DEADLINE_S = 60

Answer = Callable[[dict[str, Any]], "dict[str, Any] | bytes"]


def b64(data: str | bytes) -> str:
    return base64.b64encode(data.encode() if isinstance(data, str) else data).decode()


def name_of(query: dict[str, Any]) -> str:
    return base64.b64decode(query["job"]).decode()


def status_document(job: str, state: str = "RUNNING", **changed: Any) -> dict[str, Any]:
    process = {
        "number": 0,
        "pid": 4121,
        "state": state,
        "desired": "UP",
        "ready": True,
        "since": "2026-11-24T09:00:00.000000Z",
        "uptime": 12.5,
        "restarts": 2,
        "exitCode": None,
        "signal": None,
        "reason": "",
        "nextRetry": None,
    }
    return {
        "job": job,
        "state": state,
        "desired": "UP",
        "reason": "",
        "since": "2026-11-24T09:00:00.000000Z",
        "ready": True,
        "alive": 1,
        "of": 1,
        "processes": [process],
        "watchdog": {"pid": 4119, "state": "ATTACHED", "relaunches": 0},
        "definition": {"sha256": "00", "stale": False},
    } | changed


def fail(error: str, code: str | None = None) -> dict[str, Any]:
    reply = {"response": "fail", "error": b64(error)}
    return reply | {"code": code} if code else reply


class Jobs:
    """The answers of a well-behaved taskmasterd that has these jobs, by state."""

    def __init__(self, **states: str) -> None:
        self.states = states
        self.documents: dict[str, Any] = {}

    def __call__(self, query: dict[str, Any]) -> dict[str, Any]:
        if query["command"] == "list":
            names = [{"name": name} for name in sorted(self.states)]
            document = b64(json.dumps({"jobs": names}))
            return {"response": "list", "list": document, "data": document}
        if "job" not in query or query["command"] == "push":
            return {"response": "success"}
        name = name_of(query)
        if name not in self.states:
            return fail(f'Job "{name}" does not exist.', "no-such-job")
        if query["command"] == "status":
            document = self.documents.get(name, status_document(name, self.states[name]))
            return {"response": "status", "job": query["job"], "data": b64(json.dumps(document))}
        if query["command"] == "pull":
            return {"response": "file", "job": query["job"], "data": b64(b'{"cmd":"x;;"}\xff\0\n')}
        return {"response": "success"}


class Server:
    """Listens; ``serve`` is run for each connection in turn. ``queries`` is what was asked."""

    def __init__(self, serve: Callable[[socket.socket], None], path: str | None = None) -> None:
        if path is None:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(path)
            self._listener.listen()
            self.address = path
        self.queries: list[dict[str, Any]] = []
        self._serve = serve
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # EINVAL: shut down by close()
                return
            self._open.append(connection)
            with connection:
                try:
                    self._serve(connection)
                except OSError:  # EPIPE, ECONNRESET: the client went first
                    pass

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for connection in self._open:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # EBADF, ENOTCONN: over already
                pass
        self._thread.join(DEADLINE_S)
        self._listener.close()
        assert not self._thread.is_alive()


def frames(connection: socket.socket) -> Iterator[dict[str, Any]]:
    """The queries that come over a connection, until it ends."""
    buffer = b""
    while chunk := connection.recv(65536):
        buffer += chunk
        while b";;" in buffer:
            frame, _, buffer = buffer.partition(b";;")
            yield json.loads(frame)


def interrupt_when_asleep(process: subprocess.Popen[Any]) -> None:
    """Send SIGINT once the process waits in a system call.

    A signal that comes just before is noted by Python and acted upon only when that call returns.
    """
    deadline = time.monotonic() + DEADLINE_S
    state = ""
    while state != "S":
        assert time.monotonic() < deadline, f"never asleep, but {state!r}"
        stat = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8")
        state = stat.rpartition(")")[2].split()[0]
    process.send_signal(signal.SIGINT)


class Result(NamedTuple):
    status: int
    out: str
    err: str


def environment(**changed: str) -> dict[str, str]:
    """An environment in which no default server of this machine is found."""
    kept = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
    return kept | {"PYTHONPATH": str(ROOT), "HOME": "/nonexistent"} | changed


def command_line(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "taskmaster.cli", *arguments]
