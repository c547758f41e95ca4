"""What the kernel, or a sandbox around the daemon, refuses: tried at the start, so that nothing fails at night.

A container's seccomp profile may be older than the calls that are used, and answers EPERM or ENOSYS. Each
capability is tried once, harmlessly; what is lost without it is said on standard error and to
``taskmasterctl doctor``. What the daemon cannot work without is the end of the start (exit status 71). It never
takes a host that is short of something (no descriptors, no memory) for one that refuses.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from taskmaster import procfs, sockdiag, syscalls
from taskmaster.errors import KernelRefuses
from taskmaster.eventloop import EventLoop

_SHORT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC})


class Probe(NamedTuple):
    """``try_``: raises OSError where the kernel refuses; ``lost``: what there is not without it."""

    name: str
    try_: Callable[[], object]
    lost: str
    fatal: bool


class Refused(NamedTuple):
    """A capability that there is not, and the system's words."""

    probe: Probe
    words: str

    def __str__(self) -> str:
        return f"the kernel refuses {self.probe.name} ({self.words}): {self.probe.lost}"


def _pidfd() -> None:
    held = os.pidfd_open(os.getpid())
    try:
        signal.pidfd_send_signal(held, 0)  # only whether it could be sent
    finally:
        os.close(held)


def _proc() -> None:
    own = os.getpid()
    if procfs.stat(own) is None:
        raise OSError(errno.ENOENT, "no /proc, or that of another pid namespace")
    os.listdir("/proc/self/fd")


def _others() -> None:
    # Process 1 is there in every pid namespace, and usually another user's.
    if procfs.stat(1) is None:
        raise OSError(errno.EACCES, "hidepid")


def _memfd() -> None:
    os.close(os.memfd_create("taskmaster-probe", os.MFD_CLOEXEC))


def _splice() -> None:
    one, other = os.pipe(), os.pipe()
    try:
        os.write(one[1], b"x")
        syscalls.tee(one[0], other[1], 1)
        os.splice(one[0], other[1], 1)
    finally:
        for fd in (*one, *other):
            os.close(fd)


def _inotify() -> None:
    os.close(syscalls.watch_folder("/"))


def _netlink() -> None:
    kernel = sockdiag.SocketDiagnosis()
    try:
        if not kernel.by_netlink:
            raise OSError(errno.EPROTONOSUPPORT, "no NETLINK_SOCK_DIAG")
    finally:
        kernel.close()


PROBES: Final = (
    Probe(
        "pidfd_open and pidfd_send_signal",
        _pidfd,
        "without them a signal could hit a process that it is not meant for (Linux 5.3, and a sandbox that "
        "allows them)",
        fatal=True,
    ),
    Probe("/proc", _proc, "without it no process can be told from another", fatal=True),
    Probe(
        "PR_SET_CHILD_SUBREAPER",
        syscalls.become_subreaper,
        "without it what a dead watchdog leaves is lost (Linux 3.4)",
        fatal=True,
    ),
    Probe("epoll", lambda: EventLoop().close(), "without it nothing can be waited for", fatal=True),
    Probe(
        "/proc of other users",
        _others,
        "a job's process that becomes another user cannot be seen, and is not stopped with its job",
        fatal=False,
    ),
    Probe(
        "memfd_create",
        _memfd,
        "an upgrade in place is not possible, and neither is TLS",
        fatal=False,
    ),
    Probe(
        "splice and tee",
        _splice,
        "output is moved by read and write, which takes more CPU time",
        fatal=False,
    ),
    Probe(
        "inotify",
        _inotify,
        "job files are looked at each time that a status is asked for",
        fatal=False,
    ),
    Probe(
        "NETLINK_SOCK_DIAG",
        _netlink,
        "who a TCP client is, is read from /proc/net/tcp, which takes longer with many connections",
        fatal=False,
    ),
    Probe(
        "close_range",
        syscalls.close_range,
        "at every start of a process descriptors are closed one by one",
        fatal=False,
    ),
)


def refusals(probes: Iterable[Probe] = PROBES) -> list[Refused]:
    """Try everything; those that are refused. Raises KernelRefuses for one that cannot be done without."""
    found = []
    for probe in probes:
        try:
            probe.try_()
        except OSError as error:
            if error.errno in _SHORT:
                continue
            refused = Refused(probe, error.strerror or str(error))
            if probe.fatal:
                raise KernelRefuses(str(refused)) from None
            found.append(refused)
    return found
