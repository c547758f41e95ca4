"""The clients of a storm: they command at random, and note what they asked, when, and what the answer was."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import json
import os
import random
import socket
import threading
import time
from typing import Any, Final

from storm_host import Host
from storm_jobs import StormJob, Treatment, changed_keys, harmless_keys

#: Longer than anything may take, a stopped daemon included: a reply that is not there by then is lost.
REPLY_S: Final = 40.0
_WEIGHTS: Final = {
    Treatment.UNTOUCHED: {"status": 4, "pull": 1, "repair": 1},
    Treatment.GENTLE: {"push": 4, "reload": 2, "repair": 2, "start": 1, "status": 2},
    Treatment.COMMANDED: {
        "start": 20,
        "stop": 14,
        "kill": 8,
        "restart": 12,
        "repair": 4,
        "reload": 4,
        "push": 16,
        "delete": 5,
        "status": 6,
        "pull": 2,
    },
}
_OF_ALL: Final = ("list", "restart")
#: Commands after which processes of the job may be ended.
ENDING: Final = frozenset({"stop", "kill", "restart", "delete", "push", "reload"})


@dataclasses.dataclass
class Command:
    """One command. ``job`` None: of all jobs. ``response`` None: the connection ended without one."""

    number: int
    client: int
    command: str
    job: str | None
    wait: float | None = None
    sha256: str | None = None
    harmless: bool = False
    invalid: bool = False
    address: str = ""
    sent: float = 0.0
    ended: float = 0.0
    response: str | None = None
    error: str = ""
    data: str = dataclasses.field(default="", repr=False)

    def __str__(self) -> str:
        what = f"{self.command} {self.job or ''}".strip()
        came = f"{self.response} {self.error}".strip() if self.response else "no reply"
        return f"#{self.number} {self.sent:.3f}-{self.ended:.3f} {what}: {came}"


class Clients:
    """So many clients at a time, on these jobs; pauses ``pace`` times as long. ``commands``: their ledger."""

    def __init__(
        self, host: Host, jobs: list[StormJob], seed: int, count: int, pace: float
    ) -> None:
        self._host = host
        self._jobs = jobs
        self._seed = seed
        self._pace = pace
        self._numbers = itertools.count(1)
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._file = os.open(host.folder / "commands.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.commands: list[Command] = []
        self.refused = 0
        self.faults: list[str] = []
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(count)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let each finish what it is at."""
        self._over.set()
        for thread in self._threads:
            thread.join(REPLY_S + 10)
            if thread.is_alive():
                self.faults.append("a client did not end")

    def _run(self, number: int) -> None:
        choice = random.Random(f"{self._seed} client {number}")
        while not self._over.wait(self._pace * choice.uniform(0.05, 0.5)):
            try:
                self._converse(number, choice)
            except Exception as error:  # noqa: BLE001  a thread that ends silently would test nothing
                self.faults.append(f"client {number}: {error!r}")
                return

    def _converse(self, client: int, choice: random.Random) -> None:
        """One connection, with one to three commands sent at once."""
        asked = [self._choose(client, choice) for _ in range(choice.choice((1, 1, 1, 2, 3)))]
        # A Unix socket does not tell the audit log which connection it was; the wait then marks each.
        tcp = choice.random() < 0.7 or any(command.wait is None for command, _ in asked)
        self.ask(asked, tcp=tcp)

    def ask(self, asked: list[tuple[Command, bytes]], *, tcp: bool = False) -> bool:
        """Send these and note what comes back; False where there is no daemon to send them to."""
        connection = socket.socket(socket.AF_INET if tcp else socket.AF_UNIX)
        with connection:
            connection.settimeout(REPLY_S)
            try:
                connection.connect(
                    ("127.0.0.1", self._host.port) if tcp else str(self._host.socket)
                )
            except (
                ConnectionRefusedError,
                ConnectionResetError,
                FileNotFoundError,
                BlockingIOError,
            ):
                self.refused += 1
                return False
            address = "{}:{}".format(*connection.getsockname()) if tcp else ""
            now = time.monotonic()
            with self._lock:
                for command, _ in asked:
                    command.address, command.sent = address, now
                    self.commands.append(command)
            self._exchange(connection, asked)
        for command, _ in asked:
            os.write(self._file, json.dumps(dataclasses.asdict(command)).encode() + b"\n")
        return True

    def _exchange(self, connection: socket.socket, asked: list[tuple[Command, bytes]]) -> None:
        waiting = [command for command, _ in asked]
        received = b""
        try:
            connection.sendall(b"".join(data for _, data in asked))
            while waiting:
                chunk = connection.recv(65536)
                if not chunk:
                    break
                received += chunk
                while b";;" in received:
                    frame, _, received = received.partition(b";;")
                    self._answered(waiting.pop(0), json.loads(frame))
        except (ConnectionResetError, BrokenPipeError):
            pass  # the daemon was killed
        except TimeoutError:
            self.faults.append(f"no reply in {REPLY_S:g} s to {waiting[0]}")
        for command in waiting:
            command.ended = time.monotonic()

    def _answered(self, command: Command, reply: dict[str, Any]) -> None:
        command.ended = time.monotonic()
        command.error = base64.b64decode(reply.get("error", "")).decode()
        if command.command == "status":
            command.data = base64.b64decode(reply.get("data", "")).decode()
        command.response = reply["response"]

    def query(
        self, client: int, command: str, job: str | None, **fields: Any
    ) -> tuple[Command, bytes]:
        """A command and its frame."""
        made = Command(next(self._numbers), client, command, job)
        wire: dict[str, Any] = {"command": command}
        if job is not None:
            wire["job"] = base64.b64encode(job.encode()).decode()
        if "wait" in fields:
            # Unique, so that the audit log's record of it can be told from all others.
            made.wait = wire["wait"] = round(fields["wait"], 1) + made.number / 1e6
        if "data" in fields:
            made.sha256 = hashlib.sha256(fields["data"]).hexdigest()
            wire["data"] = base64.b64encode(fields["data"]).decode()
        return made, json.dumps(wire, separators=(",", ":")).encode() + b";;"

    def _choose(self, client: int, choice: random.Random) -> tuple[Command, bytes]:
        if choice.random() < 0.03:
            return self.query(client, choice.choice(_OF_ALL), None, wait=5.0)
        # Two of three go to jobs with which everything may be done.
        treatment = choice.choices(list(_WEIGHTS), (1, 3, 8))[0]
        job = choice.choice([job for job in self._jobs if job.treatment is treatment])
        weights = _WEIGHTS[treatment]
        word = choice.choices(list(weights), list(weights.values()))[0]
        fields: dict[str, Any] = {}
        if choice.random() < 0.6:
            fields["wait"] = choice.choice((0.2, 1.0, 3.0, 6.0))
        if word != "push":
            return self.query(client, word, job.name, **fields)
        harmless = job.spared or choice.random() < 0.3
        keys = (harmless_keys if harmless else changed_keys)(job, choice)
        data = job.content(self._host.ledgers, self._seed, **keys)
        invalid = choice.random() < 0.1
        if invalid:
            data = data.replace(b'"cmd"', b'"cmdd"')
        command, frame = self.query(client, word, job.name, data=data, **fields)
        # Whether a change restarts anything depends on what it changes, which only a spared job tells surely.
        command.harmless, command.invalid = job.spared, invalid
        return command, frame
