"""How much of the audit log one identity may fill: bytes in a bucket that refills with time.

What is logged is chosen by those who are logged, so without this one user decides how long the log
remembers everybody else. The bucket has three marks. A change needs any room at all; a command that changes
nothing leaves a quarter to the changes; in between there is room for the first record of each kind, so that
a flood never hides that something new was tried. It counts and nothing else: what follows from an empty
bucket is decided by ``recording``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from taskmaster.control.access import Rights

#: So many seconds' worth may come at once: 60 KiB of the default, which is seventy commands or so.
BURST_S: Final = 20.0
_DAY_S: Final = 86_400.0
#: A record of the longest reason fits into the smallest bucket.
_LEAST_BURST: Final = 16_384.0
#: What a command caused may have cost more than there was. So much of it is remembered, in buckets.
_DEBT: Final = 5.0
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
        self._level = of.burst
        self._at = of.clock()

    def _now(self) -> float:
        of = self._of
        now = of.clock()
        self._level = min(of.burst, self._level + (now - self._at) * of.rate)
        self._at = now
        return self._level

    def has_room(self) -> bool:
        """Whether a change may be put on record."""
        return self._now() > 0

    def has_room_for_more(self) -> bool:
        """Whether a command that changes nothing may be put on record."""
        return self._now() > self._of.burst / 2

    def has_room_for_a_first(self) -> bool:
        """The same of one whose like was not seen for a while."""
        return self._now() > self._of.burst / 4

    def take(self, size: int) -> None:
        """So many bytes were recorded."""
        self._level = max(self._level - size, -_DEBT * self._of.burst)

    def empty_for_s(self) -> float:
        """How long no change may be recorded, seconds."""
        return max(0.0, -self._now() / self._of.rate)

    def is_full(self) -> bool:
        """Whether it says no more than a new one would."""
        return self._now() >= self._of.burst


class Allotments:
    """The buckets of all identities. ``a_day``: bytes, 0 for no limit; ``clock``: monotonic seconds."""

    def __init__(self, clock: Callable[[], float], a_day: int) -> None:
        self.clock = clock
        self.a_day = a_day
        self.rate = a_day / _DAY_S
        self.burst = max(_LEAST_BURST, self.rate * BURST_S)
        self._known: dict[str, Allotment] = {}

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
