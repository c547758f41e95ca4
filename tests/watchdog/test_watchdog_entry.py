"""How a watchdog begins where it finds nothing to begin with."""

from __future__ import annotations

import os
from pathlib import Path

from watchdog_children import ended

from taskmaster.core.spec import JobSpec
from taskmaster.watchdog import entry


def test_the_state_folder_was_removed(state: Path, tmp_path: Path) -> None:
    """It ends with a status of its own and reports no crash: another one follows, with another folder."""
    directory = os.open(state, os.O_RDONLY | os.O_DIRECTORY)
    reading, link = os.pipe()
    state.rmdir()
    logs = tmp_path / "logs"
    logs.mkdir()
    spec = JobSpec(job="web", argv=("true",))
    pid = os.fork()
    if pid == 0:
        entry.run(entry.Launch(spec, "", directory, link, str(logs), (), expected=False))
    for fd in (directory, reading, link):
        os.close(fd)
    assert os.waitstatus_to_exitcode(ended(pid)) == entry.NO_STATE
    assert list(logs.iterdir()) == []
