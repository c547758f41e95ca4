"""What a storm happens on: a folder, one taskmasterd at a time, and this process as the init that inherits.

This process is a subreaper, so whoever loses its parent below it becomes its child and is reaped here.
The daemon runs from a copy of the sources, so that an edit meanwhile is not part of the storm.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from storm_sabotage import Product

ROOT: Final = Path(__file__).resolve().parents[1]
_PR_SET_CHILD_SUBREAPER: Final = 36
_WATCHDOG: Final = "watchdog "


class Proc(NamedTuple):
    """A process by number and kernel start time."""

    pid: int
    ppid: int
    start: int
    state: str
    name: str


class Watchdog(NamedTuple):
    """The watchdog of a job."""

    job: str
    pid: int
    pidfd: int


def look(pid: int) -> Proc | None:
    """How a process stands; None when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    head, _, tail = text.rpartition(")")
    fields = tail.split()
    return Proc(pid, int(fields[1]), int(fields[19]), fields[0], head.partition("(")[2])


def children(pid: int, thread: int | None = None) -> list[int]:
    """The direct children of one thread of a process, by default of its first; none where that is gone."""
    try:
        text = Path(f"/proc/{pid}/task/{thread or pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(one) for one in text.split()]


class Host:
    """The folder and everything that runs in it. ``folder`` None: a temporary one; ``settings``: of the daemon."""

    def __init__(self, folder: Path | None, **settings: Any) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="tm-storm-"))
        else:
            folder.mkdir(parents=True)
        self.folder = folder.resolve()
        self.jobs = self.folder / "jobs"
        self.ledgers = self.folder / "ledgers"
        self.logs = self.folder / "log"
        self.state = self.folder / "state"
        self.socket = self.state / "control.sock"
        self.messages = self.folder / "messages"
        self.audit_file = self.logs / "audit.jsonl"
        self.jobs.mkdir(mode=0o700)
        self.ledgers.mkdir(mode=0o700)
        self._product_folder = self.folder / "product"
        self.product = Product(ROOT / "taskmaster", self._product_folder)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        config = {
            "port": self.port,
            "configDirectory": "jobs",
            "logDirectory": "log",
            "stateDirectory": "state",
            "commandDeadline": 1,
            "watchdogTimeout": 3,
            "auditMaxBytes": 1 << 20,
            "auditBackups": 1000,
            "auditSealSeconds": 2,
            **settings,
        }
        (self.folder / "config.json").write_text(json.dumps(config))
        self._make_sealing_key()
        self.pid = 0
        self.pidfd = -1
        #: Of each daemon that ended: when, its pid, its wait status.
        self.ended: list[tuple[float, int, int]] = []
        self._daemons: set[int] = set()
        self._over = False
        self._change = threading.Condition()
        threading.Thread(target=self._reap, daemon=True).start()

    def _make_sealing_key(self) -> None:
        """The log is sealed, so that what is left of the storm proves what is in it."""
        self.logs.mkdir(mode=0o700)
        argv = [sys.executable, "-m", "taskmaster.cli", "audit", "keygen", "--json"]
        made = subprocess.run(
            [*argv, "--file", str(self.logs / "audit.seal")],
            check=True,
            capture_output=True,
            cwd=ROOT,
        )
        (self.folder / "audit.key").write_text(json.loads(made.stdout)["key"])

    # the init -------------------------------------------------------------------------------------

    def _reap(self) -> None:
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            except ChildProcessError:
                time.sleep(0.02)
                continue
            assert found is not None
            with self._change:
                # Under the lock: nobody signals a number that has just been given back.
                try:
                    pid, status = os.waitpid(found.si_pid, 0)
                except ChildProcessError:
                    continue  # the judge has waited for a program of its own
                if pid in self._daemons:
                    self._daemons.discard(pid)
                    self.ended.append((time.monotonic(), pid, status))
                    self._change.notify_all()

    def below(self) -> list[Proc]:
        """Everything that lives below this process."""
        found: list[Proc] = []
        queue = children(os.getpid())
        while queue:
            pid = queue.pop()
            queue += children(pid)
            one = look(pid)
            if one is not None and one.state not in "ZX":
                found.append(one)
        return found

    def spawn(self, begin: Callable[[], int]) -> int:
        """The pid of what ``begin`` starts. Raises OSError once the host is ending: threads of the storm may still
        run then, and what they started would outlive it, or write into the folder while that is removed."""
        with self._change:
            if self._over:
                raise OSError(errno.ESHUTDOWN, os.strerror(errno.ESHUTDOWN))
            return begin()

    def end(self, *, keep: bool) -> None:
        """End everything and, unless it is to be kept, remove the folder."""
        while True:
            with self._change:
                self._over = True
                # Of all threads: those of the attackers start some, too.
                left = [
                    child
                    for thread in os.listdir("/proc/self/task")
                    for child in children(os.getpid(), int(thread))
                ]
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
            if not left:
                break
            time.sleep(0.02)
        if self.pidfd >= 0:
            os.close(self.pidfd)
        if not keep:
            self.product.leave()
            shutil.rmtree(self.folder)

    # the daemon -----------------------------------------------------------------------------------

    def start(self) -> int:
        """Start a daemon from a product that is whole; its pid."""
        self.product.mend()
        # With -m, the caller's directory comes first where Python looks for the package.
        words = ["/usr/bin/env", "-C", str(self._product_folder), sys.executable]
        words += ["-m", "taskmaster.control", "-c", str(self.folder / "config.json")]
        environment = {
            key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ
        }
        environment["PYTHONPATH"] = str(self._product_folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        with self._change:
            self.pid = os.posix_spawn(
                words[0],
                words,
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, str(self.messages), flags, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setsid=True,
            )
            if self.pidfd >= 0:
                os.close(self.pidfd)
            self.pidfd = os.pidfd_open(self.pid)
            self._daemons.add(self.pid)
        return self.pid

    @property
    def running(self) -> bool:
        """Whether the daemon has not ended."""
        with self._change:
            return self.pid in self._daemons

    def wait_end(self, deadline_s: float) -> int | None:
        """The wait status of the daemon once it has ended; None if it has not in time."""
        with self._change:
            if not self._change.wait_for(lambda: self.pid not in self._daemons, deadline_s):
                return None
        return next(status for _, pid, status in reversed(self.ended) if pid == self.pid)

    def signal_daemon(self, number: int) -> bool:
        """Send a signal to the daemon; False when it is gone."""
        return send(self.pidfd, number)

    def watchdogs(self) -> list[Watchdog]:
        """The living watchdogs; the caller closes their pidfds.

        A child that a watchdog has just forked still has its name: it is no watchdog, and not here.
        """
        every = self.below()
        named = {one.pid for one in every if one.name.startswith(_WATCHDOG)}
        found: list[Watchdog] = []
        for one in every:
            if one.pid not in named or one.ppid in named:
                continue
            try:
                pidfd = os.pidfd_open(one.pid)
            except ProcessLookupError:
                continue
            again = look(one.pid)
            if again is None or again.start != one.start or again.name != one.name:
                os.close(pidfd)
            else:
                found.append(Watchdog(one.name.removeprefix(_WATCHDOG), one.pid, pidfd))
        return sorted(found)


def send(pidfd: int, number: int) -> bool:
    """Send a signal; False when the process is gone."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True


def become_ended(number: int, _frame: Any) -> None:
    """A handler that ends this program in order."""
    sys.exit(128 + number)
