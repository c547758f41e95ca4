"""What a benchmark runs on: a folder of its own, and daemons in it.

This process is a subreaper: whoever loses its parent below it becomes its child. So ending everything is
ending children until there are none, by pid, whatever was killed in between.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from bench_client import DEADLINE_S, Client, Missed
from bench_proc import children

from taskmaster import syscalls

ROOT: Final = Path(__file__).resolve().parents[1]

#: Says who it is and when its first instruction ran, then waits for a signal. The clock is the one of
#: ``time.monotonic`` here.
_PROBE_C: Final = r"""
#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>
int main(int argc, char **argv) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (argc > 1) {
        char line[64];
        int fd = open(argv[1], O_WRONLY);
        int length = snprintf(line, sizeof line, "%d %lld\n", (int)getpid(),
                              now.tv_sec * 1000000000LL + now.tv_nsec);
        if (fd < 0 || write(fd, line, length) != length) return 1;
        close(fd);
    }
    for (;;) pause();
}
"""
#: Where there is no compiler: a shell, whose own start is then part of what is measured.
_PROBE_SH: Final = '#!/bin/sh\n[ $# = 0 ] || echo "$$ 0" >"$1"\nexec sleep 2147483647\n'


def wait_for(what: Callable[[], Any], text: str, every_s: float = 0.005) -> Any:
    """What ``what`` returns once it is true."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := what()):
        if time.monotonic() > deadline:
            raise Missed(f"{text}: not in {DEADLINE_S:g} s")
        time.sleep(every_s)
    return found


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


class Fifo:
    """Where probes report. Held open by us, so that none of them ever waits for a reader."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path, 0o666)
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._read = b""

    def next(self) -> tuple[int, float]:
        """Pid of the next process that reports, and when it began, monotonic seconds."""
        while b"\n" not in self._read:
            if not select.select([self._fd], [], [], DEADLINE_S)[0]:
                raise Missed(f"no process began in {DEADLINE_S:g} s")
            self._read += os.read(self._fd, 65536)
        line, _, self._read = self._read.partition(b"\n")
        pid, began_ns = line.split()
        # A shell cannot read the clock: then it is the moment of the report.
        return int(pid), int(began_ns) / 1e9 or time.monotonic()

    def close(self) -> None:
        os.close(self._fd)


# daemons -------------------------------------------------------------------------------------------


class Daemon:
    """One taskmasterd. Its jobs are quick to be RUNNING, unless told otherwise."""

    def __init__(self, host: Host, folder: Path, state: Path, checkout: Path) -> None:
        self._host = host
        self._checkout = checkout
        self.folder = folder
        self.socket = state / "control.sock"
        self.names: list[str] = []
        self.pid = 0
        #: How many descriptors it may have; None: as many as we.
        self.descriptors: int | None = None
        (folder / "jobs").mkdir(parents=True)
        self._settings = {
            "port": None,
            "configDirectory": "jobs",
            "logDirectory": "log",
            "stateDirectory": str(state),
        }
        self.configure()

    def configure(self, **settings: Any) -> None:
        """Write its configuration with these settings more."""
        self._settings |= settings
        (self.folder / "config.json").write_text(json.dumps(self._settings))

    def job(self, name: str, cmd: Sequence[str | Path], **keys: Any) -> None:
        """Write a job file, before ``start``."""
        content = {"cmd": [str(word) for word in cmd], "startTime": 0, "restart": "always", **keys}
        (self.folder / "jobs" / f"{name}.tm.json").write_text(json.dumps(content))
        self.names.append(name)

    def begin(self) -> float:
        """Start it and do not wait; the moment before, monotonic."""
        # With -m, the caller's directory comes first where Python looks for the package.
        argv: list[str | Path] = ["/usr/bin/env", "-C", self._checkout, sys.executable]
        argv += ["-m", "taskmaster.control", "-c", self.folder / "config.json"]
        if self.descriptors is not None:
            argv = ["/bin/sh", "-c", f'ulimit -n {self.descriptors}; exec "$0" "$@"', *argv]
        before = time.monotonic()
        self.pid = self._host.spawn(argv, self.folder / "messages", self._checkout)
        return before

    def start(self) -> Client:
        """Start it, wait until every process of every job runs; a connection to it."""
        self.begin()
        client = self.connect()
        self.wait_running(client)
        return client

    def connect(self) -> Client:
        """A connection, as soon as it listens."""

        def connected() -> Client | None:
            try:
                client = Client(self.socket)
            except (FileNotFoundError, ConnectionRefusedError):
                return None
            self._host.on_end(client.socket.close)
            return client

        found: Client = wait_for(connected, "taskmasterd listens")
        return found

    def wait_running(self, client: Client) -> None:
        """Wait until all jobs are RUNNING."""
        others: list[str] = []

        def are_running() -> bool:
            others[:] = [
                f"{one['job']} is {one['state']} ({one['reason']})"
                for one in client.statuses(self.names)
                if one["state"] != "RUNNING"
            ]
            return not others

        try:
            wait_for(are_running, "all jobs are RUNNING", 0.01)
        except Missed as error:
            raise Missed(f"{error}; {len(others)} are not, {'; '.join(others[:3])}") from None

    def processes(self) -> list[int]:
        """Pids of all of taskmaster: the daemon and the watchdogs."""
        return [self.pid, *children(self.pid)]


class Host:
    """Everything that one row starts: ended, and its folder removed, by ``end``. ``checkout``: whose daemons."""

    def __init__(self, checkout: Path = ROOT) -> None:
        self.checkout = checkout
        self.folder = Path(tempfile.mkdtemp(prefix="tm-bench-"))
        # In memory, as /run/taskmaster is.
        shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self._state = Path(tempfile.mkdtemp(prefix="tm-bench-", dir=shared))
        self._closers: list[Callable[[], None]] = []
        self._daemons = 0
        self.probe, self.compiled = self._make_probe()

    def _make_probe(self) -> tuple[Path, bool]:
        probe = self.folder / "probe"
        compiler = shutil.which("cc") or shutil.which("gcc")
        for more in (["-static"], []) if compiler else ():
            command = [str(compiler), "-O2", *more, "-x", "c", "-o", str(probe), "-"]
            if not subprocess.run(
                command, input=_PROBE_C.encode(), stderr=subprocess.DEVNULL
            ).returncode:
                return probe, True
        probe.write_text(_PROBE_SH)
        probe.chmod(0o755)
        return probe, False

    def daemon(self, checkout: Path | None = None) -> Daemon:
        """A taskmasterd in a folder of its own, not yet started."""
        self._daemons += 1
        name = f"d{self._daemons}"
        return Daemon(self, self.folder / name, self._state / name, checkout or self.checkout)

    def daemon_of(self, count: int, *arguments: str | Path, checkout: Path | None = None) -> Daemon:
        """One with so many jobs, each of one process that waits."""
        daemon = self.daemon(checkout)
        for number in range(count):
            daemon.job(f"job-{number}", [self.probe, *arguments])
        return daemon

    def fifo(self) -> Fifo:
        """A new place where probes report."""
        fifo = Fifo(self.folder / f"fifo{len(self._closers)}")
        self.on_end(fifo.close)
        return fifo

    def on_end(self, close: Callable[[], None]) -> None:
        """Have this done at the end."""
        self._closers.append(close)

    def spawn(
        self, argv: Sequence[str | Path], messages: Path, checkout: Path | None = None
    ) -> int:
        """Start a program whose messages go to this file; its pid. Nobody but ``end`` waits for it."""
        environment = {
            key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ
        }
        environment["PYTHONPATH"] = str(checkout or self.checkout)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        words = [str(word) for word in argv]
        return os.posix_spawn(
            words[0],
            words,
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(messages), flags, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setpgroup=0,
        )

    def share_a_cpu(self, *pids: int) -> None:
        """Keep these and this process on one CPU.

        Two that wake each other in turns are else on one CPU or on two as the scheduler has it at the moment, and
        to wake another CPU costs more than a round trip; so it is only what they do that is compared.
        """
        allowed = os.sched_getaffinity(0)
        for pid in (os.getpid(), *pids):
            os.sched_setaffinity(pid, {max(allowed)})
        self.on_end(lambda: os.sched_setaffinity(0, allowed))

    def kill(self, pid: int) -> None:
        """SIGKILL to one of ours, and wait for its end."""
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    def end_processes(self) -> None:
        """Kill the children of this process, and theirs when they have become ours, until there are none."""
        while left := children():
            for pid in left:
                os.kill(pid, signal.SIGKILL)  # not reaped yet, so the number is still its own
            for pid in left:
                os.waitpid(pid, 0)

    def end(self) -> None:
        """End all processes, close what is open, remove the folder."""
        self.end_processes()
        for close in reversed(self._closers):
            close()
        self._closers.clear()
        for folder in (self.folder, self._state):
            shutil.rmtree(folder, ignore_errors=True)


def become_subreaper() -> None:
    """See to it that ``end_processes`` finds everything."""
    syscalls.become_subreaper()
