"""What the sealing key's file holds: the key of the epoch that runs, and the seal of the one before.

The seal is made and the key evolved in one step, the replacement of the file; only then is the seal written
to the log. So a death in between leaves no key that could make the seal anew, and the seal is not lost: it
stands here until it is in the log.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from taskmaster.evidence.chain import Number
from taskmaster.evidence.seals import first_key, key_name, next_key, seal_mac

#: No file of this form is longer.
MAX_BYTES = 4096
_Hash = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
_Name = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]


class Seal(msgspec.Struct, frozen=True):
    """What a record ``audit.sealed`` says."""

    epoch: Number
    key: _Name
    mac: _Hash
    sealedHash: _Hash  # noqa: N815
    sealedSeq: Number  # noqa: N815
    sealedAt: Annotated[str, msgspec.Meta(max_length=64)] = ""  # noqa: N815


class SealState(msgspec.Struct, frozen=True):
    """The epoch that runs, its key (hex), the name of the verification key, the last seal made."""

    version: Annotated[int, msgspec.Meta(ge=1, le=1)]
    name: _Name
    epoch: Number
    key: _Hash
    last: Seal | None = None


def begin(seed: bytes) -> SealState:
    """Before the first seal; ``seed``: of the verification key."""
    return SealState(1, key_name(seed), 0, first_key(seed).hex())


def sealed(state: SealState, seq: int, last_hash: str, at: str = "") -> SealState:
    """The state after a seal (its ``last``) over a log that ends with record ``seq``; ``at``: the time now."""
    key = bytes.fromhex(state.key)
    mac = seal_mac(key, state.name, state.epoch, seq, last_hash, at)
    seal = Seal(state.epoch, state.name, mac, last_hash, seq, at)
    return SealState(1, state.name, state.epoch + 1, next_key(key).hex(), seal)


def encode(state: SealState) -> bytes:
    """The content of the file."""
    return msgspec.json.encode(state) + b"\n"


def decode(data: bytes | bytearray) -> SealState:
    """The state in the content of a file. Raises ValueError where it is none."""
    try:
        return msgspec.json.decode(data, type=SealState)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None
