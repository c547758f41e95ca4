"""Whose a dead watchdog's processes are: they are this process's children by then, and have to be told apart.

The mark in their environment says it, where it is not erased. Else they are those of the watchdog that died,
being children that this process did not have before.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from taskmaster import procfs
from taskmaster.control.job import Job
from taskmaster.watchdog.entry import WATCHDOG_NAME


class Orphans:
    """The children of this process that are no watchdogs. ``watchdogs``: those that are, by pid."""

    def __init__(self, jobs: Mapping[str, Job], watchdogs: Mapping[int, object]) -> None:
        self._jobs = jobs
        self._watchdogs = watchdogs
        #: Children that might be of several jobs, or are of none, by pid, with their start times.
        self._unclaimed: dict[int, int] = {}

    def inherit(self, job: Job) -> None:
        """Remember what the dead watchdog had: the children that this process has only since.

        The mark in the environment tells whose they are. Where there is none, they were those of the watchdog
        that has just died, unless another one is dead too: then nobody can say.
        """
        known = self._watchdogs.keys() | self._unclaimed.keys()
        known |= {pid for other in self._jobs.values() for pid in other.inherited}
        alone = not any(_is_dead(pid) for pid in self._watchdogs)
        for pid in procfs.children(os.getpid()):
            status = None if pid in known else procfs.stat(pid)
            if status is None or status.dead or procfs.name(pid).startswith(WATCHDOG_NAME):
                continue
            name = procfs.environment(pid).get("TASKMASTER_JOB", job.name if alone else "")
            owner = self._jobs.get(name)
            if owner is None:
                self._unclaimed[pid] = status.start
            else:
                owner.inherited[pid] = status.start

    def not_a_job(self, pid: int, start: int) -> None:
        """A child of this process that is none of any job."""
        self._unclaimed[pid] = start

    def known(self) -> dict[str, list[tuple[int, int]]]:
        """By job, pid and start time of what its dead watchdogs had; by "" what may be of several."""
        found = {
            name: list(job.inherited.items()) for name, job in self._jobs.items() if job.inherited
        }
        return {**found, "": list(self._unclaimed.items())}

    def know(self, inherited: dict[str, list[tuple[int, int]]]) -> None:
        """Take over what the program before this one, in the same process, knew of that."""
        for name, processes in inherited.items():
            owner = self._jobs.get(name)
            (self._unclaimed if owner is None else owner.inherited).update(processes)

    def reaped(self, pid: int) -> None:
        """An orphan is no more; its number may be somebody else's soon."""
        self._unclaimed.pop(pid, None)
        for job in self._jobs.values():
            job.inherited.pop(pid, None)


def _is_dead(pid: int) -> bool:
    status = procfs.stat(pid)
    return status is None or status.dead
