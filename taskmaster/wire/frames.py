"""Frames: where one message ends and the next begins; bytes in, whole frames out, no I/O.

Two framings share one shape (``receive_data``, then ``next_frame`` until it answers None):

* ClientFrames, for clients: a JSON object followed by ``;;``. It never looks for the next frame
  after something that was none: a server that resynchronises at ``;;`` executes the frame that a web
  page hid in the body of a POST (Redis had to learn this in 2016). The first byte of a frame
  decides: it is ``{`` or the connection is over.
* LinkFrames, for watchdog links: a length of four bytes, network order, then the bytes; what
  ``multiprocessing.Connection`` writes for messages below 2 GiB, but read without blocking or pickle.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from taskmaster.errors import InvalidQuery

END: Final = b";;"
_BLANK: Final = b" \t\r\n"
_LENGTH: Final = struct.Struct("!I")

#: Cap of one link frame, bytes. A job of 1000 processes publishes about 350 kB at once.
MAX_LINK_FRAME: Final = 16 * 1024 * 1024


class Allowance:
    """How many bytes of unfinished frames all connections that share it may hold: ``max_bytes``.

    ``within``: one that several such have together. Whoever passes the smaller one is cut off; of who has to go
    where the larger one is passed, its ``relieve`` decides, so that one that holds little is not cut off for one
    that holds much.
    """

    def __init__(self, max_bytes: int, within: Allowance | None = None) -> None:
        self.max_bytes = max_bytes
        self.used = 0
        self.within = within
        self.relieve: Callable[[], object] = lambda: None

    def count(self, change: int) -> None:
        """So many bytes more or less are held."""
        self.used += change
        if self.within is not None:
            self.within.used += change

    def is_passed(self) -> bool:
        """Whether who has sent the last bytes has to be cut off."""
        if self.used > self.max_bytes:
            return True
        within = self.within
        if within is None or within.used <= within.max_bytes:
            return False
        within.relieve()
        return within.used > within.max_bytes


class ClientFrames:
    """The receiving side of one client connection.

    ``max_bytes`` caps one frame, its ``;;`` not counted; ``allowance`` what this and others hold together.
    After InvalidQuery was raised the stream is dead: every further call raises the same again.
    """

    def __init__(self, max_bytes: int, allowance: Allowance | None = None) -> None:
        self._max = max_bytes
        self._allowance = Allowance(1 << 62) if allowance is None else allowance
        self._counted = 0
        self._buffer = bytearray()
        self._searched = 0  # bytes already known to hold no end mark: each byte is scanned once
        self._dead: InvalidQuery | None = None

    def receive_data(self, data: bytes) -> None:
        """Take bytes as they came."""
        if self._dead is None:
            self._buffer += data

    def forget(self) -> None:
        """The connection is over: what is held counts for nobody any more."""
        self._buffer.clear()
        self._count()

    def _count(self) -> None:
        self._allowance.count(len(self._buffer) - self._counted)
        self._counted = len(self._buffer)

    def unread(self) -> bytes:
        """What was received and not yet handed out, for a decoder in another process to go on with."""
        return bytes(self._buffer)

    def pending_bytes(self) -> int:
        """How many bytes of an unfinished frame are held."""
        return len(self._buffer)

    def next_frame(self) -> bytes | None:
        """The next whole frame without its ``;;``, or None until more bytes come.

        Raises InvalidQuery (fatal) where the bytes can be no frame.
        """
        buffer = self._buffer
        if self._searched == 0:
            # What comes all day, and nothing of the dead, who have an empty buffer: a whole frame, in front.
            end = buffer.find(END)
            if 0 <= end <= self._max and buffer[0] == 0x7B:  # {
                frame = bytes(buffer[:end])
                del buffer[: end + len(END)]
                if self._counted:
                    self._count()
                return frame
        if self._dead is not None:
            raise self._dead
        if self._searched == 0:
            if not buffer:
                return None
            if buffer[0] in _BLANK:  # else no copy: many small frames may wait in it
                del buffer[: len(buffer) - len(buffer.lstrip(_BLANK))]
                if not buffer:
                    return None
            if buffer[0] != 0x7B:  # {
                raise self._die(_foreign(bytes(buffer[:16])))
        end = buffer.find(END, max(self._searched - 1, 0))
        # Half an end mark at the end of what has come is no byte of the frame.
        length = end if end >= 0 else len(buffer) - buffer.endswith(END[:1])
        if length > self._max:
            raise self._die(f"Frame over {self._max} bytes; nothing of it was used.")
        if end < 0:
            self._searched = len(buffer)
            self._count()
            if self._allowance.is_passed():
                raise self._die("Too much unfinished input from all connections of one user.")
            return None
        frame = bytes(buffer[:end])
        del buffer[: end + len(END)]
        self._searched = 0
        if self._counted:
            self._count()
        return frame

    def _die(self, message: str) -> InvalidQuery:
        self.forget()
        self._dead = InvalidQuery(message, fatal=True)
        return self._dead


def _foreign(start: bytes) -> str:
    """What the first bytes of a connection look like, when they are no frame."""
    if start[:2] == b"\x16\x03":
        return "This looks like a TLS hello on a plain port; a frame is one JSON object and ;;."
    word = start.split(b" ", 1)[0].rstrip(b":")
    if word.isalpha() and (b" " in start or b":" in start):
        return "This looks like an HTTP request; a frame is one JSON object and ;;."
    return "Not a JSON object; a frame is one JSON object and ;;."


class LinkFrames:
    """The receiving side of one watchdog link; ``max_bytes`` caps one frame."""

    def __init__(self, max_bytes: int = MAX_LINK_FRAME) -> None:
        self._max = max_bytes
        self._buffer = bytearray()

    def receive_data(self, data: bytes) -> None:
        """Take bytes as they came."""
        self._buffer += data

    def next_frame(self) -> bytes | None:
        """The next whole frame, or None. Raises InvalidQuery (fatal) on a length over the cap."""
        buffer = self._buffer
        if len(buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(buffer)
        if length > self._max:
            raise InvalidQuery(f"link frame of {length} bytes, over {self._max}", fatal=True)
        end = _LENGTH.size + length
        if len(buffer) < end:
            return None
        frame = bytes(buffer[_LENGTH.size : end])
        del buffer[:end]
        return frame


def link_frame(payload: bytes) -> bytes:
    """``payload`` framed for a watchdog link."""
    return _LENGTH.pack(len(payload)) + payload
