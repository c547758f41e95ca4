"""``taskmasterctl audit keygen``: a new sealing key for the daemon, a verification key for a drawer."""

from __future__ import annotations


def run(path: str | None, *, force: bool, as_json: bool) -> int:
    """Make the sealing key at ``path``, where the daemon looks for it without; returns the exit status."""
    raise NotImplementedError
