"""Who stopped which job: kept on disk, so that a stopped job stays stopped over restarts of daemon and host.

One note a job, in ``.stopped`` beside the job files. It is written before the job is stopped and removed before
it is started, so whatever is interrupted, the note says what was asked last. A disk that cannot be written
keeps nobody from stopping a job: then only this daemon remembers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from taskmaster.control.marks import Marks, short

FOLDER: Final = ".stopped"
_MAX_NOTE: Final = 256


class Stopped(msgspec.Struct, frozen=True):
    """Who stopped a job, and when (UTC, ISO 8601)."""

    by: str
    at: str


class Stops:
    """The jobs that an administrator stopped, below the job directory."""

    def __init__(self, directory: Path) -> None:
        # That there is a note is what counts: a stopped job must not start because of a torn one.
        self._marks = Marks(
            directory / FOLDER, Stopped, lambda: Stopped("somebody", "an unknown time")
        )

    def get(self, job: str) -> Stopped | None:
        """Who stopped the job; None where nobody did, or somebody started it since."""
        return self._marks.all.get(job)

    def look(self, job: str) -> Stopped | None:
        """The same of a job whose file is new here, from the disk: it may have come back with a mount."""
        return self._marks.look(job)

    def stop(self, job: str, by: str, at: str) -> OSError | None:
        """Remember that the job was stopped, and who did it first; the error where only this daemon can."""
        if self._marks.is_kept(job):
            return None
        return self._marks.put(job, Stopped(short(by, _MAX_NOTE), at))

    def start(self, job: str) -> OSError | None:
        """Forget that the job was stopped; the error where the disk does not."""
        return self._marks.remove(job)
