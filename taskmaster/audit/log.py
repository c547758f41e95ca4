"""The audit log as the control plane has it: ``record`` puts a record in line, ``flush`` writes them.

What it keeps, also when the disk is full, the daemon is killed at any moment, or somebody moves the
file away: the files together consist of whole lines numbered without a gap, and after a durable flush
that succeeded, everything recorded before it is on disk. It never raises for what the system cannot do
(``error`` tells), never blocks for longer than the disk takes, and never grows without end: records
that cannot be written wait, up to a cap, and past it they are dropped and counted (``audit.lost``).
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from taskmaster.audit import generations, pages, retention
from taskmaster.audit.backlog import Backlog, Lost
from taskmaster.audit.events import Event
from taskmaster.audit.rendering import Form, Rendered, Renderer, milliseconds
from taskmaster.audit.reserve import Reserve, give_back
from taskmaster.audit.sealing import SealFile
from taskmaster.audit.sink import Sink
from taskmaster.audit.tail import last_of_backups, mend, read_tail
from taskmaster.errors import FileError
from taskmaster.evidence.sealstate import Seal

#: At most so much in one write(2), and at most so much written without fdatasync.
_BATCH_BYTES: Final = 1 << 20
#: How often one looks whether somebody moved the file away, seconds, while nothing comes but what clients ask
#: again and again without changing anything (``record_read``); else at each flush.
_LOOK_S: Final = 0.1

#: About how much a record grows by when its gaps are filled: two hashes, its number.
GAPS_BYTES: Final = 160

#: Mistakes of this program, never the state of the host: these are raised.
_BUGS: Final = frozenset({errno.EBADF, errno.EFAULT})
_COMMANDS: Final = frozenset({Event.COMMAND_REQUESTED, Event.COMMAND_COMPLETED})


class AuditLog:
    """One audit log, appended to by this process alone.

    ``max_bytes``: a file is rotated before it grows over this. ``backups``: so many older files are
    kept. With 0 for either, the file is never rotated. ``wall_clock``: seconds since 1970, UTC.
    ``seal``: where the sealing key is, if there is one. ``sink``: gets every record, too. ``open_log``: what
    opens the file and locks it. ``keep_s``: how old its last record has to be before a file is deleted.
    ``reserve``: room that is allocated in advance.

    Raises FileError where what is at ``path`` can never be a log, or what is at ``seal`` no sealing key; Held
    where another process writes the log. A disk that is full or read-only raises nothing: ``error`` tells,
    and ``flush`` tries again.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int,
        backups: int,
        wall_clock: Callable[[], float] = time.time,
        seal: Path | None = None,
        sink: Sink | None = None,
        open_log: Callable[[Path], int] = generations.open_log,
        keep_s: float = 0.0,
        reserve: Reserve | None = None,
    ) -> None:
        self.path = path
        #: Where the sealing key is, and whether there was one when last looked for.
        self.seal_path = seal
        self.is_sealing = False
        self._unwritten_seal: Seal | None = None
        self._sink = sink
        self._open_log = open_log
        #: Told the size of each record that has a ``cause``, and the cause.
        self.on_caused: Callable[[str, int], object] = lambda cause, size: None
        self._reserve = Reserve(0, None) if reserve is None else reserve
        #: The file system is full, and the log lives on what was allocated before.
        self.on_reserve = False
        #: Told, in words, when that begins and ends.
        self.on_short: Callable[[str], object] = lambda text: None
        #: Why the last attempt to write failed; None when it worked.
        self.error: OSError | None = None
        self._rotates_at = max_bytes if max_bytes > 0 and backups > 0 else None
        self._backups = backups
        self._keep_s = keep_s
        self._wall_clock = wall_clock
        self._renderer = Renderer(wall_clock)
        self._backlog = Backlog()
        self._lost = Lost()
        #: A record was dropped since the last flush.
        self._incomplete = False
        self._fd = -1
        self._identity = (0, 0)
        self._size = 0
        self._look_at = 0.0
        self._sync_failed = False
        self._probing = False
        self._may_rotate = True
        self._rotation_failing = False
        #: Bytes by which the file may be over its size: what tells of a rotation must not be cause for another.
        self._slack = 0
        if self.look_for_seal() and seal is not None:
            self._unwritten_seal = _last_seal(seal)
        try:
            self._open()
        except OSError as error:
            refusal = generations.refusal(path, error)
            if refusal is not None:
                raise refusal from error
            self.error = error
        if self._backlog:
            self.flush(durable=True)

    @property
    def writable(self) -> bool:
        """Whether the last attempt to write worked."""
        return self.error is None

    @property
    def reserve_left(self) -> int:
        """Bytes of the disk that are the log's and not used yet."""
        return self._reserve.left(self._size)

    @property
    def seq(self) -> int:
        """Number of the last record that has one."""
        return self._backlog.seq

    @property
    def head(self) -> tuple[int, str]:
        """Number and hash of the last record that has them: after a flush, of the last there is."""
        return self._backlog.seq, self._backlog.hash.decode()

    def record(self, event: Event, /, **fields: object) -> None:
        """Put a record in line; its keys are ``fields``, and those of every record.

        It is numbered when it is written. Raises ValueError for a field that must not be in the log
        (``data``, ``env``), TypeError for a value that JSON cannot hold.

        While the log cannot be written, commands may take only half of the room there is for waiting
        records: a client that asks and is refused, over and over, must not crowd out what happened.
        """
        self.put(event, fields)

    def put(self, event: Event, fields: Mapping[str, object]) -> int:
        """``record``; returns how many bytes of the log it takes, about."""
        self._look_at = 0.0
        rendered = self._renderer.render(event, fields)
        self._put(event, rendered)
        size = len(rendered[0]) + GAPS_BYTES
        if "cause" in fields:
            self.on_caused(str(fields["cause"]), size)
        return size

    @property
    def identity(self) -> tuple[int, int] | None:
        """Device and inode of the file that is written; None where none is open."""
        return self._identity if self._fd >= 0 else None

    def form(
        self, event: Event, fields: Mapping[str, object], *, prefix: str, timed: bool
    ) -> Form | None:
        """For ``record_read``: what records have in common that come again and again.

        ``fields``: all but ``id``, which is ``prefix`` and a number, and ``durationMs``. None where there cannot
        be one.
        """
        return self._renderer.form(event, fields, prefix=prefix, timed=timed)

    def record_read(self, requested: Form, completed: Form, number: int, took_s: float) -> None:
        """``record`` twice of a command that changes nothing: asked ``took_s`` ago, answered now.

        ``number``: of its id.
        """
        now = self._renderer.moment()
        micros = int(took_s * 1_000_000)
        then = now[1] - micros
        begun = (now[0], then) if then >= 0 else self._renderer.moment(took_s)
        took = milliseconds(micros)
        if (
            self._fd >= 0
            and self.error is None
            and self._sink is None
            and self._backlog.put_read(requested.text, completed.text, number, took, begun, now)
        ):
            return
        self._put(Event.COMMAND_REQUESTED, (requested.text, (number,), begun))
        self._put(Event.COMMAND_COMPLETED, (completed.text, (took, number), now))

    def _put(self, event: Event, record: Rendered) -> None:
        share = 2 if event in _COMMANDS else 1
        if not self._backlog.has_room(record, share):
            if self.writable:
                self._try_to_write(durable=False)
            if not self._backlog.has_room(record, share):
                self._lost.add(self._renderer.timestamp(), of_command=event in _COMMANDS)
                self._incomplete = True
                return
        self._backlog.put(record)

    def flush(self, *, durable: bool) -> bool:
        """Write what waits; with ``durable``, return only when it is on disk (fdatasync).

        False: not everything recorded since the last flush is written (and, if ``durable``, on disk).
        What is not, waits for the next flush, or was dropped and is counted.
        """
        complete, self._incomplete = not self._incomplete, False
        backlog = self._backlog
        idle = not (backlog.rendered or backlog.lines or self._lost.count or self.error)
        if idle and not (durable and backlog.unsynced_bytes):
            return complete
        if not durable and self._write_plainly():
            return complete
        return self._try_to_write(durable=durable) and complete

    @property
    def written(self) -> int:
        """The number of the last record: it grows when there is something new to read."""
        return self._backlog.seq

    def page(self, cursor: str) -> pages.Page:
        """A piece of the log as it is on disk; see ``pages.page``. Raises ValueError, OSError."""
        return pages.page(self.path, cursor, self._fd)

    def look_for_seal(self) -> bool:
        """Look whether there is a sealing key now."""
        self.is_sealing = self.seal_path is not None and os.path.lexists(self.seal_path)
        return self.is_sealing

    def seal(self) -> bool:
        """Seal all that is recorded and evolve the key. False where the log cannot be written.

        Raises FileError, OSError where the sealing key cannot be used; nothing is sealed then.
        """
        assert self.seal_path is not None
        if not self.flush(durable=True) or len(self._backlog):
            return False
        # First the key, then the record: who dies in between finds the seal with the key (sealstate.py).
        seal = SealFile(self.seal_path).seal(*self.head, self._renderer.timestamp())
        self._put_own(Event.AUDIT_SEALED, **msgspec.structs.asdict(seal))
        self.flush(durable=True)
        return True

    def close(self) -> None:
        """Flush durably and give up the file and its lock; a later flush opens it again."""
        self.flush(durable=True)
        sink = self._sink
        if sink is not None:
            if not sink.drain():
                sink.give_up(OSError(errno.EAGAIN, ""))
            if sink.lost:
                self._put_own(Event.AUDIT_SINK_LOST, **sink.take_lost())
                self.flush(durable=True)
            sink.close()
        if self._fd >= 0:
            self._let_go(for_good=True)

    # Writing

    def _is_in_place(self) -> bool:
        try:
            there = os.stat(self.path, follow_symlinks=False)
        except OSError:
            return False  # whatever it is, the thorough way finds and tells it
        self._found_size(there.st_size)
        return (there.st_dev, there.st_ino) == self._identity

    def _found_size(self, size: int) -> None:
        if size < self._size:
            self._reserve.begin()  # somebody truncated it, which gave all blocks back
        self._size = size

    def _write_plainly(self) -> bool:
        """Write what waits in the common case, in one go: the file is there and has room, nothing is amiss.

        False where anything is not common, and nothing has been done then.
        """
        backlog = self._backlog
        if backlog.torn or self.error is not None or self._fd < 0 or self._lost.count:
            return False
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_S
            if not self._is_in_place():
                return False
        if backlog.rendered:
            self._number()
        block = b"".join(backlog.lines)
        size = len(block)
        if self._rotates_at is not None and self._size + size > self._rotates_at:
            return False
        if backlog.unsynced_bytes + size > _BATCH_BYTES:
            return False
        try:
            written = os.write(self._fd, block)
        except OSError as error:
            if error.errno in _BUGS:
                raise
            self.error = error
            written = 0
        self._size += written
        if written < size:
            backlog.wrote(written)
            return False
        if self._size > self._reserve.renew_at:
            self._renew()
        backlog.all_written(block)
        return not backlog.rendered  # what the sink has missed may be

    def _number(self) -> None:
        lines = self._backlog.number()
        if self._sink is not None:
            self._tell_sink(self._sink, lines)

    def sink_takes_again(self) -> None:
        """The sink has taken all that waited: put on record what it has missed."""
        sink = self._sink
        if sink is not None and sink.lost:
            self._put_own(Event.AUDIT_SINK_LOST, **sink.take_lost())
            self.flush(durable=False)

    def _tell_sink(self, sink: Sink, lines: list[bytes]) -> None:
        """Offer it what has its number now; where it takes records again, put in line what it has missed."""
        for line in lines:
            if sink.send(line[:-1]) and sink.lost:
                self._put_own(Event.AUDIT_SINK_LOST, **sink.take_lost())

    def _try_to_write(self, *, durable: bool) -> bool:
        self._probing = self.error is not None
        self._may_rotate = True
        try:
            self._attach()
            if self._sync_failed:
                self._take_back()
            self._write_all()
            if durable or self._backlog.unsynced_bytes > _BATCH_BYTES:
                self._sync()
        except OSError as error:
            if error.errno in _BUGS:
                raise
            self.error = error
            return False
        self.error = None
        if self._size > self._reserve.renew_at:
            self._renew()
        return True

    def _renew(self) -> None:
        """Allocate behind the end what was used of the reserve, and put on record when that fails, and ends."""
        reserve = self._reserve
        if not reserve.renew(self._fd, self._size):
            return
        self.on_reserve = reserve.error is not None
        if reserve.error is not None:
            left, why = reserve.left(self._size), reserve.error.strerror
            self._put_own(Event.AUDIT_RESERVE_USED, file=str(self.path), left=left, error=why)
            self.on_short(
                f"the audit log {self.path} cannot be given room: {why}; it lives on its reserve, {left} bytes, "
                "and only root may change anything"
            )
        else:
            self._put_own(Event.AUDIT_RESERVE_RESTORED, file=str(self.path))
            self.on_short(f"the audit log {self.path} has its reserve again")

    def _write_all(self) -> None:
        while True:
            self._number()
            while self._backlog.next_bytes():
                self._write_some()
            if self._lost.count:
                lost, self._lost = self._lost, Lost()
                self._put_own(
                    Event.AUDIT_LOST,
                    count=lost.count,
                    commands=lost.commands,
                    since=lost.since,
                    until=lost.until,
                )
            if not self._backlog:
                return

    def _put_own(self, event: Event, **fields: object) -> int:
        rendered = self._renderer.render(event, fields)
        self._backlog.put(rendered)
        return len(rendered[0]) + GAPS_BYTES

    def _write_some(self) -> None:
        if self._is_rotation_due():
            self._rotate()
        room = _BATCH_BYTES
        if self._rotates_at is not None and self._may_rotate:
            room = min(room, self._rotates_at + self._slack - self._size)
        # After a failure one line probes the disk, so that trying again stays cheap.
        block = self._backlog.block(0 if self._probing else room)
        try:
            written = os.write(self._fd, block)
        except OSError as error:
            if error.errno not in _BUGS and self._backlog.torn:
                self._cut_torn()
            raise
        self._probing = False
        self._size += written
        self._backlog.wrote(written)

    def _cut_torn(self) -> None:
        """Take the beginning of a line out of the file; where that fails, the next write completes it."""
        try:
            os.ftruncate(self._fd, self._size - self._backlog.torn)
        except OSError as error:
            if error.errno in _BUGS:
                raise
        else:
            self._size -= self._backlog.torn
            self._backlog.torn = 0
            self._reserve.begin()

    def _sync(self) -> None:
        if not self._backlog.unsynced_bytes:
            return
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            if error.errno in _BUGS:
                raise
            # Linux marks the pages clean although they are not on disk: a second fdatasync would say
            # yes (the "fsyncgate" of 2018). So the records are taken out and written anew.
            self._sync_failed = True
            self._take_back()
            raise
        self._backlog.synced()

    def _take_back(self) -> None:
        """Take what was written since the last sync out of the file and put it back in line."""
        size = os.fstat(self._fd).st_size
        size = max(0, size - self._backlog.torn - self._backlog.unsynced_bytes)
        os.ftruncate(self._fd, size)
        self._size = size
        self._reserve.begin()
        self._backlog.requeue()
        self._sync_failed = False

    # Rotation

    def _is_rotation_due(self) -> bool:
        return (
            self._rotates_at is not None
            and self._may_rotate
            and self._backlog.torn == 0
            and self._size > 0
            and self._size + self._backlog.next_bytes() > self._rotates_at + self._slack
        )

    def _rotate(self) -> None:
        self._sync()
        try:
            numbers = retention.due(self.path, self._backups, self._keep_s, self._wall_clock())
            dropped = [retention.about(generations.backup(self.path, number)) for number in numbers]
            made = self._prepare(numbers)
            generations.shift(self.path, numbers)
            if made is not None:
                os.rename(made, self.path)
        except OSError as error:
            if error.errno in _BUGS:
                raise
            self._may_rotate = False
            if not self._rotation_failing:
                self._rotation_failing = True
                self._put_own(
                    Event.AUDIT_ROTATE_FAILED,
                    file=str(self.path),
                    size=self._size,
                    error=f"rename {error.filename}: {error.strerror}",
                )
            return
        self._rotation_failing = False
        self._let_go()
        # A line that is longer than a whole file may be had no room from the start.
        self._slack = max(0, self._backlog.next_bytes() - (self._rotates_at or 0))
        for one in dropped:
            self._slack += self._put_own(Event.AUDIT_DROPPED, **one._asdict())
        self._open()
        if self.is_sealing:
            # Once the files before are gone, this shows with which seal they ended (evidence/beginning.py).
            self._slack += self._put_own(
                Event.AUDIT_ROTATED, file=str(self.path), seal=self._seal_before()
            )

    def _prepare(self, numbers: list[int]) -> Path | None:
        """The next file with its reserve; where that takes what the files of ``numbers`` have, they go first."""
        try:
            return self._reserve.prepare(self.path)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
        for number in numbers:
            generations.backup(self.path, number).unlink(missing_ok=True)
        return self._reserve.prepare(self.path)

    # Opening

    def _attach(self) -> None:
        """See to it that the file at ``path`` is open, also when somebody moved ours away (logrotate)."""
        if self._fd >= 0:
            try:
                there = os.stat(self.path, follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                there = None
            if there is not None and (there.st_dev, there.st_ino) == self._identity:
                self._found_size(there.st_size)
                return
            if not self._sync_failed:
                try:
                    self._sync()
                except OSError as error:
                    if error.errno in _BUGS:
                        raise
            self._backlog.requeue()  # what could not be synced: in two files is better than in none
            self._sync_failed = False
            self._let_go()
            self._put_own(
                Event.AUDIT_REOPENED,
                file=str(self.path),
                previousInode=self._identity[1],
                **({"seal": self._seal_before()} if self.is_sealing else {}),
            )
        self._open()

    def _seal_before(self) -> dict[str, object] | None:
        """The last seal that was made; None where there is none, or the key cannot be read now."""
        assert self.seal_path is not None
        try:
            seal = SealFile(self.seal_path).last()
        except (FileError, OSError):  # the next seal says what is wrong with it
            return None
        return None if seal is None else msgspec.structs.asdict(seal)

    def _let_go(self, *, for_good: bool = False) -> None:
        if self._reserve.wanted and not for_good:
            try:
                give_back(self._fd)
            except OSError as error:
                if error.errno in _BUGS:
                    raise
        os.close(self._fd)
        self._fd = -1
        self._backlog.torn = 0

    def _open(self) -> None:
        fd = self._open_log(self.path)
        try:
            about = os.fstat(fd)
            self._go_on_from(fd, about.st_size)
            self._size = os.fstat(fd).st_size
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        self._identity = (about.st_dev, about.st_ino)
        self._reserve.begin()
        self._renew()

    def _go_on_from(self, fd: int, size: int) -> None:
        """Find the record to go on from, and mend the end of the file."""
        tail = read_tail(fd, size)
        last, is_restarted = tail.last, False
        if last is None and self._backlog.seq == 0:
            last, has_backups = last_of_backups(self.path)
            is_restarted = has_backups and last is None
        mended = mend(fd, size, tail)
        if last is not None and last.seq > self._backlog.seq:
            self._backlog.seq, self._backlog.hash = last
        seal, self._unwritten_seal = self._unwritten_seal, None
        if seal is not None and last is not None and last.seq <= seal.sealedSeq:
            self._put_own(Event.AUDIT_SEALED, **msgspec.structs.asdict(seal))
        if mended.torn_bytes or tail.skipped_bytes or is_restarted:
            self._put_own(
                Event.AUDIT_REPAIRED,
                file=str(self.path),
                bytes=mended.torn_bytes,
                torn=mended.torn.decode("utf-8", "backslashreplace"),
                kept=mended.kept,
                skippedBytes=tail.skipped_bytes,
                resumedAfter=self._backlog.seq,
            )


def _last_seal(path: Path) -> Seal | None:
    try:
        return SealFile(path).last()
    except OSError as error:
        found = f"that it cannot be used ({error.strerror})"
        raise FileError(str(path), "", found, "a sealing key, or no file") from error
