"""A process held by a pidfd: waiting for its end, and how it ended, where the kernel tells."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct

# struct pidfd_info, first version (include/uapi/linux/pidfd.h, Linux 6.13; how a process ended: 6.15).
_GET_INFO = (3 << 30) | (64 << 16) | (0xFF << 8) | 11
_INFO_EXIT = 1 << 3
_EXIT_CODE_AT = 60
#: How long the parent of an ended process may take to reap it: before that the kernel does not tell.
_REAPED_WITHIN_MS = 500


def hold(pid: int) -> int:
    """A pidfd of the process, -1 where there is none to be had.

    Not of process 1: a socket that it had opened for the daemon would be taken for the daemon's.
    """
    if pid <= 1:
        return -1
    try:
        return os.pidfd_open(pid)
    except OSError:  # ESRCH, EMFILE, ENOSYS before Linux 5.3
        return -1


def ended(pidfd: int, timeout_s: float) -> bool:
    """Wait for the end of the process; False where the time is over before."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(max(timeout_s, 0) * 1000))


def wait_status(pidfd: int) -> int | None:
    """How the process, which has ended, ended; None where the kernel is too old to tell."""
    reaped = select.poll()
    reaped.register(pidfd, 0)  # a hang-up is reported unasked
    for _ in range(2):
        try:
            found = info(pidfd)
        except OSError as error:
            if error.errno != errno.ESRCH:  # ENOTTY, EINVAL: before Linux 6.13
                return None
        else:
            if found is not None:
                return found
        reaped.poll(_REAPED_WITHIN_MS)
    return None


def info(pidfd: int) -> int | None:
    """Ask PIDFD_GET_INFO: the wait status, None of a process that lives. Raises OSError."""
    answer = bytearray(64)
    struct.pack_into("Q", answer, 0, _INFO_EXIT)
    fcntl.ioctl(pidfd, _GET_INFO, answer)
    (mask,) = struct.unpack_from("Q", answer, 0)
    if not mask & _INFO_EXIT:
        return None
    (status,) = struct.unpack_from("i", answer, _EXIT_CODE_AT)
    return int(status)
