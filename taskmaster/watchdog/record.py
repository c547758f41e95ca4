"""The state record, ``state.json``: what runs, written by rename before it may run.

It lets a replacement adopt the processes of a watchdog that died. It is read as hostile input: a
record that is torn, too large, of another job, another boot or another owner is set aside in words,
never acted upon. It is not flushed to the disk: it has to survive the death of processes, and after
a loss of power none of the processes it names exists.
"""

from __future__ import annotations

import errno
import os
import signal
import stat as stat_bits
from typing import Any, Final

import msgspec

from taskmaster.core.lifecycle import ALIVE, Phase, Process
from taskmaster.core.spec import JobSpec

FILE: Final = "state.json"
_NEW_FILE: Final = "state.json.new"
MAX_BYTES: Final = 16 * 1024 * 1024
FORMAT: Final = 1
#: So many orphans are remembered by pid and start time; 1 MB of record. The others are found by session or mark.
MAX_INHERITED: Final = 32768
#: The largest process number that Linux can be set to give out.
_MAX_PID: Final = 1 << 22
_WITH_PROCESS: Final = frozenset({Phase.STARTING, Phase.RUNNING})


class PlaceRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One process. ``start``: kernel start time, clock ticks; ``due_at``: when its timer fires, monotonic.

    ``session``: the session that the last process led, by which what it left behind is known. ``ended``: it
    has ended, and what it had started is still being stopped. ``left``: how many processes it left behind,
    ``left_pids``: some of them. Of the stop that is under way: ``stop_signal``, its signal; ``asked``: what has
    had that, by pid and start time; ``killing``: whether SIGKILL is what is left gets by now.
    """

    number: int
    process: Process
    pid: int | None = None
    start: int | None = None
    session: int | None = None
    since_s: float = 0.0
    up_at: float | None = None
    due_at: float | None = None
    restarts: int = 0
    exit_code: int | None = None
    exit_signal: int | None = None
    exit_unknown: bool = False
    exit_why: str = ""
    over: bool = False
    ended: bool = False
    left: int = 0
    left_pids: tuple[int, ...] = ()
    killing: bool = False
    stop_signal: int = 0
    asked: tuple[tuple[int, int], ...] = ()
    error: str = ""
    cause: str = ""


class NoticeRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A notice that no control plane has acknowledged yet."""

    number: int
    event: str
    at_s: float
    fields: dict[str, Any]


class StateRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything a replacement needs. ``instance`` is in the environment of every process of the job,
    ``ledger`` names the row of notices that ``next_notice`` counts, ``inherited`` what dead watchdogs left
    to the control plane and what this one would, by pid and start time."""

    format: int
    job: str
    boot_id: str
    instance: str
    ledger: str
    spec: JobSpec
    sha256: str
    gaps: int
    inherited: tuple[tuple[int, int], ...]
    next_notice: int
    places: tuple[PlaceRecord, ...]
    notices: tuple[NoticeRecord, ...] = ()


class UnusableRecord(Exception):
    """There is a state record and it cannot be used; the message says why."""


_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(StateRecord)


def write(directory: int, record: StateRecord) -> None:
    """Replace the record in the job's state directory (a descriptor). Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(_NEW_FILE, flags, 0o600, dir_fd=directory)
    try:
        data = _encoder.encode(record)
        written = os.write(file, data)
        if written != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(file)
    os.rename(_NEW_FILE, FILE, src_dir_fd=directory, dst_dir_fd=directory)


def read(directory: int, job: str, boot_id: str) -> StateRecord | None:
    """The record of ``job`` from its state directory; None when there is none or it is of an earlier boot.

    Raises UnusableRecord, and OSError where the host is short of something: the record may be good then,
    and who set it aside would start everything a second time.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        file = os.open(FILE, flags, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO):
            raise
        raise UnusableRecord(f"{FILE}: {os.strerror(error.errno or 0)}") from None
    try:
        data = _content(file)
    finally:
        os.close(file)
    try:
        record = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UnusableRecord(f"{FILE}: {error}") from None
    if record.boot_id != boot_id:
        return None
    _check(record, job)
    return record


def remove(directory: int) -> None:
    """Forget the record; harmless when there is none."""
    for name in (FILE, _NEW_FILE):
        try:
            os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            pass


def _content(file: int) -> bytes:
    status = os.fstat(file)
    if not stat_bits.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise UnusableRecord(f"{FILE}: not a regular file of one name")
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise UnusableRecord(f"{FILE}: owned or writable by somebody else")
    if status.st_size > MAX_BYTES:
        raise UnusableRecord(f"{FILE}: {status.st_size} bytes, over {MAX_BYTES}")
    data = b""
    while chunk := os.read(file, 1 << 20):
        data += chunk
        if len(data) > MAX_BYTES:
            raise UnusableRecord(f"{FILE}: over {MAX_BYTES} bytes")
    return data


def _check(record: StateRecord, job: str) -> None:
    if record.format != FORMAT:
        raise UnusableRecord(f"{FILE}: format {record.format}, this is {FORMAT}")
    if record.job != job or record.spec.job != job:
        raise UnusableRecord(f"{FILE}: of another job")
    numbers = [place.number for place in record.places]
    if len(set(numbers)) != len(numbers) or any(not 0 <= n < 1000 for n in numbers):
        raise UnusableRecord(f"{FILE}: impossible process numbers")
    pids = [place.pid for place in record.places if place.pid is not None]
    if len(set(pids)) != len(pids) or any(not 1 < pid < _MAX_PID for pid in pids):
        raise UnusableRecord(f"{FILE}: impossible process ids")
    if any((place.pid is None) != (place.start is None) for place in record.places):
        raise UnusableRecord(f"{FILE}: a process id without a start time")
    for place in record.places:
        phase = place.process.phase
        if place.pid is None and phase in _WITH_PROCESS:
            raise UnusableRecord(f"{FILE}: {phase.value} without a process id")
        if not 0 <= place.stop_signal < signal.NSIG:
            raise UnusableRecord(f"{FILE}: impossible signal")
        if place.pid is not None and (phase not in ALIVE or phase is Phase.CLEARING):
            raise UnusableRecord(f"{FILE}: {phase.value} with a process id")
