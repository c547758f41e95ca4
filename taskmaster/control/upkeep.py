"""Sees to it that the state directory is there, and what is in it, whoever removes something.

What runs must not depend on a folder that a cleaner, a logout or an administrator can remove: the daemon is told
by the kernel of what is removed, makes its own part again (folder, lock, socket), and has each watchdog make the
job's. Where the kernel does not tell, and against what it does not tell of, it looks every half a minute as well.

If another daemon has taken the place by then, this one leaves the jobs to it and ends: two must not be.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from taskmaster import syscalls
from taskmaster.audit import AuditLog, Event
from taskmaster.control.job import Job
from taskmaster.control.say import Say
from taskmaster.control.server import CannotListen, Server
from taskmaster.control.statedir import StateDirectory
from taskmaster.control.supervisor import Supervisor
from taskmaster.errors import Held
from taskmaster.eventloop import EventLoop, Timer
from taskmaster.wire.link import Restore

#: After a removal: a tree is removed file by file, and what is made again too early is removed too.
_SETTLE_S: Final = 0.05
#: Where the kernel does not tell, and for what it does not tell of.
_LOOK_S: Final = 30.0
_FIRST_LOOK_S: Final = 2.0
_AGAIN_S: Final = (1.0, 30.0)
#: In place of a job's name: the daemon's own part, and the jobs' only if something of it was missing.
_OWN: Final = ""


class Upkeep:
    """The state directory of one daemon. ``socket``: its path and mode; ``link``: a second path to it.

    ``usurped``: another daemon has the directory now.
    """

    def __init__(
        self,
        loop: EventLoop,
        statedir: StateDirectory,
        supervisor: Supervisor,
        server: Server,
        audit: AuditLog,
        say: Say,
        *,
        socket: tuple[Path, int] | None,
        link: Path | None,
        usurped: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._statedir = statedir
        self._supervisor = supervisor
        self._server = server
        self._audit = audit
        self._say = say
        self._socket = socket
        self._link = link
        self._usurped = usurped
        self._inotify = -1
        #: Whose folder each watched one is; None: that of all.
        self._watched: dict[int, str | None] = {}
        self._due: set[str | None] = set()
        self._timer: Timer | None = None
        self._again_s = _AGAIN_S[0]
        self._lost = ""

    def begin(self) -> None:
        """From now on."""
        try:
            self._inotify = syscalls.inotify()
        except OSError:
            pass  # EMFILE, ENOSYS, EPERM: told at the start; one looks
        else:
            self._loop.watch(self._inotify, self._removed)
        self._watch_own()
        self._supervisor.launching.entered = self._entered
        for job in self._supervisor.jobs.values():
            if job.directory >= 0:
                self._entered(job)
        self._make_link()
        # What was removed while no daemon ran, once the watchdogs are found.
        self._loop.call_in(_FIRST_LOOK_S, self._look_at_all)
        self._loop.call_in(_LOOK_S, self._look)

    def _look_at_all(self) -> None:
        self._due.add(None)
        self._soon(0)

    def _watch_own(self) -> None:
        for path in (str(self._statedir.path), f"{self._statedir.path}/jobs"):
            self._watch(path, None, moves=True)

    def _entered(self, job: Job) -> None:
        # Not what is moved: the record is, at each change.
        self._watch(f"/proc/self/fd/{job.directory}", job.name, moves=False)

    def _watch(self, path: str, job: str | None, *, moves: bool) -> None:
        if self._inotify < 0:
            return
        try:
            self._watched[syscalls.watch_removals(self._inotify, path, moves=moves)] = job
        except OSError:
            pass  # ENOENT: noticed by what is above; ENOSPC: no watches left, one looks

    def _removed(self) -> None:
        for number in syscalls.removals(self._inotify):
            self._due.add(self._watched.get(number))
        self._soon(_SETTLE_S)

    def _look(self) -> None:
        # To look at the folders of hundreds of jobs takes milliseconds, and the kernel tells of those.
        self._due.add(None if self._inotify < 0 else _OWN)
        self._soon(0)
        self._loop.call_in(_LOOK_S, self._look)

    def _soon(self, delay_s: float) -> None:
        if self._timer is None or not self._timer.armed:
            self._timer = self._loop.call_in(delay_s, self._restore)

    def _restore(self) -> None:
        due, self._due = self._due, set()
        if self._server.is_over:
            return
        if not due.isdisjoint((None, _OWN)):
            made = self._restore_own()
            if made is None:
                self._due.add(None)
                self._soon(self._again_s)
                self._again_s = min(self._again_s * 2, _AGAIN_S[1])
                return
            if made:
                due.add(None)
        self._again_s = _AGAIN_S[0]
        for job in list(self._supervisor.jobs.values()):
            if None in due or job.name in due:
                self._restore_job(job)

    def _restore_own(self) -> list[str] | None:
        """What was made again of the daemon's own part; None where something is missing and cannot be made."""
        try:
            made = self._statedir.restore()
            # A new program has no listeners yet that could be missed.
            serves = self._socket is not None and bool(self._server.addresses)
            if serves and self._socket and not self._server.has_unix(self._socket[0]):
                self._server.listen_unix_anew(*self._socket)
                made.append("control.sock")
        except Held as error:
            self._say.error(f"{error}. This one ends; the jobs run on")
            self._usurped()
            return []
        except (OSError, CannotListen) as error:
            self._tell_lost(str(error))
            return None
        self._lost = ""
        self._make_link()
        if made:
            what = ", ".join(made)
            self._watch_own()
            self._audit.record(Event.STATE_RESTORED, job=None, what=what)
            self._say.error(f"{self._statedir.path}: removed by somebody, made again: {what}")
        return made

    def _tell_lost(self, why: str) -> None:
        if self._lost != why:
            self._lost = why
            self._audit.record(
                Event.STATE_LOST, job=None, error=why, retryS=round(self._again_s, 3)
            )
            self._say.error(
                f"the state directory was removed and cannot be made again: {why}. Jobs run on and are watched; "
                "it is tried again"
            )

    def _restore_job(self, job: Job) -> None:
        if job.directory < 0 or job.removing or not job.attached:
            return  # nothing there yet, about to be gone, or seen to when its watchdog is found
        if not self._statedir.missing(job.name, job.directory):
            self._supervisor.launching.renew_pipes(job)
            return

        def restored(outcome: str, error: str) -> None:
            if (
                outcome == "fail"
                or job.directory < 0
                or self._supervisor.jobs.get(job.name) is not job
            ):
                return  # it has said why, and tries again
            try:
                self._supervisor.launching.enter(job)
            except OSError as why:
                self._say.error(f"job {job.name}: its state folder cannot be entered: {why}")
                return
            self._supervisor.launching.renew_pipes(job)

        self._supervisor.request(job, Restore, restored)

    def _make_link(self) -> None:
        """Where programs look that do not know of the state directory; what is not ours is left alone."""
        link, socket = self._link, self._socket
        if link is None or socket is None:
            return
        try:
            if os.path.islink(link) and os.readlink(link) == str(socket[0]):
                return
            os.makedirs(link.parent, 0o700, exist_ok=True)
            if os.path.islink(link):
                os.unlink(link)
            os.symlink(socket[0], link)
        except OSError:
            pass  # ENOENT, EACCES: no runtime folder at the moment; EEXIST: something else of that name

    def end(self) -> None:
        """The socket is no more."""
        link, socket = self._link, self._socket
        try:
            if link is not None and socket and os.readlink(link) == str(socket[0]):
                os.unlink(link)
        except OSError:
            pass  # ENOENT, EINVAL: not there, or not ours
