"""Signals to everything that a process has started, until nothing of it is left.

A stop goes like this. It begins with the main process (or with everything, ``stopTo``), since many a program
ends its children in an order of its own, and waits for work that they have in hand. Once the main process has
ended, whatever is left gets the stop signal: once each, however often one looks, and what is forked meanwhile
gets it too. What it is and who has had it is in the state record, so that a replacement signals nobody twice.
At the deadline of the stop (the table arms it) everything gets SIGKILL.

The process counts as gone when all that belongs to it is gone. What has outlived it is held by a pidfd, so
that the end of each is an event; then one looks again. The same is done with what an end has left behind where
the next process is to be started: the table calls that CLEARING.
"""

from __future__ import annotations

import errno
import functools
import os
import signal
from typing import TYPE_CHECKING, Final

from taskmaster import procfs
from taskmaster.core.events import Exited
from taskmaster.core.lifecycle import IDLE, Phase
from taskmaster.core.spec import StopTo
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
#: Pids that are named where there are more of them.
_NAMED: Final = 8
#: So many that had the stop signal are remembered before the dead among them are forgotten.
_PRUNE: Final = 4096
#: Phases in which all that belongs to a place is on its way out.
_ENDING: Final = (Phase.STOPPING, Phase.CLEARING)


class _Watched:
    """A process whose end is waited for, and the numbers of the places that wait for it."""

    def __init__(self, held: int) -> None:
        self.held = held
        self.watch: Watch
        self.numbers: set[int] = set()


class Signalling:
    """Sends the signals of one job."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._watched: dict[int, _Watched] = {}

    # a stop ---------------------------------------------------------------------------------------

    def begin(self, place: Place) -> None:
        """Begin a stop: the stop signal to the main process, or to all that belongs to the place."""
        spec = self._runner.spec
        place.killing, place.stop_signal = False, spec.stop_signal
        place.asked.clear()
        to_all = place.pid is None or spec.stop_to is StopTo.ALL
        place.rest_told = to_all
        members = self._seen(place)
        left = [] if place.pid is not None else members
        why = {"reason": f"left behind by the process before: {_named(left)}"} if left else {}
        self._runner.notice(
            place,
            "process.stopping",
            pid=left[0].pid if left else place.pid,
            signal=spec.stop_signal,
            stopTime=spec.stop_time_s,
            **why,
        )
        if to_all:
            self._ask(place, members)
        else:
            for one in members:
                if one.pid != place.pid and one.state == "T":
                    # It is waited for by a main process that ends its children itself.
                    self._send(one, signal.SIGCONT)
        self._ask_main(place)
        self._look_later(place)

    def kill(self, place: Place, reason: str) -> None:
        """SIGKILL to all that belongs to the place."""
        members = self._seen(place)
        if not place.killing and (members or place.pid is not None):
            place.killing = True
            pid = members[0].pid if place.pid is None else place.pid
            if place.pid is None:
                reason = f"{reason}; left behind: {_named(members)}"
            self._runner.notice(place, "process.killed", pid=pid, reason=reason)
        place.killing = True
        self._kill(members)
        if not members:
            self._send_held(place, signal.SIGKILL)
        self._look_later(place)

    def check(self, place: Place) -> None:
        """Whether anything is left of a process that has ended while it was being stopped, or before."""
        if place.phase not in _ENDING or not place.ended:
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
        self._note(place, left)
        if place.killing:
            self._kill(left)
        else:
            self._ask_rest(place, left)
        self._watch(place, left)

    def _ask_rest(self, place: Place, left: list[ProcStat]) -> None:
        fresh = self._ask(place, left)
        if fresh and place.phase is Phase.STOPPING and not place.rest_told and place.due_at:
            place.rest_told = True
            self._runner.notice(
                place,
                "process.stopping",
                pid=fresh[0].pid,
                signal=self._signal_of(place),
                stopTime=round(max(0.0, place.due_at - self._runner.loop.now()), 3),
                reason=f"outlived the main process: {_named(fresh)}",
            )

    def _finish(self, place: Place) -> None:
        place.ended, place.session, place.stop_signal = False, None, 0
        place.asked.clear()
        self._note(place, [])
        self._runner.feed(place, Exited(True, 0.0))

    def _look_later(self, place: Place) -> None:
        """Where there is no process whose end would be an event, see what else is left."""
        if place.pid is None and place.phase in _ENDING:
            place.ended = True
            self._runner.loop.call_in(0, lambda: self.check(place))

    # what belongs to a place ----------------------------------------------------------------------

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

    def _seen(self, place: Place) -> list[ProcStat]:
        """The same; nothing where /proc cannot be read for want of a descriptor."""
        try:
            return self.of(place)
        except OSError as error:
            if error.errno not in SHORT:
                raise
            return []

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
        self._note(place, left)
        if left:
            self._watch(place, left)
        else:
            place.session = None
        return len(left)

    def is_clear(self, place: Place) -> bool:
        """Whether nothing of its predecessor is left where a process is to be started.

        A worker that outlives its server still has the port, and two of a kind must never run in one place.
        Raises OSError where that cannot be seen.
        """
        left = self._left(place)
        self._note(place, left)
        if not left:
            place.session = None
        return not left

    def _note(self, place: Place, left: list[ProcStat]) -> None:
        """Have the status say what is left."""
        pids = tuple(one.pid for one in left[:_NAMED])
        if (place.left, place.left_pids) != (len(left), pids):
            place.left, place.left_pids = len(left), pids
            self._runner.touch(place)

    # signals --------------------------------------------------------------------------------------

    def _signal_of(self, place: Place) -> int:
        # 0: the stop was begun by a watchdog that did not record this yet.
        return place.stop_signal or self._runner.spec.stop_signal

    def _ask_main(self, place: Place) -> None:
        """The stop signal to the main process, which is ours, and held, also where /proc cannot be read."""
        if place.pid is None or place.start is None or (place.pid, place.start) in place.asked:
            return
        place.asked.add((place.pid, place.start))
        if not self._send_held(place, self._signal_of(place)):
            self._ask_one(place.pid, place.start, self._signal_of(place))

    def _ask(self, place: Place, members: list[ProcStat]) -> list[ProcStat]:
        """The stop signal to those that have not had it in this stop; these."""
        if len(place.asked) > _PRUNE:
            place.asked &= {(one.pid, one.start) for one in self._seen(place)}
        fresh = []
        for one in members:
            key = (one.pid, one.start)
            # What can be attributed to no place belongs to several of those that go.
            if any(key in other.asked for other in self._runner.places.values()):
                continue
            place.asked.add(key)
            fresh.append(one)
            self._ask_one(one.pid, one.start, self._signal_of(place))
        return fresh

    def _ask_one(self, pid: int, start: int, number: int) -> None:
        try:
            process.send(pid, start, number)
            # A stopped process takes no signal until it is continued.
            process.send(pid, start, signal.SIGCONT)
        except PermissionError:
            pass  # it became somebody else's; it stays in sight, and the state says STOPPING

    def _kill(self, members: list[ProcStat]) -> None:
        for one in members:
            self._send(one, signal.SIGKILL)

    def _send(self, one: ProcStat, number: int) -> None:
        try:
            process.send(one.pid, one.start, number)
        except PermissionError:
            pass  # it became somebody else's; it stays in sight, and the state says STOPPING

    def _send_held(self, place: Place, number: int) -> bool:
        """The signal to the main process by the descriptor that is held already; whether there is one."""
        if place.held < 0:
            return False
        try:
            signal.pidfd_send_signal(place.held, number)
            if number != signal.SIGKILL:
                signal.pidfd_send_signal(place.held, signal.SIGCONT)
        except (ProcessLookupError, PermissionError):
            pass  # its end is seen by the same descriptor
        return True

    # ends -----------------------------------------------------------------------------------------

    def _watch(self, place: Place, members: list[ProcStat]) -> None:
        loop = self._runner.loop
        for one in members:
            known = self._watched.get(one.pid)
            if known is not None:
                known.numbers.add(place.number)
                continue
            try:
                held = os.pidfd_open(one.pid)
            except ProcessLookupError:
                loop.call_in(0, lambda: self.look(place))
                continue
            except OSError:
                loop.call_in(_LOOK_AGAIN_S, lambda: self.look(place))
                continue
            status = procfs.stat(one.pid)
            if status is None or status.start != one.start:
                os.close(held)
                loop.call_in(0, lambda: self.look(place))
                continue
            self._watched[one.pid] = watched = _Watched(held)
            watched.numbers.add(place.number)
            watched.watch = loop.watch(held, functools.partial(self._ended, one.pid))

    def _ended(self, pid: int) -> None:
        """One of those that are watched has ended: whoever waits for that looks again."""
        watched = self._watched.pop(pid)
        self._runner.loop.unwatch(watched.watch)
        os.close(watched.held)
        for number in sorted(watched.numbers):
            place = self._runner.places.get(number)
            if place is not None:
                self.look(place)

    def look(self, place: Place) -> None:
        """See what is left of what an ended process had started."""
        if place.phase in _ENDING:
            self.check(place)
        elif place.left:
            self.left_behind(place)


def _named(members: list[ProcStat]) -> str:
    """Pids, as many as fit a sentence."""
    more = f" and {len(members) - _NAMED} more" if len(members) > _NAMED else ""
    return f"pid {', '.join(str(one.pid) for one in members[:_NAMED])}{more}"
