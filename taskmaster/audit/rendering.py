"""One audit record to one line of canonical JSON, through structlog: the only file that imports it.

It never does I/O, and whatever a field holds, rendering it ends: text that is no UTF-8 is escaped,
what is too long is cut. Fields that could hold a secret are refused, as a mistake of the caller.

What is rendered has gaps for ``prev`` and ``seq``: those are filled in when it is written (backlog.py), so
that a record dropped in between leaves no gap in the file. Records that come again and again, with another
time and another ``id``, are rendered once, as a ``Form`` with gaps for these too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import structlog

from taskmaster.audit.events import Event
from taskmaster.evidence.chain import MAX_LINE_BYTES, canonical

#: A line longer than MAX_LINE_BYTES is rendered again with its values cut: a client chooses some of what is
#: in a record (the name of a job in a refused command, up to maxFrameBytes) and must not fill the disk with it.
_CUT_CHARACTERS: Final = 1024
_CUT_ITEMS: Final = 32
_CUT_DEPTH: Final = 4
#: A record that is longer is never kept as a form.
_FORM_BYTES: Final = 1024

#: Contents of job files and values of environments are secrets; the others are the log's own keys.
REFUSED_FIELDS: Final = frozenset({"data", "env", "seq", "timestamp", "event", "prev", "hash"})

#: Stand in the gaps while a record is rendered; random, so that no field from outside can hold one.
_PREV: Final = os.urandom(16).hex()
_SEQ: Final = os.urandom(16).hex()
_TIME: Final = os.urandom(16).hex()
_ID: Final = os.urandom(16).hex()
_TOOK: Final = os.urandom(16).hex()

#: A record but for ``prev`` and ``seq``: a text for the operator ``%``, what fills its gaps before those
#: two, and after them. A plain tuple, since it is made for every record.
Rendered = tuple[bytes, tuple[object, ...], tuple[object, ...]]


#: A second, as text, and the microsecond in it.
Moment = tuple[bytes, int]


class Form(msgspec.Struct, frozen=True):
    """A rendered record with gaps for, in this order: how long it took (if it is timed), the number in its id,
    ``prev``, ``seq``, its second, its microsecond."""

    text: bytes


#: Texts of short durations, by microseconds: to format a float takes four times as long as to look it up.
_MILLISECONDS: Final[dict[int, bytes]] = {}
_KEPT_MICROS: Final = 2048


class _Recorder(structlog.BoundLoggerBase):
    """The one method of this log: the processors' line goes back to the caller, not to a logger.

    structlog's generic proxy to a logger's method would cost 2 us more a record.
    """

    def record(self, event: Event, fields: Mapping[str, object]) -> bytes:
        arguments, _ = self._process_event("record", event, fields)  # type: ignore[arg-type]
        line: bytes = arguments[0]
        return line


class Renderer:
    """Renders records, each with the time of ``wall_clock`` (seconds since 1970, UTC)."""

    def __init__(self, wall_clock: Callable[[], float]) -> None:
        self._wall_clock = wall_clock
        self._second = -1
        self._second_text = b""
        recorder: _Recorder = structlog.wrap_logger(
            # Nothing is written by it. With None it would be made for the standard output of the time when
            # structlog was imported, which may not have been open.
            object(),
            # structlog's own JSONRenderer would cost 1 us more a record.
            processors=[self._stamp, lambda _logger, _method, record: canonical(record)],
            wrapper_class=_Recorder,
            context_class=dict,
        )
        self._recorder = recorder.bind(prev=_PREV, seq=_SEQ)

    def timestamp(self) -> str:
        """The time now, UTC, as ``2026-11-24T09:00:00.000000Z``."""
        second, micros = self.moment()
        return f"{second.decode()}.{micros:06d}Z"

    def moment(self, ago_s: float = 0.0) -> Moment:
        """The time ``ago_s`` seconds ago, as it fills the gaps of a form."""
        micros = int((self._wall_clock() - ago_s) * 1_000_000)
        second = micros // 1_000_000
        if second != self._second:
            self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
            self._second = second
        return self._second_text, micros - second * 1_000_000

    def _stamp(self, _logger: object, _method: str, record: Any) -> Any:
        if "timestamp" not in record:
            record["timestamp"] = self.timestamp()
        return record

    def render(self, event: Event, fields: Mapping[str, object]) -> Rendered:
        """The record as canonical JSON, but for ``prev`` and ``seq``.

        Raises ValueError for a field that must not be in the log, TypeError for a value that JSON
        cannot hold.
        """
        if not REFUSED_FIELDS.isdisjoint(fields):
            named = ", ".join(sorted(REFUSED_FIELDS & fields.keys()))
            raise ValueError(f"{event.value}: a record may not have the field {named}")
        return _with_gaps(self._line(event, fields)), (), ()

    def _line(self, event: Event, fields: Mapping[str, object]) -> bytes:
        try:
            line = self._recorder.record(event, fields)
            if len(line) <= MAX_LINE_BYTES:
                return line
        except (UnicodeEncodeError, OverflowError, RecursionError):
            pass  # lone surrogates, integers over 64 bits, nesting without end: from outside, all
        line = self._recorder.record(event, {key: _cut(fields[key]) for key in fields})
        if len(line) <= MAX_LINE_BYTES:
            return line
        return self._recorder.record(event, {"cut": _cut(repr(fields))})

    def form(
        self, event: Event, fields: Mapping[str, object], *, prefix: str, timed: bool
    ) -> Form | None:
        """What records like this one have in common but their time, ``id`` and, if ``timed``, ``durationMs``.

        ``prefix``: what their ids begin with, before a number. None where the record is too long to be kept.
        """
        marked = {**fields, "id": prefix + _ID, "timestamp": _TIME} | (
            {"durationMs": _TOOK} if timed else {}
        )
        line = self._line(event, marked)
        text = _with_gaps(line)
        for mark, gap in ((_TOOK, b"%b"), (_TIME, b'"%b.%06dZ"')):
            text = text.replace(_quoted(mark), gap)
        text = text.replace(_ID.encode(), b"%d")
        return Form(text) if len(text) <= _FORM_BYTES else None


def milliseconds(micros: int) -> bytes:
    """So many microseconds as ``durationMs`` has them: milliseconds with three digits, as JSON."""
    text = _MILLISECONDS.get(micros)
    if text is None:
        whole, rest = divmod(micros, 1000)
        text = b"%a" % (micros / 1000) if rest else b"%d" % whole
        if 0 <= micros < _KEPT_MICROS:
            _MILLISECONDS[micros] = text
    return text


def _quoted(mark: str) -> bytes:
    return f'"{mark}"'.encode()


def _with_gaps(line: bytes) -> bytes:
    text = line.replace(b"%", b"%%")
    return text.replace(_quoted(_PREV), b'"%b"', 1).replace(_quoted(_SEQ), b"%d", 1)


def _cut(value: object, depth: int = 0) -> object:
    if isinstance(value, str):
        kept = value[:_CUT_CHARACTERS].encode("utf-8", "backslashreplace").decode()
        left_out = len(value) - _CUT_CHARACTERS
        return kept if left_out <= 0 else f"{kept}... ({left_out} characters more)"
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else "an integer over 64 bits"
    if depth >= _CUT_DEPTH:
        return "..."
    if isinstance(value, Mapping):
        items = list(value.items())[:_CUT_ITEMS]
        return {str(_cut(str(key))): _cut(item, depth + 1) for key, item in items}
    if isinstance(value, (list, tuple)):
        return [_cut(item, depth + 1) for item in value[:_CUT_ITEMS]]
    return _cut(str(value))
