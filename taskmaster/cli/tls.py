"""TLS to a taskmasterd on another host: our certificate, its certificate, and every failure in words.

Loaded for ``tls://`` alone: OpenSSL costs a command 10 ms.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from typing import Final

from taskmaster.cli.address import Address
from taskmaster.errors import FileError, NotPermitted, TaskmasterError, Unavailable

#: What the server's alert says of our certificate. In TLS 1.3 it comes after the handshake, instead of a reply.
_REFUSED: Final = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it wants one",
    "TLSV1_ALERT_UNKNOWN_CA": "it is signed by nobody in its clientCA",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it has expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "it is revoked",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "it is not for clients",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it cannot be used",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it cannot be used",
    "TLSV1_ALERT_DECRYPT_ERROR": "it cannot be used",
    "TLSV1_ALERT_ACCESS_DENIED": "it may not come in",
}
#: What OpenSSL says of bytes that are no TLS, by version.
_NOT_TLS: Final = {
    "WRONG_VERSION_NUMBER",
    "HTTP_REQUEST",
    "PACKET_LENGTH_TOO_LONG",
    "RECORD_LAYER_FAILURE",
}
_OLD: Final = {"UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION", "WRONG_SSL_VERSION"}
#: X509_V_ERR_…: has expired.
_EXPIRED: Final = {10}
#: … who signed it is not known.
_STRANGER: Final = {18, 19, 20, 21}
#: … is for another name or address.
_OTHER_NAME: Final = {62, 63, 64}


class TlsSocket:
    """A secured connection, as far as the client needs one to be a socket."""

    def __init__(self, secured: ssl.SSLSocket, address: Address) -> None:
        self._socket = secured
        self._address = address
        #: The server has ended it in order: what it has not answered, it has not begun.
        self.ended = False

    def fileno(self) -> int:
        """Of the connection below."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close it, with the word that no more comes if there is room for it."""
        try:
            self._socket.setblocking(False)
            self._socket.unwrap()
        except OSError:
            pass  # WANT_READ: said, and not answered; or it is over already
        self._socket.close()

    def send(self, data: bytes | bytearray) -> int:
        """Raises BlockingIOError, and OSError where the connection has ended."""
        try:
            return self._socket.send(data)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            raise BlockingIOError from None
        except ssl.SSLError as error:
            raise OSError(errno.EPIPE, _words(error)) from None

    def recv(self, size: int) -> bytes:
        """Raises BlockingIOError, OSError, and NotPermitted where the server does not like our certificate."""
        try:
            chunk = self._socket.recv(size)
            self.ended = not chunk
            return chunk
        except ssl.SSLEOFError:
            return b""  # it is gone, without a word of TLS
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None
        except ssl.SSLError as error:
            refused = _refused(error, self._address)
            if refused is not None:
                raise refused from None
            raise OSError(errno.EPROTO, _words(error)) from None


def secure(plain: socket.socket, address: Address, timeout_s: float) -> TlsSocket:
    """TLS over a connection, which is closed where that fails.

    Raises FileError (78) for files of ours, NotPermitted (77) where ours is refused, Unavailable (69) else.
    """
    try:
        plain.settimeout(timeout_s)
        secured = _context(address).wrap_socket(
            plain, server_hostname=address.host, suppress_ragged_eofs=False
        )
        secured.setblocking(False)
    except TaskmasterError:
        plain.close()
        raise
    except (OSError, ValueError) as error:  # ValueError: a host that is no name and no address
        plain.close()
        refused = _refused(error, address) if isinstance(error, ssl.SSLError) else None
        raise refused or Unavailable(
            f"cannot talk to taskmasterd at {address}: {_failure(error, address)}"
        ) from None
    return TlsSocket(secured, address)


def _context(address: Address) -> ssl.SSLContext:
    named = address.tls
    assert named is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies, and checks the name
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if named.ca:
        _readable("--tls-ca", named.ca)
        try:
            context.load_verify_locations(named.ca)
        except (OSError, ValueError):
            raise FileError(named.ca, "", "no certificate", "CA certificates in PEM") from None
    else:
        context.load_default_certs()
    key = named.key or named.cert
    _readable("--tls-cert", named.cert)
    _readable("--tls-key", key)
    try:
        context.load_cert_chain(named.cert, key)
    except OSError as error:
        mismatch = isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH"
        found = f"a key that is not that of {named.cert}" if mismatch else "not both of them"
        accepted = "a certificate (--tls-cert) and its private key (--tls-key) in PEM"
        raise FileError(key, "", found, accepted) from None
    return context


def _readable(option: str, path: str) -> None:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        found = error.strerror or str(error)
        raise FileError(path, "", found, f"a readable file ({option})") from None


def _refused(error: ssl.SSLError, address: Address) -> NotPermitted | None:
    why = _REFUSED.get(error.reason or "")
    if why is None:
        return None
    cert = address.tls.cert if address.tls is not None else ""
    return NotPermitted(f"the server {address} refused our certificate {cert}: {why}")


def _failure(error: OSError | ValueError, address: Address) -> str:
    """Why there is no TLS, in words."""
    assert address.tls is not None
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _EXPIRED:
            return "its certificate has expired (or one of its chain, or the clock here is wrong)"
        if error.verify_code in _STRANGER:
            whom = (
                f"in {address.tls.ca}"
                if address.tls.ca
                else "that this host knows; --tls-ca names one"
            )
            return f"its certificate is signed by no CA {whom}"
        if error.verify_code in _OTHER_NAME:
            return f"its certificate is not for {address.host!r}: another name, or another host"
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return "no TLS handshake in time"
    if isinstance(error, ssl.SSLError) and error.reason in _NOT_TLS:
        return "what answers there does not speak TLS (is tls in taskmasterd's configuration?)"
    if isinstance(error, ssl.SSLError) and error.reason in _OLD:
        return "what answers there does not speak TLS 1.3"
    if isinstance(error, ssl.SSLEOFError | ConnectionError):
        return "it closed the connection in the middle of the TLS handshake"
    return _words(error)


def _words(error: OSError | ValueError) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return f"TLS: {error.reason.replace('_', ' ').lower()}"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
