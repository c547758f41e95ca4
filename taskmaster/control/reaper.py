"""The processes of dead watchdogs: they are re-parented to the daemon, which reaps them for a replacement.

What was reaped is kept for whoever asks (a watchdog's ``Missing``), up to a cap; nobody asks for most
of it, since orphans of orphans end here too.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from taskmaster import children, procfs

#: More exits than a host that forks as fast as it can leaves while a replacement starts (about 50 ms).
_KEPT: Final = 4096


class Reaper:
    """Reaps all children but the watchdogs; ``watchdog_ended`` is told of those, ``reaped`` of the others."""

    def __init__(
        self, watchdog_ended: Callable[[int], bool], reaped: Callable[[int], None]
    ) -> None:
        self._watchdog_ended = watchdog_ended
        self._reaped = reaped
        self._statuses: OrderedDict[tuple[int, int], int] = OrderedDict()

    def statuses(self) -> list[tuple[int, int, int]]:
        """Pid, start time and wait status of all that nobody has asked for yet."""
        return [(pid, start, status) for (pid, start), status in self._statuses.items()]

    def know(self, statuses: list[tuple[int, int, int]]) -> None:
        """Take over what another program of this process has reaped."""
        for pid, start, status in statuses[-_KEPT:]:
            self._statuses[pid, start] = status

    def collect(self) -> None:
        """Reap everything that has ended. Call on SIGCHLD."""
        while (pid := children.peek_any()) is not None:
            if not self._watchdog_ended(pid):
                self._reap(pid)

    def _reap(self, pid: int) -> None:
        status = procfs.stat(pid)
        wait_status = children.reap(pid)
        self._reaped(pid)
        if status is None or wait_status is None:
            return
        self._statuses[pid, status.start] = wait_status
        if len(self._statuses) > _KEPT:
            self._statuses.popitem(last=False)

    def status_of(self, pid: int, start: int) -> tuple[bool, int | None]:
        """Whether that process has ended, and its wait status if it was ours to reap."""
        found = self._statuses.pop((pid, start), None)
        if found is not None:
            return True, found
        status = procfs.stat(pid)
        if status is None or status.start != start:
            return True, None
        if not status.dead:
            return False, None
        if status.ppid == os.getpid():
            self.collect()
            return True, self._statuses.pop((pid, start), None)
        return True, None
