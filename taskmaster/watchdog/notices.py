"""What a watchdog has to tell for the audit log, kept until the control plane has it on record.

Notices survive the watchdog (they are in its state record) and the control plane (they wait for the
next one), up to a cap: then the oldest make room and are counted in an ``audit.lost`` of their own.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from taskmaster.watchdog.record import NoticeRecord
from taskmaster.wire.link import Notice

#: 1000 notices of about 200 bytes: what a job that ends every second leaves in the quarter of an hour that
#: a control plane may be away, in a state record that still takes under a millisecond to write.
KEPT: Final = 1000


class Notices:
    """The notices of one job that nobody has acknowledged, oldest first."""

    def __init__(self, kept: Sequence[NoticeRecord] = (), next_number: int = 1) -> None:
        self._waiting: deque[NoticeRecord] = deque(kept, KEPT)
        self.next_number = next_number
        self._lost = 0
        #: Not yet handed to the link that is up.
        self._unsent = deque(kept, KEPT)

    def add(self, event: str, **fields: Any) -> None:
        """Put one in line; ``event`` and ``fields`` as in the audit log's vocabulary."""
        if len(self._waiting) == KEPT:
            self._lost += 1
        notice = NoticeRecord(self.next_number, event, time.time(), fields)
        self.next_number += 1
        self._waiting.append(notice)
        self._unsent.append(notice)

    def acknowledge(self, through: int) -> bool:
        """Forget those up to this number; whether there were any."""
        before = len(self._waiting)
        while self._waiting and self._waiting[0].number <= through:
            self._waiting.popleft()
        return len(self._waiting) != before

    def send_again(self) -> None:
        """A new control plane is there: it gets all that wait."""
        self._unsent = deque(self._waiting, KEPT)

    def unsent(self) -> list[Notice]:
        """Those that the link has not had yet; afterwards it has."""
        if self._lost:
            lost, self._lost = self._lost, 0
            self.add("audit.lost", count=lost)
        sending = [Notice(one.number, one.event, one.at_s, one.fields) for one in self._unsent]
        self._unsent.clear()
        return sending

    @property
    def all_told(self) -> bool:
        """Whether the control plane has all of them on record."""
        return not self._waiting

    def records(self) -> tuple[NoticeRecord, ...]:
        """All that wait, for the state record."""
        return tuple(self._waiting)
