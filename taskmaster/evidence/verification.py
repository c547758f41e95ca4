"""Whether a log is as it was written: fed line by line, in constant memory.

It stops at the first thing that is wrong; the lines behind that only tell what it is. Every byte is
hostile: whoever may write the log may have written it to mislead this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from taskmaster.evidence.anomaly import Anomaly, Finding, Kind, Place, Standing
from taskmaster.evidence.beginning import Beginning, is_made_with
from taskmaster.evidence.chain import NOTHING, Link, Number, link_of
from taskmaster.evidence.seals import Foreign, Keys, Sealed, decode_seal
from taskmaster.evidence.spans import Spans

SEALED: Final = "audit.sealed"
REPAIRED: Final = "audit.repaired"
#: More epochs than that, one a minute for 19 years, nobody waits for while their keys are computed.
_MAX_EPOCH: Final = 10**7

#: So many keys are told apart; more than one in a log's life is rare already.
_MAX_KEYS: Final = 16


class _Repair(msgspec.Struct):
    bytes: Number = 0
    kept: bool = False
    skippedBytes: Number = 0  # noqa: N815
    resumedAfter: Number | None = None  # noqa: N815


_decode_repair: Final = msgspec.json.Decoder(_Repair).decode


class Verification:
    """``keys``: of the verification keys that there are. ``heads``: hashes that records must have, by number.

    ``seal_s``: how long an epoch may last, seconds; None where that is not known.
    """

    def __init__(
        self, keys: Sequence[Keys], heads: dict[int, str], seal_s: float | None = None
    ) -> None:
        self._keys = {one.name: one for one in keys}
        self._heads = heads
        self._missing = dict(heads)
        self._anomaly: Anomaly | None = None
        self._found: Finding | None = None
        self._damage: Place | None = None
        self._damaged = self._damaged_bytes = 0
        #: The last epoch of each key given.
        self._epochs: dict[str, int] = {}
        #: The first and the last record of the chain.
        self.first: Standing | None = None
        self.last: Standing | None = None
        #: Records before the chain: how many, and number and time of the first and last.
        self.unchained = 0
        self.unchained_first: Link | None = None
        self.unchained_last: Link | None = None
        #: Lines that are no records and that a record tells of.
        self.accounted = 0
        self.sealed: Sealed | None = None
        self.foreign: Foreign | None = None
        #: Seals by the name of their key; and those that the keys given have made, checked, of which keys.
        self.seals: dict[str, int] = {}
        self.checked = 0
        self.proving: set[str] = set()
        self.first_epoch: int | None = None
        #: The last epoch by the name of its key, of all seals, checked or not.
        self.last_epochs: dict[str, int] = {}
        self.spans = Spans(seal_s)
        self._beginning = Beginning(self._keys, _MAX_EPOCH)
        self._looks_at_beginning = bool(keys)

    def feed(self, line: bytes, file: str, number: int, left_out: int = 0) -> None:
        """The next line, with its line end; so many bytes of one too long to be a record were left out."""
        link = link_of(line)
        if self._anomaly is not None:
            self._anomaly.look(link, Place(file, number))
            return
        if self._found is not None:
            return
        last = self.last
        if (
            last is not None
            and link is not None
            and link.intact
            and link.prev == last.link.hash
            and link.seq == last.link.seq + 1
            and not self._damaged
        ):
            self._accept(line, link, Place(file, number))
        else:
            self._doubt(line, link, Place(file, number), left_out)

    def _doubt(self, line: bytes, link: Link | None, place: Place, left_out: int) -> None:
        if link is None:
            self._damage = self._damage or place
            self._damaged += 1
            self._damaged_bytes += len(line) + left_out
            return
        if self._damage is not None and link.event == SEALED and self._follows(link):
            # Made before the daemon was killed, and written by the next one before it tells of the damage.
            self._accept(line, link, place)
        elif self._damage is not None and not (
            self._follows(link) and self._tells_of_it(line, link)
        ):
            self._anomaly = Anomaly(self.last, None, self._damage)
            self._anomaly.look(link, place)
        elif self.last is None and not link.hash and not link.prev:
            self._before_the_chain(link, place)
        elif self.last is None and link.intact and self._begins_badly(link, place):
            return
        elif not self._follows(link):
            self._anomaly = Anomaly(self.last, link, place)
        else:
            self.accounted += self._damaged
            self._damage, self._damaged, self._damaged_bytes = None, 0, 0
            self._accept(line, link, place)

    def _tells_of_it(self, line: bytes, link: Link) -> bool:
        """Whether this record of a repair accounts for the lines before it, to the byte."""
        if link.event != REPAIRED:
            return False
        try:
            repair = _decode_repair(line)
        except msgspec.ValidationError:
            return False
        # A torn line that was kept was given a line end.
        told = repair.skippedBytes + (repair.bytes + 1 if repair.kept else 0)
        if self.last is None and repair.resumedAfter == 0:
            return (
                told <= self._damaged_bytes
            )  # rotated files in which was no record are not counted
        return told == self._damaged_bytes

    def _follows(self, link: Link) -> bool:
        if not link.intact:
            return False
        last = self.last
        if last is not None:
            return link.prev == last.link.hash and link.seq == last.link.seq + 1
        return self.unchained_last is None or link.prev == NOTHING

    def _before_the_chain(self, link: Link, place: Place) -> None:
        if self._skips(link, place):
            return
        self.unchained += 1
        self.unchained_first = self.unchained_first or link
        self.unchained_last = link

    def _skips(self, link: Link, place: Place) -> bool:
        before = self.unchained_last
        if before is None or link.seq == before.seq + 1:
            return False
        if link.seq <= before.seq:
            if link.event == REPAIRED:
                return False  # nothing was found to go on from, which is told
            self._found = Finding(
                Kind.REORDERED,
                link.seq,
                place,
                f"records were reordered: after record {before.seq} comes record {link.seq}",
            )
            return True
        self._found = Finding(
            Kind.REMOVED,
            before.seq + 1,
            place,
            f"record {before.seq + 1} was removed: record {link.seq} stands where it belongs",
        )
        return True

    def _begins_badly(self, link: Link, place: Place) -> bool:
        """Whether the chain's first record shows that those before it should have hashes too."""
        before = self.unchained_last
        if before is None:
            return False
        if link.prev != NOTHING:
            self._found = Finding(
                Kind.CHANGED,
                before.seq,
                place,
                f"record {before.seq} was changed: it has no hash, and record {link.seq} holds one for it",
            )
            return True
        return self._skips(link, place)

    def _accept(self, line: bytes, link: Link, place: Place) -> None:
        if self._heads and link.seq in self._heads:
            self._missing.pop(link.seq, None)
            if self._heads[link.seq] != link.hash:
                self._found = Finding(
                    Kind.REWRITTEN,
                    link.seq,
                    place,
                    f"record {link.seq} is another one than the head names: it, or one before it, was "
                    "changed, and all hashes behind that made anew",
                )
                return
        if self._looks_at_beginning:
            self._beginning.look(line, link)
        if link.event == SEALED:
            self._seal(line, link, place)
            if self._found is not None:
                return
        else:
            self.spans.record(link.seq, link.timestamp)
        self.last = Standing(link, place)
        if self.first is None:
            self.first = self.last

    def _begins_at(self, link: Link) -> int:
        """Number of the log's first record, which may be this one."""
        begin = self.unchained_first or (link if self.first is None else self.first.link)
        return begin.seq

    # seals ------------------------------------------------------------------------------------------

    def _seal(self, line: bytes, link: Link, place: Place) -> None:
        last = self.last
        try:
            seal = decode_seal(line)
        except msgspec.ValidationError:
            self._bad_seal(link, place, "what it says is no seal")
            return
        name = seal.key if len(self.seals) < _MAX_KEYS or seal.key in self.seals else "others"
        self.seals[name] = self.seals.get(name, 0) + 1
        self.last_epochs[name] = seal.epoch
        covers = (seal.sealedSeq, seal.sealedHash)
        if last is not None and covers != (last.link.seq, last.link.hash):
            if seal.sealedSeq > last.link.seq:
                self._found = Finding(
                    Kind.CUT,
                    last.link.seq + 1,
                    place,
                    f"records {last.link.seq + 1} to {seal.sealedSeq} were cut off: the seal says that they "
                    "were there",
                )
            else:
                self._bad_seal(link, place, "it is over another record than the one before it")
            return
        if not self._keys:
            return
        keys = self._keys.get(seal.key)
        if keys is None:
            self.foreign = self.foreign or Foreign(link.seq, link.timestamp, seal.key)
            return
        before = self._epochs.get(seal.key)
        if seal.epoch > _MAX_EPOCH:
            self._bad_seal(link, place, f"its epoch is {seal.epoch}")
        elif before is None and seal.epoch and self._begins_at(link) == 1:
            text = f"its epoch is {seal.epoch}, and the log begins at record 1: the seals before it were taken out"
            self._bad_seal(link, place, text)
        elif before is not None and seal.epoch != before + 1:
            back = "epochs never go back" if seal.epoch <= before else "seals were taken out"
            self._bad_seal(link, place, f"epoch {seal.epoch} after epoch {before}: {back}")
        elif not is_made_with(keys, seal):
            self._bad_seal(link, place, "it was not made with the sealing key of its epoch")
        else:
            self._epochs[seal.key] = seal.epoch
            self.checked += 1
            self.proving.add(seal.key)
            self.spans.sealed(seal.epoch)
            if self._looks_at_beginning:
                self._looks_at_beginning = False
                self._beginning.sealed(seal)
            if self.first_epoch is None:
                self.first_epoch = seal.epoch
            if last is not None:
                self.sealed = Sealed(last.link.seq, last.link.timestamp, seal.epoch)

    def _bad_seal(self, link: Link, place: Place, why: str) -> None:
        first = self.first.link.seq if self.first is not None else link.seq
        begin = first if self.sealed is None else self.sealed.seq + 1
        self._found = Finding(
            Kind.REWRITTEN,
            begin,
            place,
            f"the seal that is record {link.seq} does not hold ({why}): records {begin} to {link.seq} may "
            "have been rewritten, with all their hashes",
        )

    # the end ----------------------------------------------------------------------------------------

    def doubt(self) -> str:
        """Why what is before the first seal is not proved; "" where it is. Only once every line was fed."""
        if self.first is None:
            return ""
        begin = self.unchained_first or self.first.link
        right = {seq: digest for seq, digest in self._heads.items() if seq not in self._missing}
        return self._beginning.doubt(begin.seq, right)

    def finding(self) -> Finding | None:
        """The first thing that is wrong, None when all is well. Only once every line was fed."""
        if self._found is None and self._anomaly is None and self._damage is not None:
            self._anomaly = Anomaly(self.last, None, self._damage)
        if self._anomaly is not None:
            self._found = self._anomaly.finding()
            self._anomaly = None
        if self._found is None and self._missing:
            self._found = self._of_a_missing_head(max(self._missing))
        return self._found

    def _of_a_missing_head(self, head: int) -> Finding:
        last, first = self.last, self.first
        if last is None or first is None:
            return Finding(
                Kind.CUT,
                head,
                Place("", 0),
                f"record {head}, which the head names, is not there: no record here has a hash",
            )
        if head > last.link.seq:
            return Finding(
                Kind.CUT,
                last.link.seq + 1,
                last.place,
                f"the end was cut off: the head names record {head}, and the log ends with record "
                f"{last.link.seq}",
            )
        return Finding(
            Kind.CUT,
            head,
            first.place,
            f"record {head}, which the head names, is not in these files: they begin with record "
            f"{first.link.seq}",
        )
