"""Which jobs are being removed: kept on disk, so that a removal that is interrupted is finished.

A removal takes as long as the job takes to stop. One note a job, in ``.removing`` beside the job files. It is
written before the job is asked to stop, and removed when the job's file is gone. The next program, or the next
daemon, finds it and goes on; without it the job would be found with a file, and started again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from taskmaster.control.marks import Marks, short

FOLDER: Final = ".removing"
_MAX_NOTE: Final = 1024


class Removal(msgspec.Struct, frozen=True):
    """By whom a job is removed, and why. ``sha256``: of its file then, "" where that was gone already;
    ``cause``: the audit log's id of the command."""

    who: str
    reason: str
    sha256: str
    cause: str


class Removals:
    """The removals that were begun, below the job directory."""

    def __init__(self, directory: Path) -> None:
        # Nobody was told anything yet by whom a torn note was left.
        self._marks = Marks(directory / FOLDER, Removal)

    @property
    def all(self) -> Mapping[str, Removal]:
        """Those that are not finished, by job."""
        return self._marks.all

    def begin(self, job: str, removal: Removal) -> OSError | None:
        """Remember that the job is being removed; the error where that is not on the disk."""
        kept = Removal(
            short(removal.who, _MAX_NOTE),
            short(removal.reason, _MAX_NOTE),
            removal.sha256,
            removal.cause,
        )
        if self._marks.is_kept(job) and self._marks.all[job] == kept:
            return None
        return self._marks.put(job, kept)

    def know(self, job: str, removal: Removal) -> None:
        """Remember it for as long as this program runs, where the disk does not."""
        self._marks.know(job, removal)

    def end(self, job: str) -> OSError | None:
        """It is removed, or will not be; the error where the note stays."""
        return self._marks.remove(job)
