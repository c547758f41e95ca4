"""Waiting for what a job says of itself."""

from __future__ import annotations

from running import Daemon, wait_for


def wait_reason(daemon: Daemon, job: str, state: str, words: str) -> str:
    """The reason of the job once it is in this state for a reason with these words."""

    def found() -> str:
        status = daemon.status(job)
        return status["reason"] if status["state"] == state and words in status["reason"] else ""

    reason: str = wait_for(found, f"{job} is {state} for {words!r}")
    return reason
