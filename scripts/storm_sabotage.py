"""What a storm does to files: new programs that fail at some step, and state that is removed under what runs.

The copy of the product that daemons run is changed in place, as a package is upgraded, and mended before anything
else is started from it. What is appended raises an error that names the step, so that whoever reads of it later
knows that it was meant.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

#: In each error that a sabotaged program raises.
MARK: Final = "sabotage in the step"

_AFTER_EXEC: Final = "import sys\nif '--check' not in sys.argv:\n    "
_RAISES: Final = "def _sabotaged(*_, **__):\n    raise {kind}({error})\n"


def _raising(name: str, *, after_exec: bool = False, kind: str = "RuntimeError") -> str:
    """Lines that make ``name`` a function that raises; ``after_exec``: not in the trial."""
    return (
        _RAISES.replace("{kind}", kind)
        + (_AFTER_EXEC if after_exec else "")
        + f"{name} = _sabotaged"
    )


#: Steps of a start, the file of the product that is changed for each, and the lines added at its end. Those after
#: the exec pass the trial. A program that ends before it has come to its ``main`` is not among them: nothing of
#: taskmaster runs then that could go back to the old one.
STEPS: Final[dict[str, tuple[str, str]]] = {
    "import": ("control/session.py", "raise ImportError({error})"),
    "arguments": ("control/main.py", _raising("main")),
    "configuration": ("control/main.py", _raising("_configuration")),
    "hand-over": ("control/handover.py", _raising("load")),
    "constructor": ("control/daemon.py", _raising("Daemon.__init__")),
    "configuration after exec": (
        "control/main.py",
        _raising("_configuration", after_exec=True),
    ),
    "constructor after exec": ("control/daemon.py", _raising("Daemon.__init__", after_exec=True)),
    "start after exec": ("control/daemon.py", _raising("Daemon.start", after_exec=True)),
    "start left after exec": (
        "control/daemon.py",
        _raising("Daemon.start", after_exec=True, kind="SystemExit"),
    ),
}
#: What is in a job's folder of the state directory, and may be gone from one moment to the next; the record first.
_STATE_FILES: Final = ("state.json", "link.sock", "lock", "0.stdout", "0.stderr")


class Product:
    """The copy of the product in ``folder``."""

    def __init__(self, source: Path, folder: Path) -> None:
        self._package = folder / "taskmaster"
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, self._package, ignore=ignored)
        self._lock = threading.Lock()
        self._broken: tuple[Path, bytes] | None = None
        self._over = False

    @contextlib.contextmanager
    def broken(self, step: str) -> Iterator[None]:
        """A program that fails in ``step``; mended at the end, if it was not before."""
        name, lines = STEPS[step]
        file = self._package / name
        with self._lock:
            if self._over:
                raise OSError(errno.ESHUTDOWN, os.strerror(errno.ESHUTDOWN))
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

    def leave(self) -> None:
        """Change nothing any more: the folder is about to be removed."""
        with self._lock:
            self._broken, self._over = None, True


def _replace(file: Path, content: bytes) -> None:
    new = file.with_suffix(".new")
    new.write_bytes(content)
    new.rename(file)


def remove_state(
    jobs: Path, choice: random.Random, recorded: frozenset[str]
) -> tuple[str, str] | None:
    """Remove a job's folder below ``jobs``, or one file of it; the job, and what. None where nothing is there.

    ``recorded``: the jobs that are known by their record alone, having no pipe. It is left to them: without it,
    and with neither daemon nor watchdog there, nothing tells that they run (docs/architecture.rst).
    """
    try:
        names = sorted(os.listdir(jobs))
    except FileNotFoundError:
        return None
    if not names:
        return None
    job = choice.choice(names)
    if choice.random() < 0.4 and job not in recorded:
        shutil.rmtree(jobs / job, ignore_errors=True)
        return job, "folder"
    name = choice.choice(_STATE_FILES[job in recorded :])
    try:
        (jobs / job / name).unlink()
    except FileNotFoundError:
        return None
    return job, name
