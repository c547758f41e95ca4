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
from typing import Final, NamedTuple

_libc: Final = ctypes.CDLL(None, use_errno=True)

# include/uapi/linux/prctl.h
_PR_SET_KEEPCAPS: Final = 8
_PR_SET_NAME: Final = 15
_PR_CAPBSET_READ: Final = 23
_PR_CAPBSET_DROP: Final = 24
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_RAISE: Final = 2
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
#: Three sets of 64 bits (include/uapi/linux/capability.h, version 3).
_CAPABILITY_VERSION: Final = 0x20080522
_SPLICE_F_NONBLOCK: Final = 2
_FALLOC_FL_KEEP_SIZE: Final = 1

#: The same number on all architectures (Linux 5.9).
_CLOSE_RANGE: Final = 436
_NO_DESCRIPTOR: Final = ctypes.c_uint(0x7FFFFFFF)

# struct pidfd_info, first version (include/uapi/linux/pidfd.h, Linux 6.13; exit codes since 6.15).
_PIDFD_GET_INFO: Final = (3 << 30) | (64 << 16) | (0xFF << 8) | 11
_PIDFD_INFO_PID: Final = 1 << 0
_PIDFD_INFO_EXIT: Final = 1 << 3
_PARENT_AT: Final = 24
_EXIT_CODE_AT: Final = 60


def _prctl(option: int, first: object = 0, second: int = 0) -> int:
    # Told to be unsigned long: a plain int leaves the upper half of the argument to chance.
    arguments = [ctypes.c_ulong(one) if isinstance(one, int) else one for one in (first, second)]
    done = int(_libc.prctl(option, *arguments, ctypes.c_ulong(0), ctypes.c_ulong(0)))
    if done < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {option}: {os.strerror(number)}")
    return done


def become_subreaper() -> None:
    """Orphans among this process's descendants become its children. Survives exec, not fork."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_name(name: str) -> None:
    """What ``ps -o comm`` shows for this process: the first 15 bytes of ``name``."""
    _prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode("utf-8", "replace")[:15]))


def no_new_privileges() -> None:
    """No program that is executed from here on gives more rights than there are. Survives fork and exec."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


class CapabilitySets(NamedTuple):
    """Capabilities of a process, each set a mask of bits by number."""

    effective: int
    permitted: int
    inheritable: int


def capabilities() -> CapabilitySets:
    """Those of this process."""
    header = ctypes.create_string_buffer(struct.pack("Ii", _CAPABILITY_VERSION, 0))
    data = ctypes.create_string_buffer(24)
    if _libc.capget(header, data) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"capget: {os.strerror(number)}")
    low, high = struct.unpack("3I", data.raw[:12]), struct.unpack("3I", data.raw[12:])
    return CapabilitySets(*(one | other << 32 for one, other in zip(low, high, strict=True)))


def set_capabilities(sets: CapabilitySets) -> None:
    """Give this process these and no others. The ambient set loses what is not in them."""
    header = ctypes.create_string_buffer(struct.pack("Ii", _CAPABILITY_VERSION, 0))
    low, high = [one & 0xFFFFFFFF for one in sets], [one >> 32 for one in sets]
    data = ctypes.create_string_buffer(struct.pack("6I", *low, *high))
    if _libc.capset(header, data) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"capset: {os.strerror(number)}")


def close_range() -> None:
    """Whether the kernel closes many descriptors at once: tried where none can be. Raises OSError."""
    if _libc.syscall(_CLOSE_RANGE, _NO_DESCRIPTOR, _NO_DESCRIPTOR, ctypes.c_uint(0)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def keep_capabilities() -> None:
    """The permitted set outlives the next change of user from root to another. Until exec."""
    _prctl(_PR_SET_KEEPCAPS, 1)


def bounding_set() -> dict[int, bool]:
    """Of each capability that the kernel knows whether this process may ever get it."""
    found: dict[int, bool] = {}
    try:
        for number in range(64):
            found[number] = bool(_prctl(_PR_CAPBSET_READ, number))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return found


def drop_from_bounding_set(number: int) -> None:
    """Neither this process nor what it executes can ever get this capability. Needs CAP_SETPCAP."""
    _prctl(_PR_CAPBSET_DROP, number)


def clear_ambient_set() -> None:
    """No capability is kept over exec merely because it was there before."""
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)


def raise_ambient(number: int) -> None:
    """Keep a capability, which must be permitted and inheritable, over exec."""
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number)


def file_system_ids(uid: int, gid: int) -> None:
    """Be this user and group to file systems, and to nothing else (setfsuid(2)). Raises PermissionError where that
    is not allowed, which leaves them as they were."""
    before = int(_libc.setfsgid(ctypes.c_uint(gid))) & 0xFFFFFFFF
    _libc.setfsuid(ctypes.c_uint(uid))
    # The calls tell nothing but who one was: an id that is none changes nothing.
    now = [
        int(call(ctypes.c_uint(0xFFFFFFFF))) & 0xFFFFFFFF
        for call in (_libc.setfsuid, _libc.setfsgid)
    ]
    if now != [uid, gid]:
        _libc.setfsgid(ctypes.c_uint(before))
        raise PermissionError(errno.EPERM, f"setfsuid: {os.strerror(errno.EPERM)}")


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


def allocate_behind(fd: int, offset: int, length: int) -> None:
    """Give a file blocks from ``offset`` on, without making it longer (``FALLOC_FL_KEEP_SIZE``)."""
    done = int(
        _libc.fallocate64(
            ctypes.c_int(fd),
            ctypes.c_int(_FALLOC_FL_KEEP_SIZE),
            ctypes.c_longlong(offset),
            ctypes.c_longlong(length),
        )
    )
    if done < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "fallocate")


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


def pidfd_parent(pidfd: int) -> int | None:
    """The parent of a process, also where /proc does not show it; None where it has ended or before Linux 6.13."""
    info = bytearray(64)
    struct.pack_into("Q", info, 0, _PIDFD_INFO_PID)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL, errno.ESRCH, errno.ENOSYS, errno.EOPNOTSUPP):
            return None
        raise
    (parent,) = struct.unpack_from("I", info, _PARENT_AT)
    return int(parent)


#: What may make a file of a folder another, and what ends the watching (include/uapi/linux/inotify.h).
_IN_CHANGES: Final = 0x2 | 0x4 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200
_IN_ENDS: Final = 0x400 | 0x800 | 0x2000 | 0x8000
_IN_FLAGS: Final = 0x01000000 | 0x02000000
_INOTIFY_EVENT: Final = struct.Struct("iIII")


def watch_folder(path: str) -> int:
    """A descriptor that can be read when a file of the folder may have become another: ``folder_events``."""
    fd = int(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"inotify_init1: {os.strerror(number)}")
    mask = ctypes.c_uint32(_IN_CHANGES | _IN_ENDS & ~0xA000 | _IN_FLAGS)
    if _libc.inotify_add_watch(fd, ctypes.c_char_p(os.fsencode(path)), mask) < 0:
        number = ctypes.get_errno()
        os.close(fd)
        raise OSError(number, f"inotify_add_watch: {os.strerror(number)}", path)
    return fd


#: What tells that something of a folder was removed or moved, or the folder itself.
_IN_REMOVALS: Final = 0x40 | 0x80 | 0x200 | 0x400 | 0x800 | 0x01000000
_IN_REMOVED_HERE: Final = 0x200 | 0x400 | 0x800 | 0x01000000


def inotify() -> int:
    """A descriptor for ``watch_removals``."""
    fd = int(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"inotify_init1: {os.strerror(number)}")
    return fd


def watch_removals(fd: int, path: str, *, moves: bool) -> int:
    """Have ``fd`` tell when something in a folder is removed, with ``moves`` also moved away; a number for it."""
    mask = ctypes.c_uint32(_IN_REMOVALS if moves else _IN_REMOVED_HERE)
    found = int(_libc.inotify_add_watch(fd, ctypes.c_char_p(os.fsencode(path)), mask))
    if found < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"inotify_add_watch: {os.strerror(number)}", path)
    return found


def removals(fd: int) -> set[int]:
    """The numbers of the folders in which something was removed; -1: too much to tell."""
    found: set[int] = set()
    while True:
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return found
        at = 0
        while at < len(data):
            number, _, _, length = _INOTIFY_EVENT.unpack_from(data, at)
            found.add(number)
            at += _INOTIFY_EVENT.size + length


def folder_events(fd: int) -> bool:
    """Take what ``watch_folder`` has to tell; whether it tells on, which it does not of a folder that is gone."""
    on = True
    while True:
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return on
        at = 0
        while at < len(data):
            _, mask, _, length = _INOTIFY_EVENT.unpack_from(data, at)
            on = on and not mask & _IN_ENDS
            at += _INOTIFY_EVENT.size + length
