"""Which job an orphan is of, by what it cannot choose. Decides only; the looking is done by ``orphans.py``.

In this order:

1. The dead watchdog had it on record, by pid and start time.
2. Its session is that of a process of the job.
3. It bears the job's random mark, and the job is one that may have orphans here.
4. It is of the only job there is that has ever lost a watchdog: the orphans of others go to theirs.
5. Its user: a process that is not root's cannot change that. So it is of the one job whose processes are of that
   user, if there is one: whoever runs that job could signal it themselves. Else of the one job of root's, which
   may have become anybody.

By 5, the job whose watchdog has just died comes before others whose watchdogs died long ago. Where that leaves
several, nobody can say, and it is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class Claimant(msgspec.Struct, frozen=True):
    """A job that has lost a watchdog. ``users``: the real users of its processes; none where none lives."""

    name: str
    processes: frozenset[tuple[int, int]]
    sessions: frozenset[int]
    users: frozenset[int]

    @property
    def may_be_anybody(self) -> bool:
        """Whether a process of the job may have any user: one of them is root's, or nothing is known."""
        return 0 in self.users or not self.users


class Stray(msgspec.Struct, frozen=True):
    """An orphan. ``start`` 0, ``user`` None: that cannot be seen. ``mark``: the job whose mark it bears."""

    pid: int
    start: int
    session: int
    user: int | None
    mark: str | None


def owner_of(
    stray: Stray, claimants: Sequence[Claimant], died: str | None, *, only_jobs: bool = True
) -> str | None:
    """The name of the job; None where nobody can say.

    ``died``: the job whose watchdog has just died, where it is the only one and the orphan may be new since.
    ``only_jobs``: whether nothing but jobs leaves orphans here, without which 4 and 5 say nothing.
    """
    for one in claimants:
        if (stray.pid, stray.start) in one.processes:
            return one.name
    for one in claimants:
        if stray.session in one.sessions:
            return one.name
    if any(one.name == stray.mark for one in claimants):
        return stray.mark
    if not only_jobs:
        return None
    if len(claimants) == 1:
        return claimants[0].name
    if stray.user is None:
        return died
    same = [one.name for one in claimants if one.users == {stray.user}]
    if not stray.user or not same:
        same = [one.name for one in claimants if one.may_be_anybody]
    if died in same:
        return died
    return same[0] if len(same) == 1 else None
