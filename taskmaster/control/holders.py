"""Which process holds a socket, as far as that can be found out cheaply: for the audit log, never for a decision.

``/proc`` has no way from a socket to its process but to look into every process, so the effort is bounded:
only processes of the right user, so many of them, so many descriptors, so many searches a second. A
process found before is looked at first, which makes many connections of one program cheap.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

#: Processes of whomever that are looked at in one search, and descriptors of one process.
_PROCESSES: Final = 4096
_DESCRIPTORS: Final = 1024
#: CPU time of one search, seconds; on a host with many processes each takes it in which nothing is found.
_EFFORT_S: Final = 0.002
#: Searches: so many at once, and a second.
_BURST: Final = 4
_A_SECOND: Final = 5.0
#: Users whose last processes are remembered, and of each so many.
_USERS: Final = 64
_EACH: Final = 4
#: The newest ones are looked at in each search: whoever asks has most often just been started.
_ALWAYS: Final = 16
#: Descriptors that are tried where the last one was: a program that connects again and again counts up.
_NEAR: Final = 3


class Holders:
    """Finds who holds a socket. ``clock``: monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        #: By user: pids, the latest first, and the descriptor that was found in each.
        self._recent: OrderedDict[int, dict[int, int]] = OrderedDict()
        #: By user: where the last search ended for want of time.
        self._reached: dict[int, int] = {}
        self._left = float(_BURST)
        self._at = clock()

    def find(self, uid: int, inode: int) -> int | None:
        """The pid of a process of user ``uid`` that has socket ``inode`` open; None where it is not found."""
        wanted = f"socket:[{inode}]"
        recent = dict(self._recent.get(uid, {}))
        for pid, last in recent.items():
            for fd in range(last, last + _NEAR):
                if _reads(f"/proc/{pid}/fd/{fd}", wanted):
                    return self._remember(uid, pid, fd)
        for pid in recent:
            found = _descriptor(pid, wanted)
            if found is not None:
                return self._remember(uid, pid, found)
        if not self._may_search():
            return None
        end = time.thread_time() + _EFFORT_S
        for pid in self._order(uid):
            if time.thread_time() > end:
                self._reached[uid] = pid
                break
            try:
                if pid in recent or os.stat(f"/proc/{pid}").st_uid != uid:
                    continue
            except OSError:
                continue  # it has ended
            found = _descriptor(pid, wanted)
            if found is not None:
                return self._remember(uid, pid, found)
        return None

    def _order(self, uid: int) -> list[int]:
        """All pids, the newest first; behind some of these, those that the last search did not get to."""
        pids = _newest_first()[:_PROCESSES]
        reached = self._reached.pop(uid, None)
        if len(self._reached) >= _USERS:
            self._reached.clear()
        if reached is None:
            return pids
        new, old = pids[:_ALWAYS], pids[_ALWAYS:]
        return [
            *new,
            *(pid for pid in old if pid <= reached),
            *(pid for pid in old if pid > reached),
        ]

    def _may_search(self) -> bool:
        now = self._clock()
        self._left = min(float(_BURST), self._left + (now - self._at) * _A_SECOND)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def _remember(self, uid: int, pid: int, fd: int) -> int:
        before = self._recent.get(uid, {})
        before.pop(pid, None)
        self._recent[uid] = dict([(pid, fd), *before.items()][:_EACH])
        self._recent.move_to_end(uid)
        if len(self._recent) > _USERS:
            self._recent.popitem(last=False)
        return pid


def _newest_first() -> list[int]:
    try:
        return sorted((int(name) for name in os.listdir("/proc") if name.isdigit()), reverse=True)
    except OSError:
        return []


def _reads(path: str, wanted: str) -> bool:
    try:
        return os.readlink(path) == wanted
    except OSError:
        return (
            False  # EACCES: of somebody whom this daemon may not look at; ENOENT: closed, or ended
        )


def _descriptor(pid: int, wanted: str) -> int | None:
    """Which descriptor of a process reads ``wanted``; None where none of the first ones does."""
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            for number, entry in enumerate(entries):
                if number >= _DESCRIPTORS:
                    break
                if _reads(entry.path, wanted):
                    return int(entry.name)
    except OSError:
        pass  # EACCES, ENOENT
    return None
