"""Whose the children of a daemon are that were there before it knew of any death."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from taskmaster import procfs
from taskmaster.control.job import Job
from taskmaster.control.lineage import WATCHDOGS
from taskmaster.control.orphans import Orphans
from taskmaster.core.spec import JobSpec


@pytest.fixture
def stray() -> Iterator[int]:
    """A child of this process that is no watchdog."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_what_an_upgrade_finds_is_not_of_the_next_that_dies(stray: int) -> None:
    """Its watchdog died while one program became the other: the next one to die has not left it."""
    jobs = {name: Job(name) for name in ("web", "db")}
    orphans = Orphans(jobs, {}, lambda job: None)
    orphans.know({})
    orphans.inherit(jobs["web"])
    assert stray not in jobs["web"].inherited
    assert stray in jobs["db"].doubtful


def test_what_is_new_since_a_death_is_of_the_job_that_it_befell(stray: int) -> None:
    """Without anything there before, the one job without a watchdog is the one that had it."""
    jobs = {name: Job(name) for name in ("web", "db")}
    orphans = Orphans(jobs, {}, lambda job: None)
    status = procfs.stat(stray)
    assert status is not None
    orphans.inherit(jobs["web"])
    assert jobs["web"].inherited.get(stray) == status.start


def test_a_death_explains_what_is_new_while_all_others_are_met(stray: int) -> None:
    """Whoever has lost its watchdog is not heard; another that is not heard may have lost one too."""
    for met, owner in ((True, "web"), (False, None)):
        jobs = {name: Job(name) for name in ("web", "db")}
        for job in jobs.values():
            job.spec = JobSpec(job=job.name, argv=("true",))
            job.bereft = True
        jobs["db"].heard = met
        Orphans(jobs, {}, lambda job: None).inherit(jobs["web"])
        found = next((name for name, job in jobs.items() if stray in job.inherited), None)
        assert found == owner


def test_what_the_program_before_knew_stays_so(stray: int) -> None:
    """What was handed over needs no guess."""
    jobs = {name: Job(name) for name in ("web", "db")}
    orphans = Orphans(jobs, {}, lambda job: None)
    status = procfs.stat(stray)
    assert status is not None
    orphans.know({"db": [(stray, status.start)]})
    orphans.inherit(jobs["web"])
    assert (stray in jobs["web"].inherited, stray in jobs["db"].inherited) == (False, True)


def test_what_a_watchdog_leaves_that_nobody_has_met() -> None:
    """It ends just after the new program began, and another death is heard of first: that one has not left it."""
    jobs = {name: Job(name) for name in ("web", "db")}
    orphans = Orphans(jobs, {}, lambda job: None)
    unmet = os.fork()
    if unmet == 0:
        os._exit(0)
    os.waitid(os.P_PID, unmet, os.WEXITED | os.WNOWAIT)
    orphans.know({WATCHDOGS: [(unmet, 1)]})
    left = os.fork()  # what it has left, a child of this process only since
    if left == 0:
        signal.pause()
        os._exit(0)
    try:
        orphans.inherit(jobs["web"])
        assert left not in jobs["web"].inherited
        assert left in jobs["db"].doubtful
        assert orphans.known()[WATCHDOGS] == [(unmet, 1)]
        orphans.reaped(unmet)
        assert orphans.known()[WATCHDOGS] == []
    finally:
        os.kill(left, signal.SIGKILL)
        os.waitpid(left, 0)
        os.waitpid(unmet, 0)
