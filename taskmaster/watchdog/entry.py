"""Where a watchdog begins: from a copy of the control plane to a process that is none of its business.

The copy has everything that the control plane has: its listening sockets, its clients, the ends of
other watchdogs' links. All descriptors but its own few are closed before anything else is done: else
the death of a sibling would not be an end of file to anybody.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import signal
import traceback
from typing import Final, NoReturn

import msgspec

from taskmaster import procfs, procinside, syscalls
from taskmaster.core.names import CRASH_FILE
from taskmaster.core.spec import JobSpec
from taskmaster.eventloop import EventLoop
from taskmaster.watchdog import adopt, logfolder, process, record
from taskmaster.watchdog.marks import INSTANCE_VARIABLE
from taskmaster.watchdog.service import Service

#: Exit status when another watchdog still has the job; the control plane tries again.
HELD: Final = 75
#: Exit status when somebody has removed the job's state folder since the control plane opened it: it makes
#: another, and launches again.
NO_STATE: Final = 73
#: Exit status when the control plane's parameters lead nowhere: the program itself is at fault.
BUG: Final = 70
LOCK: Final = "lock"
#: What the kernel calls a watchdog, before the name of its job.
WATCHDOG_NAME: Final = "watchdog "


class Launch(msgspec.Struct):
    """What a new watchdog is given. ``directory``, ``link``: descriptors; ``logs``: the job's log folder;
    ``limits``: the rlimits that the daemon was started with, for the job's processes; ``expected``: processes
    of the job run, so that without a record they are to be looked for; ``waits_s``: how long the watchdog before
    may take to leave, 0 where there should be none."""

    spec: JobSpec
    sha256: str
    directory: int
    link: int
    logs: str
    limits: tuple[tuple[int, tuple[int, int]], ...]
    expected: bool
    waits_s: float = 0.0


class Trace(msgspec.Struct, frozen=True):
    """What is on record of a job: its processes and orphans by pid and start time, its sessions, its mark."""

    processes: tuple[tuple[int, int], ...] = ()
    sessions: tuple[int, ...] = ()
    instance: str = ""


def trace(directory: int, job: str) -> Trace:
    """What the dead watchdog of the job has left on record; nothing where that cannot be read."""
    try:
        found = record.read(directory, job, procfs.boot_id())
    except (record.UnusableRecord, OSError):
        found = None
    if found is None:
        return Trace()
    processes = [
        (place.pid, place.start)
        for place in found.places
        if place.pid is not None and place.start is not None
    ]
    sessions = (place.session for place in found.places if place.session is not None)
    return Trace((*processes, *found.inherited), tuple(sessions), found.instance)


def mark_of(pid: int) -> str | None:
    """The random mark of some job in the environment of a process, which says nothing where it is not known."""
    return (procinside.variables(pid, INSTANCE_VARIABLE) or {}).get(INSTANCE_VARIABLE)


def recorded(directory: int, job: str) -> list[tuple[int, int]]:
    """Pid and start time of what the job's watchdog has on record as running; none where it cannot be read."""
    try:
        found = record.read(directory, job, procfs.boot_id())
    except (record.UnusableRecord, OSError):
        return []
    if found is None:
        return []
    return [
        (place.pid, place.start)
        for place in found.places
        if place.pid is not None and place.start is not None
    ]


def run(launch: Launch) -> NoReturn:
    """Be the watchdog of one job until it is retired. Called in the forked child; never returns."""
    status = BUG
    try:
        _leave_home(launch)
        status = _serve(launch)
    except Exception:  # noqa: BLE001  what is unexpected ends this watchdog, with its reason on file
        _say_why(launch)
    finally:
        os._exit(status)


def _leave_home(launch: Launch) -> None:
    signal.set_wakeup_fd(-1)
    process.close_all_but({launch.directory, launch.link})
    os.setsid()
    for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    # Whoever has log files opened anew may well tell everything of this name: no reason to end. SIGIO: somebody
    # opens an output file just now, which needs no answer (logfile.py).
    for number in (signal.SIGPIPE, signal.SIGUSR2, signal.SIGIO):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # What is nobody else's says so itself (0600); log files may be read by the group, as their modes say.
    os.umask(0o027)
    # What was made before the fork stays shared with the control plane if the collector never looks at it.
    gc.freeze()
    syscalls.become_subreaper()
    syscalls.set_name(f"{WATCHDOG_NAME}{launch.spec.job}")


def _serve(launch: Launch) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        lock = os.open(LOCK, flags, 0o600, dir_fd=launch.directory)
    except FileNotFoundError:
        return NO_STATE
    try:
        # A POSIX lock: the processes forked from here do not hold it, and a SIGKILL gives it up at once.
        if launch.waits_s:
            # Nothing is served yet, so this may block; if it takes too long, SIGALRM ends it.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, launch.waits_s)
            fcntl.lockf(lock, fcntl.LOCK_EX)
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
        else:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return HELD
        raise
    loop = EventLoop()
    service = Service(
        loop, launch.directory, launch.spec, launch.sha256, launch.logs, launch.limits, lock
    )
    try:
        found = record.read(launch.directory, launch.spec.job, procfs.boot_id())
    except record.UnusableRecord as error:
        service.unusable_record(str(error))
        adopt.without_record(service.runner)
    else:
        if found is not None:
            adopt.adopt(service.runner, found)
        elif launch.expected:
            adopt.without_record(service.runner)
    service.begin(launch.link)
    loop.run()
    return 0


def _say_why(launch: Launch) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        folder = logfolder.enter(launch.logs)
        fd = os.open(CRASH_FILE, flags, 0o600, dir_fd=folder)
        os.write(fd, traceback.format_exc().encode("utf-8", "replace"))
    except OSError:
        pass  # a full disk must not keep a watchdog from ending
