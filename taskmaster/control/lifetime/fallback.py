"""The way back from a new program that was executed and cannot start after all: the old one is executed again.

Goals: a new program that passed its trial may still fail (a configuration that changed since, no memory, a fault
that only a real start shows). By then the old one is gone from memory, and perhaps from the disk, where the new
one was installed in its place. The kernel still has the clients, the listeners and the lock, in this process. So:

- A daemon keeps, from its start, what it takes to run it again: the interpreter's file, open, and its own source
  in a memory file, from which Python can import (``keep``). Its configuration goes along as the bytes in force.
- The new program touches none of what it was handed until its start is over. Until then every end of it, an
  exception or ``START_S`` without one, leads to ``WayBack.take``: exec, with the very same hand-over.
- The old program goes on as after any upgrade, and tells whoever asked that it failed. If it cannot start
  either, that is the end of the daemon, and of nothing else: jobs and watchdogs run on, as when it is killed.

What this cannot mend: Python itself or its modules (msgspec, click, structlog, psutil) taken away or broken on
the disk, a new program that the kernel ends (SIGKILL, a fault of an extension module), and one that ends before
its ``main`` runs or after its start. Then the daemon is gone, and the next one takes everything over.
"""

from __future__ import annotations

import atexit
import io
import os
import signal
import sys
import traceback
import zipfile
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, NoReturn

import msgspec

from taskmaster import __file__ as package
from taskmaster.audit import AuditLog, Event
from taskmaster.config.daemon import DaemonConfig
from taskmaster.control import handover
from taskmaster.control.handover import HandOver, OldProgram
from taskmaster.errors import TaskmasterError

#: What went wrong, in the environment of the old program that is executed again.
FAILED: Final = "TASKMASTER_UPGRADE_FAILED"
#: How long a new program may take from exec to the end of its start, which 1000 jobs make in 5 s.
START_S: Final = 60.0
_LOADER: Final = (
    "import sys; sys.path = ['/proc/self/fd/{}', *filter(None, sys.path)]; "
    "from taskmaster.control.main import main; main()"
)
#: The environment may hold 128 KiB in one variable.
_MAX_WHY: Final = 4096


class Hung(RuntimeError):
    """A start that does not come to an end."""


def keep(config: DaemonConfig, text: bytes, before: OldProgram | None = None) -> OldProgram | None:
    """What it takes to run this very program again; None where that cannot be had.

    ``text``: what the configuration was read from. ``before``: what a program that was itself executed again
    has been run from.
    """
    file = None if config.file is None else str(config.file)
    if before is not None:
        return msgspec.structs.replace(before, config=text.decode(), config_file=file)
    # Of "python -m NAME ARGUMENT", "-m" comes before as many words as sys.argv has.
    options = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv)]
    options = [one for one in options if one not in ("-m", "-c")]
    opened: list[int] = []
    try:
        opened.append(os.open("/proc/self/exe", os.O_RDONLY | os.O_CLOEXEC))
        opened.append(_source())
    except OSError:  # EMFILE, ENOMEM, EACCES: upgrades work, only without a way back
        for fd in opened:
            os.close(fd)
        return None
    interpreter, code = opened
    return OldProgram(
        interpreter,
        code,
        (sys.executable, *options, "-c", _LOADER.format(code), *sys.argv[1:]),
        (sys.executable, *sys.orig_argv[1:]),
        text.decode(),
        file,
    )


def _source() -> int:
    """A memory file from which Python can import this package as it is now. Raises OSError."""
    root = Path(package).parent
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for file in sorted(root.rglob("*.py")):
            name = file.relative_to(root.parent).as_posix()
            if not name.startswith("taskmaster/cli/"):
                archive.writestr(name, file.read_bytes())
    fd = os.memfd_create("taskmaster-program", os.MFD_CLOEXEC)
    data = packed.getbuffer()
    while data:
        data = data[os.write(fd, data) :]
    return fd


class WayBack:
    """The hand-over that this program was executed with, and the way back to the one before, until ``arrived``.

    ``old``: None where the one before has kept nothing. ``failed``: why this is not the program that was to come,
    but the one before, executed again; empty where it is.
    """

    def __init__(self, file: int, failed: str) -> None:
        self._file = file
        self.failed = failed
        self._data = os.pread(file, os.fstat(file).st_size, 0)
        # Read by itself: the rest may be what this program does not understand.
        found = msgspec.json.decode(self._data, type=_Kept)
        self.old = found.old
        self._open = {*found.descriptors, file}
        #: This program's configuration, once it is read: where its last words are put on record.
        self.config: DaemonConfig | None = None

    @property
    def descriptors(self) -> frozenset[int]:
        """All that must stay open."""
        return frozenset(self._open)

    def handed(self) -> HandOver:
        """What was handed over. Raises msgspec.ValidationError."""
        handed = msgspec.json.decode(self._data, type=HandOver)
        handed = msgspec.structs.replace(handed, failed=self.failed)
        self._open |= {*handed.descriptors()}
        handover.inheritable(handed, False)
        os.set_inheritable(self._file, False)
        return handed

    def limit(self) -> None:
        """A start that takes too long is one that failed. The alarm is the one signal that is heard."""
        signal.signal(signal.SIGALRM, self._late)
        signal.setitimer(signal.ITIMER_REAL, START_S)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])

    def arrived(self) -> None:
        """The start is over, and what was handed over belongs to this program."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        sys.excepthook = sys.__excepthook__
        atexit.unregister(self.ended)
        kept = {self.old.interpreter, self.old.code} if self.old and not self.failed else set()
        for fd in {self._file, *kept}:
            os.close(fd)

    def take(self, why: str) -> str:
        """Execute the program before again; returns, in words, why that cannot be."""
        if self.failed:
            return f"nor can the new one, which was to come: {self.failed}"
        if self.old is None:
            return "the program before has kept nothing to be executed again with"
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        for fd in self._open:
            try:
                os.set_inheritable(fd, True)
            except OSError:
                pass  # EBADF: closed, being of a job that is no more
        environment = {**os.environ, handover.VARIABLE: str(self._file), FAILED: why[:_MAX_WHY]}
        try:
            os.execve(self.old.interpreter, self.old.command, environment)
        except OSError as error:
            return f"the program before cannot be executed again: {error.strerror}"

    def ended(self) -> None:
        """The interpreter is about to leave, which nobody has told it to."""
        give_up(1, "it ended in the middle of its start", self)

    def _late(self, number: int, frame: FrameType | None) -> None:
        raise Hung(f"its start is not over after {START_S:g} s")

    def raised(
        self, kind: type[BaseException], value: BaseException, trace: TracebackType | None
    ) -> None:
        """An exception that nobody expected: the end of this program, and the way back."""
        sys.__excepthook__(kind, value, trace)
        words = "".join(traceback.format_exception_only(kind, value)).strip()
        give_up(1, words.splitlines()[-1], self)


class _Kept(msgspec.Struct, frozen=True):
    """Of a hand-over, what the way back needs."""

    old: OldProgram | None = None
    lock: int = -1

    @property
    def descriptors(self) -> list[int]:
        return [] if self.old is None else [self.old.interpreter, self.old.code]


def received() -> WayBack | None:
    """What this program was executed with; None where it was started by somebody."""
    text = os.environ.pop(handover.VARIABLE, "")
    failed = os.environ.pop(FAILED, "")
    if not text:
        return None
    way_back = WayBack(int(text), failed)
    sys.excepthook = way_back.raised
    atexit.register(way_back.ended)  # sys.exit; a daemon itself leaves by os._exit
    return way_back


def give_up(status: int, why: str, way_back: WayBack | None) -> NoReturn:
    """This program cannot start: say so, or go back. Exits with ``status``; jobs and watchdogs run on."""
    text = f"taskmasterd: {why}\n"
    if way_back is not None:
        also = way_back.take(why)
        which = "old" if way_back.failed else "new"
        text = (
            f"taskmasterd: after an upgrade the {which} program cannot start: {why}; {also}. "
            "It ends. All jobs and their watchdogs run on; start taskmasterd to go on with them\n"
        )
        _record(way_back.config, text)
    try:
        os.write(2, text.encode("utf-8", "backslashreplace"))
    except OSError:
        pass  # nobody is there to be told
    os._exit(status)


def _record(config: DaemonConfig | None, text: str) -> None:
    if config is None:
        return
    try:
        log = AuditLog(
            config.audit_file, max_bytes=config.audit_max_bytes, backups=config.audit_backups
        )
    except TaskmasterError:
        return  # that may be what failed; it is said on standard error
    log.record(Event.DAEMON_UPGRADE_FAILED, pid=os.getpid(), error=text.strip())
    log.close()
