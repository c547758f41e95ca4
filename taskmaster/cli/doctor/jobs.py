"""What the doctor looks at in ``STATE/jobs``: each job's folder, watchdog, state record and processes.

A process is the recorded one only if pid and start time agree.
"""

from __future__ import annotations

import os
import shlex
import stat
import time
from collections.abc import Iterator
from typing import Any

from taskmaster.cli.doctor import looking, record, writers
from taskmaster.cli.doctor.looking import OK, PROBLEM, WARNING, Finding, Unusable
from taskmaster.cli.doctor.record import Record
from taskmaster.cli.doctor.writers import Job
from taskmaster.core import names

CRASH_FILE = "watchdog.crash"
LINK = "link.sock"
_MAX_CRASH_BYTES = 1024 * 1024


class Surroundings:
    """What is known before the jobs are looked at.

    ``owner``: uid of the state directory. ``daemon``: whether taskmasterd runs; ``mend``: what it needs,
    empty where it is well. ``statuses``: its status document of each job, None where it did not answer.
    ``logs``: folders in which job log folders may be. ``start``, ``ctl``: the commands that start
    taskmasterd and that ask it.
    """

    __slots__ = ("ctl", "daemon", "logs", "mend", "owner", "start", "state", "statuses")

    def __init__(
        self,
        state: str,
        *,
        owner: int,
        daemon: bool,
        logs: list[str],
        start: str,
        ctl: str,
    ) -> None:
        self.state, self.owner, self.daemon = state, owner, daemon
        self.logs, self.start, self.ctl = logs, start, ctl
        self.mend = ""
        self.statuses: dict[str, dict[str, Any]] | None = None


def watchdogs(jobs: int) -> dict[str, int]:
    """The pid of each job's watchdog; ``jobs``: a descriptor of the folder of all."""
    found = {}
    for name in _names(jobs):
        try:
            folder = looking.open_folder(name, jobs)
        except OSError:  # said where the job is looked at
            continue
        try:
            holder = looking.lock_holder(folder)
        except Unusable:
            holder = None
        finally:
            os.close(folder)
        if holder is not None and holder != looking.SOMEBODY:
            found[name] = holder
    return found


def examine(jobs: int, around: Surroundings) -> list[Finding]:
    """Look at every job; ``jobs``: a descriptor of the folder of all."""
    findings: list[Finding] = []
    found: list[Job] = []
    try:
        for name in _names(jobs):
            try:
                found.append(Job(name, looking.open_folder(name, jobs)))
            except FileNotFoundError:  # deleted this moment
                continue
            except OSError as error:  # EACCES, ENOTDIR, ELOOP: a file, a symbolic link
                path = shlex.quote(f"{around.state}/jobs/{name}")
                text = f"its folder cannot be looked into: {error.strerror}"
                findings.append(Finding(PROBLEM, f"job {name}", text, f"ls -ld {path}"))
        # Before the records are read: a process that is in none of them later was there before.
        writers.find(found)
        for job in found:
            findings += _examine(job, around)
        findings += _told_of_all({job.name for job in found}, around)
    finally:
        for job in found:
            os.close(job.folder)
    return findings


def _names(jobs: int) -> list[str]:
    try:
        listed = os.listdir(jobs)
    except OSError:  # EACCES
        return []
    return sorted(name for name in listed if names.is_valid(name))


def _told_of_all(with_folder: set[str], around: Surroundings) -> Iterator[Finding]:
    """What is wrong by taskmasterd's own word, whatever the folders look like."""
    for name, status in (around.statuses or {}).items():
        watchdog = _watchdog_of(status)
        if name not in with_folder and watchdog is not None:
            text = (
                f"its folder is gone while its watchdog (pid {watchdog}) runs: it can start nothing, "
                "and nobody can take its processes over"
            )
            mend = f"{around.ctl} shutdown; {around.start}"
            yield Finding(PROBLEM, f"job {name}", text, mend)
        elif status.get("state") == "FATAL":
            mend = f"{around.ctl} repair {name}"
            if not _is_defined(status):
                mend = f"{around.ctl} push {name}.tm.json, with the file corrected"
            yield Finding(WARNING, f"job {name}", f"FATAL: {status.get('reason')}", mend)


def _watchdog_of(status: dict[str, Any]) -> int | None:
    watchdog = status.get("watchdog")
    pid = watchdog.get("pid") if isinstance(watchdog, dict) else None
    return pid if type(pid) is int else None


def _is_defined(status: dict[str, Any]) -> bool:
    """Whether a definition is in force: without one a job has no watchdog, and needs none."""
    definition = status.get("definition")
    return isinstance(definition, dict) and bool(definition.get("sha256"))


def _examine(job: Job, around: Surroundings) -> list[Finding]:
    path = f"{around.state}/jobs/{job.name}"
    about = f"job {job.name}"
    findings = list(_folder(job, path, around.owner))
    try:
        job.watchdog = looking.lock_holder(job.folder)
    except Unusable as error:
        mend = f"ls -l {shlex.quote(path)}/lock"
        findings.append(Finding(PROBLEM, about, f"its lock cannot be looked at: {error}", mend))
        return findings
    try:
        job.record = record.read(job.folder, job.name)
    except Unusable as error:
        job.unusable = str(error)
    if job.record is not None and job.record.boot_id != looking.boot_id():
        job.record, job.outdated = None, True
    if job.watchdog is not None:
        findings += _watched(job, job.watchdog, around)
    else:
        findings += _unwatched(job, path, around)
    findings += writers.twice(job, f"{around.ctl} restart {job.name}")
    findings += _left_over(job, path, around)
    if not findings:
        findings.append(Finding(OK, about, _well(job)))
    return findings


def _well(job: Job) -> str:
    places = [] if job.record is None else job.record.places
    pids = ", ".join(str(one.pid) for one in job.living)
    running = f"{len(job.living)} of {len(places)} processes" + (f" (pid {pids})" if pids else "")
    return f"watchdog (pid {job.watchdog}), {running}"


def _folder(job: Job, path: str, owner: int) -> Iterator[Finding]:
    about = os.fstat(job.folder)
    if about.st_uid != owner:
        text = f"its folder is of uid {about.st_uid}, the state directory of uid {owner}"
        yield Finding(PROBLEM, f"job {job.name}", text, f"chown -R {owner} {shlex.quote(path)}")
    if about.st_mode & 0o077:
        text = f"its folder has mode {stat.S_IMODE(about.st_mode):04o}: open to other users"
        yield Finding(PROBLEM, f"job {job.name}", text, f"chmod 700 {shlex.quote(path)}")


def _watched(job: Job, watchdog: int, around: Surroundings) -> Iterator[Finding]:
    about = f"job {job.name}"
    replace = f"kill -KILL {watchdog}" + ("" if around.daemon else f"; {around.start}")
    process = looking.process(watchdog) if watchdog != looking.SOMEBODY else None
    if process is None:
        text = "its lock is held by a process that cannot be seen from here"
        yield Finding(WARNING, about, text, f"{around.ctl} status {job.name}")
        return
    if not looking.name(watchdog).startswith("watchdog"):
        text = (
            f"its lock is held by pid {watchdog} ({looking.name(watchdog)}), which is no watchdog"
        )
        yield Finding(PROBLEM, about, text, f"kill {watchdog}")
        return
    if process.stopped:
        text = f"its watchdog (pid {watchdog}) is stopped: commands for it fail and nothing is restarted"
        yield Finding(PROBLEM, about, text, f"kill -CONT {watchdog}")
        return
    link = looking.entry(job.folder, LINK)
    if link is None or not stat.S_ISSOCK(link.st_mode):
        text = f"{LINK} is gone: no other taskmasterd could find its watchdog (pid {watchdog})"
        yield Finding(PROBLEM, about, f"{text}; its processes run on when it is replaced", replace)
    if job.record is None:
        why = job.unusable or ("of an earlier boot" if job.outdated else "there is none")
        text = f"its state record cannot be used ({why}): should its watchdog die, nobody knows its processes"
        # Told to leave, a watchdog writes the record anew, for the one of the new program.
        yield Finding(PROBLEM, about, text, around.mend or f"{around.ctl} upgrade")
    else:
        yield from _recorded(job, job.record, watchdog, replace)
    if not around.daemon:
        text = f"{_well(job)}: crashes are mended, but no taskmasterd commands it"
        yield Finding(WARNING, about, text, around.start)
    elif around.statuses is not None:
        yield from _told(job, watchdog, replace, around)


def _recorded(job: Job, known: Record, watchdog: int, replace: str) -> Iterator[Finding]:
    about = f"job {job.name}"
    for one in known.places:
        found = None if one.pid is None else looking.process(one.pid)
        if one.pid is not None and not one.alive():
            text = (
                f"process {one.number} (pid {one.pid}) has ended, and its watchdog (pid {watchdog}) has "
                "not taken note; the others run on when it is replaced"
            )
            yield Finding(WARNING, about, text, replace)
        elif found is not None and found.stopped:
            text = f"process {one.number} (pid {one.pid}) is stopped by a signal or a debugger"
            yield Finding(WARNING, about, text, f"kill -CONT {one.pid}")


def _told(job: Job, watchdog: int, replace: str, around: Surroundings) -> Iterator[Finding]:
    """What taskmasterd says of a watchdog that runs."""
    about = f"job {job.name}"
    status = (around.statuses or {}).get(job.name)
    if status is None:
        text = f"its watchdog (pid {watchdog}) runs, and taskmasterd has no such job"
        yield Finding(PROBLEM, about, text, f"{around.ctl} upgrade")
        return
    told = status.get("watchdog")
    state = told.get("state") if isinstance(told, dict) else None
    if state != "ATTACHED":
        text = f"taskmasterd does not reach its watchdog (pid {watchdog}): {status.get('reason')}"
        yield Finding(PROBLEM, about, text, replace)
    elif _watchdog_of(status) != watchdog:
        text = f"taskmasterd takes pid {_watchdog_of(status)} for its watchdog, which is {watchdog}"
        yield Finding(PROBLEM, about, text, replace)


def _unwatched(job: Job, path: str, around: Surroundings) -> Iterator[Finding]:
    about = f"job {job.name}"
    status = (around.statuses or {}).get(job.name)
    pids = ", ".join(str(one.pid) for one in job.living)
    # A taskmasterd that is well is about to start another; its status says when, and what keeps it.
    mend = around.mend or f"{around.ctl} status {job.name}"
    if job.unusable:
        text = (
            f"no watchdog, and its state record cannot be used ({job.unusable}): the next watchdog sets "
            "it aside and goes by the pipes"
        )
        yield Finding(PROBLEM, about, text, mend)
    elif pids:
        text = f"its processes (pid {pids}) run without a watchdog: not restarted, their output not read"
        if around.daemon and status is not None:
            text += f"; {status.get('reason') or 'another is being started'}"
        yield Finding(PROBLEM, about, text, mend)
    elif not around.daemon:
        text = "left by a taskmasterd that did not end in order; nothing of it runs"
        yield Finding(WARNING, about, text, around.start)
    elif status is None and around.statuses is not None:
        if not job.writers:
            text = "left over: taskmasterd has no such job, and nothing of it runs"
            yield Finding(WARNING, about, text, f"rm -r {shlex.quote(path)}")
    elif status is not None and _is_defined(status):
        text = f"it has no watchdog: {status.get('reason') or 'one is being started'}"
        yield Finding(PROBLEM, about, text, mend)


def _left_over(job: Job, path: str, around: Surroundings) -> Iterator[Finding]:
    about = f"job {job.name}"
    rejected = f"{record.FILE}.rejected"
    if looking.entry(job.folder, rejected) is not None:
        text = f"a state record could not be used and was set aside as {rejected}"
        yield Finding(WARNING, about, text, f"rm {shlex.quote(f'{path}/{rejected}')}")
    for logs in around.logs:
        crash = f"{logs}/{job.name}/{CRASH_FILE}"
        try:
            folder = looking.open_folder(os.path.dirname(crash))
        except OSError:  # ENOENT; EACCES
            continue
        try:
            left = looking.entry(folder, CRASH_FILE)
            data = looking.read(folder, CRASH_FILE, _MAX_CRASH_BYTES) or b""
        except Unusable as error:
            data = str(error).encode()
        finally:
            os.close(folder)
        if left is not None:
            lines = data.decode("utf-8", "replace").strip().splitlines() or ["empty"]
            at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(left.st_mtime))
            text = f"a watchdog met something that it did not expect, at {at}: {lines[-1][:200]}"
            quoted = shlex.quote(crash)
            yield Finding(WARNING, about, text, f"cat {quoted} && rm {quoted}")
