"""What a storm does to files: new programs that fail at some step, and state that is removed under what runs.

The copy of the product that daemons run is changed in place, as a package is upgraded, and mended before anything
else is started from it. What is appended raises an error that names the step, so that whoever reads of it later
knows that it was meant.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

#: In each error that a sabotaged program raises.
MARK: Final = "sabotage in the step"

#: Steps of a start, the file of the product that is changed for each, and the lines added at its end.
STEPS: Final[dict[str, tuple[str, str]]] = {
    "import": ("control/session.py", "raise ImportError({error})"),
    "arguments": ("control/main.py", "def main():\n    raise RuntimeError({error})"),
    "configuration": (
        "config/daemon.py",
        "def load(*_, **__):\n    raise RuntimeError({error})",
    ),
    "hand-over": (
        "control/handover.py",
        "def load(*_, **__):\n    raise RuntimeError({error})",
    ),
    "constructor": (
        "control/daemon.py",
        "def _raise(*_, **__):\n    raise RuntimeError({error})\nDaemon.__init__ = _raise",
    ),
    # These three pass the trial.
    "after exec": (
        "control/main.py",
        "import sys\nif '--check' not in sys.argv:\n    raise RuntimeError({error})",
    ),
    "constructor after exec": (
        "control/daemon.py",
        "import sys\ndef _raise(*_, **__):\n    raise RuntimeError({error})\n"
        "if '--check' not in sys.argv:\n    Daemon.__init__ = _raise",
    ),
    "start after exec": (
        "control/daemon.py",
        "import sys\ndef _raise(*_, **__):\n    raise RuntimeError({error})\n"
        "if '--check' not in sys.argv:\n    Daemon.start = _raise",
    ),
}
#: What is in a job's folder of the state directory, and may be gone from one moment to the next.
_STATE_FILES: Final = ("state.json", "link.sock", "lock", "0.stdout", "0.stderr")


class Product:
    """The copy of the product in ``folder``."""

    def __init__(self, source: Path, folder: Path) -> None:
        self._package = folder / "taskmaster"
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, self._package, ignore=ignored)
        self._lock = threading.Lock()
        self._broken: tuple[Path, bytes] | None = None

    @contextlib.contextmanager
    def broken(self, step: str) -> Iterator[None]:
        """A program that fails in ``step``; mended at the end, if it was not before."""
        name, lines = STEPS[step]
        file = self._package / name
        with self._lock:
            good = file.read_bytes()
            self._broken = file, good
            _replace(file, good + b"\n" + lines.format(error=repr(f"{MARK} {step}")).encode())
        try:
            yield
        finally:
            self.mend()

    def mend(self) -> None:
        """Make it good again."""
        with self._lock:
            if self._broken is not None:
                _replace(*self._broken)
                self._broken = None


def _replace(file: Path, content: bytes) -> None:
    new = file.with_suffix(".new")
    new.write_bytes(content)
    new.rename(file)


def remove_state(jobs: Path, choice: random.Random) -> tuple[str, str] | None:
    """Remove a job's folder below ``jobs``, or one file of it; the job, and what. None where nothing is there."""
    try:
        names = sorted(os.listdir(jobs))
    except FileNotFoundError:
        return None
    if not names:
        return None
    job = choice.choice(names)
    if choice.random() < 0.4:
        shutil.rmtree(jobs / job, ignore_errors=True)
        return job, "folder"
    name = choice.choice(_STATE_FILES)
    try:
        (jobs / job / name).unlink()
    except FileNotFoundError:
        return None
    return job, name
