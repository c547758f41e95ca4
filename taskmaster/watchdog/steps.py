"""Where a child is between fork and exec: whoever fails there is reported by the name of his step."""

from __future__ import annotations


class Step:
    """The step under way. ``name``: what is tried, and on what, as an administrator knows it."""

    def __init__(self) -> None:
        self.name = "prepare"


class StepFailed(Exception):
    """The step cannot be done, for a reason that is no system error; the message is the reason."""
