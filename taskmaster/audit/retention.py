"""Which files of a log are deleted when it is rotated, and what is told of each: nothing goes without a record.

Size and number decide, but no file goes whose last record is younger than what is to be kept. It deletes and
renames nothing itself (``generations.shift`` does).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from taskmaster.audit import generations
from taskmaster.audit.tail import READ_FLAGS, read_tail, seq_of
from taskmaster.evidence.chain import LONGEST_LINE, NOTHING


class Dropped(NamedTuple):
    """A file that goes: its first and last record (None where it has none), the hash of the last, its bytes."""

    file: str
    firstSeq: int | None  # noqa: N815
    lastSeq: int | None  # noqa: N815
    lastHash: str  # noqa: N815
    bytes: int


def due(path: Path, backups: int, keep_s: float, now_s: float) -> list[int]:
    """Numbers of the backups that are deleted by the next rotation, oldest first. Raises OSError.

    ``keep_s``: how old the last record of a file has to be; ``now_s``: the wall clock.
    """
    numbers = generations.backup_numbers(path)
    over = [number for number in reversed(numbers) if number > backups]
    if set(range(1, backups + 1)) <= set(numbers):
        over.append(backups)
    return [number for number in over if _is_old(generations.backup(path, number), keep_s, now_s)]


def _is_old(file: Path, keep_s: float, now_s: float) -> bool:
    # Renames leave it as it is: when the last record was written.
    return keep_s <= 0 or now_s - os.stat(file, follow_symlinks=False).st_mtime >= keep_s


def about(file: Path) -> Dropped:
    """What is in a file. Raises OSError, but not where it cannot be read: then it has no records."""
    try:
        fd = os.open(file, READ_FLAGS)
    except OSError:  # ELOOP, EACCES: it goes all the same, and its name is told
        return Dropped(str(file), None, None, NOTHING, 0)
    try:
        size = os.fstat(fd).st_size
        line, end, _ = os.pread(fd, LONGEST_LINE, 0).partition(b"\n")
        last = read_tail(fd, size).last
    except OSError:  # EISDIR, EIO
        return Dropped(str(file), None, None, NOTHING, 0)
    finally:
        os.close(fd)
    number, digest = (None, NOTHING) if last is None else (last.seq, last.hash.decode())
    return Dropped(str(file), seq_of(line + end), number, digest, size)
