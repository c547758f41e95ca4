"""How much of the audit log one identity may fill: bytes in a bucket that refills with time.

Clients choose what is logged, so without this one user decides how long the log remembers everybody else. The
bucket has three marks. A change needs any room at all; a command that changes nothing leaves half of the room to
the changes; down to a quarter there is room for the first record of each kind, so that a flood never hides that
something new was tried. It counts and nothing else: ``recording`` decides what follows from an empty bucket.

A bucket grows with the life of the daemon, at the rate that refills it: somebody who was quiet for ten minutes may
restart two hundred jobs at once, and still nobody ever exceeds the rate by more than the first few seconds' worth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from taskmaster.control.access import Rights

#: So many seconds' worth may come at once when the daemon has just started: 60 KiB of the default, which is
#: seventy commands or so.
BURST_S: Final = 20.0
#: And so many once it has run for as long: 1.8 MiB of the default, which is to restart 400 jobs.
LARGEST_BURST_S: Final = 600.0
_DAY_S: Final = 86_400.0
#: A record of the longest reason fits into the smallest bucket.
_LEAST_BURST: Final = 16_384.0
#: What a command caused may have cost more than there was. So much of it is remembered, in seconds' worth: nobody
#: is kept from acting for longer.
_DEBT_S: Final = 100.0
#: Identities that are told apart; what comes beyond shares one bucket.
_REMEMBERED: Final = 256
#: One bucket for all hosts without a certificate: an address of one's own is had for nothing.
_HOSTS: Final = "other hosts"
_OTHERS: Final = "others"


class Allotment:
    """The bucket of one identity, which it is counted under as ``name``."""

    __slots__ = ("_at", "_level", "_of", "name")

    def __init__(self, name: str, of: Allotments) -> None:
        self.name = name
        self._of = of
        self._level = of.room()
        self._at = of.clock()

    def _now(self) -> float:
        of = self._of
        now = of.clock()
        self._level = min(of.room(), self._level + (now - self._at) * of.rate)
        self._at = now
        return self._level

    def has_room(self) -> bool:
        """Whether a change may be put on record."""
        return self._now() > 0

    def has_room_for_more(self) -> bool:
        """Whether a command that changes nothing may be put on record."""
        return self._now() > self._of.room() / 2

    def has_room_for_a_first(self) -> bool:
        """The same of one whose like was not seen for a while."""
        return self._now() > self._of.room() / 4

    def take(self, size: int) -> None:
        """So many bytes were recorded."""
        self._level = max(self._level - size, -_DEBT_S * self._of.rate)

    def empty_for_s(self) -> float:
        """How long no change may be recorded, seconds."""
        return max(0.0, -self._now() / self._of.rate)

    def is_full(self) -> bool:
        """Whether it says no more than a new one would."""
        return self._now() >= self._of.room()


class Allotments:
    """The buckets of all identities. ``a_day``: bytes, 0 for no limit; ``clock``: monotonic seconds."""

    def __init__(self, clock: Callable[[], float], a_day: int) -> None:
        self.clock = clock
        self.a_day = a_day
        self.rate = a_day / _DAY_S
        self._began = clock()
        self._known: dict[str, Allotment] = {}

    def room(self) -> float:
        """What a full bucket holds by now, bytes."""
        grown_s = min(LARGEST_BURST_S, BURST_S + self.clock() - self._began)
        return max(_LEAST_BURST, self.rate * grown_s)

    def of(self, rights: Rights) -> Allotment | None:
        """The bucket of a peer; None for root and the daemon's own user, and where there is no limit."""
        if rights.everything or not self.a_day:
            return None
        name = _HOSTS if rights.identity.startswith("host ") else rights.identity
        found = self._known.get(name)
        if found is None:
            if len(self._known) >= _REMEMBERED:
                self._known = {key: one for key, one in self._known.items() if not one.is_full()}
            if len(self._known) >= _REMEMBERED:
                name = _OTHERS  # one more than are told apart, once
            found = self._known.setdefault(name, Allotment(name, self))
        return found
