"""Root's pulse in a storm: a status a few times a second, over connections of its own, and the daemon's memory.

Who judges it wants to know whether root is answered while others attack, so it asks what needs nobody but the
daemon, and never two things at once.
"""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Final

from storm_client import Clients
from storm_host import Host
from storm_jobs import StormJob

#: The number of this client in the ledger of commands.
CLIENT: Final = -3
_EVERY_S: Final = 0.15


class Pulse:
    """Asks until it is told to stop. ``peak_mib``: the most that any daemon held in memory."""

    def __init__(self, host: Host, clients: Clients, jobs: list[StormJob], seed: int) -> None:
        self._host = host
        self._clients = clients
        self._jobs = jobs
        self._choice = random.Random(f"{seed} pulse")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.peak_mib = 0.0

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, with the answer to the last question."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(_EVERY_S):
            job = self._choice.choice(self._jobs).name
            self._clients.ask([self._clients.query(CLIENT, "status", job)], tcp=True)
            self.peak_mib = max(self.peak_mib, _peak_mib(self._host.pid))


def _peak_mib(pid: int) -> float:
    """The most that a process has held; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)
