"""Where the daemon of this user keeps its audit log: the daemon's own table of keys says it.

The one file of the command line that reads the daemon's configuration.
"""

from __future__ import annotations

import os
from pathlib import Path

from taskmaster.config.daemon import DaemonConfig, load
from taskmaster.errors import FileError


def configuration() -> DaemonConfig:
    """The configuration of a taskmasterd that this user starts without -c. Raises FileError."""
    return load(None, os.environ, os.geteuid())


def log_path() -> Path:
    """The audit log of that daemon. Raises FileError."""
    return configuration().audit_file


def seal_path() -> str:
    """Where that daemon looks for its sealing key. Raises FileError, also where it is told not to seal."""
    config = configuration()
    if config.audit_seal_file is None:
        raise FileError(str(config.file), "auditSealFile", "null", "a path, or --file here")
    return str(config.audit_seal_file)
