"""Records on their way to the disk: rendered, then numbered and linked, then in the file, then on disk.

Pure bookkeeping, no I/O. A record leaves only when it is known to be on disk, or when there is no room
for it: then it is counted, never silently gone. Once it has its number it keeps its bytes, whatever has to
be written again, since the next one holds their hash.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from taskmaster.audit.rendering import Moment, Rendered
from taskmaster.evidence.chain import NOTHING, WITH_HASH, sha256, with_hash

#: Records that wait for a disk that cannot be written: 4 MiB is about 10 000 usual ones.
MAX_BYTES: Final = 4 << 20
MAX_RECORDS: Final = 10_000
#: What a record grows by, at most, when its gaps are filled: two hashes, numbers, an id.
_GAPS_BYTES: Final = 256
#: So few, by a form (of at most 1024 bytes), take neither half of the places nor half of the bytes.
_USUAL_RECORDS: Final = 1024


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
        #: Number and hash of the last record that has them. A record gets them when it is about to be
        #: written, so that what is dropped before leaves no gap.
        self.seq = 0
        self.hash = NOTHING.encode()
        #: How much of the first line is in the file already.
        self.torn = 0
        #: How many bytes were written and are not known to be on disk.
        self.unsynced_bytes = 0
        #: What has no number yet, and what has, as far as it is not in the file.
        self.rendered: deque[Rendered] = deque()
        self._rendered_bytes = 0
        self.lines: deque[bytes] = deque()
        self._lines_bytes = 0
        #: Whole lines, one or many to a block.
        self._unsynced: list[bytes] = []

    def __len__(self) -> int:
        """Records that are not wholly in the file."""
        return len(self.rendered) + len(self.lines)

    def has_room(self, record: Rendered, share: int) -> bool:
        """Whether ``record`` may wait, in the ``share``-th part of the room there is."""
        waiting = self._rendered_bytes + self._lines_bytes
        return (
            len(self) * share < MAX_RECORDS
            and (waiting + len(record[0]) + _GAPS_BYTES) * share <= MAX_BYTES
        )

    def put(self, record: Rendered) -> None:
        """Put a rendered record last in line, whether there is room or not."""
        self.rendered.append(record)
        self._rendered_bytes += len(record[0]) + _GAPS_BYTES

    def put_read(
        self, asked: bytes, answered: bytes, number: int, took: bytes, begun: Moment, now: Moment
    ) -> bool:
        """Put the two records of a read last in line, by their forms, and number them at once.

        False where others wait for their numbers, or there may be no room; nothing is done then. As for
        ``number``, ``seq`` and ``hash`` are to be those of the last in the file.
        """
        lines = self.lines
        if self.rendered or len(lines) >= _USUAL_RECORDS:
            return False
        seq = self.seq
        # Twice the body of with_hash: a call costs a tenth of all this.
        body = asked % (number, self.hash, seq + 1, *begun)
        last = sha256(body).hexdigest().encode()
        first = WITH_HASH % (body[:-1], last)
        body = answered % (took, number, last, seq + 2, *now)
        last = sha256(body).hexdigest().encode()
        second = WITH_HASH % (body[:-1], last)
        self.seq, self.hash = seq + 2, last
        lines.append(first)
        lines.append(second)
        self._lines_bytes += len(first) + len(second)
        return True

    def number(self) -> list[bytes]:
        """Give every record that waits its number and its link; their lines.

        Only once ``seq`` and ``hash`` are those of the last in the file.
        """
        seq, prev, lines = self.seq, self.hash, []
        for text, before, after in self.rendered:
            seq += 1
            body = text % (*before, prev, seq, *after)
            prev = sha256(body).hexdigest().encode()
            lines.append(with_hash(body, prev))
        self.seq, self.hash = seq, prev
        self.rendered.clear()
        self._rendered_bytes = 0
        self.lines += lines
        self._lines_bytes += sum(map(len, lines))
        return lines

    def all_written(self, block: bytes) -> None:
        """All that waited is in the file, as one block; nothing of it was before."""
        self.lines.clear()
        self._lines_bytes = 0
        self._unsynced.append(block)
        self.unsynced_bytes += len(block)

    def next_bytes(self) -> int:
        """Length of the first numbered line; 0 without any."""
        return len(self.lines[0]) if self.lines else 0

    def block(self, room: int) -> bytes:
        """What to write next: whole lines of at most ``room`` bytes together, but at least one."""
        batch: list[bytes] = []
        for line in self.lines:
            room -= len(line)
            if batch and room < 0:
                break
            batch.append(line)
        return b"".join(batch)[self.torn :]

    def wrote(self, count: int) -> None:
        """``count`` bytes of the last ``block`` are in the file."""
        count += self.torn
        while self.lines and count >= len(self.lines[0]):
            line = self.lines.popleft()
            count -= len(line)
            self._lines_bytes -= len(line)
            self._unsynced.append(line)
            self.unsynced_bytes += len(line)
        self.torn = count

    def synced(self) -> None:
        """Everything in the file is on disk."""
        self._unsynced.clear()
        self.unsynced_bytes = 0

    def requeue(self) -> None:
        """Nothing since the last ``synced`` is in the file any more: it is to be written again."""
        lines = [line for block in self._unsynced for line in block.splitlines(keepends=True)]
        self.lines.extendleft(reversed(lines))
        self._lines_bytes += self.unsynced_bytes
        self.torn = 0
        self.synced()
