"""The first moments of a new program: it says that it is here, and clients wait until it has met its watchdogs."""

from __future__ import annotations

import os
import time
from typing import Final

from taskmaster import __version__
from taskmaster.audit import AuditLog, Event
from taskmaster.control.handover import HandOver
from taskmaster.control.lifetime.handing import Handing
from taskmaster.control.lifetime.life import Life
from taskmaster.control.supervisor import Supervisor
from taskmaster.core import lifetime
from taskmaster.core.lifetime import Phase
from taskmaster.wire import replies
from taskmaster.wire.queries import Command
from taskmaster.wire.replies import Reply

#: How long a new program waits for all watchdogs to be found again before it goes on with its clients.
_HEARD_S: Final = 2.0


class Arrival:
    """The arrival of the program that ``handed`` was handed to."""

    def __init__(
        self,
        handed: HandOver,
        supervisor: Supervisor,
        audit: AuditLog,
        handing: Handing,
        life: Life,
    ) -> None:
        self._handed = handed
        self._supervisor = supervisor
        self._audit = audit
        self._handing = handing
        self._life = life
        self._began = time.monotonic()

    @property
    def failed(self) -> bool:
        """Whether this is the old program again, the new one having failed."""
        return bool(self._handed.failed)

    @property
    def _reply(self) -> Reply:
        if not self.failed:
            return replies.success()
        return replies.fail(could_not_start(self._handed.failed))

    def begin(self) -> None:
        """Say so in the log, and wait for the watchdogs."""
        handed, reply = self._handed, self._reply
        if self.failed:
            self._audit.record(Event.DAEMON_UPGRADE_FAILED, pid=os.getpid(), error=handed.failed)
        else:
            self._audit.record(
                Event.DAEMON_UPGRADED,
                pid=os.getpid(),
                version=__version__,
                previousVersion=handed.version,
            )
        if handed.asked is not None:
            took_s = time.monotonic() - self._began + handed.asked.took_s
            fields = {} if reply.error is None else {"error": reply.error}
            self._audit.record(
                Event.COMMAND_COMPLETED,
                id=handed.asked.exchange,
                command=Command.UPGRADE.value,
                job=None,
                outcome=reply.response,
                durationMs=round(took_s * 1000, 3),
                **fields,
            )
        self._audit.flush(durable=True)
        self._supervisor.when_heard(self._heard, _HEARD_S)

    def _heard(self) -> None:
        if self._life.phase is Phase.ARRIVING:
            self._life.happens(lifetime.Event.HEARD)

    def take_over(self) -> None:
        """Serve the clients that the program before has left."""
        self._handing.take_over(self._handed, self._reply)


def could_not_start(why: str) -> str:
    """What is said of a new program, to whoever asked for it."""
    return f"The new program cannot start: {why}. The one that runs goes on."
