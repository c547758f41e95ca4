"""``taskmasterctl audit verify``: whether the log is as it was written, offline."""

from __future__ import annotations

from collections.abc import Sequence


def run(
    files: Sequence[str],
    *,
    key: str | None,
    key_file: str | None,
    head: str | None,
    as_json: bool,
) -> int:
    """Verify ``files``, the daemon's own log without any; returns the exit status."""
    raise NotImplementedError
