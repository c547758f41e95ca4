"""The mark of a job in the environment of its processes: read once of each process, and remembered.

The mark is a random number that only root, the job's user and the job itself can read, so that no other user's
process can bear it. That one does not bear it proves nothing: a program may erase its environment. What else
stands in an environment or in a process's name is its own choice and decides nothing here, but for the number
of the place among the places of one job.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from taskmaster import procinside
from taskmaster.procfs import ProcStat

INSTANCE_VARIABLE: Final = "TASKMASTER_INSTANCE"
NUMBER_VARIABLE: Final = "TASKMASTER_PROCESS"


class Marks:
    """Who bears the mark ``instance``."""

    def __init__(self, instance: str) -> None:
        self.instance = instance
        #: By pid: the start time, whether it bears the mark, and the number of its place as far as that is known.
        self._known: dict[int, tuple[int, bool, int | None]] = {}

    def borne_by(self, status: ProcStat) -> tuple[bool, int | None]:
        """Whether the process bears the mark, and the number of its place; None: it does not say."""
        known = self._known.get(status.pid)
        if known is not None and known[0] == status.start:
            return known[1], known[2]
        found = procinside.variables(status.pid, INSTANCE_VARIABLE, NUMBER_VARIABLE)
        if found is None:
            return False, None  # perhaps in the middle of an exec: it is read again
        ours = found.get(INSTANCE_VARIABLE) == self.instance
        text = found.get(NUMBER_VARIABLE, "") if ours else ""
        number = int(text[:4]) if text.isascii() and text.isdecimal() else None
        self._known[status.pid] = status.start, ours, number
        return ours, number

    def forget_all_but(self, pids: Container[int]) -> None:
        """Drop what is remembered of others than these."""
        self._known = {pid: known for pid, known in self._known.items() if pid in pids}
