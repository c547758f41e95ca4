"""A taskmasterd that really runs, in folders of its own, and clients that talk to it over real sockets."""

from __future__ import annotations

import base64
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import taskmaster

ROOT = Path(taskmaster.__file__).parents[1]
DEADLINE_S = 60.0
#: Signals 32 and 33 in a mask: the C library's own, which a program may have been started with as ignored
#: (``posix_spawn`` in a program with threads) and which no program can set.
C_LIBRARY_SIGNALS = 1 << 31 | 1 << 32
Reply = dict[str, Any]


def b64(data: str | bytes) -> str:
    return base64.b64encode(data.encode() if isinstance(data, str) else data).decode()


def unb64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def wait_for(what: Callable[[], Any], text: str = "", deadline_s: float = DEADLINE_S) -> Any:
    """What ``what`` returns once it is true; fails with ``text`` and its last value at the deadline."""
    deadline = time.monotonic() + deadline_s
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < deadline, f"{text or what}: still {found!r}"
        time.sleep(0.005)


def process_start(pid: int) -> int | None:
    """Kernel start time of a process, by which it is known from another of that number; None when gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def alive(pid: int) -> bool:
    return process_start(pid) is not None


class Client:
    """One raw connection: what is sent is sent as it is, replies come in order."""

    def __init__(self, address: Path | tuple[str, int]) -> None:
        if isinstance(address, tuple):
            self.socket = socket.create_connection(address, timeout=DEADLINE_S)
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(DEADLINE_S)
            self.socket.connect(str(address))
        self._buffer = b""

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def frame(self) -> bytes:
        """The next reply without its ``;;``; empty at the end of the connection."""
        while b";;" not in self._buffer:
            chunk = self.socket.recv(65536)
            if not chunk:
                assert not self._buffer, self._buffer[:200]
                return b""
            self._buffer += chunk
        frame, _, self._buffer = self._buffer.partition(b";;")
        return frame

    def reply(self) -> Reply:
        frame = self.frame()
        assert frame, "the connection has ended"
        reply: Reply = json.loads(frame)
        for key in ("error", "data"):
            if key in reply:
                reply[key] = unb64(reply[key])
        if "error" in reply:
            reply["error"] = reply["error"].decode()
        return reply

    def ask(self, command: str, job: str | None = None, **fields: Any) -> Reply:
        """Send one query and read its reply; ``data`` and ``error`` of that are decoded."""
        self.send(query(command, job, **fields))
        return self.reply()

    def status(self, job: str) -> dict[str, Any]:
        reply = self.ask("status", job)
        assert reply["response"] == "status", reply
        document: dict[str, Any] = json.loads(reply["data"])
        return document


def query(command: str, job: str | None = None, **fields: Any) -> bytes:
    """The frame of a query; ``data`` (bytes or str) is encoded."""
    wire: dict[str, Any] = {"command": command}
    if job is not None:
        wire["job"] = b64(job)
    if "data" in fields:
        fields["data"] = b64(fields["data"])
    return json.dumps(wire | fields, separators=(",", ":")).encode() + b";;"


class Host:
    """The init of a small host (``host_init.py``): it starts daemons and inherits and reaps all orphans.

    ``prefix``: a command that ends in executing what follows, to start it in a namespace or as another user.
    """

    def __init__(self, prefix: Sequence[str] = ()) -> None:
        self._init = subprocess.Popen(
            [*prefix, sys.executable, str(Path(__file__).with_name("host_init.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={key: os.environ[key] for key in ("PATH", "LANG", "HOME") if key in os.environ}
            | {"PYTHONPATH": str(ROOT)},
        )
        self._pending = b""
        self.ended: dict[int, int] = {}

    @property
    def pid(self) -> int:
        return self._init.pid

    def start(self, argv: list[str], messages: Path) -> int:
        """Start a daemon; its pid."""
        assert self._init.stdin is not None
        self._init.stdin.write(json.dumps([argv, str(messages)]).encode() + b"\n")
        self._init.stdin.flush()
        while True:
            said = self._read(DEADLINE_S)
            assert said is not None, "the init is gone"
            if said[0] == "started":
                return int(said[1])

    def wait(self, pid: int, deadline_s: float = DEADLINE_S) -> int:
        """The wait status of a daemon, once it has ended."""
        end = time.monotonic() + deadline_s
        while pid not in self.ended:
            left_s = end - time.monotonic()
            assert left_s > 0, f"pid {pid} has not ended in {deadline_s:g} s"
            self._read(left_s)
        return self.ended[pid]

    def _read(self, deadline_s: float) -> list[Any] | None:
        assert self._init.stdout is not None
        fd = self._init.stdout.fileno()
        while b"\n" not in self._pending:
            if not select.select([fd], [], [], deadline_s)[0]:
                return [""]
            chunk = os.read(fd, 65536)
            if not chunk:
                return None
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        said: list[Any] = json.loads(line)
        if said[0] == "ended":
            self.ended[said[1]] = said[2]
        return said

    def close(self) -> list[str]:
        """End everything that is left, and name it."""
        assert self._init.stdin is not None
        assert self._init.stdout is not None
        self._init.stdin.close()
        left = []
        while (said := self._read(DEADLINE_S)) is not None:
            if said[0] == "left":
                left.append(f"{said[1]}: {said[2]}")
        self._init.stdout.close()
        self._init.wait(DEADLINE_S)
        return left


class Daemon:
    """One taskmasterd on a host of its own. Its jobs are files in ``jobs``; ``config`` adds to its config."""

    def __init__(self, folder: Path, prefix: Sequence[str] = (), **config: Any) -> None:
        self.folder = folder
        self.jobs = folder / "jobs"
        self.logs = folder / "log"
        self.state = folder / "state"
        self.socket = self.state / "control.sock"
        self.audit_file = self.logs / "audit.jsonl"
        self.config = folder / "config.json"
        self.messages = folder / "messages"
        self.jobs.mkdir(mode=0o700, exist_ok=True)
        self.configure(**config)
        self.host = Host(prefix)
        self.pid = 0
        self._clients: list[Client] = []

    def configure(self, **config: Any) -> None:
        """Write the daemon's own configuration file."""
        settings = {
            "port": 0,
            "configDirectory": "jobs",
            "logDirectory": "log",
            "stateDirectory": "state",
        }
        self.config.write_text(json.dumps(settings | config))

    def job(self, name: str, cmd: str | list[str], **keys: Any) -> None:
        """Write a job file, telling nobody. Quick to be RUNNING and to be stopped, unless ``keys`` say else."""
        content = {"cmd": cmd, "startTime": 0, "stopTime": 5, **keys}
        (self.jobs / f"{name}.tm.json").write_text(json.dumps(content))

    # the daemon

    def start(self, *, wait: bool = True, caller: Sequence[str] = ()) -> None:
        """``caller``: a command that executes what follows, in its own place."""
        argv = [*caller, sys.executable, "-m", "taskmaster.control", "-c", str(self.config)]
        self.pid = self.host.start(argv, self.messages)
        if wait:
            wait_for(self.serves, "taskmasterd serves")

    def serves(self) -> bool:
        assert self.running, self.messages.read_text()
        try:
            with Client(self.socket) as client:
                client.send(query("list"))
                return client.frame() != b""
        except (FileNotFoundError, ConnectionRefusedError, ConnectionResetError):
            return False

    @property
    def running(self) -> bool:
        return self.pid != 0 and self.pid not in self.host.ended and alive(self.pid)

    def kill(self) -> None:
        """SIGKILL to the control plane alone."""
        os.kill(self.pid, signal.SIGKILL)
        self.host.wait(self.pid)

    def stop(self, deadline_s: float = DEADLINE_S) -> int:
        """The orderly end; its exit status."""
        os.kill(self.pid, signal.SIGTERM)
        return os.waitstatus_to_exitcode(self.host.wait(self.pid, deadline_s))

    @property
    def port(self) -> int:
        """The TCP port, as the audit log tells."""
        return int(self.events("daemon.started")[-1]["listening"][0].rpartition(":")[2])

    # clients

    def client(self, *, tcp: bool = False) -> Client:
        """A connection that is closed at the end of the test."""
        client = Client(("127.0.0.1", self.port) if tcp else self.socket)
        self._clients.append(client)
        return client

    def ask(self, command: str, job: str | None = None, **fields: Any) -> Reply:
        """One query on a connection of its own."""
        with Client(self.socket) as client:
            return client.ask(command, job, **fields)

    def status(self, job: str) -> dict[str, Any]:
        with Client(self.socket) as client:
            return client.status(job)

    def pids(self, job: str) -> list[int]:
        """Pids of the job's processes, by number."""
        return [one["pid"] for one in self.status(job)["processes"] if one["pid"] is not None]

    def wait_state(self, job: str, state: str) -> dict[str, Any]:
        """The status document once the job is in this state."""
        last: dict[str, Any] = {}

        def reached() -> dict[str, Any] | None:
            last.update(self.status(job))
            return last if last["state"] == state else None

        try:
            found: dict[str, Any] = wait_for(reached)
        except AssertionError:
            raise AssertionError(f"{job} is not {state}: {last}") from None
        return found

    # what it left

    def audit(self) -> list[dict[str, Any]]:
        """All records of the current audit file."""
        if not self.audit_file.exists():
            return []
        return [json.loads(line) for line in self.audit_file.read_bytes().split(b"\n")[:-1]]

    def events(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """Records of this event with these fields."""
        return [
            record
            for record in self.audit()
            if record["event"] == event
            and all(record.get(key) == value for key, value in fields.items())
        ]

    def close(self) -> list[str]:
        """The orderly end of it all; what was left behind, which is nothing if all is well."""
        for client in self._clients:
            client.close()
        if self.pid and not self.running and (self.state / "jobs").exists():
            # It was killed: its successor finds what runs, and stops it.
            self.start()
        if self.running:
            self.stop()
        return self.host.close()
