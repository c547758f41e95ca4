"""Where a daemon keeps its things unless told otherwise: the system's folders for root, else the user's.

The user's follow the XDG base directory specification, in which a relative path in a variable is
ignored. It only names folders, and never makes one.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from pathlib import Path

from taskmaster.errors import FileError


class Places:
    """The default folders of a daemon of user ``uid`` with the environment ``environ``."""

    def __init__(self, environ: Mapping[str, str], uid: int) -> None:
        self._environ = environ
        self._uid = uid

    def jobs(self) -> Path:
        """The job directory. Raises FileError where a user has no home, as do the other two."""
        if self._uid == 0:
            return Path("/etc/taskmaster/jobs")
        return self._xdg("XDG_CONFIG_HOME", ".config") / "taskmaster/jobs"

    def logs(self) -> Path:
        """Where logs go."""
        if self._uid == 0:
            return Path("/var/log/taskmaster")
        return self._xdg("XDG_STATE_HOME", ".local/state") / "taskmaster/log"

    def state(self) -> Path:
        """Where the state of the running daemon goes: what runs must outlive a logout, which removes
        ``XDG_RUNTIME_DIR``. An older version kept it there; while it is there, it is the one."""
        if self._uid == 0:
            return Path("/run/taskmaster")
        runtime = self._absolute("XDG_RUNTIME_DIR")
        if runtime is not None and os.path.isfile(runtime / "taskmaster/lock"):
            return runtime / "taskmaster"
        return self._xdg("XDG_STATE_HOME", ".local/state") / "taskmaster/run"

    def socket_link(self) -> Path | None:
        """Where programs look for a user's socket; None where that is the socket itself."""
        runtime = self._absolute("XDG_RUNTIME_DIR")
        if self._uid == 0 or runtime is None or self.state() == runtime / "taskmaster":
            return None
        return runtime / "taskmaster/control.sock"

    def _xdg(self, variable: str, below_home: str) -> Path:
        return self._absolute(variable) or self._home() / below_home

    def _absolute(self, variable: str) -> Path | None:
        value = self._environ.get(variable, "")
        return Path(value) if value.startswith("/") else None

    def _home(self) -> Path:
        home = self._absolute("HOME")
        if home is not None:
            return home
        try:
            return Path(pwd.getpwuid(self._uid).pw_dir)
        except KeyError:
            raise FileError(
                "default folders",
                "",
                f"no home: HOME is no absolute path, and uid {self._uid} is in no user database",
                "HOME set, or -c CONFIG with configDirectory, logDirectory and stateDirectory",
            ) from None
