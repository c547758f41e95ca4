"""What stands between a query and its command: role, ``pushEnabled``, and ``requireReason``.

Each says no with a reply; nothing of a command that is refused is looked at, least of all a file in it.
"""

from __future__ import annotations

from collections.abc import Collection

from taskmaster.control.access import WRITING, Rights, refused
from taskmaster.errors import NotPermitted, ReasonRequired
from taskmaster.wire import replies
from taskmaster.wire.queries import Command, Query
from taskmaster.wire.replies import Reply


class Gate:
    """``push_enabled``: whether files may be put and taken away; ``reasons``: commands that need one."""

    def __init__(
        self, *, push_enabled: bool = True, reasons: Collection[Command] = frozenset()
    ) -> None:
        self._push_enabled = push_enabled
        self._reasons = frozenset(reasons)

    def refusal(self, rights: Rights, query: Query) -> Reply | None:
        """The reply to a query that may not be acted upon; None where it may."""
        command = query.command
        why = rights.refusal(command, query.job)
        if why is None and command in WRITING and not self._push_enabled:
            why = refused(command, query.job, "is switched off for everybody (pushEnabled)")
        if why is not None:
            return replies.fail(why, NotPermitted.code)
        if command in self._reasons and not query.reason:
            text = (
                f"A reason is required for {command.value} (requireReason): --reason of taskmasterctl, or "
                'the key "reason" of the query.'
            )
            return replies.fail(text, ReasonRequired.code)
        return None
