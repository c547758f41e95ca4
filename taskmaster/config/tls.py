"""The daemon's key ``tls``: three files, and what of them becomes the TLS that clients of other hosts speak.

TLS 1.3 alone: client certificates are not sent in the clear, and there is nothing to renegotiate, to
compress or to resume, so a certificate that is not accepted any more is not accepted at the next connection.
The private key is read as configuration is: nobody else may read it, no symbolic link leads to it, and what
was checked is what is used. Its bytes never come into an error.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import msgspec

from taskmaster.config import keys, kinds, trusted
from taskmaster.config.kinds import Kind, Refused
from taskmaster.errors import FileError

if TYPE_CHECKING:
    import ssl

_KEYS: Final = ("certificate", "key", "clientCA")
_WORDS: Final = 'an object of "certificate", "key" and "clientCA", each the path of a PEM file and none left out'


class TlsFiles(msgspec.Struct, frozen=True):
    """Paths of PEM files: the daemon's certificate (others of its chain behind it), its private key, and the
    certificates of those that sign clients' certificates."""

    certificate: str
    key: str
    client_ca: str


def files() -> Kind:
    """The value of ``tls``; a path is relative to the folder of the file."""

    def parse(value: object) -> TlsFiles:
        if not isinstance(value, dict):
            raise Refused(kinds.noun(value))
        for name in value:
            if name not in _KEYS:
                raise Refused(f"the unknown key {kinds.shown(name)}")
        for name in _KEYS:
            if name not in value:
                raise Refused(f"no {name}")
        return TlsFiles(*(_path(name, value[name]) for name in _KEYS))

    one = {**kinds.NO_NUL, "minLength": 1}
    schema = {
        "type": "object",
        "properties": dict.fromkeys(_KEYS, one),
        "required": list(_KEYS),
        "additionalProperties": False,
    }
    return Kind(_WORDS, parse, schema)


def _path(name: str, value: object) -> str:
    try:
        return kinds.text(value, kinds.MAX_PATH)
    except Refused as refused:
        raise Refused(f"{name}: {refused.found}", refused.accepted) from None


def context(named: TlsFiles, uid: int, label: str) -> ssl.SSLContext:
    """What connections are secured with. ``uid``: the daemon's; ``label``: the file that names the others.

    Raises FileError, which names the key, the file and what is wrong with it.
    """
    import ssl

    certificate = _read(named.certificate, uid, label, "certificate")
    key = _read(named.key, uid, label, "key", private=True)
    authorities = _read(named.client_ca, uid, label, "clientCA")
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.num_tickets = 0  # a resumed session would not be asked for its certificate
    made.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    made.verify_mode = ssl.CERT_REQUIRED
    try:
        _authorities(certificate)
    except (ssl.SSLError, ValueError):
        raise _unusable(label, "certificate", named.certificate, "no certificate in PEM") from None
    if b"ENCRYPTED" in key:
        raise _unusable(label, "key", named.key, "a key that is encrypted: nobody is there to ask")
    try:
        _load_pair(made, certificate, key)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            what = f"a key that does not belong to the certificate {named.certificate}"
        elif b"PRIVATE KEY" in key:
            what = f"a pair that cannot be used: {_reason(error)}"
        else:
            what = "no private key in PEM"
        raise _unusable(label, "key", named.key, what) from None
    try:
        count = _authorities(authorities, made)
    except (ssl.SSLError, ValueError):
        raise _unusable(label, "clientCA", named.client_ca, "no certificate in PEM") from None
    if not count:
        what = "a certificate that may not sign others (no CA)"
        raise _unusable(label, "clientCA", named.client_ca, what)
    return made


def _authorities(pem: bytes, into: ssl.SSLContext | None = None) -> int:
    """Load certificates; how many of them may sign others. Raises SSLError or ValueError."""
    import ssl

    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if into is None else into
    made.load_verify_locations(cadata=pem.decode("ascii", "ignore"))
    return made.cert_store_stats()["x509_ca"]


def _load_pair(made: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    # The module takes only paths: those of memory files hold what was checked, whatever is on the disk by now.
    opened: list[int] = []
    try:
        for data in (certificate, key):
            opened.append(os.memfd_create("taskmaster-tls", os.MFD_CLOEXEC))
            os.write(opened[-1], data)
        first, second = (f"/proc/self/fd/{fd}" for fd in opened)
        made.load_cert_chain(first, second, password=lambda: b"")
    finally:
        for fd in opened:
            os.close(fd)


def _read(path: str, uid: int, label: str, key: str, *, private: bool = False) -> bytes:
    folder, name = os.path.split(path)
    try:
        with trusted.folder(folder, uid, label=folder, follow=True, sticky=True) as inside:
            return trusted.read(
                name,
                uid,
                keys.MAX_BYTES,
                label=path,
                inside=inside,
                private=private,
                linked=True,
            )
    except FileError as error:
        found = f"{error.file}: {error.found}"
        raise FileError(label, f"tls.{key}", found, error.accepted) from None


def _unusable(label: str, key: str, path: str, what: str) -> FileError:
    wanted = {
        "certificate": "the daemon's certificate in PEM, those of its chain behind it",
        "key": "the private key of the certificate in PEM, not encrypted",
        "clientCA": "certificates in PEM of those that sign clients' certificates",
    }
    return FileError(label, f"tls.{key}", f"{path}: {what}", wanted[key])


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()
