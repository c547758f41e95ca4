"""Supervisor (PyPI), run side by side: the same programs, its defaults, started in the foreground."""

from __future__ import annotations

import os
import signal
import statistics
import sys
import time
from pathlib import Path

from bench_host import Fifo, Host, wait_for
from bench_proc import pss_kib, running, wake_ups

_CONFIG = """\
[supervisord]
nodaemon=true
minfds=8192
logfile={folder}/supervisord.log
pidfile={folder}/supervisord.pid
childlogdir={folder}/log
{user}
[unix_http_server]
file={folder}/supervisor.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
"""
_PROGRAM = """\
[program:job-{number}]
command={probe} {fifo}
autorestart=true
startsecs=0
"""


class Supervisor:
    """One supervisord with ``count`` programs; ``start`` may be called again after it was killed."""

    def __init__(self, host: Host, count: int) -> None:
        self._host = host
        self._count = count
        self.fifo: Fifo = host.fifo()
        self._folder = Path(f"{self.fifo.path}.supervisor")
        (self._folder / "log").mkdir(parents=True)
        self.pid = 0
        user = "user=root" if os.geteuid() == 0 else ""
        programs = [
            _PROGRAM.format(number=number, probe=host.probe, fifo=self.fifo.path)
            for number in range(count)
        ]
        (self._folder / "conf").write_text(
            _CONFIG.format(folder=self._folder, user=user) + "".join(programs)
        )

    def start(self) -> float:
        """Start it; seconds until the last program has begun."""
        argv = [sys.executable, "-m", "supervisor.supervisord", "-c", self._folder / "conf"]
        before = time.monotonic()
        self.pid = self._host.spawn(argv, self._folder / "messages")
        return max(self.fifo.next()[1] for _ in range(self._count)) - before


def start_s(host: Host, count: int) -> float:
    """Seconds from its start to that of the last program."""
    seconds = Supervisor(host, count).start()
    host.end_processes()
    return seconds


def restart_s(host: Host, count: int) -> float:
    """Median of SIGKILL to the first instruction of the next process."""
    supervisor = Supervisor(host, count)
    supervisor.start()
    latencies = []
    for pid in sorted(running(host.probe)):
        if pid in _descendants_of(supervisor.pid):
            before = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            latencies.append(supervisor.fifo.next()[1] - before)
    host.end_processes()
    return statistics.median(latencies)


def _descendants_of(pid: int) -> set[int]:
    from bench_proc import children

    return set(children(pid))


def pss_mib(host: Host, count: int) -> float:
    """Its memory with so many programs."""
    supervisor = Supervisor(host, count)
    supervisor.start()
    time.sleep(3.0)
    found = pss_kib(supervisor.pid) / 1024
    host.end_processes()
    return found


def wake_ups_s(host: Host, count: int, seconds: float) -> float:
    """How often a second it wakes up while nothing happens."""
    supervisor = Supervisor(host, count)
    supervisor.start()
    time.sleep(3.0)
    before = wake_ups(supervisor.pid)
    time.sleep(seconds)
    found = (wake_ups(supervisor.pid) - before) / seconds
    host.end_processes()
    return found


def processes_after_kill(host: Host, count: int) -> int:
    """How many processes run after it was killed and started again."""
    supervisor = Supervisor(host, count)
    supervisor.start()
    host.kill(supervisor.pid)
    supervisor.start()
    found: set[int] = wait_for(lambda: running(host.probe), "programs run")
    host.end_processes()
    return len(found)
