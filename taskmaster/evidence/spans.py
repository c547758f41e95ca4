"""When records say that they were made, and what is odd about it: epochs that are too long, a clock set back.

Neither proves anything: a daemon that was down seals late, and clocks are set. But whoever writes a past of
their own has to fit it in somewhere, so both are named.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_STAMP: Final = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?Z", re.ASCII)
#: A clock that is adjusted, and records that were begun before others and written after them.
_BACK_S: Final = 5.0
#: How late a seal may come beside the seconds that are configured: a busy host, or a tenth.
_LATE_S: Final = 2.0
_LATE_PART: Final = 1.1
#: So many are named; more are counted.
NAMED: Final = 5


def seconds(stamp: str) -> float | None:
    """Seconds since 1970 of a record's time; None where it is no time of this form."""
    match = _STAMP.fullmatch(stamp)
    if match is None:
        return None
    year, month, day, hour, minute, second = (int(match[group]) for group in range(1, 7))
    # Days from civil (Howard Hinnant): years begin in March, so that the leap day is the last.
    year -= month <= 2
    era = year // 400
    of_era = year - era * 400
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    days = era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468
    fraction = int((match[7] or "0").ljust(6, "0")) / 1e6
    return days * 86400 + hour * 3600 + minute * 60 + second + fraction


class Long(NamedTuple):
    """An epoch that spans too long: its number, its first and last record, and how long."""

    epoch: int
    first: int
    last: int
    seconds: float


class Spans:
    """Fed record by record. ``seal_s``: what auditSealSeconds allows; None: no epoch is too long."""

    def __init__(self, seal_s: float | None) -> None:
        self._allowed_s = None if seal_s is None else max(seal_s * _LATE_PART, seal_s + _LATE_S)
        self._first: tuple[int, str] | None = None
        self._last = (0, "")
        #: The first that are too long, and how many there are.
        self.long: list[Long] = []
        self.long_count = 0
        #: How often the clock was set back, and at which record first.
        self.back_count = 0
        self.back_at: int | None = None

    def record(self, seq: int, timestamp: str) -> None:
        """The next record that is no seal."""
        before = self._last[1]
        # Compared as text, which is the same for times of this form and costs nothing.
        if timestamp < before:
            self._look_back(seq, before, timestamp)
        self._last = seq, timestamp
        if self._first is None:
            self._first = self._last

    def _look_back(self, seq: int, before: str, now: str) -> None:
        then_s, now_s = seconds(before), seconds(now)
        if then_s is not None and now_s is not None and then_s - now_s > _BACK_S:
            self.back_count += 1
            if self.back_at is None:
                self.back_at = seq

    def sealed(self, epoch: int) -> None:
        """A seal that was checked ends its epoch."""
        first, self._first = self._first, None
        if first is None or self._allowed_s is None:
            return
        begun_s, ended_s = seconds(first[1]), seconds(self._last[1])
        if begun_s is None or ended_s is None or ended_s - begun_s <= self._allowed_s:
            return
        self.long_count += 1
        if len(self.long) < NAMED:
            self.long.append(Long(epoch, first[0], self._last[0], ended_s - begun_s))
