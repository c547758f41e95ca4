"""Which listeners go on into the new program, which end, and which are new: by its configuration.

A listener goes on if it is what the configuration asks for now. One that is no longer asked for is closed when
all who have knocked are let in; only then is a new one opened, since the two may want the same port.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path
from typing import Final, NamedTuple

from taskmaster.config.daemon import DaemonConfig
from taskmaster.control.handover import HandedListener
from taskmaster.errors import FileError

TCP: Final = "tcp"
UNIX: Final = "unix"
_LOOPBACK: Final = "127.0.0.1"


class Plan(NamedTuple):
    """``opened``: the kinds of those that are asked for and not there."""

    kept: list[HandedListener]
    closed: list[HandedListener]
    opened: list[str]


def plan(config: DaemonConfig, handed: tuple[HandedListener, ...]) -> Plan:
    """What becomes of the listeners that were handed over."""
    kept = [one for one in handed if _is_wanted(config, one)]
    wanted = {TCP: config.port is not None, UNIX: config.socket is not None}
    there = {one.kind for one in kept}
    return Plan(
        kept,
        [one for one in handed if one not in kept],
        [kind for kind, is_wanted in wanted.items() if is_wanted and kind not in there],
    )


def _is_wanted(config: DaemonConfig, one: HandedListener) -> bool:
    if one.kind == TCP:
        host, _, port = one.address.rpartition(":")
        remote = host != _LOOPBACK
        return config.port in (0, int(port)) and remote == config.remote_connections
    if config.socket is None or one.address != str(config.socket):
        return False
    return one.file is None or one.file == file_of(config.socket)


def file_of(path: Path | str) -> tuple[int, int] | None:
    """Device and inode of the socket at this path; None where there is none."""
    try:
        about = os.lstat(path)
    except OSError:
        return None
    return (about.st_dev, about.st_ino) if stat.S_ISSOCK(about.st_mode) else None


def remove_file(one: HandedListener) -> None:
    """Remove the socket of a listener that ends, if it is still its own."""
    if one.kind == UNIX and one.file is not None and file_of(one.address) == one.file:
        try:
            os.unlink(one.address)
        except FileNotFoundError:
            pass  # somebody else was faster


def check(config: DaemonConfig, handed: tuple[HandedListener, ...]) -> None:
    """Raises FileError where one that is to be opened could not be; nothing is listened on."""
    planned = plan(config, handed)
    if TCP in planned.opened and config.port:
        ours = {one.address.rpartition(":")[2] for one in planned.closed if one.kind == TCP}
        # Who has no port now goes on without one, and tries it again; nobody gives one up for a port to be tried.
        has_one = any(one.kind == TCP for one in handed)
        if str(config.port) not in ours and (has_one or config.socket is None):
            _check_port(config, config.port)
    if UNIX in planned.opened and config.socket is not None:
        _check_path(config, config.socket)


def _check_port(config: DaemonConfig, port: int) -> None:
    host = "" if config.remote_connections else _LOOPBACK
    trial = socket.socket(socket.AF_INET)
    trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        trial.bind((host, port))
    except OSError as error:
        words = "a port that another program has"
        if error.errno != errno.EADDRINUSE:
            words = f"a port that cannot be had: {error.strerror}"
        raise FileError(
            str(config.file), "port", f"{port}, {words}", "a port that is free"
        ) from None
    finally:
        trial.close()


def _check_path(config: DaemonConfig, path: Path) -> None:
    found = ""
    if not path.parent.is_dir():
        found = f"{path}, in no folder"
    elif not os.access(path.parent, os.W_OK | os.X_OK, effective_ids=True):
        found = f"{path}, in a folder that cannot be written to"
    elif os.path.lexists(path) and file_of(path) is None:
        found = f"{path}, a file that is no socket"
    if found:
        accepted = "a path at which a socket can be made"
        raise FileError(str(config.file), "socket", found, accepted)
