"""Records on their way to the disk: rendered, then numbered, then in the file, then on disk.

Pure bookkeeping, no I/O. A record leaves only when it is known to be on disk, or when there is no room
for it: then it is counted, never silently gone.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from taskmaster.audit.rendering import numbered

#: Records that wait for a disk that cannot be written: 4 MiB is about 20 000 usual ones.
MAX_BYTES: Final = 4 << 20
MAX_RECORDS: Final = 10_000


class Lost:
    """How many records were dropped, how many of them of commands, and from when to when."""

    def __init__(self) -> None:
        self.count = self.commands = 0
        self.since = self.until = ""

    def add(self, timestamp: str, *, of_command: bool) -> None:
        """Count a record dropped at ``timestamp``."""
        self.count += 1
        self.commands += of_command
        self.since = self.since or timestamp
        self.until = timestamp


class Backlog:
    """The records of one log that are not known to be on disk, in order."""

    def __init__(self) -> None:
        #: Number of the last record that has one. A record gets it when it is about to be written, so
        #: that what is dropped before leaves no gap.
        self.seq = 0
        #: How much of the first line is in the file already.
        self.torn = 0
        #: How many bytes were written and are not known to be on disk.
        self.unsynced_bytes = 0
        self._rendered: deque[bytes] = deque()
        self._lines: deque[bytes] = deque()
        self._unsynced: list[bytes] = []
        self._waiting_bytes = 0

    def __len__(self) -> int:
        """Records that are not wholly in the file."""
        return len(self._rendered) + len(self._lines)

    def has_room(self, line: bytes, share: int) -> bool:
        """Whether ``line`` may wait, in the ``share``-th part of the room there is."""
        return (
            len(self) * share < MAX_RECORDS
            and (self._waiting_bytes + len(line)) * share <= MAX_BYTES
        )

    def put(self, line: bytes) -> None:
        """Put a rendered record last in line, whether there is room or not."""
        self._rendered.append(line)
        self._waiting_bytes += len(line)

    def number(self) -> None:
        """Give every record that waits its number. Only once ``seq`` is that of the last in the file."""
        while self._rendered:
            self.seq += 1
            line = self._rendered.popleft()
            self._lines.append(numbered(self.seq, line))
            self._waiting_bytes += len(self._lines[-1]) - len(line)

    def is_plain(self) -> bool:
        """Whether all that waits has no number yet, and no line is half in the file."""
        return not self._lines and not self.torn

    def plain_bytes(self) -> int:
        """How long ``plain_block`` is at most: what waits, and its numbers."""
        return self._waiting_bytes + 32 * len(self._rendered)

    def plain_block(self) -> bytes:
        """Number all that waits and give it as one block; then ``wrote`` is to be told. Only if ``is_plain``."""
        seq = self.seq
        lines = self._lines
        for line in self._rendered:
            seq += 1
            lines.append(numbered(seq, line))
        self.seq = seq
        self._rendered.clear()
        block = b"".join(lines)
        self._waiting_bytes = len(block)
        return block

    def next_bytes(self) -> int:
        """Length of the first numbered line; 0 without any."""
        return len(self._lines[0]) if self._lines else 0

    def block(self, room: int) -> bytes:
        """What to write next: whole lines of at most ``room`` bytes together, but at least one."""
        batch: list[bytes] = []
        for line in self._lines:
            room -= len(line)
            if batch and room < 0:
                break
            batch.append(line)
        return b"".join(batch)[self.torn :]

    def wrote(self, count: int) -> None:
        """``count`` bytes of the last ``block`` are in the file."""
        if self.torn == 0 and count == self._waiting_bytes and not self._rendered:
            self._unsynced.extend(self._lines)
            self.unsynced_bytes += count
            self._lines.clear()
            self._waiting_bytes = 0
            return
        count += self.torn
        while self._lines and count >= len(self._lines[0]):
            line = self._lines.popleft()
            count -= len(line)
            self._waiting_bytes -= len(line)
            self._unsynced.append(line)
            self.unsynced_bytes += len(line)
        self.torn = count

    def synced(self) -> None:
        """Everything in the file is on disk."""
        self._unsynced.clear()
        self.unsynced_bytes = 0

    def requeue(self) -> None:
        """Nothing since the last ``synced`` is in the file any more: it is to be written again."""
        self._lines.extendleft(reversed(self._unsynced))
        self._waiting_bytes += self.unsynced_bytes
        self.torn = 0
        self.synced()
