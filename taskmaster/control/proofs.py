"""When the audit log is sealed, and when its head goes to syslog: after something was recorded, never at rest.

And it watches the second place for records while that is behind.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from taskmaster.audit import AuditLog, Event, Sink
from taskmaster.control.say import Say
from taskmaster.errors import FileError
from taskmaster.eventloop import EventLoop, Timer, Watch


class _Rhythm:
    """Something that is done ``every_s`` seconds after the first record since it was last done."""

    def __init__(self, every_s: float, action: Callable[[], object]) -> None:
        self.every_s, self.action = every_s, action
        self.timer: Timer | None = None
        #: Number of the last record that it was done for.
        self.done_for = -1


class Proofs:
    """``seal_s``, ``anchor_s``: see the daemon's configuration; 0 seconds is never. ``heads``: where heads
    go; ``sink``: where the records go, too."""

    def __init__(
        self,
        loop: EventLoop,
        audit: AuditLog,
        say: Say,
        *,
        seal_s: float,
        anchor_s: float,
        heads: Sink,
        sink: Sink | None,
    ) -> None:
        self._loop = loop
        self._audit = audit
        self._say = say
        self._heads = heads
        audit.on_short = say.error
        self._seals = _Rhythm(seal_s, self._seal)
        self._anchors = _Rhythm(anchor_s, self._anchor)
        self._rhythms = [rhythm for rhythm in (self._seals, self._anchors) if rhythm.every_s > 0]
        self._sink = sink
        self._watch: Watch | None = None
        if sink is not None:
            sink.on_close = self._unwatch
        #: Whether there is nothing to arm, whatever is recorded.
        self._armed = False
        self._said = ""
        self._failed = False

    def begin(self) -> None:
        """The log is open and the daemon serves: what the one before left is sealed, and the head goes out."""
        self._audit.look_for_seal()
        self._seal()
        if self._anchors.every_s > 0:
            self._anchor()

    def look(self) -> None:
        """Whether there is a sealing key may be another than before."""
        self._audit.look_for_seal()
        self._armed = False

    def turn_over(self) -> None:
        """Call at the end of each turn of the loop."""
        sink = self._sink
        if sink is not None and sink.waits and self._watch is None:
            self._watch = self._loop.watch(sink.fileno(), None, self._drain)
        if not self._armed:
            self._arm(self._audit.seq)

    def _arm(self, seq: int) -> None:
        self._armed = True
        for rhythm in self._rhythms:
            if rhythm.timer is None and (rhythm is not self._seals or self._audit.is_sealing):
                if rhythm.done_for == seq:
                    self._armed = False
                else:
                    due = functools.partial(self._due, rhythm)
                    rhythm.timer = self._loop.call_in(rhythm.every_s, due)

    def end(self) -> None:
        """The daemon's last record is written: seal it, send the head, give up the socket."""
        for rhythm in self._rhythms:
            if rhythm.done_for != self._audit.seq:
                rhythm.action()
        self._heads.close()

    def _drain(self) -> None:
        """The second place for records has room."""
        assert self._sink is not None
        if self._sink.drain():
            self._audit.sink_takes_again()
        if not self._sink.waits:
            self._unwatch()

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._loop.unwatch(self._watch)
            self._watch = None

    def _due(self, rhythm: _Rhythm) -> None:
        rhythm.timer = None
        rhythm.action()
        self._armed = False

    def _seal(self) -> None:
        if not self._audit.is_sealing:
            return
        why = ""
        try:
            if self._audit.seal():
                self._failed = False
                self._seals.done_for = self._audit.seq
                return
            why = "the log cannot be written"
        except FileError as error:
            why = str(error)
        except OSError as error:
            why = f"{error.filename or self._audit.seal_path}: {error.strerror}"
        self._say.error(
            f"the audit log cannot be sealed: {why}; tried again in {self._seals.every_s:g} s"
        )
        if not self._failed:
            self._failed = True
            self._audit.record(Event.AUDIT_SEAL_FAILED, file=str(self._audit.seal_path), error=why)

    def _anchor(self) -> None:
        self._audit.flush(durable=True)
        seq, last = self._audit.head
        if seq == self._anchors.done_for:
            return
        why = self._heads.tell(f"audit head {seq}:{last} {self._audit.path}", "audit-head")
        self._anchors.done_for = seq
        if why and why != self._said:
            # No syslog on this host is no error; whoever wants heads sees them missing.
            self._say.everything(f"the audit log's head did not reach {self._heads.path}: {why}")
        self._said = why
