"""``memoryMax``: what a process and everything it has started may have in RAM, kept or watched.

Where a cgroup is delegated the kernel keeps it (``cgroup.py``) and this only tells afterwards what happened.
Elsewhere one looks: a timer that runs as long as a process does whose job has the key. What is over is
written down first and killed in the next turn, so that the reason outlives this watchdog.
"""

from __future__ import annotations

import errno
import os
import signal
from typing import TYPE_CHECKING, Final

from taskmaster import procinside
from taskmaster.core.lifecycle import ALIVE
from taskmaster.eventloop import Timer
from taskmaster.watchdog import cgroup
from taskmaster.watchdog.place import Place
from taskmaster.watchdog.signalling import SHORT

if TYPE_CHECKING:
    from taskmaster.watchdog.runner import Runner

#: How often one looks, seconds. To find a family and read its sizes takes 0.1 ms a process (measured).
LOOK_S: Final = 1.0
#: After an adoption all of /proc is searched for orphans with the tenth look; it costs 10 us a process.
_THOROUGH: Final = 10
CGROUP: Final = "cgroup"
WATCHING: Final = "watching"
#: What is published changes by at least this part of the limit: it need not wake anybody for less.
_WORTH_TELLING: Final = 64
_MIB: Final = 1024 * 1024


class Memory:
    """Keeps the memory of one runner's places within the limit of its definition."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._timer: Timer | None = None
        self._looks = 0
        self._groups: dict[int, cgroup.Group] = {}
        #: What the kernel had killed in a group before it got its present process, where that is not 0.
        self._kills: dict[int, int] = {}
        self._base: str | None = None
        self._asked = False
        #: The limit that the places' groups and what is told of them go by.
        self._limit = runner.spec.memory_max

    # cgroups ------------------------------------------------------------------------------------

    def prepare(self, place: Place) -> str | None:
        """What the place's next process has to enter, if it has to enter anything. Raises OSError."""
        limit = self._runner.spec.memory_max
        if limit is None:
            self._leave(place.number)
            place.memory = place.memory_by = None
            return None
        base = self._delegated()
        if base is None:
            place.memory_by = WATCHING
            return None
        group = cgroup.Group(f"{base}/{self._name(place.number)}")
        group.remove()  # the kernel counts from 0 in a new one
        group.make(limit)
        self._groups[place.number], place.memory_by = group, CGROUP
        self._kills[place.number] = group.kills()
        return group.entrance

    def _delegated(self) -> str | None:
        """Asked once: a watchdog stays where it was born."""
        if not self._asked:
            self._base, self._asked = cgroup.delegated(), True
        return self._base

    def _name(self, number: int) -> str:
        state = os.readlink(f"/proc/self/fd/{self._runner.directory}")
        return cgroup.name(state, self._runner.spec.job, number)

    def resume(self, place: Place) -> None:
        """Go on where a dead watchdog was: its process says which group it is in, and an empty one has a name."""
        if self._runner.spec.memory_max is None:
            return
        name = self._name(place.number)
        try:
            at = None if place.pid is None else cgroup.where(f"/proc/{place.pid}")
            base = self._delegated()
        except OSError as error:
            if error.errno not in SHORT:
                raise
            at = base = None
        folder = at[0] if at is not None else f"{base}/{name}"
        if os.path.basename(folder) != name or not os.path.isdir(folder):
            place.memory_by = WATCHING
            return
        group = cgroup.Group(folder)
        self._groups[place.number], place.memory_by = group, CGROUP

    def _leave(self, number: int) -> None:
        group = self._groups.get(number)
        if group is not None and group.remove():
            del self._groups[number]
            self._kills.pop(number, None)

    def forget(self) -> None:
        """The job is no more."""
        for number in list(self._groups):
            self._leave(number)

    # looking ------------------------------------------------------------------------------------

    def settle(self) -> None:
        """See that one looks, if there is something to look at. Called at the end of each commit."""
        if self._limit != self._runner.spec.memory_max:
            self._change()
        wanted = self._runner.spec.memory_max is not None and any(
            _has_some(place) for place in self._runner.places.values()
        )
        idle = [n for n in self._groups if not self._is_alive(n)] if self._groups else []
        if (wanted or idle) and self._timer is None:
            self._timer = self._runner.loop.call_in(LOOK_S, self._look)
        elif self._timer is not None and not (wanted or idle):
            self._timer.cancel()
            self._timer = None

    def _change(self) -> None:
        """The definition has another limit: what runs goes on under it."""
        self._limit = limit = self._runner.spec.memory_max
        for group in self._groups.values():
            try:
                group.limit(limit)
            except OSError:
                pass  # the group is gone, and so is what was in it
        for place in self._runner.places.values():
            if place.number not in self._groups:
                place.memory_by = None if limit is None else WATCHING
            place.memory = place.memory if limit is not None else None
            place.changed = True

    def _is_alive(self, number: int) -> bool:
        place = self._runner.places.get(number)
        return place is not None and (place.phase in ALIVE or place.left > 0)

    def _look(self) -> None:
        self._timer = None
        self._looks += 1
        for number in list(self._groups):
            if not self._is_alive(number):
                self._leave(number)
        limit = self._runner.spec.memory_max
        if limit is None:
            return
        for place in self._runner.places.values():
            if not _has_some(place):
                continue
            taken = self._taken(place, limit)
            if taken is None:
                continue
            if place.memory is None or abs(taken - place.memory) * _WORTH_TELLING >= limit:
                place.memory, place.changed = taken, True
            if taken > limit and place.number not in self._groups:
                self._exceeded(place, taken, limit)

    def _taken(self, place: Place, limit: int) -> int | None:
        """Bytes in RAM; None where they cannot be read for want of a descriptor."""
        group = self._groups.get(place.number)
        try:
            if group is not None:
                return group.current()
            thorough = self._looks % _THOROUGH == 1
            members = [one.pid for one in self._runner.signalling.of(place, thorough=thorough)]
            taken = sum(procinside.resident(pid) for pid in members)
            if taken > limit:
                # What several of them share was counted for each. The exact number costs a walk through all
                # pages, 40 ms a GB, so only where it decides something.
                taken = sum(procinside.proportional(pid) for pid in members)
        except OSError as error:
            if error.errno not in (*SHORT, errno.ENOENT, errno.ENODEV):
                raise
            return None
        return taken

    def _exceeded(self, place: Place, taken: int, limit: int) -> None:
        if not place.over:  # else it was killed a moment ago, and has not ended yet
            self._tell(place, taken, limit, WATCHING)
        pid = place.pid

        def kill() -> None:
            if place.pid == pid:
                self._runner.signalling.kill(place, place.exit_why)

        # In the next turn: by then this one's record says why.
        self._runner.loop.call_in(0, kill)

    def ended(self, place: Place, by_signal: int | None) -> None:
        """The place's process has ended: was it the kernel, because of the limit?"""
        place.memory = None
        if not place.over:
            place.exit_why = ""
        group, limit = self._groups.get(place.number), self._runner.spec.memory_max
        if group is None or limit is None or by_signal != signal.SIGKILL:
            return
        try:
            killed = group.kills() > self._kills.get(place.number, 0)
        except OSError:
            return  # the group is gone: somebody else has removed it
        if killed:
            self._tell(place, limit, limit, CGROUP)

    def _tell(self, place: Place, taken: int, limit: int, by: str) -> None:
        place.over = True
        place.exit_why = f"memoryMax: {_words(taken)} of {_words(limit)}"
        self._runner.touch(place)
        self._runner.notice(
            place, "process.memory_exceeded", pid=place.pid, memory=taken, max=limit, by=by
        )


def _has_some(place: Place) -> bool:
    """Whether programs of the job run there: its process, or what that has left behind."""
    return (place.pid is not None and place.child is None) or place.left > 0


def _words(size: int) -> str:
    return f"{size // _MIB} MiB" if size % _MIB == 0 else f"{size / _MIB:.1f} MiB"
