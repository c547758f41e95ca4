"""What belongs to a process: everything it has started, wherever that has gone.

A program's children may leave its process group, its session and, by forking twice, its ancestry. But an orphan
is re-parented to the nearest subreaper, which is this watchdog, and this watchdog has one job. So for what was
born under it, ancestry says all: as long as anything of the job lives, this watchdog has a child that is no known
one. Which of the job's places an orphan came from, its session or its mark tells; where both are gone, it belongs
to the job as a whole.

Processes that were adopted from a dead watchdog are not our descendants, and neither are their orphans, which
become children of the control plane or of who reaps after that (``reapers.py``). Only what a process cannot choose
counts there: that it descends from one of ours, or did when it was seen last; its session, as long as that has
its leader or has lost it; the word of the control plane, whose child it is; and of an orphan, where none of these
says anything, the random mark (``marks.py``).

A look is no proof by itself: a process may fork and end while one looks, and its child do the same. The list of
our own children only ever grows at its end, since nobody else reaps them. So what is found dead is remembered, and
one looks again: only where nothing has died since that was read is what was not found not there. Where that does
not come to rest, ``moving`` says so, and nobody may conclude anything.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterable
from typing import Final

from taskmaster import children, procfs, procinside
from taskmaster.procfs import ProcStat, Standing
from taskmaster.watchdog.marks import Marks
from taskmaster.watchdog.place import Place
from taskmaster.watchdog.reapers import Reapers, may_inherit

#: Looks that one question may take until nothing dies any more while it is looked.
_LOOKS: Final = 4
#: So many questions in a row may stay open because of processes of the host that nobody can attribute.
_PATIENCE: Final = 64

#: Members by the number of their place; None: of the job, and nobody can say of which place.
Members = dict[int | None, list[ProcStat]]


class _Look:
    """One look: what was found, and which places have something that may just have moved on."""

    def __init__(self, places: list[Place]) -> None:
        self.places = places
        self.sessions = {one.session: one.number for one in places if one.session is not None}
        self.mains = {one.pid: one for one in places if one.pid is not None}
        self.found: Members = {}
        self.seen: set[int] = set()
        self.dead: set[int] = set()
        self.moving: set[int | None] = set()
        self.reapers: set[int] = set()
        #: Something went that was a child of who inherits our orphans, and might have been one.
        self.doubtful = False

    @property
    def at_rest(self) -> bool:
        """Whether what was not found is not there, as far as anybody would conclude that."""
        return (self.moving | {None} if self.doubtful else self.moving) <= self.found.keys()

    def is_orphan(self, status: ProcStat) -> bool:
        """Whether its parent is one of those that inherit orphans."""
        return status.ppid in self.reapers or may_inherit(status.ppid)

    def take(self, status: ProcStat, number: int | None) -> None:
        """A member."""
        self.seen.add(status.pid)
        self.found.setdefault(number, []).append(status)


class Family:
    """The processes of one job. ``instance`` marks them in their environment."""

    def __init__(self, instance: str) -> None:
        self._marks = Marks(instance)
        self._reapers = Reapers()
        #: Whether processes of this job may be children of somebody else.
        self.has_strangers = False
        #: What dead watchdogs had and left to the control plane, by pid and start time. Here it needs no mark:
        #: its environment may be erased and its session its own.
        self.inherited: list[tuple[int, int]] = []
        #: What the control plane has told of last. Where one of these has ended, it tells of what that has left.
        self._told: frozenset[tuple[int, int]] = frozenset()
        #: What bears this job's mark and is another job's, as the control plane knows, by pid and start time.
        self.denied: frozenset[tuple[int, int]] = frozenset()
        #: Places of which something moved on while one looked, as far as one can tell: None, of any of them.
        self.moving: frozenset[int | None] = frozenset()
        self._known: dict[tuple[int, int], int | None] = {}
        self._orphans: dict[int, int] = {}
        self._seen: dict[bool, Members] = {}
        self._doubts = 0

    def look_again(self) -> None:
        """What was seen is old now. One look at all of /proc serves everything that a turn asks."""
        self._seen.clear()

    def told(self, processes: tuple[tuple[int, int], ...], most: int) -> None:
        """The control plane says what it has inherited of this job: all that there is now."""
        old, self._told = self._told, frozenset(processes)
        if not self._told <= old:
            self._doubts = 0
        before = (one for one in self.inherited if one not in old)
        self.inherited = list(dict.fromkeys((*before, *processes)))[-most:]
        self.has_strangers = True
        self.look_again()

    def accounted_for(self, pid: int, start: int | None) -> None:
        """A place's process has ended, and how is known: what it has left is looked for as that of any other."""
        self._told = frozenset(one for one in self._told if one != (pid, start))

    def greeted(self) -> None:
        """Another control plane, which has told of nothing yet: it may have inherited nothing."""
        self._told = frozenset()

    def orphans(self, places: Iterable[Place], dead: Iterable[int]) -> bool:
        """Whether anything may live beside the processes themselves and what descends from them. Cheap.

        ``dead``: children that have ended and wait to be reaped.
        """
        if self.has_strangers:
            return True
        known = {place.pid for place in places} | set(dead)
        found = any(child not in known for child in procfs.children(os.getpid()))
        if not found:
            self.moving = frozenset()
        return found

    def members(self, places: Iterable[Place], *, thorough: bool = True) -> Members:
        """Everything that lives of this job, each process's own pid included.

        Where not ``thorough``, of what is not our child's only what was known before. The number of a session
        stays taken while it has members, so a place may only keep its ``session`` as long as it has some: else the
        number could be somebody else's by now.
        """
        for kind in (True, thorough):
            if kind in self._seen:
                return self._seen[kind]
        every = list(places)
        dead: set[int] = set()
        for _ in range(_LOOKS):
            look = _Look(every)
            look.dead = dead
            self._look(look, thorough)
            if look.at_rest:
                break
        self._conclude(look)
        self._seen[thorough] = look.found
        return look.found

    def is_ours(self, status: ProcStat, pipes: Container[str]) -> bool:
        """Whether a process that a record names may be this job's: more must speak for it than the record.

        The mark in its environment, a standard output or error that leads to one of ``pipes``, or a parent that
        only orphans have. (A program may erase its environment and redirect its output, as PostgreSQL does;
        whoever writes records in our name could signal a process of init's himself.)
        """
        return (
            may_inherit(status.ppid)
            or self._marks.borne_by(status)[0]
            or any(end in pipes for end in procinside.outputs(status.pid))
        )

    def own_orphans(self, places: Iterable[Place]) -> list[tuple[int, int]]:
        """Pid and start time of our children that are no place's process: they outlive this watchdog unmarked."""
        mains = {place.pid for place in places}
        found: dict[int, int] = {}
        for pid in procfs.children(os.getpid()):
            if pid in self._orphans:
                found[pid] = self._orphans[pid]  # a child's number stays its own until we reap it
            elif pid not in mains:
                status = procfs.stat(pid)
                if status is not None and not status.dead:
                    found[pid] = status.start
        self._orphans = found
        return list(found.items())

    # one look -------------------------------------------------------------------------------------

    def _look(self, look: _Look, thorough: bool) -> None:
        for place in look.places:
            if place.pid is not None:
                self._add_main(place, look)
        self._add_own(look)
        if not self.has_strangers:
            return
        mains = len(look.seen)
        self._add_known(look)
        if thorough:
            self._add_strangers(look)
            every = look.places
            if len(look.seen) == mains and all(one.own_child or one.pid is None for one in every):
                self.has_strangers = look.doubtful

    def _conclude(self, look: _Look) -> None:
        self._known = {
            (one.pid, one.start): number for number, some in look.found.items() for one in some
        }
        self._doubts = self._doubts + 1 if look.doubtful else 0
        if look.doubtful and self._doubts <= _PATIENCE:
            look.moving.add(None)
        self.moving = frozenset(look.moving - look.found.keys())

    def _add_main(self, place: Place, look: _Look) -> None:
        assert place.pid is not None
        status = procfs.stat(place.pid)
        if status is None and (place.own_child or place.held >= 0):
            status = _unseen(place.pid)  # held since it was known to be the one
        elif status is None or status.start != place.start:
            return
        if status is not None:
            self._add(status, place.number, look)

    def _add_own(self, look: _Look) -> None:
        """Our children, which nobody but us can reap, and what descends from them."""
        for pid in procfs.children(os.getpid()):
            if pid in look.seen or pid in look.dead or pid in look.mains:
                continue
            status = procfs.stat(pid)
            if status is None and _is_living_child(pid):
                status = _unseen(pid)
            if status is None or status.dead:
                look.dead.add(pid)
                # What it has left to us may be further down the list, or has come since.
                look.moving.add(None if status is None else look.sessions.get(status.session))
                continue
            self._add(status, self._number_of(status, look), look)

    def _number_of(self, status: ProcStat, look: _Look) -> int | None:
        number = look.sessions.get(status.session)
        return self._marks.borne_by(status)[1] if number is None else number

    def _add(self, status: ProcStat, number: int | None, look: _Look) -> None:
        """Add a process and all its descendants."""
        if status.pid in look.seen:
            return
        if not status.dead:
            look.take(status, number)
        for pid in procfs.descendants(status.pid):
            if pid not in look.seen:
                below = procfs.stat(pid)
                if below is None and procfs.exists(pid):
                    below = _unseen(pid)
                if below is not None and not below.dead:
                    look.take(below, number)

    # what is not our child ------------------------------------------------------------------------

    def _add_known(self, look: _Look) -> None:
        """What was ours when it was seen last, and what the control plane has inherited."""
        living = []
        for pid, start in self.inherited:
            status = procfs.stat(pid)
            if status is None and procfs.exists(pid):
                status = _unseen(pid)
            elif status is None or status.start != start or status.dead:
                if (pid, start) in self._told:
                    look.doubtful = True
                    living.append((pid, start))
                continue
            living.append((pid, start))
            if pid not in look.seen:
                self._add(status, self._number_of(status, look), look)
        self.inherited = living
        for (pid, start), number in self._known.items():
            # It may have been taken by its mark, before the control plane told whose it is.
            if pid not in look.seen and (pid, start) not in self.denied:
                status = procfs.stat(pid)
                if status is not None and status.start == start and not status.dead:
                    self._add(status, number, look)

    def _add_strangers(self, look: _Look) -> None:
        """Orphans of adopted processes: first those that have just become that, the newest of them first."""
        self._reapers.learn(
            one.ppid
            for some in look.found.values()
            for one in some
            if one.ppid and one.ppid not in look.seen
        )
        look.reapers = self._reapers.pids()
        for reaper in look.reapers:
            for pid in reversed(procfs.children(reaper)):
                if (
                    pid not in look.seen
                    and pid not in look.dead
                    and not self._add_stranger(pid, look)
                ):
                    look.dead.add(pid)
                    look.doubtful = True
        everyone = procfs.everyone()
        for pid in everyone:
            if pid not in look.seen and pid not in look.dead:
                self._add_stranger(pid, look)
        self._marks.forget_all_but(set(everyone))

    def _add_stranger(self, pid: int, look: _Look) -> bool:
        """Add a process, if it is one of ours; whether it lives, or is not to be seen."""
        status = procfs.stat(pid)
        if status is None:
            return procfs.exists(pid)
        if status.dead:
            return False
        if pid == os.getpid():
            return True
        number = look.sessions.get(status.session)
        if number is None or not self._is_session(status.session, look):
            # Where no session tells, only the mark makes an orphan the job's. One with a parent of its own would
            # have been found with that; and who may read the mark of this job may have copied it.
            if (pid, status.start) in self.denied or not look.is_orphan(status):
                return True
            ours, number = self._marks.borne_by(status)
            if not ours:
                return True
        self._add(status, number, look)
        return True

    def _is_session(self, session: int, look: _Look) -> bool:
        """Whether the session is the place's: a living leader that is none of ours has got the number of one."""
        return session in look.seen or procfs.standing(session) in (Standing.GONE, Standing.DEAD)


def _unseen(pid: int) -> ProcStat:
    """What can be said of a process that lives, and that /proc does not show."""
    try:
        return ProcStat(pid, "?", 0, os.getpgid(pid), os.getsid(pid), 0)
    except ProcessLookupError:
        return ProcStat(pid, "X", 0, 0, 0, 0)


def _is_living_child(pid: int) -> bool:
    try:
        return children.peek(pid) is None
    except ChildProcessError:
        return False
