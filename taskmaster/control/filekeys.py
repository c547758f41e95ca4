"""Files as the kernel tells them apart, and those of the daemon itself, which are no job's.

It looks at files and folders of others with ``stat`` alone, and never opens one.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

import msgspec

from taskmaster.config.daemon import DaemonConfig
from taskmaster.control import messages

#: Two of these that are equal are one file: (the folder's device, its inode, name), (device, inode), (path).
Key = tuple[object, ...]


class Own(msgspec.Struct, frozen=True):
    """A file or folder of the daemon: what it is called in errors, and where it is."""

    what: str
    path: str
    is_folder: bool = False


def own_files(config: DaemonConfig) -> Iterator[Own]:
    """Of a daemon of this configuration."""
    yield Own("the audit log", str(config.audit_file))
    if config.audit_seal_file is not None:
        yield Own("the sealing key", str(config.audit_seal_file))
    yield Own("the file of taskmasterd's messages", str(messages.path_of(config)))
    if config.file is not None:
        yield Own("the configuration of taskmasterd", str(config.file))
    yield Own("in configDirectory", str(config.config_directory), True)
    yield Own("in stateDirectory", str(config.state_directory), True)


def file_key(path: str | int) -> Iterator[Key]:
    """The key of the file itself, where there is one."""
    try:
        found = os.stat(path, follow_symlinks=isinstance(path, int))
    except OSError:  # ENOENT, EACCES; EBADF
        return
    if stat.S_ISREG(found.st_mode):
        yield (found.st_dev, found.st_ino)


def is_stream(path: str) -> bool:
    """Whether it is a device or a pipe, which may have many writers and is not rotated."""
    try:
        mode = os.stat(path, follow_symlinks=False).st_mode
    except OSError:  # ENOENT, EACCES
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


def identity(folder: str) -> tuple[int, int] | None:
    """Device and inode of a folder; None where it cannot be looked at."""
    try:
        found = os.stat(folder)
    except OSError:  # ENOENT, EACCES: the job will not start, and says why
        return None
    return found.st_dev, found.st_ino


def is_in(real: str, own: Own) -> bool:
    """Whether a folder, its path without links, is that one or in it."""
    place = os.path.realpath(own.path)
    return real == place or real.startswith(f"{place}/") or same(real, place)


def same(one: str, other: str) -> bool:
    """Whether two paths, the first without links, are one folder."""
    if os.path.realpath(other) == one:
        return True
    found = identity(one)
    return found is not None and found == identity(other)
