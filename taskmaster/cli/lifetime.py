"""``shutdown`` and ``upgrade``: what is asked of taskmasterd about itself, not about a job.

Knows nothing of click; every function here returns the exit status or raises TaskmasterError.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from taskmaster.cli import outcomes, pidfd, screen
from taskmaster.cli.client import Client
from taskmaster.cli.outcomes import Outcome
from taskmaster.errors import TaskmasterError, TimedOut

Clock = Callable[[], float]

UPGRADED = "taskmasterd runs the new program (same pid); no process was touched"
ENDED = "taskmasterd has ended; all jobs are stopped"
LEFT = "taskmasterd has ended; its jobs run on and are found again by the next taskmasterd"
#: With --no-wait the reply says no more than this.
ENDING = "taskmasterd stops all jobs and then ends; not waited for"
LEAVING = "taskmasterd ends and leaves its jobs running; not waited for"

#: Between the end of the connection and that of the process is the closing of its files.
_LAST_STEPS_S = 5.0


def agreed(client: Client) -> bool:
    """Ask on the terminal whether everything shall be stopped; True, unasked, where there is none."""
    if not screen.can_ask():
        return True
    jobs = len(outcomes.job_names(client))
    return screen.agreed(f"Stop all jobs ({jobs}) and end taskmasterd at {client.address}?")


def shutdown(
    client: Client, *, leave_jobs: bool, wait_s: float | None, clock: Clock = time.monotonic
) -> Outcome:
    """End taskmasterd, with or without its jobs, and wait ``wait_s`` until it is gone (None: do not)."""
    end = clock() + (wait_s or 0)
    client.open()
    # Held before it is asked, so that its number cannot be another process's by then.
    held = pidfd.hold(client.server_pid())
    try:
        fields: dict[str, Any] = {"leaveJobs": True} if leave_jobs else {}
        if wait_s is not None and not leave_jobs:
            fields["wait"] = wait_s
        found = next(outcomes.ask(client, "shutdown", [None], fields))
        if found.response == "none" and held >= 0 and pidfd.ended(held, _LAST_STEPS_S):
            _check_end(held)  # it has gone without a word: how says more than that
        if found.status or wait_s is None:
            return found
        try:
            _await_end(client, held, end - clock())
        except TimedOut:
            still = "ended" if leave_jobs else "stopped all jobs and ended"
            raise TimedOut(
                f"taskmasterd has not {still} within {wait_s:g} s; what was begun goes on"
            ) from None
        return found
    except TaskmasterError as error:
        return outcomes.failed(None, error)
    finally:
        if held >= 0:
            os.close(held)


def _await_end(client: Client, held: int, timeout_s: float) -> None:
    """Raises TimedOut; Unavailable where the connection broke; TaskmasterError for a bad end."""
    if not client.closed_within(timeout_s):
        raise TimedOut("")
    if held < 0:
        return
    if not pidfd.ended(held, max(timeout_s, _LAST_STEPS_S)):
        raise TimedOut("")
    _check_end(held)


def _check_end(held: int) -> None:
    """Raises TaskmasterError where a process that has ended did not do so in order."""
    status = pidfd.wait_status(held)
    if status:
        code = os.waitstatus_to_exitcode(status)
        how = f"exit status {code}" if code >= 0 else f"by signal {-code}"
        raise TaskmasterError(
            f"taskmasterd has ended, but not in order ({how}): not everything is stopped. "
            "taskmasterctl doctor says what runs"
        )


def upgrade(client: Client) -> Outcome:
    """Have taskmasterd become the program that is installed now."""
    return next(outcomes.ask(client, "upgrade", [None]))


def report(command: str, found: Outcome, words: str, as_json: bool) -> int:
    """Show what became of it; ``words`` for success."""
    if as_json:
        screen.out_json(found.document())
    elif found.status:
        screen.complain(f"{command}: {found.error}")
    else:
        screen.out(words)
    return found.status
