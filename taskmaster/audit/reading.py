"""All records of an audit log in order, for whoever reviews it. Nothing here writes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from taskmaster.audit import generations
from taskmaster.audit.tail import READ_FLAGS, seq_of
from taskmaster.evidence.chain import LONGEST_LINE

_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """All records, oldest file first, while the log may be written and rotated by its daemon.

    A line that is no record comes as ``{"damaged": TEXT, "file": PATH, "line": NUMBER}`` with at most
    1024 characters of it. The last line of the current file is left out while it has no line end.
    Raises OSError for a file that is there and cannot be read. Not for use within the process that
    writes the log (see ``generations.open_log``).
    """
    # Newest first: a rotation in between can only show a file twice, never hide one.
    opened: dict[tuple[int, int], tuple[Path, int]] = {}
    try:
        _open_for_reading(path, opened)
        for number in generations.backup_numbers(path):
            _open_for_reading(generations.backup(path, number), opened)
        while opened:
            _, (file, fd) = opened.popitem()
            with open(fd, "rb") as lines:
                yield from _records_of(file, lines)
    finally:
        for _, fd in opened.values():
            os.close(fd)


def _open_for_reading(file: Path, opened: dict[tuple[int, int], tuple[Path, int]]) -> None:
    try:
        fd = os.open(file, READ_FLAGS)
    except FileNotFoundError:
        return
    about = os.fstat(fd)
    if (about.st_dev, about.st_ino) in opened or not stat.S_ISREG(about.st_mode):
        os.close(fd)
    else:
        opened[about.st_dev, about.st_ino] = (file, fd)


def _records_of(file: Path, lines: IO[bytes]) -> Iterator[dict[str, Any]]:
    number = 0
    while line := lines.readline(LONGEST_LINE):
        number += 1
        whole = line.endswith(b"\n")
        if not whole and len(line) < LONGEST_LINE:
            return
        if whole and seq_of(line) is not None:
            yield _decode(line)
        else:
            text = line[:1024].decode("utf-8", "backslashreplace").rstrip("\n")
            yield {"damaged": text, "file": str(file), "line": number}
        while not whole and (line := lines.readline(LONGEST_LINE)):
            whole = line.endswith(b"\n")
