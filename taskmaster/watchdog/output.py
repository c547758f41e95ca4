"""A job's output: out of its pipe into files of limited size, without a line lost or torn.

The bytes never pass through this process: ``splice`` moves them inside the kernel, so a SIGKILL can
come at any moment and finds each byte either still in the pipe or already in the file. (Reading
them in and writing them out loses what lies between.) To find the end of a line where a file is nearly
full, ``tee`` copies the head of the pipe to where it can be looked at without being taken out.

A file is rotated before the line that would pass the limit. Programs that write in blocks leave half
a line at the end of a file; that line is finished there, past the limit, up to LONGEST_LINE more.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import stat
import termios
from collections.abc import Callable
from typing import Final

from taskmaster import syscalls
from taskmaster.eventloop import EventLoop, Watch

#: How far past the limit a file may go for the sake of one line.
LONGEST_LINE: Final = 1024 * 1024
#: What the pipe is asked to hold: 1 MiB moved 1.3 times as much per second as the default 64 KiB.
PIPE_BYTES: Final = 262144
_PEEK_BYTES: Final = 65536
#: Moved before the loop gets its turn again, so that a chatty job cannot hold up its own stop.
_TURN_BYTES: Final = 4 * 1024 * 1024
_TURN_STEPS: Final = 64


class LogFile:
    """One output file and its rotated predecessors ``NAME.1`` (newest) and up.

    ``directory`` is a descriptor that this object owns, ``name`` a plain file name in it. ``reopen`` opens the
    folder anew where somebody has removed it.
    """

    def __init__(self, directory: int, name: str, reopen: Callable[[], int] | None = None) -> None:
        self._directory = directory
        self._name = name
        self._reopen = reopen
        self.fd = -1
        self.size = 0
        self.regular = True  # a device can be written but neither measured nor rotated

    def open(self) -> None:
        """Open for writing behind what is there. Raises OSError; a symbolic link is refused (ELOOP)."""
        try:
            self.fd = self._open()
        except FileNotFoundError:
            if self._reopen is None:
                raise
            directory = self._reopen()
            os.close(self._directory)
            self._directory = directory
            self.fd = self._open()
        self.refresh()

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        return os.open(self._name, flags, 0o640, dir_fd=self._directory)

    def refresh(self) -> None:
        """Find out how large the file is; opens a new one where somebody has deleted it."""
        status = os.fstat(self.fd)
        self.regular = stat.S_ISREG(status.st_mode)
        self.size = status.st_size if self.regular else 0
        if status.st_nlink == 0:
            self.close_file()
            self.open()

    def at_line_start(self) -> bool:
        """Whether the last byte ends a line, or there is none."""
        return self.size == 0 or os.pread(self.fd, 1, self.size - 1) == b"\n"

    def rotate(self, backups: int) -> None:
        """Move the file to ``NAME.1`` and open a new one; ``backups`` are kept. Raises OSError."""
        if backups == 0:
            try:
                os.unlink(self._name, dir_fd=self._directory)
            except FileNotFoundError:
                pass  # somebody has moved it away
        else:
            # Shift only up to the first gap: if a kill interrupted the last rotation halfway,
            # the gap takes what comes next and nothing is lost that was to be kept.
            top = 1
            while top < backups and self._exists(top):
                top += 1
            for number in range(top, 1, -1):
                self._rename(f"{self._name}.{number - 1}", f"{self._name}.{number}")
            self._rename(self._name, f"{self._name}.1")
        self.close_file()
        self.open()

    def close_file(self) -> None:
        """Close the file, not the folder."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def close(self) -> None:
        """Close everything."""
        self.close_file()
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def _exists(self, number: int) -> bool:
        try:
            os.stat(f"{self._name}.{number}", dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _rename(self, old: str, new: str) -> None:
        try:
            os.rename(old, new, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except FileNotFoundError:
            pass


class Output:
    """The pump of one pipe into one file. It owns both.

    ``max_bytes`` and ``backups`` may be changed at any time. ``null`` is a descriptor of ``/dev/null``, open
    beforehand because it is needed when there may be none left to open; ``on_dropped`` is told how
    many bytes went there and why.
    """

    def __init__(
        self,
        loop: EventLoop,
        pipe: int,
        file: LogFile,
        max_bytes: int,
        backups: int,
        null: int,
        on_dropped: Callable[[int, OSError], None],
    ) -> None:
        self._loop = loop
        self._pipe = pipe
        self._file = file
        self.max_bytes = max_bytes
        self.backups = backups
        self._null = null
        self._on_dropped = on_dropped
        self._scratch: tuple[int, int] | None = None
        try:
            self._capacity = fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EBUSY, errno.ENOMEM):
                raise
            self._capacity = fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)
        self._watch: Watch = loop.watch(pipe, self._readable)

    def use(self, file: LogFile) -> None:
        """Go on into another file."""
        self.drain()
        self._file.close()
        self._file = file

    def drain(self) -> None:
        """Move everything that is in the pipe now."""
        left = self._waiting()  # no more than that: the job may be writing all the time
        while left > 0:
            step = self._move_guarded()
            if step == 0:
                return
            left -= step

    def close(self) -> None:
        """Move what is left and give everything back."""
        self.drain()
        self._loop.unwatch(self._watch)
        os.close(self._pipe)
        self._file.close()
        if self._scratch is not None:
            for fd in self._scratch:
                os.close(fd)
            self._scratch = None

    def _readable(self) -> None:
        moved = 0
        for _ in range(_TURN_STEPS):
            step = self._move_guarded()
            moved += step
            if step == 0 or moved >= _TURN_BYTES:
                return

    def _move_guarded(self) -> int:
        """One step; where the file cannot take it, the bytes are dropped and counted."""
        try:
            return self._move()
        except BlockingIOError:
            return 0
        except OSError as error:
            # Whatever is wrong with the file (full or read-only disk, quota, folder gone, no
            # descriptors), the job must not block on its output, and the count says what is missing.
            return self._drop(error)

    def _move(self) -> int:
        file = self._file
        if file.fd < 0:
            file.open()
        else:
            file.refresh()
        if not file.regular:
            return self._pass_on()
        if self.max_bytes == 0:
            return self._splice(self._capacity)
        room = self.max_bytes - file.size
        if room > self._capacity:
            return self._splice(self._capacity)
        return self._move_near_limit(room)

    def _pass_on(self) -> int:
        """Into a pipe or a terminal; where its reader does not keep up, the job is not held up for it."""
        waiting = self._waiting()
        try:
            return self._splice(self._capacity)
        except BlockingIOError as error:
            if waiting == 0:
                raise
            return self._drop(error)

    def _waiting(self) -> int:
        """How many bytes are in the pipe."""
        count = array.array("i", [0])
        fcntl.ioctl(self._pipe, termios.FIONREAD, count)
        return count[0]

    def _move_near_limit(self, room: int) -> int:
        """The file is so full that what is in the pipe may not fit: go by lines."""
        head = self._peek()
        if len(head) <= room:
            return self._splice(len(head))
        whole_lines = head.rfind(b"\n", 0, max(room, 0)) + 1
        if whole_lines:
            return self._splice(whole_lines)
        if self._file.at_line_start() and self._file.size > 0:
            self._file.rotate(self.backups)
            return self._move()
        if self._file.size >= self.max_bytes + LONGEST_LINE:
            self._file.rotate(self.backups)
            return self._move()
        return self._splice(head.find(b"\n") + 1 or len(head))

    def _peek(self) -> bytes:
        """A copy of the head of the pipe; raises BlockingIOError when it is empty."""
        if self._scratch is None:
            self._scratch = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        copied = syscalls.tee(self._pipe, self._scratch[1], _PEEK_BYTES)
        head = b""
        while len(head) < copied:
            head += os.read(self._scratch[0], copied - len(head))
        return head

    def _splice(self, count: int) -> int:
        file = self._file
        offset = file.size if file.regular else None
        return os.splice(self._pipe, file.fd, count, offset_dst=offset, flags=os.SPLICE_F_NONBLOCK)

    def _drop(self, why: OSError) -> int:
        try:
            dropped = os.splice(self._pipe, self._null, self._capacity, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            return 0
        self._on_dropped(dropped, why)
        return dropped
