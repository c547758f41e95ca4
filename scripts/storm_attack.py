"""The attackers of a storm: users of the same host who do at random all that ``attacks`` knows.

One has no rule, one may look at everything, one may command one job. None of them gets more than a tenth of a CPU,
at the lowest priority: it is the daemon that is tried here, not how this host shares its processors.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import select
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

from attacks import ATTACKS
from storm_host import Host

#: Attackers by uid, which needs no account, and their role.
USERS: Final[dict[int, str | None]] = {5001: None, 5002: "viewer", 5003: "operator"}
#: The job that the operator may command; nobody else does anything to it.
OWN: Final = "own0"
#: Of one CPU, for each of them.
SHARE: Final = 0.1
#: The share of the audit log that each of them has; a small one, so that a minute tells whether it holds.
BYTES_A_DAY: Final = 1 << 27
_NICEST: Final = 19
_INCLUDES: Final[dict[str | None, tuple[str | None, ...]]] = {
    None: (None,),
    "viewer": (None, "viewer"),
    "operator": (None, "viewer", "operator"),
}
_SECONDS: Final = (0.3, 1.0, 2.0, 5.0)
#: A start on a busy machine, and a server that does not answer.
_LATE_S: Final = 20.0
_SCRIPT: Final = Path(__file__).with_name("attacks.py")


def access() -> list[dict[str, Any]]:
    """The rules of the daemon's configuration that the attackers have."""
    return [
        {"role": "viewer", "users": [uid for uid, role in USERS.items() if role == "viewer"]},
        {
            "role": "operator",
            "users": [uid for uid, role in USERS.items() if role == "operator"],
            "jobs": [f"{OWN[:-1]}*"],
        },
    ]


@dataclasses.dataclass
class Raid:
    """One attack of one user: when, which, and what it came to by its own account."""

    uid: int
    attack: str
    began: float
    ended: float = 0.0
    cpu: float = 0.0
    connections: int = 0
    bytes: int = 0


class Attackers:
    """All of them; nobody where this is not root. ``raids``: their ledger."""

    def __init__(self, host: Host, seed: int) -> None:
        self._host = host
        self._seed = seed
        self._over = threading.Event()
        self._messages = host.folder / "attackers"
        self.raids: list[Raid] = []
        self.problems: list[str] = []
        self._threads = [
            threading.Thread(target=self._run, args=(uid,), daemon=True) for uid in USERS
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let each finish its raid."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, uid: int) -> None:
        choice = random.Random(f"{self._seed} attacker {uid}")
        roles = _INCLUDES[USERS[uid]]
        known = [name for name, attack in ATTACKS.items() if attack.role in roles]
        while not self._over.wait(choice.uniform(0.0, 0.5)):
            raid = Raid(uid, choice.choice(known), time.monotonic())
            try:
                self._raid(raid, choice.choice(_SECONDS))
            except (OSError, ValueError, KeyError) as error:
                self.problems.append(f"attacker {uid}, {raid.attack}: {error!r}; see attackers")
                return

    def _raid(self, raid: Raid, seconds: float) -> None:
        words = [raid.attack, str(raid.uid), str(self._host.port), str(seconds), str(SHARE)]
        argv = [sys.executable, str(_SCRIPT), *words, "std0", "cra0", OWN]
        reader, writer = os.pipe2(os.O_CLOEXEC)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        try:
            pid = self._host.spawn(
                lambda: os.posix_spawn(
                    argv[0],
                    argv,
                    {"PATH": os.environ["PATH"]},
                    file_actions=[
                        (os.POSIX_SPAWN_DUP2, writer, 1),
                        (os.POSIX_SPAWN_OPEN, 2, str(self._messages), flags, 0o600),
                    ],
                )
            )
            os.setpriority(os.PRIO_PROCESS, pid, _NICEST)
        finally:
            os.close(writer)
        with os.fdopen(reader, "rb") as file:
            said = _read(file.fileno(), seconds + _LATE_S)
        took = json.loads(said)
        raid.cpu, raid.connections, raid.bytes = took["cpu"], took["connections"], took["bytes"]
        raid.ended = time.monotonic()
        self.raids.append(raid)


def _read(fd: int, seconds: float) -> bytes:
    """All that comes until its end. Raises ValueError if that does not come in time."""
    said = b""
    deadline = time.monotonic() + seconds
    while select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
        chunk = os.read(fd, 65536)
        if not chunk:
            return said
        said += chunk
    raise ValueError("it did not end in time")
