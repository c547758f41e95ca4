"""The kernel tells when a file in the job directory may have become another, so that nobody has to look each time.

Without that (no inotify left, the folder is gone or moved) one looks at a job's file each turn that its status
is asked for, as with a file system whose changes others make. In any case a reply is made anew every tenth of a
second, and then one looks.
"""

from __future__ import annotations

import os

from taskmaster import syscalls
from taskmaster.control.status import Board
from taskmaster.eventloop import EventLoop


class JobFolder:
    """Tells ``board`` of changes in ``folder``, before the loop serves anything else of the same turn."""

    def __init__(self, loop: EventLoop, folder: str, board: Board) -> None:
        self._loop = loop
        self._board = board
        try:
            self._fd = syscalls.watch_folder(folder)
        except OSError:
            return  # ENOENT, EMFILE, ENOSPC, ENOSYS: one looks each turn
        self._watch = loop.watch(self._fd, self._changed)
        loop.first = self._watch
        board.is_told = True

    def _changed(self) -> None:
        self._board.files_changed()
        if not syscalls.folder_events(self._fd):
            self._board.is_told = False
            self._loop.first = None
            self._loop.unwatch(self._watch)
            os.close(self._fd)
