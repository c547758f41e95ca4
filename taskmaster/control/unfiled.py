"""Jobs that run on although the job directory has lost the files of all of them at once.

A directory without a file of any job in force is not believed: a mount that is missing looks the same. What comes
after that changes nothing: neither a job that somebody puts into the empty directory, nor a daemon that starts, or
is upgraded, meanwhile. So each job that had a file is marked in its state folder, and stays until its file is
there again, or somebody deletes it or uses force.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from taskmaster.config.store import JobStore
from taskmaster.control.job import Job
from taskmaster.control.say import Say
from taskmaster.control.statedir import StateDirectory
from taskmaster.core import names
from taskmaster.errors import FileError

MARK: Final = "unfiled"


class Unfiled:
    """The marks, in the state folders below ``statedir``, of ``jobs`` that lost their files in ``store``."""

    def __init__(
        self, jobs: Mapping[str, Job], statedir: StateDirectory, store: JobStore, say: Say
    ) -> None:
        self._jobs = jobs
        self._statedir = statedir
        self._store = store
        self._say = say

    def standing(self) -> list[Job]:
        """The jobs in force that should have a file, and are not being removed."""
        jobs = self._jobs.values()
        return [one for one in jobs if one.spec is not None and not (one.removing or one.unfiled)]

    def keep(self, jobs: Iterable[Job]) -> None:
        """Have these stay without a file, and say why in their status."""
        for job in jobs:
            job.unfiled = True
            job.problem = str(self.problem(job.name))
            try:
                self._statedir.mark(job.name, MARK)
            except OSError as error:
                self._say.error(
                    f"job {job.name}: that it stays without a file is not noted: {error}; "
                    "the next taskmasterd may remove it"
                )

    def keep_from(self, newcomer: Job) -> list[Job]:
        """A job is new in the directory: the others stay where none of them has a file there; these."""
        others = [one for one in self.standing() if one is not newcomer]
        if any(self._store.stamp(one.name) is not None for one in others):
            return []
        self.keep(others)
        return others

    def is_kept(self, name: str) -> bool:
        """Whether a job of this name was to stay without a file."""
        return self._statedir.is_marked(name, MARK)

    def found(self, job: Job) -> None:
        """Its file is there."""
        job.problem = ""
        if job.unfiled or job.had_state:
            job.unfiled = False
            try:
                self._statedir.unmark(job.name, MARK)
            except OSError as error:
                self._say.error(f"job {job.name}: its mark {MARK} stays: {error}")

    def problem(self, name: str) -> FileError:
        """What is wrong with the file of a job that stays."""
        return FileError(
            f"{name}{names.FILE_SUFFIX}",
            "",
            f"no such file, nor one of any other job that was there, in {self._store.directory}",
            'the directory as it was (is it mounted?); "force": true (taskmasterctl restart --force) '
            "stops and removes the job",
        )
