"""Whose the next orphans are: those of the orphan that has just ended. Decides only, and never looks.

A child comes to this process in three ways: it was started here, a watchdog has died, or an orphan that was here
already has ended and left its own children. Of the third kind no process can choose whose it is: it is of the
job that its parent was of, whatever stands in its environment. An orphan that came and ended between two looks is
of one of those that had ended by then.
"""

from __future__ import annotations

from typing import Final

#: Owner of what is of no job.
NO_JOB: Final = ""
#: In what is handed from one program to the next: no owner, but the watchdogs themselves. No job has this name.
WATCHDOGS: Final = "*"

#: Whose an orphan was: the name of a job, NO_JOB, or None where nobody can say.
Owner = str | None


class Lineage:
    """What has ended since the last look."""

    def __init__(self) -> None:
        self._dead: set[Owner] = set()
        self._before: set[Owner] = set()
        self._unseen = False

    @property
    def pending(self) -> bool:
        """Whether anything has ended that may have left children."""
        return bool(self._dead) or self._unseen

    def ended(self, owners: set[Owner]) -> None:
        """A child that was no watchdog has ended; no owners: it had not been seen."""
        self._dead |= owners
        self._unseen = self._unseen or not owners

    @property
    def only(self) -> str | None:
        """The one owner of all that ended; None where there are several, or where that cannot be told."""
        owners = self._owners()
        return next(iter(owners)) if len(owners) == 1 else None

    def looked(self) -> set[Owner]:
        """What was left by now has been seen; whose ancestors had ended."""
        owners = self._owners()
        self._before, self._dead, self._unseen = owners, set(), False
        return owners

    def _owners(self) -> set[Owner]:
        if not self._unseen:
            return self._dead
        return self._dead | self._before or {None}
