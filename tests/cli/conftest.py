"""Servers from a script, and taskmasterctl as a process of its own or within this one."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable, Iterator

import pytest
from cli_servers import DEADLINE_S, Answer, Result, Server, command_line, environment, frames

from taskmaster.cli import app


@pytest.fixture
def make_server() -> Iterator[Callable[..., Server]]:
    """Start servers from answers (a function of the query) or a whole conversation (``raw``)."""
    servers: list[Server] = []

    def make(
        answer: Answer | None = None,
        *,
        raw: Callable[[socket.socket], None] | None = None,
        path: str | None = None,
    ) -> Server:
        def serve(connection: socket.socket) -> None:
            assert answer is not None
            for query in frames(connection):
                server.queries.append(query)
                reply = answer(query)
                if isinstance(reply, dict):
                    echoed = {"id": query["id"]} if "id" in query else {}
                    reply = json.dumps(reply | echoed, separators=(",", ":")).encode() + b";;"
                connection.sendall(reply)

        server = Server(raw or serve, path)
        servers.append(server)
        return server

    yield make
    for server in servers:
        server.close()


@pytest.fixture
def ctl() -> Callable[..., Result]:
    """Run taskmasterctl as a process of its own."""

    def run(*arguments: str, stdin: str = "", **env: str) -> Result:
        done = subprocess.run(
            command_line(*arguments),
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            env=environment(**env),
            timeout=DEADLINE_S,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return Result(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run taskmasterctl within this process."""

    def run(server: Server, *arguments: str) -> Result:
        status = app.run(["-c", server.address, *arguments])
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return run
