"""Whose an orphan is: a table over what a process cannot choose."""

from __future__ import annotations

import pytest

from taskmaster.control.ownership import Claimant, Stray, owner_of

ROOT, WWW, EVIL = 0, 33, 65534


def job(name: str, *users: int, processes=(), sessions=()) -> Claimant:
    return Claimant(name, frozenset(processes), frozenset(sessions), frozenset(users))


def stray(user: int | None, mark: str | None = None, start: int = 500, session: int = 70) -> Stray:
    return Stray(70, start, session, user, mark)


DB, WEB, NASTY = job("db", ROOT), job("web", WWW), job("nasty", EVIL)
GONE = job("gone")  # none of its processes lives
OWNER = {
    "nobody's": (stray(EVIL), [], None, None),
    "the only job that it can be of": (stray(EVIL), [DB], None, "db"),
    "of its user's job and not of root's": (stray(EVIL), [DB, NASTY], None, "nasty"),
    "also where the watchdog of root's has just died": (stray(EVIL), [DB, NASTY], "db", "nasty"),
    "of a user that only root's job can have become": (stray(1000), [DB, WEB], None, "db"),
    "of one of two that may have become it": (stray(1000), [DB, GONE, WEB], None, None),
    "of the one of those whose watchdog has just died": (stray(1000), [DB, GONE, WEB], "gone", "gone"),
    "root's: not of the job of another user": (stray(ROOT), [WEB, NASTY], None, None),
    "root's: not even where that has just lost its watchdog": (stray(ROOT), [WEB, NASTY], "web", None),
    "of two of one user": (stray(WWW), [WEB, job("web2", WWW)], None, None),
    "of the one of them that has just lost its watchdog": (stray(WWW), [WEB, job("web2", WWW)], "web2", "web2"),
    "by its mark": (stray(EVIL, "db"), [DB, NASTY], None, "db"),
    "not by the mark of a job that has its orphans itself": (stray(EVIL, "db"), [WEB, NASTY], None, "nasty"),
    "on record, whatever mark it bears": (
        stray(EVIL, "db"), [DB, job("nasty", EVIL, processes=[(70, 500)])], None, "nasty"
    ),
    "another of the recorded number": (
        stray(EVIL, "db"), [DB, job("nasty", EVIL, processes=[(70, 501)])], None, "db"
    ),
    "in a session, whatever mark it bears": (
        stray(EVIL, "db", session=9), [DB, job("nasty", EVIL, sessions=[9])], None, "nasty"
    ),
    "not seen": (stray(None, start=0), [DB, NASTY], None, None),
    "not seen, of the watchdog that has just died": (stray(None, start=0), [DB, NASTY], "nasty", "nasty"),
}  # fmt: skip


@pytest.mark.parametrize("name", OWNER)
def test_owner(name: str) -> None:
    """Each row of the table."""
    one, claimants, died, owner = OWNER[name]
    assert owner_of(one, claimants, died) == owner
    assert owner_of(one, claimants[::-1], died) == owner


@pytest.mark.parametrize("name", OWNER)
def test_init_claims_only_what_is_certain(name: str) -> None:
    """Init inherits processes that were never a job's: of those that bear no proof it takes none."""
    one, claimants, died, owner = OWNER[name]
    certain = owner_of(one, claimants, died, only_jobs=False)
    proved = any(
        (one.pid, one.start) in each.processes
        or one.session in each.sessions
        or each.name == one.mark
        for each in claimants
    )
    assert certain == (owner if proved else None)
