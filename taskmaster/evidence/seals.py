"""Seals: who breaks in at noon cannot rewrite the morning (forward security, as journald's sealing has it).

A seal is a record that says which record was the last before it, with a MAC over that by the key of its
epoch. Then the key is evolved by a one-way function and the old one erased: from what is there at noon the
keys of the morning cannot be computed, while the verification key, which is kept elsewhere, gives them all.

Epochs are counted, not read off a clock: each seal ends one and the next begins. So a clock that is set
cannot repeat one, and a seal that was taken out leaves a number missing.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final, NamedTuple

import msgspec

from taskmaster.evidence.chain import Number, canonical

#: The verification key: 128 bits, in groups that can be written down, and 16 bits to find slips of the pen.
SEED_BYTES: Final = 16
_GROUP: Final = 4
_CHECK_DIGITS: Final = 4


class SealFields(msgspec.Struct):
    """What a seal says, of its record."""

    epoch: Number
    key: str
    mac: str
    sealedSeq: Number  # noqa: N815
    sealedHash: str  # noqa: N815
    sealedAt: str = ""  # noqa: N815


decode_seal: Final = msgspec.json.Decoder(SealFields).decode


class Sealed(NamedTuple):
    """How far the seals of the keys given prove the log: up to record ``seq``, of ``timestamp``."""

    seq: int
    timestamp: str
    epoch: int


class Foreign(NamedTuple):
    """The first seal that was made with none of the keys given."""

    seq: int
    timestamp: str
    key: str


class MistypedKey(ValueError):
    """Text that is no verification key, and why."""


def first_key(seed: bytes) -> bytes:
    """The sealing key of epoch 0."""
    return _mac(seed, b"taskmaster audit: first sealing key")


def next_key(key: bytes | bytearray) -> bytes:
    """The sealing key of the epoch after the one whose key this is."""
    return _mac(key, b"taskmaster audit: next sealing key")


def key_name(seed: bytes) -> str:
    """What seals call the key: no secret, and nothing can be computed from it."""
    return _mac(seed, b"taskmaster audit: name of the key").hex()[:16]


def seal_mac(
    key: bytes | bytearray, name: str, epoch: int, seq: int, last_hash: str, at: str = ""
) -> str:
    """The MAC of a seal: the key of its epoch, over what it says. ``at``: when it was made; "" in older logs."""
    content: dict[str, object] = {
        "epoch": epoch,
        "key": name,
        "sealedHash": last_hash,
        "sealedSeq": seq,
    }
    if at:
        content["sealedAt"] = at
    return _mac(_mac(key, b"taskmaster audit: key of a seal"), canonical(content)).hex()


def _mac(key: bytes | bytearray, message: bytes) -> bytes:
    return hmac.new(key, message, hashlib.sha256).digest()


def written_key(seed: bytes) -> str:
    """The verification key as it is shown: ``0123-4567-…``, the last group a checksum."""
    text = seed.hex() + _check(seed)
    return "-".join(text[at : at + _GROUP] for at in range(0, len(text), _GROUP))


def read_key(text: str) -> bytes:
    """The seed of a verification key that somebody typed. Raises MistypedKey."""
    digits = "".join(text.split()).replace("-", "").lower()
    wanted = 2 * SEED_BYTES + _CHECK_DIGITS
    if not set(digits) <= set("0123456789abcdef"):
        raise MistypedKey("it has other characters than 0-9, a-f and -")
    if len(digits) != wanted:
        raise MistypedKey(f"it has {len(digits)} digits instead of {wanted}")
    seed = bytes.fromhex(digits[:-_CHECK_DIGITS])
    if _check(seed) != digits[-_CHECK_DIGITS:]:
        raise MistypedKey("its checksum is wrong: a digit is mistyped")
    return seed


def _check(seed: bytes) -> str:
    return hashlib.sha256(b"taskmaster audit: checksum" + seed).hexdigest()[:_CHECK_DIGITS]


class Keys:
    """The sealing keys of all epochs, from the verification key; asked for in rising order."""

    def __init__(self, seed: bytes) -> None:
        self.name = key_name(seed)
        self._seed = seed
        self._epoch, self._key = 0, first_key(seed)

    def of(self, epoch: int) -> bytes:
        """The key of ``epoch``."""
        if epoch < self._epoch:
            self._epoch, self._key = 0, first_key(self._seed)
        while self._epoch < epoch:
            self._epoch, self._key = self._epoch + 1, next_key(self._key)
        return self._key
