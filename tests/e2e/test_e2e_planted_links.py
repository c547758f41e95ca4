"""Symbolic links planted in the log, state and configuration folders: never followed, whoever put them there."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import Daemon, alive, wait_for

CONTENT = b"nobody may read or change this\n"
NOBODY = 65534

#: Where a file is made or opened, below the daemon's folder.
FILES = [
    "log/audit.jsonl",
    "log/audit.jsonl.1",
    "log/jobs/web/0_stdout.log",
    "log/jobs/web/0_stdout.log.1",
    "log/jobs/web/watchdog.crash",
    "state/lock",
    "state/control.sock",
    "state/jobs/web/lock",
    "state/jobs/web/link.sock",
    "state/jobs/web/state.json",
    "state/jobs/web/0.stdout",
    "jobs/web.tm.json",
    "jobs/.history/web",
    "jobs/.stopped/web",
]
#: Where a folder is made or entered.
FOLDERS = [
    "log/jobs",
    "log/jobs/web",
    "state/jobs",
    "state/jobs/web",
    "jobs/.history",
    "jobs/.stopped",
]


class Victim:
    """What the links lead to: a file or a folder with a file in it, and what it looked like."""

    def __init__(self, place: Path, *, folder: bool) -> None:
        self._place = place
        self._folder = folder
        if folder:
            place.mkdir(mode=0o755)
            (place / "file").write_bytes(CONTENT)
        else:
            place.write_bytes(CONTENT)
            place.chmod(0o644)
        self._before = self._look()

    def _look(self) -> list[tuple[str, int, int, bytes]]:
        paths = [self._place, *sorted(self._place.iterdir())] if self._folder else [self._place]
        return [
            (
                path.name,
                stat.S_IMODE(path.stat().st_mode),
                path.stat().st_uid,
                b"" if path.is_dir() else path.read_bytes(),
            )
            for path in paths
        ]

    def is_untouched(self) -> bool:
        """Contents, modes, owners and what there is."""
        return self._look() == self._before


def plant(link: Path, target: Path) -> None:
    """A link, and every folder on the way to it as the daemon would have made it."""
    for folder in reversed(link.parents):
        if not folder.exists():
            folder.mkdir(mode=0o700)
    if link.name.endswith(".tm.json"):
        link.unlink()
    link.symlink_to(target)
    if os.geteuid() == 0:
        os.chown(link, NOBODY, NOBODY, follow_symlinks=False)


@pytest.fixture
def planted(make_daemon, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon with the job ``web``, which writes to its output, not started yet."""
    daemon = make_daemon(commandDeadline=0.5)
    daemon.job("web", ["/bin/sh", "-c", "echo out; echo err >&2; exec sleep 1000"])
    return daemon


@pytest.mark.parametrize(
    ("place", "kind"),
    [(place, kind) for place in FILES for kind in ("file", "dangling")]
    + [(place, kind) for place in FOLDERS for kind in ("folder", "dangling")],
)
def test_never_followed(planted, tmp_path, place, kind):
    """The daemon refuses, or the job does, or the link is replaced: what it leads to stays as it was."""
    target = tmp_path / "victim"
    victim = None if kind == "dangling" else Victim(target, folder=kind == "folder")
    plant(planted.folder / place, target)
    planted.start(wait=False)
    wait_for(lambda: planted.pid in planted.host.ended or not alive(planted.pid) or served(planted))
    if alive(planted.pid) and served(planted):
        exercise(planted)
    else:
        # It would not start: it says which file is wrong, in one line.
        said = planted.messages.read_text().strip()
        assert Path(place).name in said, said
        assert "Traceback" not in said
        assert len(said.splitlines()) <= 2
    # Gone before the daemon ends, which tries to stop the job for as long as a watchdog may yet come.
    if (planted.folder / place).is_symlink():
        (planted.folder / place).unlink()
    if victim is None:
        assert not target.exists()
    else:
        assert victim.is_untouched()


def served(daemon: Daemon) -> bool:
    """Whether it answers."""
    return daemon.socket.is_socket() and daemon.serves()


def exercise(daemon: Daemon) -> None:
    """Everything that makes, opens or removes files of a job."""
    wait_for(lambda: is_settled(daemon.status("web")))
    daemon.ask("stop", "web")
    daemon.ask("start", "web")
    daemon.ask("push", "web", data='{"cmd":["sleep","1000"],"startTime":0}')
    daemon.ask("reload", "web")
    daemon.ask("delete", "web", wait=20)
    assert daemon.ask("list")["response"] == "list"


def is_settled(status: dict[str, Any]) -> bool:
    """Whether it runs, or cannot; the status says why."""
    if status["state"] == "UNKNOWN":
        return "cannot be started" in status["reason"] or status["watchdog"]["relaunches"] > 0
    return status["state"] != "STARTING"
