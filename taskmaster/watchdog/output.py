"""A job's output: out of its pipe into files of limited size, without a line lost or torn.

A file is rotated before the line that would pass the limit. Programs that write in blocks leave half
a line at the end of a file; that line is finished there, past the limit, up to LONGEST_LINE more. Where a
file cannot be rotated, output goes on in it, and the rotation is tried again, less and less often.

What is no file (a pipe, a terminal) may be full because its reader is slow. Then the job waits, as it would if
it wrote there itself, but not for a reader that has stopped: after UNREAD_S what the job prints is dropped and
counted, until something can be written again. Nothing else is dropped but what the disk does not take.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final

from taskmaster.eventloop import EventLoop, Timer, Watch
from taskmaster.watchdog.inherited import Inherited
from taskmaster.watchdog.logfile import LogFile
from taskmaster.watchdog.mover import PEEK_BYTES, Mover

#: How far past the limit a file may go for the sake of one line.
LONGEST_LINE: Final = 1024 * 1024
#: How long a job waits for a pipe or terminal that takes nothing, seconds.
UNREAD_S: Final = 10.0
#: Between two rotations that fail, seconds: doubled each time.
_ROTATE_AGAIN_S: Final = (1.0, 300.0)
#: Moved before the loop gets its turn again, so that a chatty job cannot hold up its own stop.
_TURN_BYTES: Final = 4 * 1024 * 1024
_TURN_STEPS: Final = 64

OutputFile = LogFile | Inherited


class Output:
    """The pump of one pipe into one file. It owns both.

    ``max_bytes`` and ``backups`` may be changed at any time. ``null`` is a descriptor of ``/dev/null``;
    ``on_dropped`` is told how many bytes went there and why, ``on_not_rotated`` once why a file grows on.
    """

    def __init__(
        self,
        loop: EventLoop,
        pipe: int,
        file: OutputFile,
        limits: tuple[int, int],
        null: int,
        on_dropped: Callable[[int, OSError], None],
        on_not_rotated: Callable[[OSError], None] = lambda why: None,
    ) -> None:
        self._loop = loop
        self._mover = Mover(pipe, null)
        self._file = file
        self.max_bytes, self.backups = limits
        self._on_dropped = on_dropped
        self._on_not_rotated = on_not_rotated
        self._rotate_at = 0.0
        self._rotate_again_s = 0.0
        #: Waits for the target to take something, and for how long.
        self._blocked: tuple[Watch, Timer] | None = None
        self._unread = False
        self._watch: Watch = loop.watch(pipe, self._readable)

    @property
    def pipe(self) -> int:
        """The descriptor of the pipe."""
        return self._mover.pipe

    def use(self, file: OutputFile) -> None:
        """Go on into another file."""
        self.drain()
        self._unblock()
        self._file.close()
        self._file = file
        self._rotate_at = self._rotate_again_s = 0.0
        self._unread = False

    def ready(self) -> None:
        """Raises OSError where there is no file to write to."""
        if self._file.fd < 0:
            self._file.open()

    def keep(self, backups: int) -> None:
        """Keep so many generations from now on; those that are too many are deleted at once."""
        before, self.backups = self.backups, backups
        if backups < before:
            self._file.prune(backups, before)

    def prune(self) -> None:
        """Delete generations that are too many: their number was lowered while nothing ran."""
        if self.max_bytes:
            self._file.prune(self.backups)

    def drain(self) -> None:
        """Move everything that is in the pipe now, as far as it can be written now."""
        self._unblock()
        left = self._mover.waiting()  # no more than that: the job may be writing all the time
        while left > 0:
            step = self._step()
            if step == 0:
                return
            left -= step

    def close(self) -> None:
        """Move what is left and give everything back."""
        self.drain()
        self._unblock()
        left = self._mover.waiting()
        if left:
            self._on_dropped(left, BlockingIOError(errno.EAGAIN, "nobody reads it"))
        self._loop.unwatch(self._watch)
        self._mover.close()
        self._file.close()

    def _readable(self) -> None:
        moved = 0
        for _ in range(_TURN_STEPS):
            step = self._step()
            moved += step
            # After a small step there is most likely no more, and if there is the loop says so.
            if step < PEEK_BYTES or moved >= _TURN_BYTES:
                return

    def _step(self) -> int:
        """Move something; what cannot be written anywhere is dropped and counted."""
        try:
            moved = self._move()
        except BlockingIOError as error:
            if self._mover.waiting() == 0:
                return 0
            if self._unread:
                return self._drop(error)
            self._block()
            return 0
        except OSError as error:
            if error.errno == errno.EFBIG and self._rotated():
                return self._step()
            # Whatever is wrong with the file (full or read-only disk, quota, folder gone, no
            # descriptors), the job must not block on its output, and the count says what is missing.
            return self._drop(error)
        self._unread = False
        return moved

    def _move(self) -> int:
        file = self._file
        try:
            file.hold()
            if not file.regular or self.max_bytes == 0:
                return self._mover.move(file, self._mover.capacity)
            room = self.max_bytes - file.size
            if room > self._mover.capacity or self._loop.now() < self._rotate_at:
                return self._mover.move(file, self._mover.capacity)
            return self._move_near_limit(room)
        finally:
            file.release()

    def _move_near_limit(self, room: int) -> int:
        """The file is so full that what is in the pipe may not fit: go by lines."""
        file, head = self._file, self._mover.head(PEEK_BYTES)
        if len(head) <= room:
            return self._mover.move(file, len(head))
        whole_lines = head.rfind(b"\n", 0, max(room, 0)) + 1
        if whole_lines:
            return self._mover.move(file, whole_lines)
        full = file.at_line_start() and file.size > 0
        if (full or file.size >= self.max_bytes + LONGEST_LINE) and self._rotated():
            return self._move()
        return self._mover.move(file, head.find(b"\n") + 1 or len(head))

    def _rotated(self) -> bool:
        """Begin a new file; False where that cannot be, or was tried lately."""
        file = self._file
        if not file.rotates or file.fd < 0 or self.max_bytes == 0 or file.size == 0:
            return False
        now = self._loop.now()
        if now < self._rotate_at:
            return False
        try:
            file.rotate(self.backups)
        except OSError as error:
            # Whatever it is, the file that there is can still be written to.
            first, longest = _ROTATE_AGAIN_S
            if not self._rotate_again_s:
                self._on_not_rotated(error)
            self._rotate_again_s = min(self._rotate_again_s * 2 or first, longest)
            self._rotate_at = now + self._rotate_again_s
            return False
        self._rotate_at = self._rotate_again_s = 0.0
        return True

    # a reader that does not keep up ----------------------------------------------------------------

    def _block(self) -> None:
        """Leave what there is in the pipe until the target takes something again."""
        if self._blocked is not None:
            return
        fd = os.dup(self._file.fd)  # the file may be closed and opened anew meanwhile
        try:
            waits = self._loop.watch(fd, None, self._unblock)
        except PermissionError:
            # A device that cannot be waited for.
            os.close(fd)
            self._unread = True
            return
        self._loop.unwatch(self._watch)
        self._blocked = waits, self._loop.call_in(UNREAD_S, self._give_up)

    def _unblock(self) -> None:
        if self._blocked is None:
            return
        (waits, timer), self._blocked = self._blocked, None
        fd = waits.fd
        self._loop.unwatch(waits)
        os.close(fd)
        timer.cancel()
        self._watch = self._loop.watch(self._mover.pipe, self._readable)

    def _give_up(self) -> None:
        self._unblock()
        self._unread = True

    def _drop(self, why: OSError) -> int:
        dropped = self._mover.drop()
        if dropped:
            self._on_dropped(dropped, why)
        return dropped
