"""What a daemon stands on: state directory, audit log and its second place, job directory.

``opened`` takes them, and writes. ``looked_at`` is for a program on trial, while the one that has them runs: it
goes through the same constructors, refuses what they would refuse, and changes nothing on the disk; what its
log is told goes into a memory file.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

import msgspec

from taskmaster import syscalls
from taskmaster.audit import AuditLog, Sink, examine
from taskmaster.audit.reserve import Reserve
from taskmaster.audit.sink import SOCKETS
from taskmaster.config.daemon import DaemonConfig
from taskmaster.config.store import JobStore
from taskmaster.control import messages
from taskmaster.control.handover import HandOver
from taskmaster.control.say import Say
from taskmaster.control.statedir import StateDirectory
from taskmaster.control.status import timestamp
from taskmaster.errors import FileError

_DAY_S: Final = 86_400.0
_WANTED: Final = "a folder, or room to make one"


class Premises(msgspec.Struct, frozen=True):
    """``sink``: where every record goes too, None where there is none; ``heads``: where heads of the log go."""

    statedir: StateDirectory
    audit: AuditLog
    store: JobStore
    sink: Sink | None
    heads: Sink


def opened(config: DaemonConfig, handed: HandOver | None, say: Say) -> Premises:
    """All of it, taken. Raises TaskmasterError."""
    statedir = StateDirectory(config.state_directory, None if handed is None else handed.lock)
    for folder in _log_folders(config):
        try:
            os.makedirs(folder, 0o750, exist_ok=True)
        except OSError as error:
            raise _no_folder(folder, error.strerror or "") from None
    sink = None if config.audit_sink is None else _sink(config, config.audit_sink, say)
    audit = AuditLog(
        config.audit_file,
        max_bytes=config.audit_max_bytes,
        backups=config.audit_backups,
        seal=config.audit_seal_file,
        sink=sink,
        keep_s=config.audit_keep_days * _DAY_S,
        reserve=Reserve(config.audit_reserve_bytes, syscalls.allocate_behind),
    )
    store = JobStore(
        config.config_directory, os.geteuid(), history_max_bytes=config.history_max_bytes
    )
    return Premises(statedir, audit, store, sink, _sink(config, config.audit_sink or "syslog", say))


def looked_at(config: DaemonConfig, handed: HandOver, say: Say) -> Premises:
    """All of it as it would be taken, with nothing written and nothing locked. Raises TaskmasterError."""
    statedir = StateDirectory(config.state_directory, -1)
    for folder in _log_folders(config):
        _could_make(folder)
    messages.examine(config)
    held = None if handed.holdings is None else handed.holdings.log
    sink = None if config.audit_sink is None else _sink(config, config.audit_sink, say)
    audit = AuditLog(
        config.audit_file,
        max_bytes=config.audit_max_bytes,
        backups=config.audit_backups,
        sink=None,
        open_log=lambda path: examine(path, config.audit_seal_file, held),
    )
    store = JobStore(config.config_directory, os.geteuid(), read_only=True)
    return Premises(statedir, audit, store, sink, _sink(config, config.audit_sink or "syslog", say))


def _sink(config: DaemonConfig, kind: str, say: Say) -> Sink:
    path = config.audit_sink_socket or SOCKETS[kind]
    return Sink(kind, str(path), lambda: timestamp(time.time()), say.error)


def _log_folders(config: DaemonConfig) -> set[Path]:
    folders = {config.log_directory, config.audit_file.parent}
    return folders if config.log_file is None else folders | {config.log_file.parent}


def _could_make(folder: Path) -> None:
    """Raises FileError where it is no folder, or could not be made or written to."""
    there = folder
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise _no_folder(folder, f"{there}, which is no folder")
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
        raise _no_folder(folder, f"{there}, which cannot be written to")


def _no_folder(folder: Path, found: str) -> FileError:
    return FileError("logDirectory", str(folder), found, _WANTED)
