"""The Linux calls that Python has no wrapper for; the only user of ``ctypes``.

Each raises OSError with errno and the call's name.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)

_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36
_SPLICE_F_NONBLOCK: Final = 2

# struct pidfd_info, first version (include/uapi/linux/pidfd.h, Linux 6.13; exit codes since 6.15).
_PIDFD_GET_INFO: Final = (3 << 30) | (64 << 16) | (0xFF << 8) | 11
_PIDFD_INFO_EXIT: Final = 1 << 3
_EXIT_CODE_AT: Final = 60


def _prctl(option: int, argument: object) -> None:
    if _libc.prctl(option, argument, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {option}: {os.strerror(number)}")


def become_subreaper() -> None:
    """Orphans among this process's descendants become its children. Survives exec, not fork."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_name(name: str) -> None:
    """What ``ps -o comm`` shows for this process: the first 15 bytes of ``name``."""
    _prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode("utf-8", "replace")[:15]))


def peer_pid(connection: socket.socket) -> int:
    """Who listens at the other end of a connected Unix socket: the process that called ``listen``."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid: int = struct.unpack("3i", data)[0]
    return pid


def tee(from_pipe: int, to_pipe: int, length: int) -> int:
    """Copy up to ``length`` bytes from one pipe to another without taking them out; never blocks.

    Raises BlockingIOError when there is nothing to copy or no room.
    """
    copied = int(_libc.tee(from_pipe, to_pipe, ctypes.c_size_t(length), _SPLICE_F_NONBLOCK))
    if copied < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"tee: {os.strerror(number)}")
    return copied


def pidfd_exit_status(pidfd: int) -> int | None:
    """The wait status of a process that ended and was reaped by somebody else.

    None where the kernel does not tell: it is older than 6.15, or nobody has reaped it yet.
    """
    info = bytearray(64)
    struct.pack_into("Q", info, 0, _PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL, errno.ESRCH, errno.ENOSYS, errno.EOPNOTSUPP):
            return None
        raise
    (mask,) = struct.unpack_from("Q", info, 0)
    if not mask & _PIDFD_INFO_EXIT:
        return None
    (status,) = struct.unpack_from("i", info, _EXIT_CODE_AT)
    return int(status)
