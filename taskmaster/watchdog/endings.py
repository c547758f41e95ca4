"""How processes end: noticed by a pidfd, looked at, written down, and only then reaped.

The end of our own child is read from the kernel without taking it; that of a process which was adopted is
told by the kernel once somebody has reaped it (``PIDFD_GET_INFO``), or by the control plane, which is
asked. After a grace it counts as unknown, which the restart policy treats as unexpected.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from taskmaster import children, procfs, syscalls
from taskmaster.core.events import Exited
from taskmaster.core.lifecycle import Phase
from taskmaster.watchdog.place import Place
from taskmaster.watchdog.reapers import may_inherit

if TYPE_CHECKING:
    from taskmaster.watchdog.runner import Runner

#: How long the control plane may take to say how a process ended before it counts as unknown, seconds.
_GRACE_S: Final = 2.0


class Endings:
    """Watches and accounts for the processes of one runner.

    ``ask`` asks the control plane how a process that is not our child ended. ``resume`` goes on with one that
    had seemed gone and lives.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        #: Children that have ended, until the record says so.
        self.to_reap: list[int] = []
        self.ask: Callable[[Place], None] = lambda place: None
        self.resume: Callable[[Place], None] = lambda place: None

    def hold(self, place: Place) -> bool:
        """Watch the place's process by a pidfd; False where it is gone already. Raises OSError (EMFILE)."""
        assert place.pid is not None
        try:
            held = os.pidfd_open(place.pid)
        except (ProcessLookupError, FileNotFoundError):
            return False  # ENOENT: the number is that of a thread by now
        status = procfs.stat(place.pid)
        if not (is_unseen_one(place, held) if status is None else status.start == place.start):
            os.close(held)
            return False
        place.held = held
        place.watch = self._runner.loop.watch(held, lambda: self._readable(place))
        return True

    def let_go(self, place: Place) -> None:
        """Stop watching the process."""
        if place.watch is not None:
            self._runner.loop.unwatch(place.watch)
            place.watch = None
        if place.held >= 0:
            os.close(place.held)
            place.held = -1
        if place.grace is not None:
            place.grace.cancel()
            place.grace = None

    def _readable(self, place: Place) -> None:
        assert place.pid is not None
        if not place.own_child:
            self.missing(place)
            return
        status = children.peek(place.pid)
        if status is not None:
            self.ended(place, status)

    def missing(self, place: Place) -> None:
        """A process that is not our child has ended: find out how, from the kernel or the control plane."""
        if place.held >= 0:
            assert place.pid is not None
            assert place.start is not None
            # Where its parent has not reaped it, nobody else may be asked in time: both may die now.
            status = procfs.exit_status(place.pid, place.start)
            if status is None:
                status = syscalls.pidfd_exit_status(place.held)
            if status is not None:
                self.ended(place, status)
                return
            # Not reaped yet: its reaping is a hang-up of the pidfd, and then the kernel tells (6.15).
            assert place.watch is not None
            self._runner.loop.change(place.watch, None, lambda: self._reaped(place))
        place.asking = True
        if place.grace is None:
            place.grace = self._runner.loop.call_in(_GRACE_S, lambda: self._nobody_knows(place))
        self.ask(place)

    def _reaped(self, place: Place) -> None:
        assert place.watch is not None
        status = syscalls.pidfd_exit_status(place.held)
        if status is not None:
            self.ended(place, status)
        else:
            # A kernel that does not tell; a hang-up that stays would wake the loop without end.
            self._runner.loop.unwatch(place.watch)
            place.watch = None

    def handed_over(self, pid: int, start: int, status: int | None) -> None:
        """The control plane's answer to ``ask``."""
        for place in self._runner.places.values():
            if place.asking and place.pid == pid and place.start == start:
                if status is not None:
                    self.ended(place, status)
                elif place.held < 0 or place.watch is None:
                    self._nobody_knows(place)
                return

    def _nobody_knows(self, place: Place) -> None:
        if not place.asking:
            return
        if place.grace is not None:
            place.grace.cancel()
            place.grace = None
        assert place.pid is not None
        status = procfs.stat(place.pid)
        if place.held < 0 and status is None and procfs.exists(place.pid):
            self._found_alive(place)
            return
        if place.held < 0 and status is not None and status.start == place.start:
            if not status.dead:
                self._found_alive(place)
                return
            if status.ppid == os.getppid():
                # A zombie of the control plane, which is busy: it has the status, so it is worth waiting.
                place.grace = self._runner.loop.call_in(_GRACE_S, lambda: self._nobody_knows(place))
                return
        self.ended(place, None)

    def _found_alive(self, place: Place) -> None:
        """Only the descriptor to hold it by had been missing; it is tried for until there is one."""
        assert place.pid is not None
        try:
            held = self.hold(place)
        except OSError:
            held = False
        else:
            if not held and procfs.stat(place.pid) is None:
                self.ended(place, None)  # what has the number now, and is hidden, is not the one
                return
        if held:
            place.asking = False
            self.resume(place)
        else:
            place.grace = self._runner.loop.call_in(_GRACE_S, lambda: self._nobody_knows(place))

    def ended(self, place: Place, status: int | None) -> None:
        """The place's process has ended with this wait status; None where nobody can say."""
        pid = place.pid
        assert pid is not None
        self._runner.family.accounted_for(pid, place.start)
        self._runner.family.look_again()
        self.let_go(place)
        place.asking = False
        self.reap_later(place)
        if place.phase is Phase.SPAWNING and not self._runner.spawning.was_executed(place, status):
            return
        self._runner.captures.drain(place.number)
        uptime_s = self._runner.loop.now() - (place.up_at or self._runner.loop.now())
        code, by_signal = (None, None) if status is None else children.exit_of(status)
        place.exit_code, place.exit_signal = code, by_signal
        place.exit_unknown = status is None
        self._runner.memory.ended(place, by_signal)
        place.pid = place.start = place.up_at = None
        self._runner.touch(place)
        # What was ended for its memory has failed, whatever ends the definition calls normal.
        expected = self._runner.spec.is_normal(code, by_signal) and not place.over
        if status is None:
            self._runner.notice(place, "process.unknown_exit", pid=pid, uptime=round(uptime_s, 3))
        else:
            self._runner.notice(
                place,
                "process.exited",
                pid=pid,
                exitCode=code,
                signal=by_signal,
                uptime=round(uptime_s, 3),
                expected=expected,
            )
        if place.phase is Phase.STOPPING:
            place.ended = True
            self._runner.signalling.check(place)
            return
        self._runner.signalling.left_behind(place)
        self._runner.feed(place, Exited(expected, uptime_s, random.random()))

    def reap_later(self, place: Place) -> None:
        """What was the place's process is to be reaped, if it is ours to reap, after the next record."""
        if place.own_child and place.pid is not None:
            self.to_reap.append(place.pid)
        place.own_child = False

    def reap(self) -> None:
        """Only after the record was written: until then the kernel keeps the status for a replacement."""
        for pid in self.to_reap:
            # One that reported a failure may still be on its way out; SIGCHLD brings it back here.
            children.reap(pid)
        self.to_reap.clear()

    def collect_orphans(self) -> None:
        """Reap what was re-parented to us, and notice children whose pidfd could not be had."""
        pid = children.peek_any()
        if pid is None:
            return
        by_pid = {
            place.pid: place
            for place in self._runner.places.values()
            if place.own_child and place.pid is not None
        }
        unreaped = set(self.to_reap)
        while pid is not None:
            if pid in by_pid:
                # Where one has ended others may have too: all are looked at for one record.
                for number, place in by_pid.items():
                    status = children.peek(number)
                    if status is not None:
                        self.ended(place, status)
                return  # reaped after the next record; the rest is collected then
            if pid in unreaped:
                return
            children.reap(pid)
            pid = children.peek_any()


def is_unseen_one(place: Place, held: int) -> bool:
    """Whether a process that /proc does not show (hidepid) is the place's, which ``held`` is a pidfd of.

    Our own child's number is its own until we reap it. Another one leads the session that is recorded and has a
    parent that orphans have, as far as the kernel tells (6.13): else it is somebody else's.
    """
    assert place.pid is not None
    if place.own_child:
        return True
    try:
        session = os.getsid(place.pid)
    except (ProcessLookupError, PermissionError):
        return False
    parent = syscalls.pidfd_parent(held)
    return session == place.session and (parent is None or may_inherit(parent))
