"""What was done to a log, told from the first line that does not follow and from what comes behind it.

A line that does not follow may itself be wrong, or in the wrong place, or the one before it is, or what
belongs between them is gone. Which of these it is shows further on: whether the record that was to come
stands there after all, whether this one stands there once more, and to which record the next is linked.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from taskmaster.evidence.chain import Link


class Kind(str, enum.Enum):
    """What was done."""

    CHANGED = "changed"
    REMOVED = "removed"
    INSERTED = "inserted"
    REORDERED = "reordered"
    CUT = "cut"
    REWRITTEN = "rewritten"


class Place(NamedTuple):
    """A line of a file; lines are counted from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file} line {self.line}"


class Finding(NamedTuple):
    """The first thing that is wrong: with which record (None: no line has a number), where, in words."""

    kind: Kind
    seq: int | None
    place: Place
    text: str


class Standing(NamedTuple):
    """A record and where it stands."""

    link: Link
    place: Place


class Anomaly:
    """The first line that does not follow: ``link`` is None where it is no record.

    ``last``: the record before it, None if it is the first. Feed it all lines behind with ``look``, then ask
    for the ``finding``.
    """

    def __init__(self, last: Standing | None, link: Link | None, place: Place) -> None:
        self._last = last
        self._link = link
        self._place = place
        self._next: Link | None = None
        #: Where the record stands that was to come here, and where this one's number comes again.
        self._expected_at: Place | None = None
        self._again_at: Place | None = None

    def look(self, link: Link | None, place: Place) -> None:
        """The next line behind it; ``link`` is None where that is no record."""
        if link is None or not link.intact:
            return
        if self._next is None:
            self._next = link
        last, mine = self._last, self._link
        if last is not None and link.prev == last.link.hash and link.seq == last.link.seq + 1:
            self._expected_at = self._expected_at or place
        if mine is not None and link.seq == mine.seq:
            self._again_at = self._again_at or place

    def finding(self) -> Finding:
        """What was done, as far as it can be told."""
        link, last = self._link, self._last
        if last is None:
            return self._of_the_first()
        if link is None or not link.intact:
            return self._of_a_broken_line(last.link)
        if self._expected_at is not None:
            return self._of_a_line_too_early(last.link, link)
        return self._of_a_gap(last, link)

    def _of_the_first(self) -> Finding:
        if self._link is not None:
            return self._changed(self._link.seq)
        if self._next is not None and self._next.seq <= 1:
            return self._inserted(
                None, "a line that is no record was inserted before the first record"
            )
        return self._changed(None if self._next is None else self._next.seq - 1)

    def _of_a_broken_line(self, last: Link) -> Finding:
        if self._expected_at is None:
            if self._link is None and self._next is None:
                return self._inserted(
                    None, f"a line that is no record stands after record {last.seq}"
                )
            return self._changed(last.seq + 1)
        what = "a line that is no record" if self._link is None else "a line with a wrong hash"
        return self._inserted(
            None if self._link is None else self._link.seq,
            f"{what} was inserted between record {last.seq} and record {last.seq + 1}",
        )

    def _of_a_line_too_early(self, last: Link, link: Link) -> Finding:
        wanted = last.seq + 1
        if link.seq > wanted and self._again_at is None:
            return Finding(
                Kind.REORDERED,
                link.seq,
                self._place,
                f"records were reordered: after record {last.seq} comes record {link.seq}, where record "
                f"{wanted} belongs, and that stands at {self._expected_at}",
            )
        return self._inserted(
            link.seq,
            f"a record that calls itself {link.seq} was inserted between record {last.seq} and "
            f"record {wanted}",
        )

    def _of_a_gap(self, last: Standing, link: Link) -> Finding:
        before, wanted = last.link, last.link.seq + 1
        confirmed = self._next is not None and self._next.prev == link.hash
        if link.seq > wanted and link.prev != before.hash:
            gone = f"record {wanted} was" if link.seq == wanted + 1 else None
            gone = gone or f"records {wanted} to {link.seq - 1} were"
            return Finding(
                Kind.REMOVED,
                wanted,
                self._place,
                f"{gone} removed: record {link.seq} stands where record {wanted} belongs",
            )
        if link.seq == before.seq and confirmed:
            return Finding(
                Kind.INSERTED,
                before.seq,
                last.place,
                f"a record that calls itself {before.seq} was inserted: the true one stands behind it, at "
                f"{self._place}",
            )
        if link.seq == wanted and link.prev != before.hash and (confirmed or self._next is None):
            return Finding(
                Kind.CHANGED,
                before.seq,
                last.place,
                f"record {before.seq} was changed, and its hash made to fit: record {link.seq} holds another "
                "hash for it",
            )
        if link.seq < wanted:
            return self._inserted(
                link.seq,
                f"a record that calls itself {link.seq} was inserted after record {before.seq}",
            )
        return Finding(
            Kind.CHANGED,
            wanted,
            self._place,
            f"record {wanted} was changed, and its hash made to fit: it does not follow from record "
            f"{before.seq}",
        )

    def _changed(self, seq: int | None) -> Finding:
        which = "a record" if seq is None else f"record {seq}"
        if self._link is None:
            why = "the line is no record any more"
        elif not self._link.hash:
            why = "its hash is none any more, or was taken away"
        elif self._link.seq != seq:
            why = f"it calls itself {self._link.seq}, and its hash is not that of its content"
        else:
            why = "its hash is not that of its content"
        return Finding(Kind.CHANGED, seq, self._place, f"{which} was changed: {why}")

    def _inserted(self, seq: int | None, text: str) -> Finding:
        return Finding(Kind.INSERTED, seq, self._place, text)
