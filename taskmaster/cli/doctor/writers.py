"""A job as the doctor finds it, and which processes write to its pipes, whatever its record says.

A process of a job is seen by its descriptors 1 and 2, which lead to the pipes in the job's folder: no
loss of a record or a watchdog changes that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from taskmaster.cli.doctor import looking
from taskmaster.cli.doctor.looking import PROBLEM, WARNING, Finding, Process
from taskmaster.cli.doctor.record import Record, Recorded

_PIPE = re.compile(r"([0-9]{1,3})\.(?:stdout|stderr)")
#: What each process of a job has in its environment, the same for all that one record speaks of.
MARK = "TASKMASTER_INSTANCE"
_MAX_ANCESTRY = 64


class Job:
    """One job's folder as it was found. ``record``: also None where the boot it is of is over."""

    __slots__ = ("folder", "name", "outdated", "record", "unusable", "watchdog", "writers")

    def __init__(self, name: str, folder: int) -> None:
        self.name = name
        self.folder = folder
        self.watchdog: int | None = None
        self.record: Record | None = None
        self.outdated = False
        self.unusable = ""
        #: Session leaders that write to the pipes of each process number.
        self.writers: dict[int, list[Process]] = {}

    @property
    def living(self) -> list[Recorded]:
        """The recorded processes that run."""
        return [] if self.record is None else [one for one in self.record.places if one.alive()]


def find(found: list[Job]) -> None:
    """By where their descriptors lead in words: to look at the file itself may hang on a dead disk."""
    folders = {looking.path_of(job.folder): job for job in found}
    for pid in looking.everyone():
        process = looking.process(pid)
        if process is None or process.dead or process.session != pid:
            continue
        for path in {looking.leads_to(pid, 1), looking.leads_to(pid, 2)}:
            folder, _, entry = path.rpartition("/")
            pipe = _PIPE.fullmatch(entry)
            if pipe and folder in folders:
                writers = folders[folder].writers.setdefault(int(pipe[1]), [])
                if process not in writers:
                    writers.append(process)


def _descends(process: Process, ancestor: int) -> bool:
    parent = process.ppid
    for _ in range(_MAX_ANCESTRY):
        if parent == ancestor:
            return True
        above = looking.process(parent) if parent > 1 else None
        if above is None:
            return False
        parent = above.ppid
    return False


def twice(job: Job, restart: str) -> Iterator[Finding]:
    """Processes of the job that no record knows: started twice, or left behind with a lost record."""
    if job.record is None and job.watchdog is not None:
        return  # it knows its processes, and nobody else can
    about = f"job {job.name}"
    recorded = {one.number: one.pid for one in job.living}
    for number, writers in sorted(job.writers.items()):
        main = recorded.get(number)
        if job.unusable:
            # The next watchdog goes by the pipes: it takes the first of them, and never a second.
            main = writers[0].pid
        for one in writers:
            if main is not None and (one.pid == main or _descends(one, main)):
                continue
            mark = looking.variable(one.pid, MARK)
            if job.record is not None and mark == job.record.instance:
                if main is not None:
                    text = (
                        f"beside process {number} (pid {main}), pid {one.pid} leads a session and writes to "
                        "the same output: the program put it into the background, or it runs twice"
                    )
                    yield Finding(WARNING, about, text, restart)
                # Else what a process that ended has left behind: status tells of that.
            elif main is not None:
                text = f"process {number} runs twice: pid {main}, and pid {one.pid}, which nobody watches"
                yield Finding(PROBLEM, about, text, f"kill -- -{one.pid}")
            else:
                text = (
                    f"pid {one.pid} runs as its process {number}, and no record knows of it: nobody "
                    "watches it, and started again the job may run twice"
                )
                yield Finding(PROBLEM, about, text, f"kill -- -{one.pid}")
