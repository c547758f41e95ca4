"""Who may see a job's file: the file as it is, so one with a secret in the clear is for admins alone.

What was found out about a content is remembered by its hash, since a file may have a megabyte and be pulled
every second.
"""

from __future__ import annotations

import re
from typing import Final

from taskmaster.config import secrets
from taskmaster.config.access import Role
from taskmaster.config.history import sha256
from taskmaster.control.access import Rights, refused
from taskmaster.errors import NotPermitted
from taskmaster.wire.queries import Command

#: Contents that are remembered.
_REMEMBERED: Final = 1024


class Pulling:
    """``pattern``: secretPattern."""

    def __init__(self, pattern: str) -> None:
        self._pattern = re.compile(pattern)
        self._known: dict[str, bool] = {}

    def check(self, job: str, data: bytes, rights: Rights, command: Command = Command.PULL) -> None:
        """Raises NotPermitted where the file of a job is not for this peer."""
        role = rights.role(job)
        if (role is not None and role >= Role.ADMIN) or not self._holds(data):
            return
        has = "none" if role is None else role.word
        why = (
            "shows a secret in the clear (a variable of env whose name matches secretPattern), and "
            f"needs the role {Role.ADMIN.word} for that; {rights.who} has {has}"
        )
        raise NotPermitted(refused(command, job, why))

    def _holds(self, data: bytes) -> bool:
        key = sha256(data)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            found = self._known[key] = secrets.holds_secret(data, self._pattern)
        return found
