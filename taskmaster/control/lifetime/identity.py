"""What cannot be handed from one program to the next is refused, by device and inode, not by path.

A program that stands on another state directory would find nothing of what runs, and start it all again; one
that reads another job directory would stop everything that it does not find there. Both are asked about twice:
by the program on trial, and by the one that was executed, before it touches anything.
"""

from __future__ import annotations

import os
from pathlib import Path

from taskmaster.audit import AuditLog
from taskmaster.config.daemon import DaemonConfig
from taskmaster.control.handover import Holdings
from taskmaster.control.job import Job
from taskmaster.core import names
from taskmaster.errors import FileError, NotPermitted

Identity = tuple[int, int]


def of(path: Path | str) -> Identity | None:
    """Device and inode of what is there; None where nothing is, or it cannot be looked at."""
    try:
        about = os.stat(path)
    except OSError:
        return None
    return about.st_dev, about.st_ino


def of_open(fd: int) -> Identity:
    """Device and inode of what is open."""
    about = os.fstat(fd)
    return about.st_dev, about.st_ino


def holdings(
    config: DaemonConfig, lock: int, audit: AuditLog, folder_id: Identity | None, jobs: list[Job]
) -> Holdings:
    """What a daemon stands on. ``folder_id``: the folder of its job files when it started."""
    return Holdings(
        uid=os.geteuid(),
        lock=of_open(lock),
        log=audit.identity,
        folder=str(config.config_directory),
        folder_id=folder_id,
        jobs=tuple(job.name for job in jobs if job.spec is not None and not job.removing),
    )


def check(config: DaemonConfig, held: Holdings | None) -> None:
    """Raises TaskmasterError where ``config`` leads elsewhere; nothing is known of an older program's."""
    if held is None:
        return
    if os.geteuid() != held.uid:
        raise NotPermitted(
            f"it runs as uid {os.geteuid()}, and taskmasterd as uid {held.uid}; stop and start it for that"
        )
    _check_state(config.state_directory, held)
    _check_jobs(config.config_directory, held)


def _check_state(folder: Path, held: Holdings) -> None:
    if of(folder / "lock") != held.lock:
        raise FileError(
            "stateDirectory",
            str(folder),
            "another folder than the one in use, or one whose lock file was removed: all that runs is found "
            "through that, and would be started again",
            "the folder in use; stop and start taskmasterd to change it",
        )


def _check_jobs(folder: Path, held: Holdings) -> None:
    found = of(folder)
    # Moved, or reached by another path: it is the same folder. Put in its place: so it is for the old program.
    if found is None or found not in (held.folder_id, of(held.folder)):
        raise FileError(
            "configDirectory",
            str(folder),
            f"another folder than {held.folder}, which is in use: every job that has no file there would be "
            "stopped",
            "the folder in use; stop and start taskmasterd to change it",
        )
    files = [folder / f"{name}{names.FILE_SUFFIX}" for name in held.jobs]
    if files and not any(os.path.lexists(file) for file in files):
        raise FileError(
            "configDirectory",
            str(folder),
            "no file of any job that there is: all of them would be stopped",
            "a folder with the files of the jobs; taskmasterctl delete and restart take jobs away",
        )
