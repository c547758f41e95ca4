"""The only fork of the control plane: watchdogs, and the daemon's own way into the background.

Watchdogs are ``multiprocessing`` children made by ``fork``, so that what is loaded is shared with them, from
a process with one thread. ``multiprocessing`` would join its children when this process ends and reads its
pipes with pickle: neither happens here, since the daemon leaves by ``os._exit`` and the pipe is read
as a plain descriptor with framing of our own.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from multiprocessing.process import BaseProcess
from typing import Final

import msgspec

from taskmaster.core.spec import JobSpec
from taskmaster.watchdog.entry import Launch, run

#: A watchdog as ``multiprocessing`` has it.
Child = BaseProcess

#: The signals that the daemon handles. (All of them would take Python 0.5 ms to block and restore.)
HANDLED: Final = (
    *(signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGTERM),
    signal.SIGUSR2,
)

_context: Final = multiprocessing.get_context("fork")


class Launched(msgspec.Struct):
    """A new watchdog. ``link`` and ``pidfd`` belong to the caller."""

    process: Child
    pid: int
    pidfd: int
    link: int


def launch(
    spec: JobSpec,
    sha256: str,
    directory: int,
    logs: str,
    limits: tuple[tuple[int, tuple[int, int]], ...],
    expected: bool,
    waits_s: float = 0.0,
) -> Launched:
    """Fork the watchdog of a job; the arguments are those of ``entry.Launch``.

    Raises OSError (EAGAIN, ENOMEM, EMFILE, ENFILE) where the host is short.
    """
    ours, theirs = _context.Pipe()
    try:
        plan = Launch(spec, sha256, directory, theirs.fileno(), logs, limits, expected, waits_s)
        process = _context.Process(target=run, args=(plan,), name=f"watchdog {spec.job}")
        # The collector would write into pages that the child shares with us, and so unshare them.
        gc.freeze()
        # No signal may meet the child while it still has our handlers and our wake-up pipe.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        pid = process.pid
        assert pid is not None
        # Known to multiprocessing, it would be waited for at each further start, by a waitpid for each.
        multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]
        link = os.dup(ours.fileno())
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            os.close(link)  # it reads the end of its link, records that, and waits to be found
            raise
    finally:
        ours.close()
        theirs.close()
    return Launched(process, pid, pidfd, link)


class Trial(msgspec.Struct):
    """A program on trial; the descriptors belong to the caller."""

    pid: int
    pidfd: int
    output: int


#: Which descriptor tells a program on trial what it would be handed.
TRIAL: Final = "TASKMASTER_TRIAL"


def trial(argv: list[str], handed: int) -> Trial:
    """Start a program with nothing but its output to be read, and what it would be handed. Raises OSError.

    ``handed``: an inheritable descriptor.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.posix_spawn(
            argv[0],
            argv,
            {**os.environ, TRIAL: str(handed)},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, writer, 1),
                (os.POSIX_SPAWN_DUP2, writer, 2),
            ],
            setsigdef=[signal.SIGPIPE],
        )
    except OSError:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    return Trial(pid, os.pidfd_open(pid), reader)


def detach(log: int) -> int:
    """Go on in the background; returns, in the background process, a descriptor for ``report_ready``.

    ``log``: a descriptor for what is written to standard output and error from now on. The process that was
    called waits for the report, prints it and exits with its status.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    if os.fork():
        os.close(writer)
        said = b""
        while chunk := os.read(reader, 65536):
            said += chunk
        status, _, text = said.partition(b" ")
        os.write(2, text)
        os._exit(int(status) if status.isdigit() else 70)
    os.setsid()
    # Twice: a session leader could get a terminal back by opening one.
    if os.fork():
        os._exit(0)
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    return writer


def report_ready(writer: int, status: int, text: str) -> None:
    """Tell the process that the administrator called how it went: exit status and, if any, words."""
    os.write(writer, f"{status} {text}".encode("utf-8", "replace"))
    os.close(writer)
