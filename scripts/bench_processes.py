"""Rows about processes: how soon they run, run again, are watched again; and how many of them there are."""

from __future__ import annotations

import os
import signal
import statistics
import time
from typing import Final

import bench_supervisor
from bench_client import Missed
from bench_host import Fifo, Host, wait_for
from bench_proc import children, running
from bench_table import Options, Row

#: Between two kills, so that what the last one brought with it is over.
_PAUSE_S = 0.02


def _kill_and_wait(pid: int, fifo: Fifo) -> float:
    """Seconds from SIGKILL to the first instruction of the process that replaces this one."""
    before = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    _, began = fifo.next()
    time.sleep(_PAUSE_S)
    return began - before


def restart(host: Host, options: Options) -> list[Row]:
    """SIGKILL of a process that was RUNNING to the first instruction of the next one, 30 jobs in turn."""
    fifo = host.fifo()
    daemon = host.daemon_of(30, fifo.path)
    client = daemon.start()
    for _ in daemon.names:
        fifo.next()
    latencies = []
    for _ in range(options.pick(quick=1, full=4)):
        for name, document in zip(daemon.names, client.statuses(daemon.names), strict=True):
            latencies.append(_kill_and_wait(document["processes"][0]["pid"], fifo))
            client.ask("repair", name)  # a second crash would be made to wait
        daemon.wait_running(client)
    theirs = ""
    if options.supervisor:
        theirs = f"Supervisor {bench_supervisor.restart_s(host, 10) * 1e3:.0f} ms"
    median_ms = statistics.median(latencies) * 1e3
    worst = f"{max(latencies) * 1e3:.1f} ms at worst"
    how = "" if host.compiled else " (of a shell: no compiler)"
    what = f"SIGKILL to the next one's first instruction{how}"
    return [Row(what, worst, theirs, median_ms, " ms", limit=5.0)]


def start(host: Host, options: Options) -> list[Row]:
    """Start of taskmasterd to all of 200 jobs RUNNING."""
    executed, running_s = [], []
    for _ in range(options.pick(quick=1, full=5)):
        fifo = host.fifo()
        daemon = host.daemon_of(200, fifo.path)
        before = daemon.begin()
        began = max(fifo.next()[1] for _ in daemon.names)
        # Asked only now: clients are not to slow down what is measured.
        daemon.wait_running(daemon.connect())
        running_s.append(time.monotonic() - before)
        executed.append(began - before)
        host.end_processes()
    theirs = ""
    if options.supervisor:
        theirs = f"Supervisor {bench_supervisor.start_s(host, 200):.2f} s"
    ours = f"all exec'd {statistics.median(executed):.2f} s"
    return [
        Row(
            "start to 200 jobs RUNNING", ours, theirs, statistics.median(running_s), " s", limit=1.0
        )
    ]


def adopt(host: Host, options: Options) -> list[Row]:
    """SIGKILL of one of 100 watchdogs to its job ATTACHED to another one, its process the same."""
    daemon = host.daemon_of(100)
    client = daemon.start()
    latencies = []
    for name in daemon.names[: options.pick(quick=15, full=60)]:
        before = client.statuses([name])[0]
        dead = before["watchdog"]["pid"]

        def attached(name: str = name, dead: int = dead) -> dict[str, object] | None:
            document = client.statuses([name])[0]
            watchdog = document["watchdog"]
            return document if watchdog["state"] == "ATTACHED" and watchdog["pid"] != dead else None

        began = time.monotonic()
        os.kill(dead, signal.SIGKILL)
        after = wait_for(attached, f"{name} has another watchdog", 0.0005)
        latencies.append(time.monotonic() - began)
        if after["processes"][0]["pid"] != before["processes"][0]["pid"]:
            raise Missed(f"{name}: its process did not live on")
        time.sleep(_PAUSE_S)
    median_ms = statistics.median(latencies) * 1e3
    worst = f"{max(latencies) * 1e3:.1f} ms at worst"
    return [Row("watchdog killed to adopted, 1 of 100", worst, "", median_ms, " ms", limit=50.0)]


#: As in the README.
_KILLED_JOBS: Final = 100


def daemon_killed(host: Host, options: Options) -> list[Row]:
    """SIGKILL of the daemon of 100 jobs, and a new one: how many processes run then, and which."""
    daemon = host.daemon_of(_KILLED_JOBS)
    daemon.start()
    before = running(host.probe)
    host.kill(daemon.pid)
    daemon.start()
    after = running(host.probe)
    host.end_processes()
    theirs = ""
    if options.supervisor:
        found = bench_supervisor.processes_after_kill(host, _KILLED_JOBS)
        theirs = f"Supervisor {found} processes"
    ours = f"{len(before & after)} of {len(before)} lived on"
    what = f"processes of {_KILLED_JOBS} jobs after SIGKILL of the daemon"
    rows = [Row(what, ours, theirs, len(after), limit=_KILLED_JOBS)]
    if len(before & after) != _KILLED_JOBS:
        raise Missed(f"only {len(before & after)} processes lived on; running: {children()}")
    return rows


def serving_again(host: Host, options: Options) -> list[Row]:
    """SIGKILL of the daemon of 200 jobs: from the start of the new one to its first answer, and to all RUNNING."""
    daemon = host.daemon_of(200)
    daemon.start()
    first_s, all_s = [], []
    for _ in range(options.pick(quick=3, full=10)):
        host.kill(daemon.pid)
        began = daemon.begin()
        client = daemon.connect()
        client.ask("status", daemon.names[-1])
        first_s.append(time.monotonic() - began)
        daemon.wait_running(client)
        all_s.append(time.monotonic() - began)
    ours = f"all RUNNING {statistics.median(all_s):.2f} s"
    return [Row("serving 200 jobs again", ours, "", statistics.median(first_s), " s", limit=1.0)]
