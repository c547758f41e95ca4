"""Signals to everything that a process has started, until nothing of it is left.

A stop goes like this. It begins with the main process (or with everything, ``stopTo``), since many a program
ends its children in an order of its own, and waits for work that they have in hand. Once the main process has
ended, whatever is left gets the stop signal: once each, however often one looks, and what is forked meanwhile
gets it too. What it is and who has had it is in the state record, so that a replacement signals nobody twice.
At the deadline of the stop (the table arms it) everything gets SIGKILL.

The process counts as gone when all that belongs to it is gone. What has outlived it is held by a pidfd, so
that the end of each is an event; then one looks again. The same is done with what an end has left behind where
the next process is to be started: the table calls that CLEARING. Where a look finds nothing because what there
was moved on meanwhile (``family.py``), nothing is concluded: one looks again, at a distance (``pace.py``).
"""

from __future__ import annotations

import errno
import functools
import os
import signal
from typing import TYPE_CHECKING, Final

from taskmaster import procfs
from taskmaster.core.events import Exited
from taskmaster.core.lifecycle import Phase
from taskmaster.core.spec import StopTo
from taskmaster.core.states import Desired
from taskmaster.eventloop import Watch
from taskmaster.procfs import ProcStat
from taskmaster.watchdog import pace, process
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
#: So often in one turn what is new gets SIGKILL, to be quicker than what forks and ends.
_ROUNDS: Final = 6
#: But not once this many seconds of the turn are over.
_ROUNDS_S: Final = 0.005
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
        self._killed: set[tuple[int, int]] = set()

    # a stop ---------------------------------------------------------------------------------------

    def begin(self, place: Place) -> None:
        """Begin a stop: the stop signal to the main process, or to all that belongs to the place."""
        spec = self._runner.spec
        place.killing, place.stop_signal, place.refused = False, spec.stop_signal, ""
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
                    self._send(place, one, signal.SIGCONT)
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
        self._kill(place, members)
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
        if not left and not self._is_moving(place):
            self._finish(place)
            return
        self._note(place, left)
        if not place.killing:
            self._ask_rest(place, left)
        self._watch(place, left)
        if self._is_moving(place):
            self._look_soon(place)

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
        place.ended, place.session, place.stop_signal, place.refused = False, None, 0, ""
        place.asked.clear()
        self._note(place, [])
        self._runner.feed(place, Exited(True, 0.0))

    def _look_later(self, place: Place) -> None:
        """Where there is no process whose end would be an event, see what else is left."""
        if place.pid is None and place.phase in _ENDING:
            place.ended = True
            self._runner.loop.call_in(0, lambda: self.check(place))

    # what belongs to a place ----------------------------------------------------------------------

    def of(self, place: Place, *, thorough: bool = True) -> list[ProcStat]:
        """All that lives and belongs to the place, its process included.

        What can be attributed to no place may be of any that has a process which stays; where none has one, be it
        that all are stopped, restarted or have crashed, it belongs to each that goes.
        """
        members = self._runner.family.members(self._runner.places.values(), thorough=thorough)
        found = members.get(place.number, [])
        if self._is_last(place):
            found = found + members.get(None, [])
        return found

    def _is_last(self, place: Place) -> bool:
        return not any(
            _stays(other) for other in self._runner.places.values() if other is not place
        )

    def _is_moving(self, place: Place) -> bool:
        """Whether something of the place may live although the last look did not find it."""
        moving = self._runner.family.moving
        return place.number in moving or (None in moving and self._is_last(place))

    def _seen(self, place: Place) -> list[ProcStat]:
        """The same; nothing where /proc cannot be read for want of a descriptor."""
        try:
            return self.of(place)
        except OSError as error:
            if error.errno not in SHORT:
                raise
            return []

    def _left(self, place: Place) -> list[ProcStat]:
        """What is left of a process that has ended, which gets SIGKILL at once where that is its turn.

        Nothing is proof of nothing only where it is not moving. Raises OSError where /proc cannot be read.
        """
        runner = self._runner
        if not runner.family.orphans(runner.places.values(), runner.endings.to_reap):
            return []
        left = self.of(place)
        if place.killing and place.phase in _ENDING:
            until = runner.loop.now() + _ROUNDS_S
            for number in range(_ROUNDS):
                fresh = self._kill(place, left, again=number == 0)
                if not fresh and not self._is_moving(place):
                    break
                if runner.loop.now() > until:
                    break
                runner.family.look_again()
                left = self.of(place)
        return left

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
        elif self._is_moving(place):
            self._look_soon(place)
            return 1
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
        if left or self._is_moving(place):
            return False
        place.session = None
        return True

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
            self._ask_one(place, place.pid, place.start, self._signal_of(place))

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
            self._ask_one(place, one.pid, one.start, self._signal_of(place))
        return fresh

    def _ask_one(self, place: Place, pid: int, start: int, number: int) -> None:
        try:
            process.send(pid, start, number)
            # A stopped process takes no signal until it is continued.
            process.send(pid, start, signal.SIGCONT)
        except PermissionError:
            self._refused(place, pid)

    def _kill(self, place: Place, members: list[ProcStat], *, again: bool = True) -> bool:
        """SIGKILL to these, also ``again``; whether any of them had not had it."""
        fresh = {(one.pid, one.start) for one in members} - self._killed
        self._killed |= fresh
        if len(self._killed) > _PRUNE:
            self._killed = {(one.pid, one.start) for one in members}
        for one in members:
            if again or (one.pid, one.start) in fresh:
                self._send(place, one, signal.SIGKILL)
        return bool(fresh)

    def _send(self, place: Place, one: ProcStat, number: int) -> None:
        try:
            process.send(one.pid, one.start, number)
        except PermissionError:
            self._refused(place, one.pid)

    def _refused(self, place: Place, pid: int) -> None:
        """It became somebody else's. It stays in sight, the state says STOPPING, and the status why."""
        user = procfs.user(pid)
        whose = "" if user is None else f", which runs as user {user}"
        words = f"not permitted to signal pid {pid}{whose}"
        if place.refused != words:
            place.refused = words
            self._runner.touch(place)

    def _send_held(self, place: Place, number: int) -> bool:
        """The signal to the main process by the descriptor that is held already; whether there is one."""
        if place.held < 0:
            return False
        try:
            signal.pidfd_send_signal(place.held, number)
            if number != signal.SIGKILL:
                signal.pidfd_send_signal(place.held, signal.SIGCONT)
        except ProcessLookupError:
            pass  # its end is seen by the same descriptor
        except PermissionError:
            assert place.pid is not None
            self._refused(place, place.pid)
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
                self._look_soon(place)
                continue
            except OSError:
                loop.call_in(_LOOK_AGAIN_S, lambda: self.look(place))
                continue
            status = procfs.stat(one.pid)
            if one.start != (0 if status is None else status.start):
                os.close(held)
                self._look_soon(place)
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
                self._look_soon(place)

    def _look_soon(self, place: Place) -> None:
        if place.looking is not None:
            return
        loop = self._runner.loop

        def now() -> None:
            place.looking = None
            self.look(place)

        longest_s = pace.KILLING_S if place.killing else pace.ASKING_S
        place.looking = loop.call_in(place.pace.delay_s(loop.now(), longest_s), now)

    def look(self, place: Place) -> None:
        """See what is left of what an ended process had started."""
        if place.phase in _ENDING:
            self.check(place)
        elif place.left or self._is_moving(place):
            self.left_behind(place)


def _stays(place: Place) -> bool:
    """Whether the place has a process that nobody is ending; what it has started is left alone."""
    if place.process.desired is not Desired.UP:
        return False
    is_being_executed = place.phase is Phase.SPAWNING and place.pid is not None
    return is_being_executed or place.phase in (Phase.STARTING, Phase.RUNNING)


def _named(members: list[ProcStat]) -> str:
    """Pids, as many as fit a sentence."""
    more = f" and {len(members) - _NAMED} more" if len(members) > _NAMED else ""
    return f"pid {', '.join(str(one.pid) for one in members[:_NAMED])}{more}"
