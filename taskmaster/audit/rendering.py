"""One audit record to one line of JSON, through structlog: the only file that imports it.

It never does I/O, and whatever a field holds, rendering it ends: text that is no UTF-8 is escaped,
what is too long is cut. Fields that could hold a secret are refused, as a mistake of the caller.

A line has no ``seq`` yet: that is given when it is written (``numbered``), so that a record dropped
in between leaves no gap in the file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import structlog

from taskmaster.audit.events import Event

#: A longer line is rendered again with its values cut: a client chooses some of what is in a record
#: (the name of a job in a refused command, up to maxFrameBytes) and must not fill the disk with it.
MAX_LINE_BYTES: Final = 65536
_CUT_CHARACTERS: Final = 1024
_CUT_ITEMS: Final = 32
_CUT_DEPTH: Final = 4

#: Contents of job files and values of environments are secrets; the others are the log's own keys.
REFUSED_FIELDS: Final = frozenset({"data", "env", "seq", "timestamp", "event"})


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
        self._second_text = ""
        encode = msgspec.json.Encoder().encode
        recorder: _Recorder = structlog.wrap_logger(
            None,
            processors=[
                self._stamp,
                structlog.processors.JSONRenderer(serializer=lambda record, **_: encode(record)),
            ],
            wrapper_class=_Recorder,
            context_class=dict,
        ).bind(timestamp=None, event=None)  # bound first, so they are the first keys of each record
        self._recorder = recorder

    def timestamp(self) -> str:
        """The time now, UTC, as ``2026-11-24T09:00:00.000000Z``."""
        second, micros = divmod(int(self._wall_clock() * 1_000_000), 1_000_000)
        if second != self._second:
            self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = second
        return f"{self._second_text}.{micros:06d}Z"

    def _stamp(self, _logger: object, _method: str, record: Any) -> Any:
        record["timestamp"] = self.timestamp()
        return record

    def render(self, event: Event, fields: Mapping[str, object]) -> bytes:
        """The record as a JSON object without ``seq`` and without a line end.

        Raises ValueError for a field that must not be in the log, TypeError for a value that JSON
        cannot hold.
        """
        if not REFUSED_FIELDS.isdisjoint(fields):
            named = ", ".join(sorted(REFUSED_FIELDS & fields.keys()))
            raise ValueError(f"{event.value}: a record may not have the field {named}")
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


def numbered(seq: int, line: bytes) -> bytes:
    """``line`` as it goes into the file: ``seq`` before its other keys, a line end after them."""
    return b'{"seq":%d,%b\n' % (seq, line[1:])
