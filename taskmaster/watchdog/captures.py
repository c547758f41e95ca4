"""Where the output of each process goes: pipes and their pumps, files written directly, or nowhere.

A pipe and its pump live as long as the place, over restarts of its process: what a process left
behind goes on writing there, and a new log limit or file takes effect on the run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from taskmaster import fifos
from taskmaster.core.spec import JobSpec, output_path
from taskmaster.eventloop import EventLoop
from taskmaster.watchdog import logfolder
from taskmaster.watchdog.output import LogFile, Output

_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

#: Told: number of the place, stream, bytes dropped, why.
OnDropped = Callable[[int, str, int, OSError], None]
_Key = tuple[int, str]


class Ends:
    """What a process gets as fd 1 and 2: names of pipes, or descriptors; some of those to be closed."""

    def __init__(self) -> None:
        self.ends: list[int | str] = []
        self._owned: list[int] = []

    def own(self, fd: int) -> None:
        """Add a descriptor that was opened for this process alone."""
        self.ends.append(fd)
        self._owned.append(fd)

    def close(self) -> None:
        """The process has its own copies."""
        for fd in self._owned:
            os.close(fd)
        self._owned.clear()


class Captures:
    """All outputs of one job. ``directory``: descriptor of the state directory, ``logs``: the job's log folder."""

    def __init__(
        self, loop: EventLoop, directory: int, logs: str, null: int, on_dropped: OnDropped
    ) -> None:
        self._loop = loop
        self._directory = directory
        self._logs = logs
        self._null = null
        self._on_dropped = on_dropped
        self._pumps: dict[_Key, Output] = {}
        self._paths: dict[_Key, str] = {}

    def prepare(self, number: int, spec: JobSpec) -> Ends:
        """Open everything that a process of this place needs. Raises OSError with the file's name."""
        ends = Ends()
        try:
            for stream in fifos.STREAMS:
                path = output_path(spec, stream, number)
                if fifos.captured(spec, stream, number):
                    assert path is not None
                    self._pump(number, stream, path, spec)
                    ends.ends.append(fifos.name(number, stream))
                    continue
                self._stop((number, stream))
                if path is None:
                    ends.ends.append(self._null)
                elif stream == "stderr" and fifos.shares_file(spec, number):
                    ends.ends.append(ends.ends[0])
                else:
                    ends.own(self._open_directly(path))
        except OSError:
            ends.close()
            raise
        return ends

    def resume(self, number: int, spec: JobSpec) -> None:
        """Go on with the output of a process that runs already; what cannot be opened is dropped and told."""
        for stream in fifos.STREAMS:
            path = output_path(spec, stream, number)
            if path is not None and fifos.captured(spec, stream, number):
                try:
                    self._pump(number, stream, path, spec)
                except OSError as error:
                    self._on_dropped(number, stream, 0, error)

    def reconfigure(self, number: int, spec: JobSpec) -> None:
        """Apply a new definition to what runs; where the way of capture itself is another, on the next start."""
        for stream in fifos.STREAMS:
            if (number, stream) in self._pumps and fifos.captured(spec, stream, number):
                path = output_path(spec, stream, number)
                assert path is not None
                try:
                    self._pump(number, stream, path, spec)
                except OSError as error:
                    self._on_dropped(number, stream, 0, error)

    def drain(self, number: int) -> None:
        """Move what a process that ended has left in its pipes."""
        for stream in fifos.STREAMS:
            pump = self._pumps.get((number, stream))
            if pump is not None:
                pump.drain()

    def remove(self, number: int) -> None:
        """The place is no more."""
        for stream in fifos.STREAMS:
            self._stop((number, stream))
            try:
                os.unlink(fifos.name(number, stream), dir_fd=self._directory)
            except FileNotFoundError:
                pass

    def _stop(self, key: _Key) -> None:
        pump = self._pumps.pop(key, None)
        if pump is not None:
            pump.close()
            del self._paths[key]

    def _pump(self, number: int, stream: str, path: str, spec: JobSpec) -> None:
        key = (number, stream)
        pump = self._pumps.get(key)
        if pump is None:
            file = self._log_file(path)
            try:
                pipe = fifos.hold(self._directory, fifos.name(number, stream))
            except OSError:
                file.close()
                raise
            self._pumps[key] = pump = Output(
                self._loop,
                pipe,
                file,
                spec.log_max_bytes,
                spec.log_backups,
                self._null,
                lambda count, why: self._on_dropped(number, stream, count, why),
            )
        elif self._paths[key] != path:
            pump.use(self._log_file(path))
        self._paths[key] = path
        pump.max_bytes, pump.backups = spec.log_max_bytes, spec.log_backups

    def _log_file(self, path: str) -> LogFile:
        folder, name = self._enter(path)
        file = LogFile(folder, name, lambda: self._enter(path)[0])
        try:
            file.open()
        except OSError as error:
            file.close()
            raise OSError(error.errno, error.strerror, os.path.join(self._logs, path)) from None
        return file

    def _open_directly(self, path: str) -> int:
        # Appending: several processes, or a logrotate that truncates, must not overwrite each other.
        # Non-blocking: opening a FIFO must not wait for its reader; the process itself may block on it.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY
        folder, name = self._enter(path)
        try:
            fd = os.open(name, flags | os.O_NONBLOCK, 0o640, dir_fd=folder)
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.path.join(self._logs, path)) from None
        finally:
            os.close(folder)
        os.set_blocking(fd, True)
        return fd

    def _enter(self, path: str) -> tuple[int, str]:
        """Descriptor of its folder, and its name. A relative one is below the job's log folder, which is made."""
        if not path.startswith("/"):
            *below, name = os.path.normpath(path).split("/")
            return logfolder.enter(self._logs, below), name
        folder, name = os.path.split(os.path.normpath(path))
        try:
            return os.open(folder, _FOLDER_FLAGS), name
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None
