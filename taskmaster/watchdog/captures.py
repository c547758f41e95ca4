"""Where the output of each process goes: pipes and their pumps, files written directly, or nowhere.

A pipe and its pump live as long as the place, over restarts of its process: what a process left
behind goes on writing there, and a new log limit or file takes effect on the run.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Final

from taskmaster import fifos, statefolder
from taskmaster.core.spec import INHERITED, JobSpec, output_path
from taskmaster.eventloop import EventLoop
from taskmaster.watchdog import logfolder, outputfolder, privileges
from taskmaster.watchdog.inherited import Inherited
from taskmaster.watchdog.logfile import LogFile
from taskmaster.watchdog.output import Output, OutputFile
from taskmaster.watchdog.outputfolder import Folder
from taskmaster.watchdog.rights import Rights
from taskmaster.watchdog.steps import Step, StepFailed

# Appending: several processes, or a logrotate that truncates, must not overwrite each other.
# Non-blocking: opening a FIFO must not wait for its reader; the process itself may block on it.
_DIRECT_FLAGS: Final = (
    os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY
) | os.O_NONBLOCK

#: Told: number of the place, stream, bytes dropped, why.
OnDropped = Callable[[int, str, int, OSError], None]
#: Told: number of the place, stream, why its file grows on.
OnNotRotated = Callable[[int, str, OSError], None]
_Key = tuple[int, str]


class Ends:
    """What a process gets as fd 1 and 2: names of pipes, or descriptors; some of those to be closed. ``given``:
    files that are the job's user's from now on, so that a program may open ``/dev/stdout`` anew."""

    def __init__(self) -> None:
        self.ends: list[int | str] = []
        self.given: set[int] = set()
        self._owned: list[int] = []

    def own(self, fd: int, *, given: bool) -> None:
        """Add a descriptor that was opened for this process alone."""
        self.ends.append(fd)
        self._owned.append(fd)
        if given:
            self.given.add(fd)

    def close(self) -> None:
        """The process has its own copies."""
        for fd in self._owned:
            os.close(fd)
        self._owned.clear()


class Captures:
    """All outputs of one job. ``directory``: descriptor of the state directory, ``logs``: the job's log folder."""

    def __init__(
        self,
        loop: EventLoop,
        directory: int,
        logs: str,
        null: int,
        on_dropped: OnDropped,
        on_not_rotated: OnNotRotated = lambda number, stream, why: None,
    ) -> None:
        self._loop = loop
        self._directory = directory
        self._logs = logs
        self._null = null
        self._on_dropped = on_dropped
        self._on_not_rotated = on_not_rotated
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
                    self._renew(number, stream)
                    try:
                        self._pump(number, stream, path, spec).ready()
                    except OSError as error:
                        raise self._named(error, path) from None
                    ends.ends.append(fifos.name(number, stream))
                    continue
                self._stop((number, stream))
                if path is None:
                    ends.ends.append(self._null)
                elif stream == "stderr" and fifos.shares_file(spec, number):
                    ends.ends.append(ends.ends[0])
                else:
                    fd, given = self._open_directly(path, spec)
                    ends.own(fd, given=given)
        except OSError:
            ends.close()
            raise
        return ends

    def _renew(self, number: int, stream: str) -> None:
        """Give up a pipe whose name somebody has removed; whoever wrote there has ended."""
        pump = self._pumps.get((number, stream))
        if pump is not None and not statefolder.is_there(
            self._directory, fifos.name(number, stream), pump.pipe
        ):
            self._stop((number, stream))

    def resume(self, number: int, spec: JobSpec, pid: int | None = None) -> None:
        """Go on with the output of a process that runs already; what cannot be opened is dropped and told.

        ``pid``: the process, which may still write into a pipe that has lost its name.
        """
        for end, stream in enumerate(fifos.STREAMS, 1):
            path = output_path(spec, stream, number)
            if path is not None and fifos.captured(spec, stream, number):
                try:
                    pipe = -1
                    if pid is not None:
                        pipe = fifos.hold_nameless(
                            self._directory, fifos.name(number, stream), pid, end
                        )
                    self._pump(number, stream, path, spec, pipe).ready()
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

    def _pump(self, number: int, stream: str, path: str, spec: JobSpec, pipe: int = -1) -> Output:
        """The pump of this stream. Its file may be one that cannot be opened yet: then output is dropped, not
        left in the pipe, where the job would wait for it for ever."""
        key = (number, stream)
        pump = self._pumps.get(key)
        begun = pump is None
        if pump is None:
            file = self._file(path, spec)
            try:
                if pipe < 0:
                    pipe = fifos.hold(self._directory, fifos.name(number, stream))
            except OSError:
                file.close()
                raise
            self._pumps[key] = pump = Output(
                self._loop,
                pipe,
                file,
                (spec.log_max_bytes, spec.log_backups),
                self._null,
                lambda count, why: self._on_dropped(number, stream, count, why),
                lambda why: self._on_not_rotated(number, stream, why),
            )
        elif self._paths[key] != path:
            pump.use(self._opened(path, spec))
        self._paths[key] = path
        pump.max_bytes = spec.log_max_bytes
        pump.keep(spec.log_backups)
        if not path.startswith("/") and begun:
            # The job's own log folder, where nothing but generations of ours has such a name.
            pump.prune()
        return pump

    def _file(self, path: str, spec: JobSpec) -> OutputFile:
        if path in INHERITED:
            return Inherited(INHERITED[path])
        return LogFile(None, path.rpartition("/")[2], lambda: self._enter(path, spec))

    def _opened(self, path: str, spec: JobSpec) -> OutputFile:
        file = self._file(path, spec)
        try:
            file.open()
        except OSError as error:
            file.close()
            raise self._named(error, path) from None
        return file

    def _open_directly(self, path: str, spec: JobSpec) -> tuple[int, bool]:
        """The file, and whether it is to be given to the job's user: one that is ours, in the job's log folder
        or just made."""
        folder = self._enter(path, spec)
        try:
            fd = folder.open(path.rpartition("/")[2], _DIRECT_FLAGS)
        except OSError as error:
            raise self._named(error, path) from None
        finally:
            folder.close()
        os.set_blocking(fd, True)
        status = os.fstat(fd)
        given = stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and folder.rights is None
        is_new = status.st_size == 0 and status.st_uid == os.geteuid()
        return fd, given and (is_new or not path.startswith("/"))

    def _named(self, error: OSError, path: str) -> OSError:
        whole = error.filename if error.filename and "/" in error.filename else path
        return OSError(error.errno, error.strerror, os.path.join(self._logs, whole))

    def _enter(self, path: str, spec: JobSpec) -> Folder:
        """The file's folder. That of a relative one is below the job's log folder, and is made."""
        if not path.startswith("/"):
            *below, _ = os.path.normpath(path).split("/")
            return Folder(logfolder.enter(self._logs, below))
        folder, name = os.path.split(path)
        return outputfolder.enter(folder, name, lambda: _rights(spec))


def _rights(spec: JobSpec) -> Rights | None:
    """Those of the job's user where that is another than ours."""
    try:
        who = privileges.resolved(spec, Step())
    except StepFailed:
        return None  # the job will not start
    if who.uid is None or who.gid is None:
        return None
    return Rights(who.uid, who.gid, tuple(who.groups or ()))
