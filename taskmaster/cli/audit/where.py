"""Where the daemon of this user keeps its audit log: the daemon's own table of keys says it.

The one file of the command line that reads the daemon's configuration.
"""

from __future__ import annotations

import os
from pathlib import Path

from taskmaster.config.daemon import DaemonConfig, load


def configuration() -> DaemonConfig:
    """The configuration of a taskmasterd that this user starts without -c. Raises FileError."""
    return load(None, os.environ, os.geteuid())


def log_path() -> Path:
    """The audit log of that daemon. Raises FileError."""
    return configuration().audit_file
