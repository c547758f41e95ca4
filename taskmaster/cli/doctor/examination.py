"""``doctor``: what is wrong with this taskmaster, in words, and which command mends it.

For three o'clock in the morning: it works with taskmasterd alive, hung or dead, since it looks at the
files and processes themselves and only then asks. It changes nothing. What it looks at may be
anybody's, and what may not be looked at is a finding too.
"""

from __future__ import annotations

import os
import shlex
import stat
import time
from collections.abc import Sequence

from taskmaster.cli import screen
from taskmaster.cli.doctor import daemon, jobs, kernel, looking
from taskmaster.cli.doctor.looking import OK, PROBLEM, STATE, WARNING, Finding
from taskmaster.cli.doctor.where import Where
from taskmaster.errors import TaskmasterError

#: A watchdog that is just being replaced is no finding: what is not well is looked at again after this.
AGAIN_AFTER_S = 1.0
_SYSTEM_STATE = "/run/taskmaster"
_COLOURS = {OK: "32", WARNING: "33", PROBLEM: "31"}


def show(findings: Sequence[Finding], where: Where, as_json: bool) -> int:
    """A line for each finding; the exit status: 1 where one is a problem."""
    if as_json:
        documents = [one.document() for one in findings]
        screen.out_json({"stateDirectory": where.state, "findings": documents})
    else:
        colour = screen.has_colour(os.environ)
        screen.out("\n".join(_line(one, colour) for one in findings))
    worst = any(one.level == PROBLEM for one in findings)
    return TaskmasterError.exit_status if worst else 0


def _line(finding: Finding, colour: bool) -> str:
    level = finding.level.ljust(len(PROBLEM))
    if colour:
        level = f"\x1b[{_COLOURS[finding.level]}m{level}\x1b[0m"
    mend = f"; mend: {finding.mend}" if finding.mend else ""
    return f"{level}  {screen.escape(f'{finding.about}: {finding.text}{mend}')}"


def examine(where: Where, again_after_s: float = AGAIN_AFTER_S) -> list[Finding]:
    """Look at everything; at jobs that are not well a second time, which is the one that counts."""
    findings: list[Finding] = []
    pid = None
    state = _open_state(where, findings)
    if state is not None:
        try:
            pid = _look(state, where, findings, again_after_s)
        finally:
            os.close(state)
    return findings + kernel.examine(pid)


def _open_state(where: Where, findings: list[Finding]) -> int | None:
    path = shlex.quote(where.state)
    owner = looking.owner(where.state)
    text, mend = "", ""
    try:
        fd = looking.open_folder(where.state)
    except FileNotFoundError:
        text = f"{where.state} does not exist: no taskmasterd runs with it"
        mend = f"{where.start}, or taskmasterctl doctor --state DIR"
        if os.geteuid() and os.path.isdir(_SYSTEM_STATE):
            mend = (
                f"sudo taskmasterctl doctor, if root's is meant ({_SYSTEM_STATE}); else taskmasterd"
            )
    except PermissionError:
        text = f"{where.state} is not for this user to look into"
        user = "" if owner in ("", "root") else f"-u {owner} "
        mend = f"sudo {user}taskmasterctl doctor --state {path}"
    except OSError as error:  # ENOTDIR, ELOOP: a file, a symbolic link
        text = f"{where.state} is no folder, or a symbolic link to one ({error.strerror})"
        mend = f"ls -ld {path}"
    if text:
        findings.append(Finding(PROBLEM, STATE, text, mend))
        return None
    mode = stat.S_IMODE(os.fstat(fd).st_mode)
    if mode & 0o077:
        text = f"{where.state} has mode {mode:04o}: other users could replace what is in it"
        findings.append(Finding(PROBLEM, STATE, text, f"chmod 700 {path}"))
    else:
        findings.append(Finding(OK, STATE, f"{where.state}, mode {mode:04o}, of user {owner}"))
    return fd


def _look(state: int, where: Where, findings: list[Finding], again_after_s: float) -> int | None:
    """Look at the daemon and the jobs; the daemon's pid."""
    try:
        folder: int | None = looking.open_folder("jobs", state)
    except FileNotFoundError:
        folder = None  # no job has had a watchdog yet
    except OSError as error:  # EACCES, ENOTDIR, ELOOP
        path = f"{where.state}/jobs"
        text = f"{path} cannot be looked into: {error.strerror}"
        findings.append(Finding(PROBLEM, STATE, text, f"ls -ld {shlex.quote(path)}"))
        folder = None
    try:
        watchdogs = {} if folder is None else jobs.watchdogs(folder)
        found = daemon.Daemon(state, where, watchdogs)
        findings += found.findings
        if folder is not None:
            about_jobs = jobs.examine(folder, found.around)
            if any(one.level != OK for one in about_jobs):
                time.sleep(again_after_s)
                found.ask_again()
                about_jobs = jobs.examine(folder, found.around)
            findings += about_jobs
    finally:
        if folder is not None:
            os.close(folder)
    return found.pid
