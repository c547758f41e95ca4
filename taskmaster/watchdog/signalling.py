"""Signals to everything that a process has started, until nothing of it is left.

A process that is being stopped counts as gone when all that belongs to it is gone. What has outlived it
is held by a pidfd, so that the end of each is an event; then one looks again, since it may have forked
meanwhile, and what is new gets the same signal as the rest.
"""

from __future__ import annotations

import errno
import os
import signal
from typing import TYPE_CHECKING, Final

from taskmaster import procfs
from taskmaster.core.events import Exited
from taskmaster.core.lifecycle import IDLE, Phase
from taskmaster.core.states import Desired
from taskmaster.eventloop import Watch
from taskmaster.procfs import ProcStat
from taskmaster.watchdog import process
from taskmaster.watchdog.place import Place

if TYPE_CHECKING:
    from taskmaster.watchdog.runner import Runner

#: The host is short of something: what needs it is tried again.
SHORT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
#: Where no descriptor can be had to be told of an end, one looks again after this many seconds.
_LOOK_AGAIN_S: Final = 1.0


class Signalling:
    """Sends the signals of one job."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._watched: dict[int, tuple[int, Watch]] = {}
        self._signalled: set[tuple[int, int, int]] = set()

    def stop(self, place: Place) -> None:
        """The stop signal to all that belongs to the place."""
        spec = self._runner.spec
        place.killing = False
        self._runner.notice(
            place,
            "process.stopping",
            pid=place.pid,
            signal=spec.stop_signal,
            stopTime=spec.stop_time_s,
        )
        self._send_to_all(place, spec.stop_signal)
        self._look_later(place)

    def kill(self, place: Place, reason: str) -> None:
        """SIGKILL to all that belongs to the place."""
        if not place.killing:
            place.killing = True
            self._runner.notice(place, "process.killed", pid=place.pid, reason=reason)
        self._send_to_all(place, signal.SIGKILL)
        self._look_later(place)

    def _send_to_all(self, place: Place, number: int) -> None:
        try:
            members = self.of(place)
        except OSError as error:
            if error.errno not in SHORT:
                raise
            # /proc cannot be read for want of a descriptor; the one that is held already still serves.
            self._send_held(place, number)
            return
        self._send_to(members, number)

    def _send_held(self, place: Place, number: int) -> None:
        if place.held >= 0:
            try:
                signal.pidfd_send_signal(place.held, number)
                if number != signal.SIGKILL:
                    signal.pidfd_send_signal(place.held, signal.SIGCONT)
            except (ProcessLookupError, PermissionError):
                pass  # its end is seen by the same descriptor

    def _look_later(self, place: Place) -> None:
        """Where there is no process whose end would be an event, see what else is left."""
        if place.pid is None and place.phase is Phase.STOPPING:
            place.ended = True
            self._runner.loop.call_in(0, lambda: self.check(place))

    def of(self, place: Place) -> list[ProcStat]:
        """All that lives and belongs to the place, its process included.

        What can be attributed to no place belongs to the last one that goes.
        """
        places = self._runner.places.values()
        members = self._runner.family.members(places)
        found = members.get(place.number, [])
        others_stay = any(
            other.phase not in IDLE and other.process.desired is Desired.UP
            for other in places
            if other is not place
        )
        if not others_stay:
            found = found + members.get(None, [])
        return found

    def check(self, place: Place) -> None:
        """Whether anything is left of a process that has ended while it was being stopped."""
        if place.phase is not Phase.STOPPING or not place.ended:
            return
        try:
            left = self._left(place)
        except OSError as error:
            if error.errno not in SHORT:
                raise
            self._runner.loop.call_in(_LOOK_AGAIN_S, lambda: self.check(place))
            return
        if not left:
            self._finish(place)
            return
        self._send_to(left, signal.SIGKILL if place.killing else self._runner.spec.stop_signal)
        self._watch(place, left)

    def _finish(self, place: Place) -> None:
        place.ended, place.session, place.left = False, None, 0
        self._signalled.clear()
        self._runner.feed(place, Exited(True, 0.0))

    def _left(self, place: Place) -> list[ProcStat]:
        """What is left of a process that has ended. Raises OSError where /proc cannot be read."""
        runner = self._runner
        if runner.family.orphans(runner.places.values(), runner.endings.to_reap):
            return self.of(place)
        return []

    def left_behind(self, place: Place) -> int:
        """How many processes an ended one has left behind; their ends are noticed.

        0, too, where that cannot be seen for want of a descriptor: the next start looks again.
        """
        try:
            left = self._left(place)
        except OSError as error:
            if error.errno not in SHORT:
                raise
            return 0
        if left:
            self._watch(place, left)
        else:
            place.session = None
        return len(left)

    def cleared(self, place: Place) -> bool:
        """Whether nothing of its predecessor is left where a process is to be started.

        What there is gets SIGKILL: a worker that outlives its server still has the port, and two of a
        kind must never run in one place. Raises OSError where that cannot be seen.
        """
        left = self._left(place)
        if not left:
            place.session = None
            return True
        if not place.killing:
            place.killing = True
            pids = ", ".join(str(one.pid) for one in left[:8])
            place.error = f"waiting for the end of what its predecessor left behind: pid {pids}"
            self._runner.notice(
                place,
                "process.killed",
                pid=left[0].pid,
                reason=f"left behind by the process before: pid {pids}",
            )
        self._send_to(left, signal.SIGKILL)
        self._watch(place, left)
        return False

    def _send_to(self, members: list[ProcStat], number: int) -> None:
        for one in members:
            key = (one.pid, one.start, number)
            if key in self._signalled and number != signal.SIGKILL:
                continue
            self._signalled.add(key)
            try:
                process.send(one.pid, one.start, number)
                if number != signal.SIGKILL:
                    # A stopped process takes no signal until it is continued.
                    process.send(one.pid, one.start, signal.SIGCONT)
            except PermissionError:
                pass  # it became somebody else's; it stays in sight, and the state says STOPPING

    def _watch(self, place: Place, members: list[ProcStat]) -> None:
        loop = self._runner.loop
        for one in members:
            if one.pid in self._watched:
                continue
            try:
                held = os.pidfd_open(one.pid)
            except ProcessLookupError:
                loop.call_in(0, lambda: self._look(place))
                continue
            except OSError:
                loop.call_in(_LOOK_AGAIN_S, lambda: self._look(place))
                continue
            status = procfs.stat(one.pid)
            if status is None or status.start != one.start:
                os.close(held)
                loop.call_in(0, lambda: self._look(place))
                continue

            def ended(pid: int = one.pid) -> None:
                held, watch = self._watched.pop(pid)
                loop.unwatch(watch)
                os.close(held)
                self._look(place)

            self._watched[one.pid] = (held, loop.watch(held, ended))

    def _look(self, place: Place) -> None:
        """One of those left behind has ended."""
        if place.phase is Phase.STOPPING:
            self.check(place)
        elif place.phase is Phase.SPAWNING:
            self._runner.mark_dirty()
        elif place.left:
            place.left = self.left_behind(place)
            self._runner.touch(place)
