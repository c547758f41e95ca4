"""The status document of a job, from what its watchdog last published; the reasons in words."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container
from typing import Any, Final

import msgspec

from taskmaster.control.job import Job
from taskmaster.core.spec import JobSpec
from taskmaster.core.states import Desired, State
from taskmaster.wire import replies
from taskmaster.wire.link import ProcessStatus
from taskmaster.wire.replies import Reply

_encode: Final = msgspec.json.Encoder().encode
#: How long a reply may serve, seconds.
_SERVES_S: Final = 0.1
_BEFORE: Final = "what the process before left behind"
#: So many pids are named.
_NAMED: Final = 8
#: Job states whose cause is worth telling beside the state itself.
_TELLING: Final = (State.FATAL, State.BACKOFF, State.STOPPING, State.STARTING, State.EXITED)


def timestamp(at_s: float) -> str:
    """Wall-clock seconds as UTC, ISO 8601, microseconds."""
    whole, micros = divmod(int(at_s * 1_000_000), 1_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{micros:06d}Z"


class _Made(msgspec.Struct):
    """A reply, and what of the job it was made from; it serves until ``until``, on the monotonic clock.

    ``looked``: the board's count when the job's file was last looked at, which is another question once
    ``stamp`` or ``problem`` of the job are others.
    """

    version: int
    linked: bool
    stale: bool
    until: float
    looked: int
    stamp: tuple[int, int, int, int] | None
    problem: str
    reply: Reply


class Board:
    """The status replies of all jobs; ``path`` tells where a job's file is.

    Each is made anew only when something in it is another.

    The numbers in them (uptime, time to the next retry) have a tenth of a second, so that is how long one
    may serve: health checks come in hundreds a second.
    """

    def __init__(self, path: Callable[[str], str]) -> None:
        self._path = path
        self._replies: dict[str, _Made] = {}
        #: Counted up when files have to be looked at again: with each turn of the loop, or, where the kernel tells
        #: of changes in their folder, with these.
        self._look = 0
        self.is_told = False

    def files_changed(self) -> None:
        """Look at the files again when next asked."""
        self._look += 1

    def turn_over(self) -> None:
        """Call at the end of each turn of the loop."""
        if not self.is_told:
            self._look += 1

    def reply(self, job: Job) -> Reply:
        """The reply to a status query."""
        now = time.monotonic()
        version, watchdog = job.version, job.watchdog
        linked = watchdog is not None and watchdog.link is not None
        kept = self._replies.get(job.name)
        fresh = (
            kept is not None
            and kept.version == version
            and kept.linked is linked
            and now < kept.until
        )
        if (
            kept is not None
            and fresh
            and kept.looked == self._look
            and kept.stamp is job.stamp
            and kept.problem is job.problem
        ):
            return kept.reply
        # Half of what a reply costs; one look serves until the files may have changed.
        stale = is_stale(job, self._path(job.name))
        if kept is not None and fresh and kept.stale is stale:
            kept.looked, kept.stamp, kept.problem = self._look, job.stamp, job.problem
            return kept.reply
        reply = replies.status(job.name, document(job, stale, now))
        until, looked = now + _SERVES_S, self._look
        made = _Made(version, linked, stale, until, looked, job.stamp, job.problem, reply)
        self._replies[job.name] = made
        return reply

    def forget(self, known: Container[str]) -> None:
        """Drop what is kept of jobs that are no more."""
        for name in [name for name in self._replies if name not in known]:
            del self._replies[name]


def document(job: Job, stale: bool, now: float) -> bytes:
    """The status document as JSON; ``stale``: as ``is_stale`` has it, ``now``: monotonic."""
    wanted = job.wanted()
    processes = [_process(one, job, now) for one in wanted]
    state = job.state
    alive = sum(1 for one in wanted if one.pid is not None)
    watchdog = job.watchdog
    return _encode(
        {
            "job": job.name,
            "state": state.value,
            "desired": desired(job).value,
            "reason": _reason(job, state, wanted, now),
            "since": timestamp(max((one.since_s for one in wanted), default=job.known_s)),
            "ready": state is State.RUNNING,
            "alive": alive,
            "of": 0 if job.spec is None else job.spec.proc_nr,
            "processes": processes,
            "watchdog": {
                "pid": None if watchdog is None else watchdog.pid,
                "state": job.watchdog_state,
                "relaunches": job.relaunches,
            },
            "memory": _memory(job, wanted),
            "definition": {"sha256": job.sha256, "stale": stale},
            "droppedBytes": job.dropped_bytes,
            "stopped": job.stopped,
        }
    )


def desired(job: Job) -> Desired:
    """What somebody wants of the job: UP if of any of its processes."""
    up = any(one.desired is Desired.UP for one in job.statuses.values())
    return Desired.UP if up else Desired.DOWN


def is_stale(job: Job, path: str) -> bool:
    """Whether the file on disk is another than the one in force."""
    if job.spec is None:
        return False  # none is in force
    if job.problem:
        return True
    try:
        status = os.stat(path, follow_symlinks=False)
    except OSError:
        return job.stamp is not None
    return job.stamp != (status.st_ino, status.st_mtime_ns, status.st_size, status.st_ctime_ns)


def _process(one: ProcessStatus, job: Job, now: float) -> dict[str, Any]:
    known = job.attached
    return {
        "number": one.number,
        "pid": one.pid,
        "state": one.state.value if known else State.UNKNOWN.value,
        "desired": one.desired.value,
        "ready": known and one.state is State.RUNNING,
        "since": timestamp(one.since_s),
        "uptime": None if one.up_at is None else round(max(0.0, now - one.up_at), 1),
        "memory": one.memory,
        "restarts": one.restarts,
        "exitCode": one.exit_code,
        "signal": one.exit_signal,
        "exitReason": one.exit_why,
        "reason": process_reason(one, job.spec, now),
        "nextRetry": None if one.retry_at is None else round(max(0.0, one.retry_at - now), 1),
    }


def _memory(job: Job, wanted: list[ProcessStatus]) -> dict[str, Any] | None:
    """The limit of each process, the most that one of them takes, and who keeps it."""
    if job.spec is None or job.spec.memory_max is None:
        return None
    return {
        "max": job.spec.memory_max,
        "current": max((one.memory for one in wanted if one.memory is not None), default=None),
        "by": next((one.memory_by for one in wanted if one.memory_by), None),
    }


def reason(job: Job) -> str:
    """Why the job is in its state; empty where the state says it all."""
    return _reason(job, job.state, job.wanted(), time.monotonic())


def _reason(job: Job, state: State, wanted: list[ProcessStatus], now: float) -> str:
    if job.spec is None:
        return job.problem
    words: list[str] = []
    if state is State.UNKNOWN:
        words.append(job.trouble or "its watchdog is being started")
    elif state in _TELLING:
        one = next((one for one in wanted if one.state is state), None)
        cause = "" if one is None else process_reason(one, job.spec, now)
        if cause:
            words.append(cause)
    elif state is State.STOPPED and job.stopped is not None:
        words.append(f"stopped by {job.stopped.by} at {job.stopped.at}")
    if job.doubtful and state in (State.STOPPED, State.EXITED):
        words.append(
            "it cannot be told whether this job or another has left behind "
            f"pid {', '.join(str(pid) for pid in job.doubtful[:_NAMED])}"
        )
    if job.problem:
        words.append(
            f"its file cannot be used, the definition before stays in force: {job.problem}"
        )
    return "; ".join(words)


def last_exit(one: ProcessStatus) -> str:
    """How its last process ended, in words; empty where none has."""
    if one.exit_unknown:
        return "last exit unknown"
    why = f", {one.exit_why}" if one.exit_why else ""
    if one.exit_signal is not None:
        return f"last ended by signal {one.exit_signal}{why}"
    return "" if one.exit_code is None else f"last exit code {one.exit_code}{why}"


def process_reason(one: ProcessStatus, spec: JobSpec | None, now: float) -> str:
    """Why a process is in the state that it is in; empty where the state says it all."""
    cause = one.error or last_exit(one)
    words = ""
    if one.state is State.BACKOFF:
        retry_s = max(0.0, (one.retry_at or now) - now)
        if one.failures and spec is not None and spec.restart_times > 0:
            words = f"retry {one.failures} of {spec.restart_times} in {retry_s:.1f} s"
        else:
            words = f"retry {one.failures + one.crashes} in {retry_s:.1f} s"
    elif one.state is State.FATAL:
        words = f"gave up after {one.failures} failed start{'s' if one.failures != 1 else ''}"
    elif one.state is State.STOPPING:
        words = _until_killed(one, now, "the main process has ended, not so")
        cause = one.refused
    elif one.state is State.STARTING:
        cause = one.refused or one.error
        if one.kill_at is not None:
            # What goes before a start, or a child that is not wanted any more and hangs before its exec.
            words = _until_killed(one, now, f"waits for the end of {_BEFORE}:")
    elif one.state is State.EXITED:
        cause = last_exit(one).removeprefix("last ")
    else:
        cause = ""
    words = ", ".join(part for part in (words, cause) if part)
    if one.left and one.kill_at is None:
        words += f"; {one.left} of the processes it started still run: {_pids(one)}"
    return words.removeprefix("; ")


def _until_killed(one: ProcessStatus, now: float, about_left: str) -> str:
    """Who is still there, and when that gets SIGKILL."""
    kill_s = max(0.0, (one.kill_at or now) - now)
    due = f"SIGKILL in {kill_s:.1f} s"
    return f"{about_left} {_pids(one)}, {due}" if one.left and one.pid is None else due


def _pids(one: ProcessStatus) -> str:
    more = one.left - len(one.left_pids)
    named = ", ".join(str(pid) for pid in one.left_pids)
    return f"pid {named}" + (f" and {more} more" if more else "")
