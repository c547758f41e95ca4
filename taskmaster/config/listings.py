"""What was read of the histories of job files of late, so that who asks again and again costs little.

A history of a thousand versions is three thousand names and as many small files. Their contents never change;
which there are is known from the folder's stamps. A folder that has just changed is not remembered, since
another change may have the same stamp. Nothing here decides what is true: it forgets, or is right.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

#: Folders that are remembered, and small files.
_FOLDERS: Final = 16
_FILES: Final = 2048
#: A stamp tells changes apart that are so far apart, nanoseconds; the kernel's clock ticks every 10 ms at most.
_YOUNG_NS: Final = 100_000_000

Value = TypeVar("Value")


def is_young(status: os.stat_result) -> bool:
    """Whether a change might have the stamp that there is now."""
    age_ns = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns)
    return age_ns < _YOUNG_NS


class Listings(Generic[Value]):
    """By folder, the stems in it, in order; and by folder and stem what its file says."""

    def __init__(self) -> None:
        self._stems: dict[tuple[int, int], tuple[tuple[int, int], list[str]]] = {}
        self._values: dict[tuple[int, int, str], Value] = {}

    def stems(self, fd: int, read: Callable[[int], list[str]]) -> list[str]:
        """Those in the folder ``fd``, which is read where it is another by now. Raises OSError."""
        about = os.fstat(fd)
        key, stamp = (about.st_dev, about.st_ino), (about.st_mtime_ns, about.st_ctime_ns)
        kept = self._stems.get(key)
        if kept is not None and kept[0] == stamp:
            return kept[1]
        found = read(fd)
        if is_young(about):
            self._stems.pop(key, None)
        else:
            if len(self._stems) >= _FOLDERS:
                self._stems.clear()
            self._stems[key] = stamp, found
        return found

    def value(self, fd: int, stem: str, read: Callable[[int, str], Value | None]) -> Value | None:
        """What the file of ``stem`` says, which never changes while it is there; None: it cannot be read now."""
        about = os.fstat(fd)
        key = about.st_dev, about.st_ino, stem
        kept = self._values.get(key)
        if kept is not None:
            return kept
        found = read(fd, stem)
        if found is not None:
            if len(self._values) >= _FILES:
                self._values.clear()
            self._values[key] = found
        return found
