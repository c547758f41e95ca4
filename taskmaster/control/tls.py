"""TLS between a Stream and its descriptor, without a socket of its own: it never waits and never blocks.

The bytes of the connection go into OpenSSL through memory, and out of it. What OpenSSL says is wrong becomes
an OSError with EPROTO, as if the kernel had said so: the connection is over.
"""

from __future__ import annotations

import errno
import os
import ssl
from typing import Any, Final

from taskmaster.channel import READ_BYTES
from taskmaster.errors import NotPermitted

#: Encrypted ahead of what the kernel takes.
_WRITE_BYTES: Final = 65536
#: A name longer than this is none: that of a domain has at most 253 characters, a common name 64.
MAX_NAME: Final = 253


class HandshakeFailed(NotPermitted):
    """It did not come about, for the reason given."""


class TlsChannel:
    """The server's end of one TLS connection; see ``taskmaster.channel``."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)
        self._unsent = bytearray()
        self._ended = False  # by the peer
        self._over = False  # by us

    # the handshake --------------------------------------------------------------------------------

    def shake(self, fd: int) -> bool:
        """Go on with the handshake as far as what has come allows; whether it is done.

        Raises HandshakeFailed; what is unsent then tells the peer.
        """
        try:
            got = os.read(fd, READ_BYTES)
        except (BlockingIOError, InterruptedError):
            got = None
        except OSError as error:
            raise HandshakeFailed(f"connection lost: {error.strerror}") from None
        if got == b"":
            raise HandshakeFailed("the client went away during the handshake")
        if got:
            self._in.write(got)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            done = False
        except ssl.SSLError as error:
            self._take()
            raise HandshakeFailed(_why(error)) from None
        else:
            done = True
        self._take()
        try:
            self._flush(fd)
        except OSError as error:
            raise HandshakeFailed(f"connection lost: {error.strerror}") from None
        return done

    def early(self) -> bytes:
        """What came together with the last bytes of the handshake. Raises OSError (EPROTO)."""
        return self._decrypted()

    def name(self) -> str:
        """The name of the client's certificate; raises HandshakeFailed where it has none that can be used.

        The common name of its subject; without one, its first DNS name.
        """
        try:
            certificate: dict[str, Any] = self._tls.getpeercert() or {}
        except (ssl.SSLError, ValueError, RuntimeError):  # an extension that Python cannot read
            raise HandshakeFailed("the client's certificate cannot be read") from None
        pairs = [pair for part in certificate.get("subject", ()) for pair in part]
        subject = [value for key, value in pairs if key == "commonName"]
        if len(subject) > 1:
            raise HandshakeFailed("the client's certificate has more than one common name")
        others = [value for key, value in certificate.get("subjectAltName", ()) if key == "DNS"]
        name = str((subject or others or [""])[0])
        if not name:
            raise HandshakeFailed(
                "the client's certificate has no name (common name of the subject, or a DNS name)"
            )
        if len(name) > MAX_NAME or not name.isprintable() or name != name.strip():
            raise HandshakeFailed(
                f"the name in the client's certificate is not usable: {name[:64]!a}"
            )
        return name

    # a stream's channel ---------------------------------------------------------------------------

    @property
    def unsent(self) -> int:
        """See Channel."""
        return len(self._unsent)

    @property
    def at_end(self) -> bool:
        """See Channel."""
        return self._ended

    def read(self, fd: int) -> bytes:
        """See Channel. A connection that ends without a word of TLS is an end as well: what is cut off of a
        frame is no frame."""
        if self._ended:
            return b""
        got = os.read(fd, READ_BYTES)
        if not got:
            return b""
        self._in.write(got)
        data = self._decrypted()
        if not data and not self._ended:
            raise BlockingIOError
        return data

    def write(self, fd: int, data: bytes | bytearray) -> int:
        """See Channel. Little is encrypted before the kernel takes it, so that what waits can be counted."""
        taken = 0
        with memoryview(data) as view:
            while self._flush(fd) and taken < len(data):
                taken += self._encrypt(view[taken : taken + _WRITE_BYTES])
        return taken

    def seal(self, data: bytes, *, last: bool) -> bytes:
        """See Channel."""
        taken = 0
        try:
            with memoryview(data) as view:
                while taken < len(data):
                    taken += self._encrypt(view[taken : taken + _WRITE_BYTES])
        except OSError:
            pass  # the connection is over already, and nobody is there to read it
        if last and not self._over:
            self._over = True
            try:
                self._tls.unwrap()
            except ssl.SSLError:
                pass  # WANT_READ: the peer has not said the same; nobody waits for that
            self._take()
        sealed = bytes(self._unsent)
        self._unsent.clear()
        return sealed

    def _decrypted(self) -> bytes:
        pieces = []
        try:
            while piece := self._tls.read(READ_BYTES):
                pieces.append(piece)
            self._ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            raise OSError(errno.EPROTO, _why(error)) from None
        self._take()
        return b"".join(pieces)

    def _encrypt(self, data: memoryview) -> int:
        try:
            taken = self._tls.write(data)
        except ssl.SSLError as error:
            raise OSError(errno.EPROTO, _why(error)) from None
        self._take()
        return taken

    def _take(self) -> None:
        if self._out.pending:
            self._unsent += self._out.read()

    def _flush(self, fd: int) -> bool:
        """Whether the kernel has taken all."""
        try:
            while self._unsent:
                del self._unsent[: os.write(fd, self._unsent)]
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            self._unsent.clear()  # it can never be sent, and must not be waited for
            raise
        return True


#: What OpenSSL calls it, and what it is for whoever reads the audit log.
_REASONS: Final = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the client has no certificate",
    "UNSUPPORTED_PROTOCOL": "the client does not speak TLS 1.3",
    "HTTP_REQUEST": "this is no TLS",
    "WRONG_VERSION_NUMBER": "this is no TLS",
    "TLSV1_ALERT_UNKNOWN_CA": "the client does not accept the daemon's certificate (unknown CA)",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the client does not accept the daemon's certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the client does not accept the daemon's certificate (expired)",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the client does not accept the daemon's certificate",
}


def _why(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the client's certificate is not accepted: {error.verify_message}"
    reason = error.reason or "TLS failed"
    return _REASONS.get(reason, f"TLS: {reason.replace('_', ' ').lower()}")
