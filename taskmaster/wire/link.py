"""Messages between the control plane and a watchdog: typed, size-capped JSON, never pickle.

The control plane takes every byte of a watchdog as hostile (it runs next to other people's programs)
and the other way round; decoding either gives one of these values or raises InvalidQuery.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from taskmaster.core.spec import JobSpec
from taskmaster.core.states import Desired, State
from taskmaster.errors import InvalidQuery
from taskmaster.wire.frames import link_frame


class ProcessStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a watchdog publishes of one process.

    ``since_s`` is wall-clock time, seconds; ``up_at``, ``retry_at``, ``kill_at`` are on the clock of
    ``time.monotonic``, which all processes of a boot share. ``error`` says in words why the last
    start failed. ``exit_unknown``: it ended, and nobody could say how. ``exit_why``: it was ended, and why.
    ``memory``: bytes in RAM, where there is a limit; ``memory_by``: what keeps that (cgroup, watching).
    ``failures``: failed starts in a row, ``crashes``: ends after RUNNING in a row. ``left``: processes that
    it left behind when it ended, ``left_pids``: some of them. ``refused``: what of it may not be signalled, in
    words.
    """

    number: int
    state: State
    desired: Desired
    pid: int | None = None
    start: int | None = None
    since_s: float = 0.0
    up_at: float | None = None
    restarts: int = 0
    exit_code: int | None = None
    exit_signal: int | None = None
    exit_unknown: bool = False
    exit_why: str = ""
    memory: int | None = None
    memory_by: str | None = None
    failures: int = 0
    retry_at: float | None = None
    kill_at: float | None = None
    crashes: int = 0
    left: int = 0
    left_pids: tuple[int, ...] = ()
    error: str = ""
    refused: str = ""


# control plane -> watchdog -------------------------------------------------------------------------


class Configure(msgspec.Struct, tag="configure", frozen=True):
    """This definition is in force from now on; answered with Done."""

    id: int
    spec: JobSpec
    sha256: str
    cause: str = ""


class Act(msgspec.Struct, tag="act", frozen=True):
    """Do ``verb`` (start, stop, kill, repair, restart, ensure); answered with Begun, then Done.

    ``ensure`` starts what nobody wants up: what taskmasterd does of itself, for a job that no administrator has
    stopped.
    ``cause``, here and in Configure and Retire: the audit log's id of the command behind it, "" for none.
    """

    id: int
    verb: str
    cause: str = ""


class HandOver(msgspec.Struct, tag="handover", frozen=True):
    """The answer to Missing: the wait status that the control plane reaped; None when it has none."""

    pid: int
    start: int
    status: int | None


class Acknowledge(msgspec.Struct, tag="acknowledge", frozen=True):
    """The notices up to this number are in the audit log."""

    through: int


class Retire(msgspec.Struct, tag="retire", frozen=True):
    """The job is to be forgotten: when nothing of it is left, remove its records and end."""

    id: int
    cause: str = ""


class Inherited(msgspec.Struct, tag="inherited", frozen=True):
    """Processes, by pid and start time, that became the control plane's when a watchdog of this job died.

    ``denied``: those that bear this job's mark and are another job's.
    """

    processes: tuple[tuple[int, int], ...]
    denied: tuple[tuple[int, int], ...] = ()


class Leave(msgspec.Struct, tag="leave", frozen=True):
    """End and touch nothing: a replacement adopts the processes. Answered with the end of the link."""

    id: int


class Ping(msgspec.Struct, tag="ping", frozen=True):
    """Answer with Done."""

    id: int


class Restore(msgspec.Struct, tag="restore", frozen=True):
    """Something is missing in the job's state folder: make it again; answered with Done."""

    id: int


# watchdog -> control plane -------------------------------------------------------------------------


class Hello(msgspec.Struct, tag="hello", frozen=True):
    """First on every link: who speaks, which definition it runs, and since when it counts its notices
    (``ledger``: another one counts from 1 again). ``instance``: the mark in the environment of its processes."""

    job: str
    ledger: str
    pid: int
    sha256: str
    spec: JobSpec
    adopted: int = 0
    instance: str = ""


class Published(msgspec.Struct, tag="published", frozen=True):
    """How the processes stand. ``full``: these and no others; else those that changed."""

    full: bool
    processes: tuple[ProcessStatus, ...]
    removed: tuple[int, ...] = ()
    dropped_bytes: int = 0


class Begun(msgspec.Struct, tag="begun", frozen=True):
    """A request was taken up."""

    id: int


class Done(msgspec.Struct, tag="done", frozen=True):
    """A request has its outcome: success, redundant or fail, the last with its error."""

    id: int
    outcome: str
    error: str = ""


class Missing(msgspec.Struct, tag="missing", frozen=True):
    """A process that is not this watchdog's child has ended: who reaped it? Answered with HandOver."""

    number: int
    pid: int
    start: int


class Notice(msgspec.Struct, tag="notice", frozen=True):
    """Something for the audit log; repeated on the next link until acknowledged."""

    number: int
    event: str
    at_s: float
    fields: dict[str, Any]


ToWatchdog = Configure | Act | HandOver | Acknowledge | Inherited | Retire | Leave | Ping | Restore
ToControl = Hello | Published | Begun | Done | Missing | Notice

_encoder: Final = msgspec.json.Encoder()
_to_watchdog: Final = msgspec.json.Decoder(ToWatchdog)
_to_control: Final = msgspec.json.Decoder(ToControl)


def encode(message: ToWatchdog | ToControl) -> bytes:
    """The framed bytes of one message."""
    return link_frame(_encoder.encode(message))


def decode_for_watchdog(frame: bytes) -> ToWatchdog:
    """The message the control plane sent; raises InvalidQuery (fatal)."""
    try:
        message: ToWatchdog = _to_watchdog.decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidQuery(f"message of the control plane: {error}", fatal=True) from None
    return message


def decode_for_control(frame: bytes) -> ToControl:
    """The message a watchdog sent; raises InvalidQuery (fatal)."""
    try:
        message: ToControl = _to_control.decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidQuery(f"message of a watchdog: {error}", fatal=True) from None
    return message
