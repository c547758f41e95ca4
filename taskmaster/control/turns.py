"""Who is served next, of those that are not root: in each turn of the loop a few, for a bounded time.

The rule: **a turn ends after TURN_S, whatever waits.** Before it root, the daemon's own user and the watchdogs
have been served, and they are again after it. Of the others the identity comes first that has used least of
late, so somebody who asks now and then is served in the turn in which they ask, however many ask without end.
Within an identity its connections take turns.

Whoever is not served in the turn in which it asked is not watched until it is: bytes wait in the kernel, where
they cost the daemon nothing, and the loop is not woken for what it would not do. Whoever has used up its time
or its commands is waited for with one timer.

Tried and given up: answering what is over the rate (costs more than most commands), counting commands alone (a
pull of a megabyte costs as much as two hundred of ``status``), one queue for all (a hundred identities that ask
without end make the one that does not wait for all of them).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from typing import Final, Protocol

from taskmaster.control.shares import Share
from taskmaster.eventloop import Timer

#: How long all of them together are served in one turn of the loop, seconds; the last command that is begun in it
#: may take longer.
TURN_S: Final = 0.002
#: How long one connection is, seconds.
SLICE_S: Final = 0.001
#: Timers for what is earned are this far apart, seconds.
_APART_S: Final = 0.005


class Wish(enum.Enum):
    """What a guest waits for when it has been served."""

    NOTHING = "the next event"
    TURN = "another turn"
    COMMANDS = "commands that it may send"
    ROOM = "that something of its identity is answered or sent"


class Guest(Protocol):
    """A connection that is served in turns."""

    share: Share | None

    @property
    def is_open(self) -> bool:
        """Whether it is still there."""

    @property
    def wish(self) -> Wish:
        """What it waits for, now that it was served and answered."""

    def serve(self, until: float) -> None:
        """Do what there is to do, until this time at most."""

    def rest(self, resting: bool) -> None:
        """Watch the connection no more, or again."""


class Turns:
    """The turns of all guests. ``arm``: the loop's ``call_in``."""

    def __init__(
        self, clock: Callable[[], float], arm: Callable[[float, Callable[[], None]], Timer]
    ) -> None:
        self._clock = clock
        self._arm = arm
        #: Shares with guests that wait to be served, and with guests that have no commands left.
        self.waiting: dict[Share, None] = {}
        self._thirsty: dict[Share, None] = {}
        self._fresh: list[Guest] = []
        self._resting: set[Guest] = set()
        self._timer: Timer | None = None
        #: Whom is being served.
        self.serving: Guest | None = None

    def enter(self, guest: Guest) -> None:
        """There is something to do for this guest."""
        share = guest.share
        assert share is not None
        if guest in share.waiting:
            return
        share.thirsty.pop(guest, None)
        share.crowded.pop(guest, None)
        share.waiting[guest] = None
        self.waiting[share] = None
        if guest not in self._resting:
            self._fresh.append(guest)

    def leave(self, guest: Guest) -> None:
        """It is over."""
        share = guest.share
        assert share is not None
        for places in (share.waiting, share.thirsty, share.crowded):
            places.pop(guest, None)
        self._resting.discard(guest)
        if share.last is guest:
            share.last = None
        self._tidy(share)

    def readmit(self, share: Share) -> None:
        """There is room again: those that waited for it have their turn."""
        for guest in list(share.crowded):
            self.enter(guest)

    def serve(self, answer: Callable[[], None], *, is_last: bool = False) -> None:
        """Serve guests for TURN_S; ``answer`` is called after each, and is part of what it pays for.

        ``is_last``: there is no other turn, and nothing is read any more: serve all there are.
        """
        now = self._clock()
        end = math.inf if is_last else now + TURN_S
        while self.waiting and now < end:
            share = next(iter(self.waiting)) if is_last else self._next(now)
            if share is None:
                break
            guest = next(iter(share.waiting))
            del share.waiting[guest]
            self.serving, taken = guest, share.taken
            guest.serve(end if is_last else min(end, now + SLICE_S))
            answer()
            self.serving = None
            after = self._clock()
            share.spend(after - now)
            now = after
            if share.taken != taken:
                share.last = guest
            self._settle(share, guest)
        self._lay_to_rest()
        self._call_again(now)

    def _next(self, now: float) -> Share | None:
        """Whose turn it is: who has used least of late, and of several the first; None where nobody has time."""
        best, least_s = None, 0.0
        for share in self.waiting:
            used_s = share.used_s(now)
            if not share.exhausted and (best is None or used_s < least_s):
                best, least_s = share, used_s
        return best

    def _settle(self, share: Share, guest: Guest) -> None:
        if not guest.is_open:
            self.leave(guest)
            return
        wish = guest.wish
        if guest not in share.waiting:  # else it has entered again meanwhile
            if wish is Wish.TURN:
                share.waiting[guest] = None
            elif wish is Wish.COMMANDS:
                share.thirsty[guest] = None
                self._thirsty[share] = None
            elif wish is Wish.ROOM:
                share.crowded[guest] = None
            elif guest in self._resting:
                self._resting.discard(guest)
                guest.rest(False)
        if wish is not Wish.NOTHING and guest not in self._resting:
            self._fresh.append(guest)
        self._tidy(share)

    def _tidy(self, share: Share) -> None:
        self.waiting.pop(share, None)
        if share.waiting:
            self.waiting[share] = None  # behind those that have as much
        if not share.thirsty:
            self._thirsty.pop(share, None)

    def _lay_to_rest(self) -> None:
        """Those whose turn has not come are not watched until it has."""
        fresh, self._fresh = self._fresh, []
        for guest in fresh:
            share = guest.share
            assert share is not None
            waits = guest in share.waiting or guest in share.thirsty or guest in share.crowded
            if waits and guest not in self._resting:
                self._resting.add(guest)
                guest.rest(True)

    def _call_again(self, now: float) -> None:
        """See to it that there is another turn as soon as somebody may be served in it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wait_s = min((share.time_in_s(now) for share in self.waiting), default=None)
        for share in self._thirsty:
            in_s = share.commands_in_s(now)
            wait_s = in_s if wait_s is None else min(wait_s, in_s)
        if wait_s is not None:
            self._timer = self._arm(max(wait_s, _APART_S) if wait_s else 0.0, self._earned)

    def _earned(self) -> None:
        """Some may have commands again."""
        self._timer = None
        now = self._clock()
        for share in list(self._thirsty):
            if not share.commands_in_s(now):
                # The one that took the last comes last: the first would else take all there are, each time.
                guests = list(share.thirsty)
                if share.last in share.thirsty:
                    behind = guests.index(share.last) + 1
                    guests = guests[behind:] + guests[:behind]
                for guest in guests:
                    self.enter(guest)
                self._tidy(share)
        if self._thirsty and not self.waiting:
            self._call_again(now)
