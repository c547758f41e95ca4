"""Exit statuses of processes that are neither ours nor, any more, their watchdog's.

A watchdog that outlived the daemon it was born to is a child of init, and when it dies so are its
processes: init reaps them and their statuses are gone, but for who holds a pidfd (``PIDFD_GET_INFO``, Linux
6.15). So for such watchdogs, and only for them, the daemon holds one of each process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from taskmaster import procfs, syscalls
from taskmaster.eventloop import EventLoop, Watch

#: Told: the wait status, or None where the kernel does not tell.
Told = Callable[[int | None], None]


class Witness:
    """The pidfds held for the processes of one job."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._held: dict[tuple[int, int], int] = {}
        #: Those of them that were asked about and are not reaped yet.
        self._asked: dict[tuple[int, int], Watch] = {}
        #: How those ended that were asked about: who asks may die before it has written that down.
        self._known: dict[tuple[int, int], int | None] = {}

    def watch(self, processes: Iterable[tuple[int, int]]) -> None:
        """Hold exactly these, by pid and start time; those that ended and were not asked about yet too."""
        wanted = set(processes)
        for gone in self._held.keys() - wanted - self._asked.keys():
            os.close(self._held.pop(gone))
        for gone in self._known.keys() - wanted:
            del self._known[gone]
        for pid, start in wanted - self._held.keys() - self._known.keys():
            self._hold(pid, start)

    def _hold(self, pid: int, start: int) -> None:
        try:
            held = os.pidfd_open(pid)
        except OSError:
            return  # gone, or no descriptors: its end may be told as unknown then
        status = procfs.stat(pid)
        if not (_leads(pid) if status is None else status.start == start):
            os.close(held)
        else:
            self._held[pid, start] = held

    def hand_over(self) -> list[tuple[int, int, int]]:
        """Pid, start time and pidfd of all that are held."""
        return [(pid, start, held) for (pid, start), held in self._held.items()]

    def told(self) -> list[tuple[int, int, int]]:
        """Pid, start time and wait status of those that were asked about."""
        return [(*one, status) for one, status in self._known.items() if status is not None]

    def take_over(self, processes: Iterable[tuple[int, int, int]]) -> None:
        """Hold what the program before this one, in the same process, held."""
        for pid, start, held in processes:
            os.set_inheritable(held, False)
            if (pid, start) in self._held:
                os.close(held)
            else:
                self._held[pid, start] = held

    def ask(self, pid: int, start: int, told: Told) -> bool:
        """Have ``told`` called with how a process ended, at once or when it has been reaped.

        False where it is not held.
        """
        if (pid, start) in self._known:
            told(self._known[pid, start])
            return True
        held = self._held.get((pid, start))
        if held is None:
            return False
        if (pid, start) in self._asked:
            self._loop.unwatch(self._asked.pop((pid, start)))  # by a watchdog that died over it
        status = syscalls.pidfd_exit_status(held)
        if status is None and procfs.exists(pid):
            # Until it is told it stays held: a program that follows this one may be the one to tell.
            self._asked[pid, start] = self._loop.watch(
                held, None, lambda: self._reaped(pid, start, told)
            )
            return True
        if status is None:
            status = syscalls.pidfd_exit_status(held)  # reaped between the two looks
        self._tell(pid, start, status, told)
        return True

    def _reaped(self, pid: int, start: int, told: Told) -> None:
        self._loop.unwatch(self._asked.pop((pid, start)))
        self._tell(pid, start, syscalls.pidfd_exit_status(self._held[pid, start]), told)

    def _tell(self, pid: int, start: int, status: int | None, told: Told) -> None:
        os.close(self._held.pop((pid, start)))
        self._known[pid, start] = status
        told(status)

    def close(self) -> None:
        """Let go of all."""
        for asked in self._asked.values():
            self._loop.unwatch(asked)
        self._asked.clear()
        for held in self._held.values():
            os.close(held)
        self._held.clear()


def _leads(pid: int) -> bool:
    """Whether a process that /proc does not show (hidepid) leads a session, as the processes of a job do."""
    try:
        return os.getsid(pid) == pid
    except (ProcessLookupError, PermissionError):
        return False
