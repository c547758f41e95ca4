"""The end of a log file: its last record, which the next is linked to, and how a torn last line is set aside.

A log is read as hostile input: nothing in it crashes the reader, and nothing is read without a cap.
Only ``mend`` writes, and never into a complete record.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import msgspec

from taskmaster.audit import generations
from taskmaster.audit.events import COMMON_KEYS, KEYS
from taskmaster.evidence.chain import LONGEST_LINE, NOTHING, hash_of

_START: Final = b'{"'
_FIRST_KEY: Final = re.compile(rb'\{"([A-Za-z0-9]{1,32})":', re.ASCII)
#: What a record of ours may begin with: its keys are sorted, so it may be any; ``seq`` in older logs.
_OUR_KEYS: Final = frozenset(
    key.encode() for keys in (COMMON_KEYS, ("cut",), *KEYS.values()) for key in keys
)
_CHUNK: Final = 1 << 20
#: How far back a record is looked for behind lines that are none, and among how many candidates:
#: below a second of work on a file made to be slow.
_SEARCH_BYTES: Final = 64 << 20
_SEARCH_LINES: Final = 100_000


class _Head(msgspec.Struct):
    """What makes a line a record. 2**53: beyond it, programs that read JSON disagree on integers."""

    seq: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    timestamp: str
    event: str


_decode_head: Final = msgspec.json.Decoder(_Head).decode
READ_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
#: How much of a torn line goes into the record that tells of it.
EVIDENCE_BYTES: Final = 4096


class Last(NamedTuple):
    """The last record: its number and its hash, which is ``NOTHING`` where it has none (an older log)."""

    seq: int
    hash: bytes


class Tail(NamedTuple):
    """The end of a log file.

    ``last``: None where there is no record. ``torn_at``: where the last line begins if
    it has no line end, else None; ``complete``: it lacks nothing else. ``skipped_bytes``: between the
    last record and the last line, lines that are no records.
    """

    last: Last | None
    torn_at: int | None
    complete: bool
    skipped_bytes: int


def seq_of(line: bytes) -> int | None:
    """The number of the record that ``line`` is; None where it is no record."""
    try:
        return _decode_head(line).seq
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def read_tail(fd: int, size: int) -> Tail:
    """What the file of ``size`` bytes ends with. Raises OSError."""
    lines_end = _last_line_end(fd, size)
    torn_at = lines_end if lines_end < size else None
    if torn_at is not None and size - torn_at <= LONGEST_LINE:
        last = _last(os.pread(fd, size - torn_at, torn_at) + b"\n")
        if last is not None:
            return Tail(last, torn_at, True, 0)
    last, record_end = _last_record(fd, lines_end)
    return Tail(last, torn_at, False, lines_end - record_end)


def _last(line: bytes) -> Last | None:
    seq = seq_of(line)
    return None if seq is None else Last(seq, (hash_of(line) or NOTHING).encode())


def _last_line_end(fd: int, size: int) -> int:
    """Offset after the last line end; 0 without any."""
    end = size
    while end > 0:
        start = max(0, end - _CHUNK)
        found = os.pread(fd, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _last_record(fd: int, end: int) -> tuple[Last | None, int]:
    """The last record before ``end``, which is after a line end, and where its line ends."""
    candidates = 0
    stop = max(0, end - _SEARCH_BYTES)
    while end > stop:
        start = max(0, end - _CHUNK)
        # One byte more in front, to see the line end before a record; a line's length more behind.
        lead = 1 if start > 0 else 0
        block = os.pread(fd, end - start + lead + LONGEST_LINE, start - lead)
        if not lead:
            block, lead = b"\n" + block, 1
        found = block.rfind(b"\n" + _START, 0, end - start + lead + len(_START))
        while found >= 0:
            line_end = block.find(b"\n", found + 1)
            last = _last(block[found + 1 : line_end + 1]) if line_end >= 0 else None
            if last is not None:
                return last, start - lead + line_end + 1
            candidates += 1
            if candidates == _SEARCH_LINES:
                return None, 0
            found = block.rfind(b"\n" + _START, 0, found + 1)
        end = start
    return None, 0


class Mended(NamedTuple):
    """What ``mend`` set aside: how many bytes, their beginning, and whether they stay in the file."""

    torn_bytes: int
    torn: bytes
    kept: bool


def mend(fd: int, size: int, tail: Tail) -> Mended:
    """Make the file of ``size`` bytes end with a whole line. Raises OSError.

    A torn line that can be told in full in a record, or is the beginning of a record that was never
    acknowledged, is cut off. Anything else is not ours to destroy, it may be somebody's file named
    as the log by mistake: it is ended with a line end and stays.
    """
    if tail.torn_at is None:
        return Mended(0, b"", False)
    torn_bytes = size - tail.torn_at
    torn = os.pread(fd, LONGEST_LINE, tail.torn_at)
    key = _FIRST_KEY.match(torn)
    ours = torn_bytes <= LONGEST_LINE and key is not None and key[1] in _OUR_KEYS
    kept = tail.complete or (not ours and torn_bytes > EVIDENCE_BYTES)
    if not kept:
        os.ftruncate(fd, tail.torn_at)
    elif os.write(fd, b"\n") != 1:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if tail.complete:
        return Mended(0, b"", False)
    return Mended(torn_bytes, torn[:EVIDENCE_BYTES], kept)


def last_of_backups(path: Path) -> tuple[Last | None, bool]:
    """The newest record in the backups, and whether there are any backups.

    A backup that cannot be read, or holds no record, is passed over. Raises OSError where the directory
    cannot be read, or for want of descriptors or memory; one that is still to be made has no backups.
    """
    try:
        numbers = generations.backup_numbers(path)
    except FileNotFoundError:
        return None, False
    for number in numbers:
        try:
            fd = os.open(generations.backup(path, number), READ_FLAGS)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise
            continue  # removed meanwhile, a link, not ours to read: the next older one may tell
        try:
            last = read_tail(fd, os.fstat(fd).st_size).last
        except OSError as error:
            if error.errno not in (errno.EISDIR, errno.EIO, errno.ESPIPE, errno.EINVAL):
                raise
            last = None
        finally:
            os.close(fd)
        if last is not None:
            return last, True
    return None, bool(numbers)
