"""The end of a log file: where its last record is, and how a torn last line is set aside.

A log is read as hostile input: nothing in it crashes the reader, and nothing is read without a cap.
Only ``mend`` writes, and never into a complete record.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import msgspec

from taskmaster.audit import generations
from taskmaster.audit.rendering import MAX_LINE_BYTES

#: A line of ours: the rendered record, its number (at most 20 digits) and the line end.
LONGEST_LINE: Final = MAX_LINE_BYTES + 64
_START: Final = b'{"seq":'
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


class Tail(NamedTuple):
    """The end of a log file.

    ``seq``: of the last record, None where there is none. ``torn_at``: where the last line begins if
    it has no line end, else None; ``complete``: it lacks nothing else. ``skipped_bytes``: between the
    last record and the last line, lines that are no records.
    """

    seq: int | None
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
        seq = seq_of(os.pread(fd, size - torn_at, torn_at))
        if seq is not None:
            return Tail(seq, torn_at, True, 0)
    seq, record_end = _last_record(fd, lines_end)
    return Tail(seq, torn_at, False, lines_end - record_end)


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


def _last_record(fd: int, end: int) -> tuple[int | None, int]:
    """``seq`` of the last record before ``end``, which is after a line end, and where its line ends."""
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
            seq = seq_of(block[found + 1 : line_end]) if line_end >= 0 else None
            if seq is not None:
                return seq, start - lead + line_end + 1
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
    ours = torn_bytes <= LONGEST_LINE and torn.startswith(_START)
    kept = tail.complete or (not ours and torn_bytes > EVIDENCE_BYTES)
    if not kept:
        os.ftruncate(fd, tail.torn_at)
    elif os.write(fd, b"\n") != 1:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if tail.complete:
        return Mended(0, b"", False)
    return Mended(torn_bytes, torn[:EVIDENCE_BYTES], kept)


def last_seq_of_backups(path: Path) -> tuple[int | None, bool]:
    """``seq`` of the newest record in the backups, and whether there are any backups.

    A backup that cannot be read, or holds no record, is passed over. Raises OSError where the directory
    cannot be read, or for want of descriptors or memory.
    """
    numbers = generations.backup_numbers(path)
    for number in numbers:
        try:
            fd = os.open(generations.backup(path, number), READ_FLAGS)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise
            continue  # removed meanwhile, a link, not ours to read: the next older one may tell
        try:
            seq = read_tail(fd, os.fstat(fd).st_size).seq
        except OSError as error:
            if error.errno not in (errno.EISDIR, errno.EIO, errno.ESPIPE, errno.EINVAL):
                raise
            seq = None
        finally:
            os.close(fd)
        if seq is not None:
            return seq, True
    return None, bool(numbers)
