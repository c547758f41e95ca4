"""Whose children the orphans of adopted processes become: of the nearest subreaper above them, then of the next.

That is the control plane as long as it lives, and one of its ancestors later. All of them are ancestors of this
watchdog too, or parents of processes that were adopted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

from taskmaster import procfs

#: More ancestors than any process has.
_MAX_ANCESTORS: Final = 64


class Reapers:
    """The processes that inherit orphans of one job."""

    def __init__(self) -> None:
        self._known: set[int] = set()

    def learn(self, parents: Iterable[int]) -> None:
        """These are parents of processes that were adopted."""
        self._known.update(parent for parent in parents if parent > 0)

    def pids(self) -> set[int]:
        """All that there are now, init included."""
        found = {1}
        pid = os.getppid()
        for _ in range(_MAX_ANCESTORS):
            if pid <= 1:
                break
            found.add(pid)
            status = procfs.stat(pid)
            pid = 0 if status is None else status.ppid
        # A number that was given away is that of a process whose children are not marked as ours.
        self._known = {pid for pid in self._known if procfs.exists(pid)}
        return (found | self._known) - {os.getpid()}


def may_inherit(pid: int) -> bool:
    """Whether a process with this parent may be an orphan that the control plane or init has inherited.

    The service manager of a user does that too: known by its program, which belongs to root, and not by its
    name, which anybody may take.
    """
    if pid in (1, os.getppid()):
        return True
    path, owner = procfs.executable(pid)
    return owner == 0 and os.path.basename(path) == "systemd"
