"""A copy of the program that a daemon runs, for tests that break it while the daemon runs on."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from running import ROOT, Client, Daemon, query, wait_for


class Program:
    """The package in a folder of its own. ``change`` upgrades its files, to something that may not work."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.package = folder / "taskmaster"
        shutil.copytree(
            ROOT / "taskmaster", self.package, ignore=shutil.ignore_patterns("__pycache__", "cli")
        )
        #: A link to the interpreter, which a test can take away.
        self.python = folder / "python"
        self._kept: dict[Path, str] = {}

    def start(self, daemon: Daemon, *, own_interpreter: bool = False) -> None:
        """Start ``daemon`` with this program; ``own_interpreter``: by way of ``python``."""
        python = sys.executable
        search = [str(self.folder)]
        if own_interpreter:
            self.python.symlink_to(Path(sys.executable).resolve())
            python = str(self.python)
            search += [path for path in sys.path if path.endswith("site-packages")]
        argv = ["/usr/bin/env", "-C", str(self.folder), f"PYTHONPATH={':'.join(search)}"]
        argv += [python, "-B", "-m", "taskmaster.control", "-c", str(daemon.config)]
        daemon.pid = daemon.host.start(argv, daemon.messages)
        wait_for(daemon.serves, "taskmasterd serves")

    def change(self, file: str, old: str, new: str) -> None:
        """Replace the first ``old`` in a file of the package; ``restore`` takes it back."""
        path = self.package / file
        text = path.read_text()
        assert old in text, (file, old)
        self._kept.setdefault(path, text)
        path.write_text(text.replace(old, new, 1))

    def restore(self) -> None:
        """As it was when the daemon was started."""
        while self._kept:
            path, text = self._kept.popitem()
            path.write_text(text)


def is_held(daemon: Daemon) -> bool:
    """Whether an upgrade has passed its trial and waits for somebody: nothing that changes something is begun."""
    with Client(daemon.socket) as client:
        client.send(query("reload", "web"))
        client.socket.settimeout(0.2)
        try:
            client.reply()
        except TimeoutError:
            return True
        return False
