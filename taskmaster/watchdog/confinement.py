"""What a job's process may take of the host: resource limits, priorities, CPUs. Done in the child, as the
daemon's user, since most of it needs rights that the job's own user has not.

It does what the definition says and nothing where that says nothing. What cannot be set is an OSError or
StepFailed; the step then has the name of the key.
"""

from __future__ import annotations

import errno
import os
import resource
from typing import Final

import psutil

from taskmaster.core.spec import JobSpec
from taskmaster.watchdog.steps import Step, StepFailed

Limits = tuple[tuple[int, tuple[int, int]], ...]

#: Each of ``kernelnames.LIMITS``. Their numbers are not the same on all processors.
RESOURCES: Final = {
    "as": resource.RLIMIT_AS,
    "core": resource.RLIMIT_CORE,
    "cpu": resource.RLIMIT_CPU,
    "data": resource.RLIMIT_DATA,
    "fsize": resource.RLIMIT_FSIZE,
    "memlock": resource.RLIMIT_MEMLOCK,
    "msgqueue": resource.RLIMIT_MSGQUEUE,
    "nice": resource.RLIMIT_NICE,
    "nofile": resource.RLIMIT_NOFILE,
    "nproc": resource.RLIMIT_NPROC,
    "rtprio": resource.RLIMIT_RTPRIO,
    "rttime": resource.RLIMIT_RTTIME,
    "sigpending": resource.RLIMIT_SIGPENDING,
    "stack": resource.RLIMIT_STACK,
}
_OOM_SCORE_ADJ: Final = "/proc/self/oom_score_adj"


def enter(entrance: str, step: Step) -> None:
    """Be in a cgroup from here on. ``entrance``: its file for that."""
    step.name = "memoryMax"
    fd = os.open(entrance, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"0")
    finally:
        os.close(fd)


def confine(spec: JobSpec, inherited: Limits, step: Step) -> None:
    """Set limits and priorities of this process. ``inherited``: the rlimits that the daemon was started with,
    which hold where the job has none of its own."""
    _reset_oom_score(spec.oom_score_adj, step)
    if spec.nice is not None:
        step.name = f"nice {spec.nice}"
        os.setpriority(os.PRIO_PROCESS, 0, spec.nice)
    if spec.ionice is not None:
        step.name = "ionice"
        _io_priority(*spec.ionice)
    if spec.cpu_affinity is not None:
        _bind(spec.cpu_affinity, step)
    # Last: what comes before may open files and take memory, whatever the job may.
    step.name = "limits"
    for limit, values in inherited:
        resource.setrlimit(limit, values)
    for name, soft, hard in spec.limits:
        step.name = f"limits {name}"
        # Not setrlimit: that turns the kernel's refusal into a ValueError in words of its own.
        resource.prlimit(0, RESOURCES[name], (soft, hard))


def _reset_oom_score(wanted: int | None, step: Step) -> None:
    """A daemon that the kernel is told to spare (-1000) must not hand that on to what it runs."""
    step.name = "oomScoreAdj" if wanted is None else f"oomScoreAdj {wanted}"
    try:
        if _oom_score() != (wanted or 0):
            fd = os.open(_OOM_SCORE_ADJ, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, b"%d" % (wanted or 0))
            finally:
                os.close(fd)
    except PermissionError:
        # Lowering needs CAP_SYS_RESOURCE. Where nothing was asked for the job stays as the daemon is, which
        # is sooner ended than 0, never later.
        if wanted is not None:
            raise


def _oom_score() -> int:
    fd = os.open(_OOM_SCORE_ADJ, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(os.read(fd, 16))
    finally:
        os.close(fd)


def _io_priority(kind: int, level: int) -> None:
    try:
        psutil.Process().ionice(kind, level)
    except psutil.AccessDenied:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM)) from None
    except psutil.Error as error:
        raise StepFailed(str(error)) from None


def _bind(cpus: tuple[int, ...], step: Step) -> None:
    step.name = "cpuAffinity"
    try:
        os.sched_setaffinity(0, cpus)
        missing = set(cpus) - os.sched_getaffinity(0)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        missing = set(cpus)
    if missing:
        # The kernel is content if one of them is there.
        words = ", ".join(map(str, sorted(missing)[:8]))
        raise StepFailed(f"CPU {words} {'is' if len(missing) == 1 else 'are'} not there to be used")
