"""Whether what stands before the first seal of a log is proved, where the log does not begin with record 1.

Whoever breaks in at noon has the sealing key of the epoch that runs, N. They can leave out everything before, as
if it had been rotated away, write a morning of their own and seal that with N: each record follows from the one
before it, and the seal is good. What they cannot make is a seal of an epoch before N. So the first seal in the
files proves what is before it only if one of these is so:

- its epoch is 0: nothing was sealed before;
- a record before it (``audit.rotated``, ``audit.reopened``) holds the seal of the epoch just before, with a good
  MAC, and no record claims to be older than that seal: then what could be forged is one epoch, as it always is;
- a head that was kept elsewhere names a record that comes after what it seals.

Everything else is unproved, and is said to be.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Final

import msgspec

from taskmaster.evidence.chain import Link
from taskmaster.evidence.seals import Keys, SealFields, seal_mac
from taskmaster.evidence.spans import seconds

#: Records that say with which seal the files before them ended.
GOES_ON: Final = frozenset({"audit.rotated", "audit.reopened"})
#: How much older than the seal before it a record may claim to be: clocks are adjusted.
_OLDER_S: Final = 60.0


class _GoesOn(msgspec.Struct):
    seal: SealFields | None = None


_decode: Final = msgspec.json.Decoder(_GoesOn).decode


def is_made_with(keys: Keys, seal: SealFields) -> bool:
    """Whether the seal was made with the sealing key of its epoch."""
    mac = seal_mac(
        keys.of(seal.epoch), seal.key, seal.epoch, seal.sealedSeq, seal.sealedHash, seal.sealedAt
    )
    return hmac.compare_digest(mac.encode(), seal.mac.encode())


class Beginning:
    """Fed each record up to the first seal that was checked. ``keys``: by name."""

    def __init__(self, keys: Mapping[str, Keys], max_epoch: int) -> None:
        self._keys = keys
        self._max_epoch = max_epoch
        self._before: list[SealFields] = []
        self._oldest = ""
        #: The first seal that was checked; None: none yet.
        self.first: SealFields | None = None

    def look(self, line: bytes, link: Link) -> None:
        """The next record."""
        if not self._oldest or link.timestamp < self._oldest:
            self._oldest = link.timestamp
        if link.event not in GOES_ON:
            return
        try:
            seal = _decode(line).seal
        except msgspec.ValidationError:
            return
        keys = None if seal is None else self._keys.get(seal.key)
        if (
            seal is not None
            and keys is not None
            and seal.epoch <= self._max_epoch
            and is_made_with(keys, seal)
        ):
            self._before = [*self._before[-7:], seal]

    def sealed(self, seal: SealFields) -> None:
        """The first seal that was checked."""
        self.first = seal

    def doubt(self, begins_at: int, heads: Mapping[int, str]) -> str:
        """Why the beginning is not proved; "" where it is. ``heads``: those that were found to be right."""
        first = self.first
        if first is None or first.epoch == 0 or begins_at == 1:
            return ""
        if any(seq >= first.sealedSeq for seq in heads):
            return ""
        for seal in self._before:
            if (seal.key, seal.epoch + 1) != (first.key, first.epoch):
                continue
            if seal.sealedSeq < begins_at and self._is_not_older_than(seal):
                return ""
            return (
                f"records {begins_at} to {first.sealedSeq} say that they are older than the seal before them "
                f"(epoch {seal.epoch}, made at {seal.sealedAt or 'an unknown time'})"
            )
        return (
            f"nothing here shows that the seal of epoch {first.epoch - 1} came just before record {begins_at}: "
            f"whoever had the sealing key of epoch {first.epoch} could have written records {begins_at} to "
            f"{first.sealedSeq}"
        )

    def _is_not_older_than(self, seal: SealFields) -> bool:
        made_s, oldest_s = seconds(seal.sealedAt), seconds(self._oldest)
        return made_s is not None and oldest_s is not None and oldest_s >= made_s - _OLDER_S
