"""Where taskmasterd is looked for: the text of ``-c`` to an address, and the default server.

Only names and ``stat``: never opens a connection (client.py does).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 7777
SERVER_VARIABLE = "TASKMASTER_SERVER"
TLS, SSH = "tls://", "ssh://"
#: Where the files of TLS are named that no option names.
TLS_VARIABLES = {
    "ca": "TASKMASTER_TLS_CA",
    "cert": "TASKMASTER_TLS_CERT",
    "key": "TASKMASTER_TLS_KEY",
}
_FORMS = (
    "accepted: HOST[:PORT], [IPV6]:PORT, the path of a socket (with a /), tls://HOST[:PORT], "
    "or ssh://[USER@]HOST[:PORT][/SOCKETPATH]"
)
#: A name of ssh's configuration, a host's or a user's: ssh puts them into commands of the configuration.
_SSH_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*", re.ASCII)
_SSH_IPV6 = re.compile(r"[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?", re.ASCII)


class BadAddress(ValueError):
    """Text that names no server; the message quotes it and says what is accepted."""


class TlsFiles:
    """Files in PEM: those who sign servers' certificates (empty: whom the system trusts), our certificate,
    our key (empty: in the same file)."""

    __slots__ = ("ca", "cert", "key")

    def __init__(self, ca: str = "", cert: str = "", key: str = "") -> None:
        self.ca, self.cert, self.key = ca, cert, key


class Address:
    """A Unix socket (``path``) or a TCP port (``host``, ``port``); ``scheme``: TLS, SSH or empty.

    With SSH, ``port`` 0 and an empty ``user`` are up to ssh, an empty ``remote_path`` to the other host.
    ``origin`` says how it was arrived at, for error messages: an administrator who named no server
    has to be told which one was tried. Empty where ``-c`` named it.
    """

    __slots__ = ("host", "origin", "path", "port", "remote_path", "scheme", "tls", "user")

    def __init__(
        self,
        *,
        path: str = "",
        host: str = "",
        port: int = DEFAULT_PORT,
        origin: str = "",
        scheme: str = "",
        user: str = "",
        remote_path: str = "",
    ) -> None:
        self.path, self.host, self.port, self.origin = path, host, port, origin
        self.scheme, self.user, self.remote_path = scheme, user, remote_path
        self.tls: TlsFiles | None = None

    @property
    def is_fallback(self) -> bool:
        """Whether nobody named it: there was no socket, and so a port is asked."""
        return bool(self.origin) and not self.path and self.origin.startswith("the default")

    def __str__(self) -> str:
        if self.path:
            return self.path
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = f"{self.user}@" if self.user else ""
        port = f":{self.port}" if self.port else ""
        return f"{self.scheme}{user}{host}{port}{self.remote_path}"


def parse(text: str, origin: str = "") -> Address:
    """The address that ``text`` names; raises BadAddress.

    A slash makes it a path, so a socket in the working directory is ``./control.sock``.
    """
    if "\0" in text:
        raise BadAddress(f"{text!r} is no address; {_FORMS}")
    if text.startswith(SSH):
        return _ssh(text, origin)
    if text.startswith(TLS):
        host, port = _host_and_port(text, text[len(TLS) :])
        return Address(host=host, port=_port(text, port), origin=origin, scheme=TLS)
    if "://" in text:
        raise BadAddress(f"{text!r} is no address; {_FORMS}")
    if "/" in text:
        return Address(path=text, origin=origin)
    host, port = _host_and_port(text, text)
    return Address(host=host, port=_port(text, port), origin=origin)


def _ssh(text: str, origin: str) -> Address:
    place, slash, path = text[len(SSH) :].partition("/")
    user, at, where = place.rpartition("@")
    host, port = _host_and_port(text, where)
    if at and not _SSH_WORD.fullmatch(user):
        raise BadAddress(f"{text!r}: {user!r} is no user; accepted: letters, digits, _ . -")
    if not (_SSH_IPV6 if ":" in host else _SSH_WORD).fullmatch(host):
        raise BadAddress(f"{text!r}: {host!r} is no host; accepted: letters, digits, _ . -")
    number = 0 if port is None else _port(text, port)
    return Address(
        host=host, port=number, origin=origin, scheme=SSH, user=user, remote_path=slash + path
    )


def _host_and_port(whole: str, text: str) -> tuple[str, str | None]:
    """The host, and what stands for the port; ``whole`` is for errors."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise BadAddress(f"{whole!r} is no address; {_FORMS}")
        port = rest[1:] if rest else None
    elif text.count(":") > 1:
        # ::1:7777 could be either; guessing would connect to a machine nobody named.
        raise BadAddress(f"{whole!r}: an IPv6 address is written in brackets, [::1]; {_FORMS}")
    else:
        host, colon, rest = text.partition(":")
        port = rest if colon else None
    if not host or not host.isprintable() or " " in host or "/" in text:
        raise BadAddress(f"{whole!r} names no host; {_FORMS}")
    return host, port


def _port(text: str, digits: str | None) -> int:
    if digits is None:
        return DEFAULT_PORT
    # isdigit alone admits other scripts' digits; five characters hold 65535.
    if digits.isascii() and digits.isdigit() and len(digits) <= 5 and 0 < int(digits) < 65536:
        return int(digits)
    raise BadAddress(f"{text!r}: {digits!r} is no port; accepted: 1 to 65535")


def socket_candidates(environ: Mapping[str, str], euid: int) -> list[str]:
    """Paths at which a daemon of this user would have its socket, most likely first."""
    if euid == 0:
        return ["/run/taskmaster/control.sock"]
    found = []
    # The XDG base directory specification has relative values ignored.
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/"):
        found.append(f"{runtime}/taskmaster/control.sock")
    # Also where the variable is set: cron and ssh commands differ from a login session in it.
    state = environ.get("XDG_STATE_HOME", "")
    if not state.startswith("/"):
        state = os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".local/state")
    found.append(f"{state}/taskmaster/run/control.sock")
    return found


def is_named(named: str | None, environ: Mapping[str, str]) -> bool:
    """Whether -c or $TASKMASTER_SERVER says which server is meant, so that none at a default place is."""
    return named is not None or bool(environ.get(SERVER_VARIABLE))


def choose(named: str | None, environ: Mapping[str, str], euid: int) -> Address:
    """The server to ask: ``named`` by -c, else $TASKMASTER_SERVER, else the default.

    Raises BadAddress. The default is the first socket that is there, else 127.0.0.1:7777.
    """
    if named is not None:
        return parse(named)
    if environ.get(SERVER_VARIABLE):
        try:
            return parse(environ[SERVER_VARIABLE], f"from {SERVER_VARIABLE}")
        except BadAddress as error:
            raise BadAddress(f"{SERVER_VARIABLE}: {error}") from None
    candidates = socket_candidates(environ, euid)
    for path in candidates:
        if _is_socket(path):
            return Address(path=path)
    origin = f"the default, as there is no socket at {' or '.join(candidates)}"
    return Address(host=DEFAULT_HOST, origin=origin)


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:  # ENOENT, ENOTDIR, EACCES, ELOOP: none that this user could connect to
        return False


def secured(found: Address, named: Mapping[str, str], environ: Mapping[str, str]) -> Address:
    """The same with the files of TLS: ``named`` by --tls-ca, --tls-cert and --tls-key, else by variables.

    Whoever names files wants TLS: HOST then means tls://HOST. Raises BadAddress where none can be spoken, and
    where there is no certificate of ours, which taskmasterd asks everybody for.
    """
    if named and not found.scheme and not found.path:
        found.scheme = TLS
    if found.scheme != TLS:
        if named:
            raise BadAddress(
                f"TLS is spoken with a host (-c HOST or tls://HOST), and {found} is none: no --tls-… there"
            )
        return found
    files = {key: environ.get(variable, "") for key, variable in TLS_VARIABLES.items()} | dict(
        named
    )
    if not files["cert"]:
        raise BadAddress(
            f"{found}: taskmasterd asks for a certificate; name yours with --tls-cert FILE and "
            f"--tls-key FILE, or with {TLS_VARIABLES['cert']} and {TLS_VARIABLES['key']}"
        )
    found.tls = TlsFiles(**files)
    return found
