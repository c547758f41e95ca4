"""The processes of dead watchdogs: they are re-parented to the daemon, which reaps them for a replacement.

How one ended is kept for whoever asks (a watchdog's ``Missing``), and told as often as it is asked: who has
asked may die before it has written the answer down. What a watchdog is still to account for stays a zombie
until it has, so that the status outlives this process too.
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
    """Reaps all children but the watchdogs; ``watchdog_ended`` is told of those, ``reaped`` of the others.

    ``is_awaited``: whether a watchdog has published that process, by pid and start time, and not its end.
    """

    def __init__(
        self,
        watchdog_ended: Callable[[int], bool],
        reaped: Callable[[int], None],
        is_awaited: Callable[[int, int], bool],
    ) -> None:
        self._watchdog_ended = watchdog_ended
        self._reaped = reaped
        self._is_awaited = is_awaited
        self._statuses: OrderedDict[tuple[int, int], int] = OrderedDict()
        #: Zombies that wait for their watchdog's account, with their start times.
        self._zombies: dict[int, int] = {}

    def statuses(self) -> list[tuple[int, int, int]]:
        """Pid, start time and wait status of all that ended of late."""
        return [(pid, start, status) for (pid, start), status in self._statuses.items()]

    def know(self, statuses: list[tuple[int, int, int]]) -> None:
        """Take over what another program of this process has reaped."""
        for pid, start, status in statuses[-_KEPT:]:
            self._statuses[pid, start] = status

    def collect(self) -> None:
        """Reap everything that has ended and may be reaped. Call on SIGCHLD."""
        while (pid := children.peek_any()) is not None:
            if pid in self._zombies:
                # It is first in the kernel's row and hides the others.
                for other in procfs.children(os.getpid()):
                    if other not in self._zombies and children.peek(other) is not None:
                        self._account_for(other)
                return
            self._account_for(pid)

    def release(self) -> None:
        """Reap the zombies that nobody waits for any more. Call when a watchdog has published."""
        for pid, start in list(self._zombies.items()):
            if not self._is_awaited(pid, start):
                del self._zombies[pid]
                children.reap(pid)
                self._reaped(pid)

    def _account_for(self, pid: int) -> None:
        if self._watchdog_ended(pid):
            return
        about = procfs.stat(pid)
        status = children.peek(pid)
        if status is not None:
            start = 0 if about is None else about.start  # 0: /proc hides it
            self._statuses[pid, start] = status
            if len(self._statuses) > _KEPT:
                self._statuses.popitem(last=False)
            if self._is_awaited(pid, start):
                self._zombies[pid] = start
                return
        children.reap(pid)
        self._reaped(pid)

    def status_of(self, pid: int, start: int) -> tuple[bool, int | None]:
        """Whether that process has ended, and its wait status if it was ours to reap.

        One that /proc does not show has not ended as long as there is one of its number.
        """
        found = self._statuses.get((pid, start), self._statuses.get((pid, 0)))
        if found is not None:
            return True, found
        about = procfs.stat(pid)
        if about is None and procfs.exists(pid):
            return False, None
        if about is None or about.start != start:
            return True, None
        if not about.dead:
            return False, None
        if about.ppid == os.getpid():
            self.collect()
        return True, self._statuses.get((pid, start))
