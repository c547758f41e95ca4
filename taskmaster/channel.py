"""What the bytes of a stream go through on their way to its descriptor: nothing, or something like TLS.

No state of the stream is in here, and nothing here waits.
"""

from __future__ import annotations

import os
from typing import Final, Protocol

#: Read from the kernel at once.
READ_BYTES: Final = 65536


class Channel(Protocol):
    """What is between a Stream and its descriptor: nothing (Plain), or TLS (control/tls.py)."""

    @property
    def unsent(self) -> int:
        """Bytes that were taken by ``write`` and the kernel has not taken yet."""

    @property
    def at_end(self) -> bool:
        """Whether the peer has said, behind what was read, that no more comes."""

    def read(self, fd: int) -> bytes:
        """What there is; empty: no more comes. Raises BlockingIOError while there is nothing, and OSError."""

    def write(self, fd: int, data: bytes | bytearray) -> int:
        """Take bytes, also none; how many were taken. Raises BlockingIOError and OSError."""

    def seal(self, data: bytes, *, last: bool) -> bytes:
        """``data`` as it has to be on the wire, behind what is unsent, which goes with it; with ``last``,
        and that no more comes."""


class Plain:
    """Bytes as they are."""

    unsent: Final = 0
    at_end: Final = False

    def read(self, fd: int) -> bytes:
        """See Channel."""
        return os.read(fd, READ_BYTES)

    def write(self, fd: int, data: bytes | bytearray) -> int:
        """See Channel."""
        return os.write(fd, data)

    def seal(self, data: bytes, *, last: bool) -> bytes:
        """See Channel."""
        return data


PLAIN: Final = Plain()
