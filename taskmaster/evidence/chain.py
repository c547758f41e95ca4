"""The chain: a record's line ends with a hash over its other bytes, and among those is the hash before it.

So nobody changes, removes, inserts or moves a record without making every later line anew. ``hash`` is
the last key of a line and of fixed length, so whoever verifies takes it off the bytes as they stand and
never has to write JSON again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Final, NamedTuple

import msgspec

#: ``prev`` of the first record of a chain.
NOTHING: Final = "0" * 64
_HASH: Final = b',"hash":"'
_END: Final = b'"}\n'
#: A line, of a record without its last brace and its hash, for the operator ``%``.
WITH_HASH: Final = b"%b" + _HASH + b"%b" + _END
#: How much of a line ``hash`` takes, with the line end.
SUFFIX_BYTES: Final = len(_HASH) + 64 + len(_END)
#: A record is not longer than this without ``prev``, ``seq`` and ``hash``, and no line than the other.
MAX_LINE_BYTES: Final = 65536
LONGEST_LINE: Final = MAX_LINE_BYTES + 128 + SUFFIX_BYTES
#: 2**53: beyond it, programs that read JSON disagree on integers.
Number = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_HEX: Final = frozenset(b"0123456789abcdef")

_encode: Final = msgspec.json.Encoder(order="sorted").encode
sha256: Final = hashlib.sha256


def canonical(record: Mapping[str, Any]) -> bytes:
    """The record as JSON of which there is one form: keys sorted, no white space, UTF-8 (after RFC 8785).

    At its top level, numbers that are whole have no decimal point. Raises TypeError, UnicodeEncodeError or
    OverflowError for what JSON cannot hold.
    """
    for key, value in record.items():
        if type(value) is float and value.is_integer() and abs(value) <= 2**53:
            record = {**record, key: int(value)}
    return _encode(record)


def with_hash(body: bytes, digest: bytes) -> bytes:
    """The line of a canonical record that has its ``prev``; ``digest``: its SHA-256, as hex."""
    return WITH_HASH % (body[:-1], digest)


def linked(body: bytes) -> tuple[bytes, bytes]:
    """The line of a canonical record that has its ``prev``, and its hash (as hex)."""
    digest = sha256(body).hexdigest().encode()
    return with_hash(body, digest), digest


class Link(NamedTuple):
    """A line taken apart. ``hash``: as it stands there, "" without one. ``intact``: it is that of the line."""

    seq: int
    prev: str
    hash: str
    timestamp: str
    event: str
    intact: bool


class _Keys(msgspec.Struct):
    seq: Number
    timestamp: str
    event: str
    prev: str = ""


_decode: Final = msgspec.json.Decoder(_Keys).decode


def link_of(line: bytes) -> Link | None:
    """What the line, with its line end, says of its place; None where it is no record."""
    try:
        keys = _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    stated = hash_of(line)
    intact = stated != "" and sha256(line[:-SUFFIX_BYTES] + b"}").hexdigest() == stated
    return Link(keys.seq, keys.prev, stated, keys.timestamp, keys.event, intact)


def hash_of(line: bytes) -> str:
    """The hash that stands at the end of a line, with its line end; "" where there is none."""
    if line[-SUFFIX_BYTES : -SUFFIX_BYTES + len(_HASH)] != _HASH or line[-len(_END) :] != _END:
        return ""
    digits = line[-SUFFIX_BYTES + len(_HASH) : -len(_END)]
    return digits.decode("ascii") if _HEX.issuperset(digits) else ""
