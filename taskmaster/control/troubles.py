"""What this daemon has to do without, for ``taskmasterctl doctor``: a file in its state directory.

The doctor asks nobody who may not answer, and is not confined as the daemon may be: what a sandbox refuses the
daemon, only the daemon can find out. The file is there while there is something to say.
"""

from __future__ import annotations

import os
from typing import Final

import msgspec

FILE: Final = "troubles.json"
_NEW_FILE: Final = "troubles.json.new"


class Troubles:
    """What is wrong, by a word for each; ``directory``: descriptor of the state directory."""

    def __init__(self, directory: int) -> None:
        self._directory = directory
        self._known: dict[str, str] = {}

    def forget(self) -> None:
        """What a daemon before this one had may be over."""
        self._known.clear()
        self._write()

    def begin(self, about: str, text: str) -> None:
        """From now on something is wrong."""
        if self._known.get(about) != text:
            self._known[about] = text
            self._write()

    def end(self, about: str) -> None:
        """It is over."""
        if self._known.pop(about, None) is not None:
            self._write()

    def _write(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            if not self._known:
                os.unlink(FILE, dir_fd=self._directory)
                return
            fd = os.open(_NEW_FILE, flags, 0o600, dir_fd=self._directory)
            try:
                os.write(fd, msgspec.json.encode(self._known))
            finally:
                os.close(fd)
            os.rename(_NEW_FILE, FILE, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except OSError:
            pass  # ENOENT: there was none; ENOSPC, EROFS: the log and standard error say it all the same
