"""Figures of processes, as the kernel has them in ``/proc``."""

from __future__ import annotations

import os
from pathlib import Path

from bench_client import Missed


def children(pid: int | str = "self") -> list[int]:
    """The direct children of a process of one thread."""
    number = os.getpid() if pid == "self" else pid
    try:
        return [
            int(one) for one in Path(f"/proc/{number}/task/{number}/children").read_text().split()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return []


def pss_kib(pid: int) -> int:
    """Proportional set size: private pages, and of shared ones its part."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise Missed(f"pid {pid} has no Pss")


def wake_ups(pid: int) -> int:
    """How often the process has gone to sleep of itself, and so was woken."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("voluntary_ctxt_switches:"):
            return int(line.split()[1])
    raise Missed(f"pid {pid} has no count of switches")


def cpu_s(pid: int) -> float:
    """CPU time of the process so far, user and system; to the nanosecond where the kernel keeps it."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    except FileNotFoundError:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def running(program: Path) -> set[int]:
    """The living processes below this one that were started from this file."""
    found: set[int] = set()
    queue = children()
    while queue:
        pid = queue.pop()
        queue += children(pid)
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if os.fsencode(program) in words[:2]:
            found.add(pid)
    return found
