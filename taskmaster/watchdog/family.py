"""What belongs to a process: everything it has started, wherever that has gone.

A program's children may leave its process group, its session and, by forking twice, its ancestry. But
an orphan is re-parented to the nearest subreaper, which is this watchdog, and this watchdog has one job.
Which of the job's processes an orphan came from, its session or its environment tells; where both are
gone, it belongs to the job as a whole.

Processes that were adopted from a dead watchdog are not our descendants, and neither are their
orphans: after an adoption every process of the host is looked at for the same two marks.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterable

from taskmaster import procfs
from taskmaster.procfs import ProcStat
from taskmaster.watchdog.place import Place

JOB_VARIABLE = "TASKMASTER_JOB"
NUMBER_VARIABLE = "TASKMASTER_PROCESS"
INSTANCE_VARIABLE = "TASKMASTER_INSTANCE"

#: Members by the number of their place; None: of the job, and nobody can say of which place.
Members = dict[int | None, list[ProcStat]]


class Family:
    """The processes of one job. ``instance`` marks them in their environment."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        #: Whether processes of this job may be children of somebody else.
        self.has_strangers = False
        #: What dead watchdogs had and left to the control plane, by pid and start time. Here it needs no mark:
        #: its environment may be erased and its session its own.
        self.inherited: list[tuple[int, int]] = []
        self._seen: Members | None = None

    def look_again(self) -> None:
        """What was seen is old now. One look at all of /proc serves everything that a turn asks."""
        self._seen = None

    def orphans(self, places: Iterable[Place], dead: Iterable[int]) -> bool:
        """Whether anything may live beside the processes themselves and what descends from them. Cheap.

        ``dead``: children that have ended and wait to be reaped.
        """
        if self.has_strangers:
            return True
        known = {place.pid for place in places} | set(dead)
        return any(child not in known for child in procfs.children(os.getpid()))

    def members(self, places: Iterable[Place]) -> Members:
        """Everything that lives of this job, each process's own pid included.

        The number of a session stays taken while it has members, so a place may only keep its ``session``
        as long as it has some: else the number could be somebody else's by now.
        """
        if self._seen is not None:
            return self._seen
        found: Members = {}
        seen: set[int] = set()
        every = list(places)
        sessions = {place.session: place.number for place in every if place.session is not None}
        for place in every:
            if place.pid is not None:
                self._add(place.pid, place.number, found, seen, place.start)
        for child in procfs.children(os.getpid()):
            if child not in seen:
                self._add_attributed(child, sessions, found, seen)
        if self.has_strangers:
            before = len(seen)
            self._add_inherited(sessions, found, seen)
            for pid in procfs.everyone():
                if pid not in seen:
                    self._add_stranger(pid, sessions, found, seen)
            if len(seen) == before and all(one.own_child or one.pid is None for one in every):
                self.has_strangers = False
        self._seen = found
        return found

    def is_ours(self, status: ProcStat, pipes: Container[str]) -> bool:
        """Whether a process that a record names may be this job's: more must speak for it than the record.

        The mark in its environment, a standard output or error that leads to one of ``pipes``, or a parent that
        only orphans have: the control plane, or init. (A program may erase its environment and redirect its
        output, as PostgreSQL does; whoever writes records in our name could signal a process of init's himself.)
        """
        if status.ppid in (1, os.getppid()) or procfs.name(status.ppid) == "systemd":
            return True
        if procfs.environment(status.pid).get(INSTANCE_VARIABLE) == self._instance:
            return True
        return any(end in pipes for end in procfs.outputs(status.pid))

    def _add_inherited(self, sessions: dict[int, int], found: Members, seen: set[int]) -> None:
        living = []
        for pid, start in self.inherited:
            status = procfs.stat(pid)
            if status is not None and status.start == start and not status.dead:
                living.append((pid, start))
                if pid not in seen:
                    self._add_attributed(pid, sessions, found, seen)
        self.inherited = living

    def _add(
        self, root: int, number: int | None, found: Members, seen: set[int], start: int | None
    ) -> None:
        """Add a process, if it is the one that started then, and all its descendants."""
        status = procfs.stat(root)
        if status is None or (start is not None and status.start != start):
            return
        for pid in (root, *procfs.descendants(root)):
            if pid in seen:
                continue
            seen.add(pid)
            status = procfs.stat(pid)
            if status is not None and not status.dead:
                found.setdefault(number, []).append(status)

    def _add_attributed(
        self, pid: int, sessions: dict[int, int], found: Members, seen: set[int]
    ) -> None:
        status = procfs.stat(pid)
        if status is None:
            return
        number = sessions.get(status.session)
        if number is None:
            number = self._number_of(pid)
        self._add(pid, number, found, seen, status.start)

    def _add_stranger(
        self, pid: int, sessions: dict[int, int], found: Members, seen: set[int]
    ) -> None:
        status = procfs.stat(pid)
        if status is None or status.dead or pid == os.getpid():
            return
        number = sessions.get(status.session)
        if number is None or procfs.stat(status.session) is not None:
            # A living leader that is none of ours has got the number of one that ended; and where no
            # session tells, only the mark in the environment makes a process the job's.
            if procfs.environment(pid).get(INSTANCE_VARIABLE) != self._instance:
                return
            number = self._number_of(pid)
        self._add(pid, number, found, seen, status.start)

    def _number_of(self, pid: int) -> int | None:
        environment = procfs.environment(pid)
        text = environment.get(NUMBER_VARIABLE, "")
        if environment.get(INSTANCE_VARIABLE) != self._instance or not text.isdecimal():
            return None
        return int(text[:4])
