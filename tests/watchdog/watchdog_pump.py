"""The pump of one pipe into one file, its pipe's other end, and what its files hold."""

from __future__ import annotations

import array
import fcntl
import os
import signal
import termios
import time
from collections.abc import Callable
from pathlib import Path

from taskmaster import fifos
from taskmaster.eventloop import EventLoop
from taskmaster.watchdog.logfile import LogFile
from taskmaster.watchdog.output import Output, OutputFile
from taskmaster.watchdog.outputfolder import Folder

LOG = "out.log"
PIPE = "0.stdout"


def opened(folder: Path | str, name: str = LOG, reopen: Callable[[], int] | None = None) -> LogFile:
    """A log file in that folder."""
    again = None if reopen is None else lambda: Folder(reopen())
    return LogFile(Folder(os.open(folder, os.O_RDONLY | os.O_DIRECTORY)), name, again)


def files(folder: Path, name: str = LOG) -> dict[int, bytes]:
    """What the files hold, by number; 0 is the newest."""
    found = {}
    for path in folder.glob(f"{name}*"):
        rest = path.name[len(name) :]
        found[int(rest[1:]) if rest else 0] = path.read_bytes()
    return found


def content(folder: Path, name: str = LOG) -> bytes:
    """Everything, oldest first."""
    found = files(folder, name)
    return b"".join(found[number] for number in sorted(found, reverse=True))


def numbered(first: int, last: int, length: int = 20) -> bytes:
    """Lines that tell which they are."""
    return b"".join(b"%0*d\n" % (length - 1, number) for number in range(first, last))


class Pump:
    """An Output with a loop of its own, and the job's end of the pipe (``job``), which never blocks."""

    def __init__(
        self,
        folder: Path | str,
        state: Path,
        max_bytes: int = 0,
        backups: int = 1000,
        *,
        name: str = LOG,
        reopen: Callable[[], int] | None = None,
        file: OutputFile | None = None,
    ) -> None:
        self.late_s = 0.0
        self._before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # as a watchdog does
        self.loop = EventLoop(lambda: time.monotonic() + self.late_s)
        self.dropped = 0
        self.errors: list[int] = []
        self.not_rotated: list[int] = []
        directory = os.open(state, os.O_RDONLY | os.O_DIRECTORY)
        self.job = fifos.hold(directory, PIPE)
        pipe = fifos.hold(directory, PIPE)
        os.close(directory)
        self._null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
        file = file or opened(folder, name, reopen)
        self.output = Output(
            self.loop,
            pipe,
            file,
            (max_bytes, backups),
            self._null,
            self._dropped,
            lambda why: self.not_rotated.append(why.errno or 0),
        )
        self._open = True

    def _dropped(self, count: int, why: OSError) -> None:
        assert count > 0
        self.dropped += count
        self.errors.append(why.errno or 0)

    def waiting(self) -> int:
        """How many bytes are in the pipe."""
        size = array.array("i", [0])
        fcntl.ioctl(self.job, termios.FIONREAD, size)
        return size[0]

    def write(self, data: bytes) -> None:
        """As the job: all of it, the pump running whenever the pipe is full."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self.job, rest) :]
            except BlockingIOError:
                self.loop.turn()

    def run(self, enough: Callable[[], object] | None = None) -> None:
        """Turn the loop until the pipe is empty."""
        for _ in range(100_000):
            if self.waiting() == 0 if enough is None else enough():
                return
            self.loop.turn()
        raise AssertionError("it makes no progress")

    def put(self, data: bytes) -> None:
        """Write and pump until everything is out of the pipe."""
        self.write(data)
        self.run()

    def close(self) -> None:
        """End the pump; harmless when done."""
        if self._open:
            self._open = False
            self.output.close()
            os.close(self.job)
            os.close(self._null)
            self.loop.close()
            signal.signal(signal.SIGIO, self._before)


MakePump = Callable[..., Pump]
