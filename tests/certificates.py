"""Certificates for tests, made by the ``openssl`` command as an administrator would, never older than the test."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running import DEADLINE_S, Client

EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")


def openssl(*arguments: str | Path) -> None:
    """Run it; its words are shown where it fails."""
    done = subprocess.run(
        ["openssl", *arguments], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == 0, done.stderr


class Authority:
    """A CA in a folder: ``ca.crt``, and what it signs as ``NAME.crt`` and ``NAME.key``."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder = folder
        self.crt, self.key = folder / f"{name}.crt", folder / f"{name}.key"
        openssl(
            *("req", "-x509", *EC, "-days", "2", "-subj", f"/CN={name}"),
            *("-keyout", self.key, "-out", self.crt),
        )

    def issue(
        self, name: str, subject: str | None = None, *, alt: str = "", use: str = "", days: int = 1
    ) -> tuple[Path, Path]:
        """Certificate and key. ``days`` below 0: it has expired. ``use``: serverAuth, clientAuth."""
        crt, key, request = (self.folder / f"{name}.{end}" for end in ("crt", "key", "csr"))
        subject = f"/CN={name}" if subject is None else subject
        openssl(
            *("req", "-new", *EC, "-utf8", "-multivalue-rdn", "-subj", subject),
            *("-keyout", key, "-out", request),
        )
        lines = ["basicConstraints=critical,CA:FALSE"]
        lines += [f"subjectAltName={alt}"] if alt else []
        lines += [f"extendedKeyUsage={use}"] if use else []
        extensions = self.folder / f"{name}.ext"
        extensions.write_text("\n".join(lines))
        openssl(
            *("x509", "-req", "-in", request, "-CA", self.crt, "-CAkey", self.key),
            *("-days", str(days), "-extfile", extensions, "-out", crt),
        )
        return crt, key

    def daemon_keys(self, server: tuple[Path, Path]) -> dict[str, str]:
        """The value of the daemon's key ``tls``."""
        return {
            "certificate": str(server[0]),
            "key": str(server[1]),
            "clientCA": str(self.crt),
        }

    def context(self, client: tuple[Path, Path] | None) -> ssl.SSLContext:
        """What a client of this CA has."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.crt)
        if client is not None:
            context.load_cert_chain(*client)
        return context


class TlsClient(Client):
    """A raw connection over TLS."""

    def __init__(
        self, address: tuple[str, int], context: ssl.SSLContext, name: str = "localhost"
    ) -> None:
        super().__init__(address)
        try:
            self.socket = context.wrap_socket(self.socket, server_hostname=name)
        except BaseException:
            self.close()
            raise


def raw_hello(context: ssl.SSLContext) -> bytes:
    """The first bytes of a handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    made: Any = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        made.do_handshake()
    return outgoing.read()


class BioClient:
    """A client that decides which bytes are sent when; ``raw`` is the connection below."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext) -> None:
        self.raw = socket.create_connection(address, timeout=DEADLINE_S)
        self._in, self.out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self.out, server_hostname="localhost")

    def send_waiting(self, piece: int = 1 << 20) -> None:
        """Send what OpenSSL wants sent, in pieces of this size."""
        data = self.out.read()
        for at in range(0, len(data), piece):
            self.raw.sendall(data[at : at + piece])

    def until(self, step: Callable[[], Any], piece: int = 1 << 20) -> Any:
        """The result of a step of OpenSSL, once enough has come for it."""
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                self.send_waiting(piece)
                chunk = self.raw.recv(65536)
                if chunk:
                    self._in.write(chunk)
                else:
                    self._in.write_eof()
            else:
                self.send_waiting(piece)
                return result

    def read_all(self) -> bytes:
        """What comes until the server's orderly end of TLS; a connection that just ends is an SSLError."""
        data = b""
        with contextlib.suppress(
            ssl.SSLZeroReturnError
        ):  # so it is called where we have said the same
            while piece := self.until(lambda: self.tls.read(65536)):
                data += piece
        return data
