"""Versions of job files, as commands ask for them: what is there, what was, which is the one before."""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from taskmaster.config import history
from taskmaster.config.store import JobStore
from taskmaster.core import names
from taskmaster.errors import FileError, NoSuchJob, TaskmasterError

#: Versions in one history document: each is a file to be read.
_PAGE: Final = 100
#: What was done, in the words of the protocol.
_ACTIONS: Final = {"put": "pushed", "replaced": "edited"}


class Versions:
    """The history of all jobs; ``known``: the names of those that there are. Everything raises TaskmasterError."""

    def __init__(self, known: Container[str], store: JobStore) -> None:
        self._known = known
        self._store = store

    def current(self, name: str) -> bytes:
        """The exact bytes of a job's file."""
        return self._store.read(name)

    def stamp(self, name: str) -> tuple[int, int, int, int] | None:
        """What tells that a job's file is the one that was read before; None where nothing does."""
        return self._store.settled_stamp(name)

    def version(self, name: str | None, which: int | str) -> bytes:
        """The exact bytes of a version, also of a job that was deleted."""
        checked = names.checked(name or "")
        if checked not in self._known and not self._store.history(checked, None, 1):
            raise NoSuchJob(checked)
        return self._store.version(checked, which)

    def older(self, name: str, which: int | str | None) -> bytes:
        """The bytes of a version; of the newest that differs from the file where none is named."""
        if which is not None:
            return self.version(name, which)
        found = self._store.version_before(name)
        if found is not None:
            return self._store.version(name, found.number)
        if name not in self._known:
            raise NoSuchJob(name)
        raise TaskmasterError(f'Job "{name}" has no version but the present one.')

    def document(self, name: str | None, before: int | None) -> dict[str, object]:
        """The history document, of versions below number ``before``."""
        checked = names.checked(name or "")
        found = self._store.history(checked, before, _PAGE + 1)
        if not found and before is None and checked not in self._known:
            raise NoSuchJob(checked)
        try:
            current = self._store.sha256(checked)
        except FileError:
            current = None  # a symbolic link, unreadable: pull says so
        return {
            "job": checked,
            "current": current,
            "more": len(found) > _PAGE,
            "versions": [_shown(one) for one in reversed(found[-_PAGE:])],
        }


def _shown(version: history.Version) -> dict[str, object]:
    return {
        "version": version.number,
        "at": version.when,
        "by": version.who,
        "action": _ACTIONS.get(version.action, version.action),
        "sha256": version.sha256,
        "size": version.size,
        "reason": version.reason,
    }
