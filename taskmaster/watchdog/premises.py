"""What a watchdog has on the disk: its state folder with lock, record and rendezvous; made anew where removed.

A cleaner, a logout or an administrator may remove the folder under a running job. The watchdog goes on: it makes
folder, lock, socket and record again, in the place that it was born in, and the pipes before the next start. The
descriptor of the folder keeps its number (``statefolder.put_in_place``), so nothing else has to know.

While that is not possible (there is no folder above any more, or something else is in the place) nothing new is
started, what runs is watched, and it is tried again, later each time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from taskmaster import beacon, statefolder
from taskmaster.eventloop import EventLoop, Timer
from taskmaster.watchdog import record
from taskmaster.watchdog.rendezvous import Rendezvous

#: Between two tries, at first and at most, seconds.
_AGAIN_S: Final = (1.0, 30.0)
_DELETED: Final = " (deleted)"


class Premises:
    """The state folder of one job. ``directory``, ``lock``: descriptors; ``tell``: an event and its fields."""

    def __init__(
        self,
        loop: EventLoop,
        directory: int,
        lock: int,
        rendezvous: Rendezvous,
        tell: Callable[..., None],
    ) -> None:
        self._loop = loop
        self._directory = directory
        self._lock = lock
        self._rendezvous = rendezvous
        self._tell = tell
        path = os.readlink(f"/proc/self/fd/{directory}").removesuffix(_DELETED)
        self._state, jobs, job = path.rsplit("/", 2)
        self._below = (jobs, job)
        self._beacon = beacon.light(self._state, job)
        self._again: Timer | None = None
        self._again_s = _AGAIN_S[0]

    def restore(self, *, now: bool = True) -> bool:
        """Make again what is missing; whether everything is there. The caller writes the record.

        Without ``now`` not before its time, where it has just failed.
        """
        if self._again is not None and self._again.armed and not now:
            return False
        failed_before = self._again is not None
        if self._again is not None:
            self._again.cancel()
            self._again = None
        try:
            made = self._restored()
        except OSError as error:
            if not failed_before:
                where = f"{error.filename}: " if error.filename else ""
                self._tell("state.lost", error=f"{where}{error.strerror}", retryS=self._again_s)
            self._again = self._loop.call_in(self._again_s, self._try_again)
            self._again_s = min(self._again_s * 2, _AGAIN_S[1])
            return False
        self._again_s = _AGAIN_S[0]
        if made:
            self._tell("state.restored", what=", ".join(made))
        return True

    def _try_again(self) -> None:
        self.restore()

    def _restored(self) -> list[str]:
        made = []
        if not statefolder.was_moved(self._directory, self._state):
            folder = statefolder.enter(self._state, self._below)
            try:
                if statefolder.put_in_place(self._directory, folder):
                    made.append("folder")
            finally:
                os.close(folder)
        lock = statefolder.lock_anew(self._directory, self._lock)
        if lock != self._lock:
            self._lock = lock
            made.append("lock")
        if not self._rendezvous.is_reachable():
            self._rendezvous.listen_anew()
            made.append("link.sock")
        try:
            os.stat(record.FILE, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            made.append(record.FILE)
        return made
