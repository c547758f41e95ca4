"""Who may see a job's file: the file as it is, so one with a secret in the clear is for admins alone.

What was found out about a content is remembered by its hash, since a file may have a megabyte and be pulled
every second.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import msgspec

from taskmaster.config import secrets
from taskmaster.config.access import Role
from taskmaster.config.history import sha256
from taskmaster.control.access import Rights, refused
from taskmaster.errors import NotPermitted
from taskmaster.wire import replies
from taskmaster.wire.queries import Command
from taskmaster.wire.replies import Reply

#: Contents that are remembered.
_REMEMBERED: Final = 1024


#: Bytes of files whose replies are kept: of a megabyte, one costs as much as a hundred others.
_KEPT_BYTES: Final = 4 * 1024 * 1024

Stamp = tuple[int, int, int, int]


class _Made(msgspec.Struct):
    """A reply, of which file, and whether that holds a secret, if anybody has asked."""

    stamp: Stamp | None
    data: bytes
    reply: Reply
    holds: bool | None = None


class Pulling:
    """``pattern``: secretPattern."""

    def __init__(self, pattern: str) -> None:
        self._pattern = re.compile(pattern)
        self._known: dict[str, bool] = {}
        self._made: dict[str, _Made] = {}
        self._made_bytes = 0

    def reply(
        self, job: str, stamp: Stamp | None, read: Callable[[], bytes], rights: Rights
    ) -> Reply:
        """The reply to ``pull``; ``stamp`` is that of the file, None where it may be another each time.

        Raises NotPermitted, and what ``read`` does.
        """
        made = self._made.get(job)
        if made is None or stamp is None or made.stamp != stamp:
            data = read()
            made = _Made(stamp, data, replies.file(job, data))
            self._keep(job, made)
        role = rights.role(job)
        if role is None or role < Role.ADMIN:
            if made.holds is None:
                made.holds = self._holds(made.data)
            if made.holds:
                self.check(job, made.data, rights)
        return made.reply

    def _keep(self, job: str, made: _Made) -> None:
        before = self._made.pop(job, None)
        if before is not None:
            self._made_bytes -= len(before.data)
        if made.stamp is None or len(made.data) > _KEPT_BYTES:
            return
        if self._made_bytes + len(made.data) > _KEPT_BYTES:
            self._made.clear()
            self._made_bytes = 0
        self._made[job] = made
        self._made_bytes += len(made.data)

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
