"""Rows about what it costs to be there: memory, and waking up for nothing."""

from __future__ import annotations

import time

import bench_supervisor
from bench_host import Host
from bench_proc import pss_kib, wake_ups
from bench_table import Options, Row

JOBS = 100


def memory(host: Host, options: Options) -> list[Row]:
    """PSS of daemon and watchdogs, per job."""
    daemon = host.daemon_of(JOBS)
    daemon.start()
    time.sleep(3.0)  # until the records that can wait are written
    each = [pss_kib(pid) / 1024 for pid in daemon.processes()]
    host.end_processes()
    theirs = ""
    if options.supervisor:
        theirs = f"Supervisor {bench_supervisor.pss_mib(host, JOBS) / JOBS:.2f} MiB"
    ours = f"daemon {each[0]:.0f} MiB, {len(each) - 1} watchdogs {sum(each[1:]):.0f} MiB"
    what = f"memory (PSS) a job, {JOBS} jobs"
    return [Row(what, ours, theirs, sum(each) / JOBS, " MiB", limit=2.0)]


def at_rest(host: Host, options: Options) -> list[Row]:
    """How often the processes of taskmaster wake up while nothing happens."""
    daemon = host.daemon_of(JOBS)
    daemon.start()
    time.sleep(3.0)
    seconds = options.pick(quick=5.0, full=20.0)
    processes = daemon.processes()
    before = sum(wake_ups(pid) for pid in processes)
    time.sleep(seconds)
    a_second = (sum(wake_ups(pid) for pid in processes) - before) / seconds
    host.end_processes()
    theirs = ""
    if options.supervisor:
        theirs = f"Supervisor {bench_supervisor.wake_ups_s(host, JOBS, seconds):.2f}/s"
    what = f"wake-ups a second and job at rest, {JOBS} jobs"
    return [Row(what, f"{a_second:.2f}/s in all", theirs, a_second / JOBS, "/s", limit=0.01)]
